/* Encodes and checks frames, side by side. */
#include "channel/record.h"

#include <isa-l/crc.h>
#include <stdatomic.h>
#include <string.h>

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes)
{
    /* ISA-L neither inverts nor takes const; lengths here stay far below INT_MAX. */
    return ~crc32_iscsi((unsigned char *)(uintptr_t)data, (int)bytes, ~crc);
}

uint32_t crc32c_keyed(uint64_t key, const void *data, size_t bytes)
{
    return crc32c(crc32c(0, &key, sizeof(key)), data, bytes);
}

static uint32_t frame_crc(const uint8_t *frame, uint64_t key, uint64_t bytes)
{
    uint32_t crc = crc32c_keyed(key, frame, offsetof(struct frame_header, crc));

    return crc32c(crc, frame + sizeof(struct frame_header), bytes - sizeof(struct frame_header));
}

/* ---- encode ---- */

static void seal(uint8_t *frame, uint64_t key, const struct frame_header *content, uint64_t whole_bytes)
{
    struct frame_header *header = (struct frame_header *)frame;

    *header = *content;
    *(uint64_t *)(frame + whole_bytes - sizeof(uint64_t)) = key ^ content->lsn;
    header->crc = frame_crc(frame, key, whole_bytes);
}

void frame_seal(void *frame, uint64_t key, uint64_t lsn, uint64_t position, uint16_t kind, uint32_t bytes)
{
    uint64_t whole_bytes = frame_bytes(bytes), used = sizeof(struct frame_header) + bytes;
    struct frame_header header = { .magic = { 'F', 'R' }, .version = WIRE_VERSION, .kind = kind, .lsn = lsn,
                                   .position = position, .bytes = bytes };

    memset((uint8_t *)frame + used, 0, whole_bytes - used);
    seal(frame, key, &header, whole_bytes);
}

void frame_seal_pad(void *frame, uint64_t key, uint64_t lsn, uint64_t skip_bytes)
{
    struct frame_header header = { .magic = { 'F', 'R' }, .version = WIRE_VERSION, .flags = FRAME_FLAG_PAD,
                                   .lsn = lsn, .bytes = (uint32_t)skip_bytes };

    memset(frame, 0, FRAME_ALIGN_BYTES);
    seal(frame, key, &header, FRAME_ALIGN_BYTES);
}

/* ---- check ---- */

enum frame_state frame_look(const void *frame, uint64_t room_bytes, uint64_t key, uint64_t lsn,
                            struct channel_record *record, uint64_t *bytes)
{
    const struct frame_header *header = frame;
    uint64_t whole_bytes, end;
    uint32_t payload_bytes;
    bool pad;

    if (room_bytes < FRAME_ALIGN_BYTES)
        return FRAME_ABSENT;
    /* Relaxed: a NIC is no thread, so nothing here orders with it but the checksum: only if all bytes were in
     * place when they were summed does it come out right, whatever order they came in. The look at the
     * sequence word merely saves the sum while a frame is still on its way. */
    if (atomic_load_explicit((const _Atomic uint64_t *)&header->lsn, memory_order_relaxed) != lsn)
        return FRAME_ABSENT;
    pad = header->flags == FRAME_FLAG_PAD;
    payload_bytes = atomic_load_explicit((const _Atomic uint32_t *)&header->bytes, memory_order_relaxed);
    whole_bytes = pad ? FRAME_ALIGN_BYTES : frame_bytes(payload_bytes);
    if (!pad && (payload_bytes > CHANNEL_PAYLOAD_MAX_BYTES || whole_bytes > room_bytes))
        return FRAME_DAMAGED;
    end = atomic_load_explicit((const _Atomic uint64_t *)((const uint8_t *)frame + whole_bytes - sizeof(uint64_t)),
                               memory_order_acquire); /* keeps the reads below from being made before it */
    if (end != (key ^ lsn))
        return FRAME_TORN;
    if (frame_crc(frame, key, whole_bytes) !=
        atomic_load_explicit((const _Atomic uint32_t *)&header->crc, memory_order_relaxed))
        return FRAME_DAMAGED;
    /* Under the checksum and still not ours: another version, or a sender with a fault. */
    if (header->magic[0] != 'F' || header->magic[1] != 'R' || header->version != WIRE_VERSION || header->zero != 0 ||
        (header->flags & ~FRAME_FLAG_PAD) != 0 || header->bytes != payload_bytes)
        return FRAME_DAMAGED;
    if (pad) {
        if (payload_bytes < FRAME_ALIGN_BYTES || payload_bytes % FRAME_ALIGN_BYTES != 0 || payload_bytes > room_bytes)
            return FRAME_DAMAGED;
        *bytes = payload_bytes;
        return FRAME_PAD;
    }
    record->lsn = lsn;
    record->position = header->position;
    record->kind = header->kind;
    record->bytes = payload_bytes;
    record->payload = (const uint8_t *)frame + sizeof(struct frame_header);
    *bytes = whole_bytes;
    return FRAME_COMPLETE;
}
