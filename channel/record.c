/* Encodes and checks frames, side by side. */
#include "channel/record.h"

#include <isa-l/crc.h>
#include <stdatomic.h>
#include <string.h>

/*
 * The checksum has two ways. ISA-L's takes 20 ns to begin, then is fast; the CPU's own CRC-32C instruction (SSE4.2) is
 * faster for less than about 300 bytes, and most records are far shorter. A CPU without it takes ISA-L's for all.
 */
#define CRC_SHORT_BYTES 256

static bool crc_instruction; /* the CPU has it */

__attribute__((constructor)) static void crc_choose(void)
{
    __builtin_cpu_init();
    crc_instruction = __builtin_cpu_supports("sse4.2");
}

/* Neither inverts. ISA-L does not take const; lengths here stay far below INT_MAX. */
static uint32_t crc_long(uint32_t crc, const void *data, size_t bytes)
{
    return crc32_iscsi((unsigned char *)(uintptr_t)data, (int)bytes, crc);
}

/* ThreadSanitizer is not to see these reads, as it does not see ISA-L's: what they find is judged by the result. */
__attribute__((target("sse4.2"), no_sanitize("thread"))) static inline uint32_t
crc_short(uint32_t crc, const uint8_t *data, size_t bytes)
{
    uint64_t wide = crc;

    for (; bytes >= sizeof(uint64_t); bytes -= sizeof(uint64_t), data += sizeof(uint64_t)) {
        uint64_t word;

        __builtin_memcpy(&word, data, sizeof(word));
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    for (; bytes > 0; bytes--)
        crc = __builtin_ia32_crc32qi(crc, *data++);
    return crc;
}

__attribute__((target("sse4.2"), noinline)) static uint32_t crc_short_call(uint32_t crc, const void *data,
                                                                           size_t bytes)
{
    return crc_short(crc, data, bytes);
}

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes)
{
    if (crc_instruction && bytes < CRC_SHORT_BYTES)
        return ~crc_short_call(~crc, data, bytes);
    return ~crc_long(~crc, data, bytes);
}

uint32_t crc32c_keyed(uint64_t key, const void *data, size_t bytes)
{
    return crc32c(crc32c(0, &key, sizeof(key)), data, bytes);
}

/* The header as it is summed: what stands before its checksum. */
struct header_words {
    uint64_t kind; /* magic, version, flags, kind, zero */
    uint64_t lsn, position;
    uint32_t bytes;
};
#define HEADER_WORDS_BYTES offsetof(struct frame_header, crc)
_Static_assert(HEADER_WORDS_BYTES == 3 * sizeof(uint64_t) + sizeof(uint32_t), "struct header_words is the header");

/* `rest`: what follows the header, `bytes` long, a multiple of 8. */
__attribute__((target("sse4.2"), no_sanitize("thread"))) static uint32_t
frame_crc_instruction(const struct header_words *header, uint64_t key, const uint8_t *rest, uint64_t bytes)
{
    uint64_t crc = __builtin_ia32_crc32di(UINT32_MAX, key);

    crc = __builtin_ia32_crc32di(crc, header->kind);
    crc = __builtin_ia32_crc32di(crc, header->lsn);
    crc = __builtin_ia32_crc32di(crc, header->position);
    crc = __builtin_ia32_crc32si((uint32_t)crc, header->bytes);
    return ~(bytes < CRC_SHORT_BYTES ? crc_short((uint32_t)crc, rest, bytes) : crc_long((uint32_t)crc, rest, bytes));
}

static uint32_t frame_crc(const struct header_words *header, uint64_t key, const uint8_t *rest, uint64_t bytes)
{
    return crc_instruction ? frame_crc_instruction(header, key, rest, bytes) :
                             crc32c(crc32c_keyed(key, header, HEADER_WORDS_BYTES), rest, bytes);
}

/* ---- encode ---- */

/* The first word of a header: as struct frame_header has it, in one piece. */
static inline uint64_t kind_word(enum frame_flag flags, uint16_t kind)
{
    return 'F' | 'R' << 8 | WIRE_VERSION << 16 | (uint64_t)flags << 24 | (uint64_t)kind << 32;
}

static void seal(uint8_t *frame, uint64_t key, const struct header_words *header, uint64_t whole_bytes)
{
    uint64_t *words = (uint64_t *)frame, crc;

    *(uint64_t *)(frame + whole_bytes - sizeof(uint64_t)) = key ^ header->lsn;
    crc = frame_crc(header, key, frame + sizeof(struct frame_header), whole_bytes - sizeof(struct frame_header));
    words[0] = header->kind;
    words[1] = header->lsn;
    words[2] = header->position;
    words[3] = header->bytes | crc << 32;
}

