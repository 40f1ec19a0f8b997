/*
 * The sender's side of a ring: records are built in place, sealed and published. One thread reserves and
 * commits; a link reads what is committed and makes it travel.
 *
 * Indices count bytes since the beginning and never wrap; index & (ring_bytes - 1) is the place in the ring.
 * No frame straddles the ring's end: a pad frame fills it.
 */
#ifndef FTVMM_CHANNEL_SEND_RING_H
#define FTVMM_CHANNEL_SEND_RING_H

#include "channel/record_path.h"
#include "channel/ring_memory.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

/* Of open_bytes; more than the payload of a short record both. */
#define SEND_RING_NOT_OPEN   UINT32_MAX
#define SEND_RING_BEHIND_PAD (1u << 31) /* at the ring's start, and the rest of the lap is to become a pad */

/* How far the receiver is. Written by the receiver (shm) or by the link on its behalf. */
struct ring_credit {
    alignas(RING_LINE_BYTES) _Atomic uint64_t bytes; /* index up to which the ring may be overwritten */
    _Atomic uint64_t lsn;                            /* highest LSN consumed */
};

struct send_ring {
    /* Constant after init. */
    uint8_t *base;
    uint64_t ring_bytes; /* a power of two, >= 2 * FRAME_MAX_BYTES */
    uint64_t key;
    struct ring_credit *credit;

    /* The committing thread's. */
    alignas(RING_LINE_BYTES) uint64_t head; /* where the next frame begins */
    uint8_t *place;         /* of head, once send_ring_open has said that there is room */
    uint64_t limit;         /* up to here a frame may reach: nobody needs the old bytes, and the lap does not end */
    uint64_t next_lsn;
    uint64_t open_position;
    uint32_t open_bytes;    /* of the open record's payload; or as above */
    uint16_t open_kind;
    _Atomic uint64_t stalls;

    /* Written by the committing thread, read by all. */
    alignas(RING_LINE_BYTES) _Atomic uint64_t committed; /* index; always the end of a record's frame, or 0 */
    _Atomic uint64_t committed_lsn;
};

/* `base`: ring_bytes of memory, 64-byte aligned, owned by the caller. */
void send_ring_init(struct send_ring *ring, void *base, uint64_t ring_bytes, uint64_t key,
                    struct ring_credit *credit);

/* The place of an index. */
static inline uint8_t *send_ring_at(const struct send_ring *ring, uint64_t index)
{
    return ring->base + (index & (ring->ring_bytes - 1));
}

/* Committing thread. Opens a record; a record opened before and not committed is forgotten. 0; -EAGAIN: full;
 * -EMSGSIZE; -EPIPE: the credit is impossible, the receiver is at fault. */
int send_ring_reserve(struct send_ring *ring, uint16_t kind, uint64_t position, size_t bytes, void **payload);
/* Committing thread. Seals and publishes the open record; returns its LSN. */
uint64_t send_ring_commit(struct send_ring *ring);

/* The next two are the same, for all but few records. They are what a record costs: inline, without a call. As all of
 * the ring they allocate nothing, take no lock, make no system call. */

/* False: there is no such room by the credit as last read, or in this lap; send_ring_reserve tells. */
static inline bool send_ring_open(struct send_ring *ring, uint16_t kind, uint64_t position, size_t bytes,
                                  void **payload)
{
    uint64_t whole_bytes = frame_bytes(bytes);

    if (__builtin_expect(bytes > CHANNEL_PAYLOAD_MAX_BYTES || ring->head + whole_bytes > ring->limit, false))
        return false;
    frame_open(ring->place, whole_bytes);
    ring->open_kind = kind;
    ring->open_position = position;
    ring->open_bytes = (uint32_t)bytes;
    *payload = ring->place + sizeof(struct frame_header);
    return true;
}

/* The open record is sealed, at `place`: publishes it. For the two that commit. */
static inline void send_ring_close(struct send_ring *ring, uint64_t index, uint8_t *place, uint64_t whole_bytes)
{
    uint64_t lsn = ring->next_lsn, end = index + whole_bytes;

    ring->head = end;
    ring->place = place + whole_bytes;
    ring->next_lsn = lsn + 1;
    ring->open_bytes = SEND_RING_NOT_OPEN;
    /* A3. First the LSN, so that no thread ever sees an ack beyond it. release: with what the caller did before. */
    atomic_store_explicit(&ring->committed_lsn, lsn, memory_order_release);
    /* S3 release: the frame's bytes before its publication. Plain on x86: a locked instruction would wait until the
     * frame's cache line has come from the other CPU, each time. */
    atomic_store_explicit(&ring->committed, end, memory_order_release);
}

/* False: it is long, lies behind a pad, or was never opened; send_ring_commit is for these. */
static inline bool send_ring_commit_short(struct send_ring *ring)
{
    uint64_t whole_bytes = frame_bytes(ring->open_bytes);

    if (!frame_is_short(whole_bytes))
        return false;
    frame_seal_short(ring->place, ring->key, ring->next_lsn, ring->open_position, ring->open_kind, ring->open_bytes);
    send_ring_close(ring, ring->head, ring->place, whole_bytes);
    return true;
}

/* Committing thread, of links where another thread sends too: publishes once more, in the one order that post_turn.h
 * needs. */
static inline void send_ring_publish(struct send_ring *ring)
{
    /* S2, pairs with P1 in post_turn.h. Sequentially consistent, not merely release: this store is ordered with the look
     * at the turn that follows it. */
    atomic_store_explicit(&ring->committed, ring->head, memory_order_seq_cst);
}

/* The end of the last record that lies wholly within [from, from + at_most_bytes), or of the first one if it is
 * longer. `to` is the end of a record, committed; so is `from`. */
uint64_t send_ring_cut(const struct send_ring *ring, uint64_t from, uint64_t to, uint64_t at_most_bytes);

/* The LSN of the record that ends at `index`, which is committed and not yet credited. */
static inline uint64_t send_ring_lsn_before(const struct send_ring *ring, uint64_t index)
{
    /* index - 64: the frame's last 64 bytes lie in front of the ring's end, not at its start. */
    return frame_lsn_before(send_ring_at(ring, index - FRAME_ALIGN_BYTES) + FRAME_ALIGN_BYTES, ring->key);
}

#endif
