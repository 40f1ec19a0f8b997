/*
 * Sealing and checking the frame of a short record, inline for the two rings: most records are short, and a record's
 * price is the instructions spent here. What a frame must be is decided in record.c: this file seals by the same rules,
 * and takes a frame for whole only if frame_look would; when it does not, frame_look's is the verdict.
 */
#ifndef FTVMM_CHANNEL_RECORD_PATH_H
#define FTVMM_CHANNEL_RECORD_PATH_H

#include "channel/record.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

/*
 * Whole frames of at most so many bytes are short: summed by the CPU's CRC-32C instruction (SSE4.2). Above, ISA-L's
 * way, which takes 20 ns to begin, is faster. 0 on a CPU without the instruction. Constant after start.
 */
#define FRAME_SHORT_BYTES 256u
__attribute__((visibility("hidden"))) extern uint64_t frame_short_bytes;

/* The first word of a header: as struct frame_header has it, in one piece. */
static inline uint64_t kind_word(enum frame_flag flags, uint16_t kind)
{
    return 'F' | 'R' << 8 | WIRE_VERSION << 16 | (uint64_t)flags << 24 | (uint64_t)kind << 32;
}
#define KIND_WORD_FIXED UINT64_C(0xffff0000ffffffff) /* all of it but the caller's kind */

/* The checksum of the key and the header, to be continued. Needs the CPU's instruction. */
static inline uint32_t frame_crc_begin(uint64_t kind, uint64_t lsn, uint64_t position, uint32_t bytes, uint64_t key)
{
    uint64_t crc = __builtin_ia32_crc32di(UINT32_MAX, key);

    crc = __builtin_ia32_crc32di(crc, kind);
    crc = __builtin_ia32_crc32di(crc, lsn);
    crc = __builtin_ia32_crc32di(crc, position);
    return __builtin_ia32_crc32si((uint32_t)crc, bytes);
}

/* CRC-32C of a short frame, as it stands in its header. ThreadSanitizer is not to see these reads, as it does not see
 * ISA-L's: what they find is judged by the result. */
__attribute__((no_sanitize("thread"))) static inline uint32_t
frame_crc_short(uint64_t kind, uint64_t lsn, uint64_t position, uint32_t bytes, uint64_t key, const uint8_t *frame,
                uint64_t whole_bytes)
{
    uint64_t crc = frame_crc_begin(kind, lsn, position, bytes, key);

    /* A frame is a multiple of 64 bytes, the header 32. */
    for (uint64_t at = sizeof(struct frame_header); at != whole_bytes; at += 32) {
        const uint64_t *words = (const uint64_t *)(frame + at);

        crc = __builtin_ia32_crc32di(crc, words[0]);
        crc = __builtin_ia32_crc32di(crc, words[1]);
        crc = __builtin_ia32_crc32di(crc, words[2]);
        crc = __builtin_ia32_crc32di(crc, words[3]);
    }
    return ~(uint32_t)crc;
}

/* ---- encode ---- */

/* Zeroes what padding there can be in a frame that is not filled yet. Without a call or a look at how long it is. */
static inline void frame_open(uint8_t *frame, uint64_t whole_bytes)
{
    memset(frame + whole_bytes - 32, 0, 32);
    if (__builtin_expect(whole_bytes > FRAME_ALIGN_BYTES, false))
        memset(frame + whole_bytes - FRAME_ALIGN_BYTES, 0, 32);
}

static inline bool frame_is_short(uint64_t whole_bytes)
{
    return __builtin_expect(whole_bytes <= frame_short_bytes, true);
}

/* frame_seal of a short frame whose padding is zero (frame_open). */
static inline void frame_seal_short(uint8_t *frame, uint64_t key, uint64_t lsn, uint64_t position, uint16_t kind,
                                    uint32_t bytes)
{
    uint64_t whole_bytes = frame_bytes(bytes), *words = (uint64_t *)frame, crc;

    words[whole_bytes / sizeof(uint64_t) - 1] = key ^ lsn;
    crc = frame_crc_short(kind_word(0, kind), lsn, position, bytes, key, frame, whole_bytes);
    words[0] = kind_word(0, kind);
    words[1] = lsn;
    words[2] = position;
    words[3] = bytes | crc << 32;
}

/* ---- check ---- */

/* What a whole short frame says. */
struct frame_found {
    uint64_t kind, position, last; /* words of its header */
    uint64_t whole_bytes;
};

/* frame_look of a short frame. FRAME_DAMAGED: it is not whole, or no short record; frame_look tells. */
static inline enum frame_state frame_look_short(const void *frame, uint64_t room_bytes, uint64_t key, uint64_t lsn,
                                                struct frame_found *found)
{
    const _Atomic uint64_t *words = frame;

    /* Relaxed: a NIC is no thread, so nothing here orders with it but the checksum: only if all bytes were in
     * place when they were summed does it come out right, whatever order they came in. The look at the
     * sequence word merely saves the sum while a frame is still on its way. */
    if (room_bytes < FRAME_ALIGN_BYTES || atomic_load_explicit(&words[1], memory_order_relaxed) != lsn)
        return FRAME_ABSENT;
    found->kind = atomic_load_explicit(&words[0], memory_order_relaxed);
    found->last = atomic_load_explicit(&words[3], memory_order_relaxed);
    found->whole_bytes = frame_bytes((uint32_t)found->last);
    if ((found->kind & KIND_WORD_FIXED) != kind_word(0, 0) || !frame_is_short(found->whole_bytes) ||
        found->whole_bytes > room_bytes)
        return FRAME_DAMAGED;
    /* Acquire keeps the reads below, and the caller's of the payload, from being made before it. */
    if (atomic_load_explicit(&words[found->whole_bytes / sizeof(uint64_t) - 1], memory_order_acquire) != (key ^ lsn))
        return FRAME_TORN;
    found->position = atomic_load_explicit(&words[2], memory_order_relaxed);
    /* What is used is what was summed. If it does not fit, the header may have been read before all of it had come. */
    return frame_crc_short(found->kind, lsn, found->position, (uint32_t)found->last, key, frame, found->whole_bytes) ==
                   (uint32_t)(found->last >> 32) ?
               FRAME_COMPLETE :
               FRAME_DAMAGED;
}

/* frame_look without the short way: frames of any length, every verdict. */
enum frame_state frame_judge(const void *frame, uint64_t room_bytes, uint64_t key, uint64_t lsn,
                             struct channel_record *record, uint64_t *bytes);

/* Field by field: a record copied as a whole would be read in other pieces than it was just written in. */
static inline void frame_tell(const void *frame, uint64_t lsn, const struct frame_found *found,
                              struct channel_record *record)
{
    record->lsn = lsn;
    record->position = found->position;
    record->kind = (uint16_t)(found->kind >> 32);
    record->bytes = (uint32_t)found->last;
    record->payload = (const uint8_t *)frame + sizeof(struct frame_header);
}

#endif