void frame_seal(void *frame, uint64_t key, uint64_t lsn, uint64_t position, uint16_t kind, uint32_t bytes)
{
    uint64_t whole_bytes = frame_bytes(bytes), used = sizeof(struct frame_header) + bytes;
    struct header_words header = { kind_word(0, kind), lsn, position, bytes };

    if (used < whole_bytes - sizeof(uint64_t))
        memset((uint8_t *)frame + used, 0, whole_bytes - sizeof(uint64_t) - used);
    seal(frame, key, &header, whole_bytes);
}

void frame_seal_pad(void *frame, uint64_t key, uint64_t lsn, uint64_t skip_bytes)
{
    struct header_words header = { kind_word(FRAME_FLAG_PAD, 0), lsn, 0, (uint32_t)skip_bytes };

    memset(frame, 0, FRAME_ALIGN_BYTES);
    seal(frame, key, &header, FRAME_ALIGN_BYTES);
}

/* ---- check ---- */

enum frame_state frame_look(const void *frame, uint64_t room_bytes, uint64_t key, uint64_t lsn,
                            struct channel_record *record, uint64_t *bytes)
{
    const _Atomic uint64_t *words = frame;
    struct header_words header;
    uint64_t whole_bytes, end, last;
    bool pad;

    if (room_bytes < FRAME_ALIGN_BYTES)
        return FRAME_ABSENT;
    /* Relaxed: a NIC is no thread, so nothing here orders with it but the checksum: only if all bytes were in
     * place when they were summed does it come out right, whatever order they came in. The look at the
     * sequence word merely saves the sum while a frame is still on its way. */
    header.lsn = atomic_load_explicit(&words[1], memory_order_relaxed);
    if (header.lsn != lsn)
        return FRAME_ABSENT;
    header.kind = atomic_load_explicit(&words[0], memory_order_relaxed);
    last = atomic_load_explicit(&words[3], memory_order_relaxed);
    header.bytes = (uint32_t)last;
    pad = (uint8_t)(header.kind >> 24) == FRAME_FLAG_PAD;
    whole_bytes = pad ? FRAME_ALIGN_BYTES : frame_bytes(header.bytes);
    if (!pad && (header.bytes > CHANNEL_PAYLOAD_MAX_BYTES || whole_bytes > room_bytes))
        return FRAME_DAMAGED;
    end = atomic_load_explicit((const _Atomic uint64_t *)((const uint8_t *)frame + whole_bytes - sizeof(uint64_t)),
                               memory_order_acquire); /* keeps the reads below from being made before it */
    if (end != (key ^ lsn))
        return FRAME_TORN;
    /* Once more, now that all should be there: what is used is what was summed. */
    header.kind = atomic_load_explicit(&words[0], memory_order_relaxed);
    header.position = atomic_load_explicit(&words[2], memory_order_relaxed);
    last = atomic_load_explicit(&words[3], memory_order_relaxed);
    if ((uint32_t)last != header.bytes || ((uint8_t)(header.kind >> 24) == FRAME_FLAG_PAD) != pad)
        return FRAME_DAMAGED;
    if (frame_crc(&header, key, (const uint8_t *)frame + sizeof(struct frame_header),
                  whole_bytes - sizeof(struct frame_header)) != (uint32_t)(last >> 32))
        return FRAME_DAMAGED;
    /* Under the checksum and still not ours: another version, or a sender with a fault. */
    if (header.kind != kind_word(pad ? FRAME_FLAG_PAD : 0, (uint16_t)(header.kind >> 32)))
        return FRAME_DAMAGED;
    if (pad) {
        if (header.bytes < FRAME_ALIGN_BYTES || header.bytes % FRAME_ALIGN_BYTES != 0 || header.bytes > room_bytes)
            return FRAME_DAMAGED;
        *bytes = header.bytes;
        return FRAME_PAD;
    }
    record->lsn = lsn;
    record->position = header.position;
    record->kind = (uint16_t)(header.kind >> 32);
    record->bytes = header.bytes;
    record->payload = (const uint8_t *)frame + sizeof(struct frame_header);
    *bytes = whole_bytes;
    return FRAME_COMPLETE;
}
