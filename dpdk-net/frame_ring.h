/*
 * Frames that cross between two threads: a single-producer single-consumer ring of slots, and one of bytes beside it,
 * since a frame may be 60 bytes long or 64 KiB.
 *
 * The bytes are the ring's own memory and not mbufs, on purpose. An mbuf comes from a mempool, whose
 * per-thread caches exist only for EAL's threads and whose ring is not safe to preempt when several
 * threads share it. So only the I/O thread ever touches the mempool, the machine thread writes plain
 * memory, and a frame is copied once more when it leaves (about 50 ns for a full one). It also keeps
 * this file free of DPDK, so that ThreadSanitizer can see all of it.
 */
#ifndef FTVMM_DPDK_NET_FRAME_RING_H
#define FTVMM_DPDK_NET_FRAME_RING_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dpdk-net/net.h"

struct frame_slot {
    uint64_t number;    /* hold queue: the frame's number */
    uint64_t lsn;       /* hold queue: goes out when this is acked */
    uint64_t queued_ns; /* when it was put here */
    uint64_t room_end;  /* producer: when this slot is released, the byte ring is free up to here */
    uint8_t *data;      /* in the byte ring, in one piece */
    uint32_t bytes;
    struct net_offload offload; /* hold queue */
    bool checksum_right;        /* receive queue: the guest need not look */
};

/* Indices run freely; 128 bytes apart because adjacent lines are prefetched in pairs. */
struct frame_ring {
    alignas(128) _Atomic uint64_t tail; /* producer: slots published */
    uint64_t head_seen;                 /* producer's copy of head */
    uint64_t room_tail;                 /* producer: bytes given out so far, ... */
    uint64_t room_head_seen;            /* ... and those that the consumer had given back at head_seen */
    alignas(128) _Atomic uint64_t head; /* consumer: slots released */
    uint64_t tail_seen;                 /* consumer's copy of tail */
    alignas(128) struct frame_slot *slots;
    uint64_t mask;
    uint8_t *room;
    uint64_t room_mask;
};

/* Room for `capacity` frames (a power of two) of `frame_bytes` on average, or fewer that are longer; always for one of
 * NET_SEGMENTED_MAX_BYTES. Touches every page, so that no fault happens later. 0 or -ENOMEM. */
int frame_ring_init(struct frame_ring *ring, uint32_t capacity, uint32_t frame_bytes);
void frame_ring_fini(struct frame_ring *ring); /* accepts a zeroed one */

/* ---- producer ---- */

/* Looks what the consumer has given back. */
static inline void frame_ring_refresh(struct frame_ring *ring)
{
    /* A2 pairs R2: the consumer is done reading what we are about to overwrite */
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);

    if (head == ring->head_seen)
        return;
    ring->head_seen = head;
    /* Not overwritten yet: tail went at most a ringful beyond the head of before, which is behind this one. */
    ring->room_head_seen = ring->slots[(head - 1) & ring->mask].room_end;
}

/* If the consumer has given back everything, the bytes begin anew: a ring that is mostly empty then uses few cache
 * lines over and over instead of all its memory in turn. Looks at the consumer's line, so not for every frame. */
static inline void frame_ring_rewind(struct frame_ring *ring)
{
    frame_ring_refresh(ring);
    /* relaxed: only this thread writes tail */
    if (ring->head_seen == atomic_load_explicit(&ring->tail, memory_order_relaxed))
        ring->room_tail = ring->room_head_seen = (ring->room_tail + ring->room_mask) & ~ring->room_mask;
}

/* True if `frames` more and `bytes` in all fit for certain. */
static inline bool frame_ring_has_room(struct frame_ring *ring, uint64_t frames, uint64_t bytes)
{
    /* relaxed: only this thread writes tail */
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);

    for (int look = 0; look < 2; look++) {
        if (tail - ring->head_seen + frames <= ring->mask + 1 &&
            ring->room_tail - ring->room_head_seen + bytes <= ring->room_mask + 1)
            return true;
        frame_ring_refresh(ring);
    }
    return false;
}

/* The next slot to fill, with `bytes` (1 to NET_SEGMENTED_MAX_BYTES) of room for its data, or NULL when the ring is full. */
static inline struct frame_slot *frame_ring_reserve(struct frame_ring *ring, uint32_t bytes)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed), start = ring->room_tail, skipped = 0;
    struct frame_slot *slot;

    if ((start & ring->room_mask) + bytes > ring->room_mask + 1) /* in one piece, so not across the end */
        skipped = ring->room_mask + 1 - (start & ring->room_mask);
    if (!frame_ring_has_room(ring, 1, skipped + bytes))
        return NULL;
    slot = &ring->slots[tail & ring->mask];
    slot->bytes = bytes;
    slot->data = ring->room + ((start + skipped) & ring->room_mask);
    slot->room_end = (start + skipped + bytes + 15) & ~UINT64_C(15);
    return slot;
}

static inline void frame_ring_publish(struct frame_ring *ring)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);

    ring->room_tail = ring->slots[tail & ring->mask].room_end;
    /* R1 pairs A1: the slot's contents before tail */
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
}

/* ---- consumer ---- */

/* The slot `offset` places behind the oldest, or NULL when there is none (yet). */
static inline const struct frame_slot *frame_ring_at(struct frame_ring *ring, uint64_t offset)
{
    /* relaxed: only this thread writes head */
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);

    if (head + offset >= ring->tail_seen) {
        /* A1 pairs R1 */
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
        if (head + offset >= ring->tail_seen)
            return NULL;
    }
    return &ring->slots[(head + offset) & ring->mask];
}

/* Gives back the `count` oldest slots. */
static inline void frame_ring_release(struct frame_ring *ring, uint64_t count)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);

    /* R2 pairs A2: our reads of the slots before head */
    atomic_store_explicit(&ring->head, head + count, memory_order_release);
}

/* ---- any thread ---- */

/* True if a slot is published and not released, at some moment during the call. */
static inline bool frame_ring_waiting(const struct frame_ring *ring)
{
    /* head first: it never passes tail, so a stale head can only say "waiting" once too often, and the
     * consumer looks for itself. Acquire on both keeps the two loads in this order. */
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);

    return atomic_load_explicit(&ring->tail, memory_order_acquire) != head;
}

#endif
