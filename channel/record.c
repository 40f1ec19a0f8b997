/* Encodes and checks frames, side by side; record_path.h has the short way of both. */
#include "channel/record_path.h"

#include <isa-l/crc.h>

/*
 * The checksum has two ways. ISA-L's takes 20 ns to begin, then is fast; the CPU's own CRC-32C instruction (SSE4.2) is
 * faster for less than about 300 bytes, and most records are far shorter. A CPU without it takes ISA-L's for all.
 */
uint64_t frame_short_bytes;

__attribute__((constructor)) static void crc_choose(void)
{
    __builtin_cpu_init();
    frame_short_bytes = __builtin_cpu_supports("sse4.2") ? FRAME_SHORT_BYTES : 0;
}

/* Neither inverts. ISA-L does not take const; lengths here stay far below INT_MAX. */
static uint32_t crc_long(uint32_t crc, const void *data, size_t bytes)
{
    return crc32_iscsi((unsigned char *)(uintptr_t)data, (int)bytes, crc);
}

/* As frame_crc_short. */
__attribute__((no_sanitize("thread"))) static uint32_t crc_short(uint32_t crc, const uint8_t *data, size_t bytes)
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

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes)
{
    if (bytes < frame_short_bytes)
        return ~crc_short(~crc, data, bytes);
    return ~crc_long(~crc, data, bytes);
}

uint32_t crc32c_keyed(uint64_t key, const void *data, size_t bytes)
{
    return crc32c(crc32c(0, &key, sizeof(key)), data, bytes);
}

/* Of a frame of any length. */
static uint32_t frame_crc(uint64_t kind, uint64_t lsn, uint64_t position, uint32_t bytes, uint64_t key,
                          const uint8_t *frame, uint64_t whole_bytes)
{
    const uint64_t header[4] = { kind, lsn, position, bytes }; /* what stands before its checksum is summed */
    const uint8_t *rest = frame + sizeof(struct frame_header);
    uint64_t rest_bytes = whole_bytes - sizeof(struct frame_header);

    if (frame_is_short(whole_bytes))
        return frame_crc_short(kind, lsn, position, bytes, key, frame, whole_bytes);
    if (frame_short_bytes != 0)
        return ~crc_long(frame_crc_begin(kind, lsn, position, bytes, key), rest, rest_bytes);
    return crc32c(crc32c_keyed(key, header, offsetof(struct frame_header, crc)), rest, rest_bytes);
}

/* ---- encode ---- */

static void header_write(uint64_t *words, uint64_t kind, uint64_t lsn, uint64_t position, uint32_t bytes, uint64_t crc)
{
    words[0] = kind;
    words[1] = lsn;
    words[2] = position;
    words[3] = bytes | crc << 32;
}

void frame_seal(void *frame, uint64_t key, uint64_t lsn, uint64_t position, uint16_t kind, uint32_t bytes)
{
    uint64_t whole_bytes = frame_bytes(bytes), used = sizeof(struct frame_header) + bytes, *words = frame;

    if (used < whole_bytes - sizeof(uint64_t))
        memset((uint8_t *)frame + used, 0, whole_bytes - sizeof(uint64_t) - used);
    if (frame_is_short(whole_bytes)) {
        frame_seal_short(frame, key, lsn, position, kind, bytes);
        return;
    }
    words[whole_bytes / sizeof(uint64_t) - 1] = key ^ lsn;
    header_write(words, kind_word(0, kind), lsn, position, bytes,
                 frame_crc(kind_word(0, kind), lsn, position, bytes, key, frame, whole_bytes));
}

void frame_seal_pad(void *frame, uint64_t key, uint64_t lsn, uint64_t skip_bytes)
{
    uint64_t kind = kind_word(FRAME_FLAG_PAD, 0), *words = frame;

    memset(frame, 0, FRAME_ALIGN_BYTES);
    words[FRAME_ALIGN_BYTES / sizeof(uint64_t) - 1] = key ^ lsn;
    header_write(words, kind, lsn, 0, (uint32_t)skip_bytes,
                 frame_crc(kind, lsn, 0, (uint32_t)skip_bytes, key, frame, FRAME_ALIGN_BYTES));
}

/* ---- check ---- */

enum frame_state frame_judge(const void *frame, uint64_t room_bytes, uint64_t key, uint64_t lsn,
                             struct channel_record *record, uint64_t *bytes)
{
    const _Atomic uint64_t *words = frame;
    uint64_t kind, position, last, whole_bytes, end;
    uint32_t payload_bytes;
    bool pad;

    if (room_bytes < FRAME_ALIGN_BYTES)
        return FRAME_ABSENT;
    /* Relaxed: as in frame_look_short. */
    if (atomic_load_explicit(&words[1], memory_order_relaxed) != lsn)
        return FRAME_ABSENT;
    kind = atomic_load_explicit(&words[0], memory_order_relaxed);
    last = atomic_load_explicit(&words[3], memory_order_relaxed);
    payload_bytes = (uint32_t)last;
    pad = (uint8_t)(kind >> 24) == FRAME_FLAG_PAD;
    whole_bytes = pad ? FRAME_ALIGN_BYTES : frame_bytes(payload_bytes);
    if (!pad && (payload_bytes > CHANNEL_PAYLOAD_MAX_BYTES || whole_bytes > room_bytes))
        return FRAME_DAMAGED;
    end = atomic_load_explicit(&words[whole_bytes / sizeof(uint64_t) - 1],
                               memory_order_acquire); /* keeps the reads below from being made before it */
    if (end != (key ^ lsn))
        return FRAME_TORN;
    /* Once more, now that all should be there: what is used is what was summed. */
    kind = atomic_load_explicit(&words[0], memory_order_relaxed);
    position = atomic_load_explicit(&words[2], memory_order_relaxed);
    last = atomic_load_explicit(&words[3], memory_order_relaxed);
    if ((uint32_t)last != payload_bytes || ((uint8_t)(kind >> 24) == FRAME_FLAG_PAD) != pad)
        return FRAME_DAMAGED;
    if (frame_crc(kind, lsn, position, payload_bytes, key, frame, whole_bytes) != (uint32_t)(last >> 32))
        return FRAME_DAMAGED;
    /* Under the checksum and still not ours: another version, or a sender with a fault. */
    if (kind != kind_word(pad ? FRAME_FLAG_PAD : 0, (uint16_t)(kind >> 32)))
        return FRAME_DAMAGED;
    if (pad) {
        if (payload_bytes < FRAME_ALIGN_BYTES || payload_bytes % FRAME_ALIGN_BYTES != 0 || payload_bytes > room_bytes)
            return FRAME_DAMAGED;
        *bytes = payload_bytes;
        return FRAME_PAD;
    }
    frame_tell(frame, lsn, &(struct frame_found){ kind, position, last, whole_bytes }, record);
    *bytes = whole_bytes;
    return FRAME_COMPLETE;
}

enum frame_state frame_look(const void *frame, uint64_t room_bytes, uint64_t key, uint64_t lsn,
                            struct channel_record *record, uint64_t *bytes)
{
    struct frame_found found;
    enum frame_state state = frame_look_short(frame, room_bytes, key, lsn, &found);

    if (state == FRAME_DAMAGED)
        return frame_judge(frame, room_bytes, key, lsn, record, bytes);
    if (state == FRAME_COMPLETE) {
        frame_tell(frame, lsn, &found, record);
        *bytes = found.whole_bytes;
    }
    return state;
}
