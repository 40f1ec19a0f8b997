/*
 * The frame: how one record lies in a ring or a log file. docs/wire-format.md draws it.
 *
 * A frame is a multiple of 64 bytes: a 32-byte header, the payload, zero padding, and in its last eight
 * bytes the sequence word. CRC-32C covers everything but itself. All integers are little-endian.
 *
 * The sequence word is key ^ LSN, where `key` is a random number that the ends agree on when they join. Bytes
 * of an earlier lap, of an earlier generation, or chosen by a guest (its packets travel in payloads)
 * therefore never look like the frame that is due.
 */
#ifndef FTVMM_CHANNEL_RECORD_H
#define FTVMM_CHANNEL_RECORD_H

#include "channel/channel.h"

#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION      2u /* of frames, control blocks, joining messages and log files alike */
#define FRAME_ALIGN_BYTES 64u
#define FRAME_MAX_BYTES   (CHANNEL_PAYLOAD_MAX_BYTES + FRAME_ALIGN_BYTES)

enum frame_flag {
    FRAME_FLAG_PAD = 1, /* no record: `bytes` counts from the frame's start to the end of the ring */
};

struct frame_header {
    uint8_t magic[2]; /* 'F', 'R' */
    uint8_t version;  /* WIRE_VERSION */
    uint8_t flags;    /* enum frame_flag */
    uint16_t kind;    /* the caller's */
    uint16_t zero;
    uint64_t lsn;      /* of the record; of a pad: of the record behind it */
    uint64_t position; /* the caller's */
    uint32_t bytes;    /* of payload; of a pad: see FRAME_FLAG_PAD */
    uint32_t crc;      /* CRC-32C of the frame without this field, begun with both halves of the key */
};
_Static_assert(sizeof(struct frame_header) == 32, "the frame header is part of the wire format");

enum frame_state {
    FRAME_COMPLETE, /* the record due, whole */
    FRAME_PAD,      /* go on at the ring's start */
    FRAME_ABSENT,   /* nothing with the LSN due begins here */
    FRAME_TORN,     /* it has begun to arrive; its end is missing */
    FRAME_DAMAGED,  /* begin and end are there, but they do not fit each other or the checksum */
};

/* Bytes of the frame of a record with `payload_bytes` of payload. */
static inline uint64_t frame_bytes(uint64_t payload_bytes)
{
    uint64_t bytes = sizeof(struct frame_header) + payload_bytes + sizeof(uint64_t);

    return (bytes + FRAME_ALIGN_BYTES - 1) & ~(uint64_t)(FRAME_ALIGN_BYTES - 1);
}

/* Makes a frame around the payload, which lies at frame + sizeof(struct frame_header) already. `frame` is
 * 64-byte aligned and has room for frame_bytes(bytes). */
void frame_seal(void *frame, uint64_t key, uint64_t lsn, uint64_t position, uint16_t kind, uint32_t bytes);
/* Makes a 64-byte pad frame that says: the next `skip_bytes` (64 or more, its own included) hold nothing. */
void frame_seal_pad(void *frame, uint64_t key, uint64_t lsn, uint64_t skip_bytes);

/* Looks for the record `lsn` at `frame`, behind which `room_bytes` (a multiple of 64) can be read. The memory
 * may be written by a NIC meanwhile. COMPLETE fills *record; COMPLETE and PAD set *bytes to the frame's
 * length (PAD: to skip_bytes). */
enum frame_state frame_look(const void *frame, uint64_t room_bytes, uint64_t key, uint64_t lsn,
                            struct channel_record *record, uint64_t *bytes);

/* The LSN of the record whose frame ends at `end`; for our own ring only. */
static inline uint64_t frame_lsn_before(const void *end, uint64_t key)
{
    return *((const uint64_t *)end - 1) ^ key;
}

/* CRC-32C (Castagnoli) of `bytes` at `data`, continuing from `crc`; 0 to begin. RFC 3720, appendix B.4. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);
/* The same, begun with the key: what control blocks and file headers carry. */
uint32_t crc32c_keyed(uint64_t key, const void *data, size_t bytes);

#endif
