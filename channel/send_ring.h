/*
 * The sender's side of a ring: records are built in place, sealed and published. One thread reserves and
 * commits; a link reads what is committed and makes it travel.
 *
 * Indices count bytes since the beginning and never wrap; index & (ring_bytes - 1) is the place in the ring.
 * No frame straddles the ring's end: a pad frame fills it.
 */
#ifndef FTVMM_CHANNEL_SEND_RING_H
#define FTVMM_CHANNEL_SEND_RING_H

#include "channel/record.h"
#include "channel/ring_memory.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

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
    uint64_t cached_credit;                 /* credit->bytes as last read */
    uint64_t next_lsn;
    uint64_t open_index; /* of the open frame; UINT64_MAX: none */
    uint64_t open_position;
    uint32_t open_bytes;
    uint16_t open_kind;
    _Atomic uint64_t stalls;

    /* Written by the committing thread, read by all. */
    alignas(RING_LINE_BYTES) _Atomic uint64_t committed; /* index; always the end of a record's frame, or 0 */
    _Atomic uint64_t committed_lsn;
};

/* `base`: ring_bytes of memory, 64-byte aligned, owned by the caller. */
void send_ring_init(struct send_ring *ring, void *base, uint64_t ring_bytes, uint64_t key,
                    struct ring_credit *credit);

/* Committing thread. Opens a record; a record opened before and not committed is forgotten. 0; -EAGAIN: full;
 * -EMSGSIZE; -EPIPE: the credit is impossible, the receiver is at fault. */
int send_ring_reserve(struct send_ring *ring, uint16_t kind, uint64_t position, size_t bytes, void **payload);
/* Committing thread. Seals and publishes the open record; returns its LSN. */
uint64_t send_ring_commit(struct send_ring *ring);
/* Committing thread, of links where another thread sends too: publishes once more, in the one order that post_turn.h
 * needs. */
static inline void send_ring_publish(struct send_ring *ring)
{
    /* S2, pairs with P1 in post_turn.h. Sequentially consistent, not merely release: this store is ordered with the look
     * at the turn that follows it. */
    atomic_store_explicit(&ring->committed, ring->head, memory_order_seq_cst);
}

/* The place of an index. */
static inline uint8_t *send_ring_at(const struct send_ring *ring, uint64_t index)
{
    return ring->base + (index & (ring->ring_bytes - 1));
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
