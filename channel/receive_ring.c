/* What is seldom needed to find records in the ring; the rest is in receive_ring.h. */
#include "channel/receive_ring.h"

#include <string.h>

void receive_ring_init(struct receive_ring *ring, const void *base, uint64_t ring_bytes, uint64_t key,
                       struct ring_credit *credit)
{
    memset(ring, 0, sizeof(*ring));
    ring->base = base;
    ring->ring_bytes = ring_bytes;
    ring->key = key;
    ring->credit = credit;
    ring->next_lsn = 1;
}

enum frame_state receive_ring_look_again(struct receive_ring *ring, uint64_t available_bytes,
                                         struct channel_record *record)
{
    if (ring->current_bytes != 0) {
        *record = ring->current;
        return FRAME_COMPLETE;
    }
    /* Twice at most: a pad is followed by a record at the ring's start, never by another pad. */
    for (int pads = 0; pads < 2; pads++) {
        uint64_t offset = ring->index & (ring->ring_bytes - 1), room = ring->ring_bytes - offset, bytes = 0;
        enum frame_state state;

        if (room > available_bytes)
            room = available_bytes;
        state = frame_judge(ring->base + offset, room, ring->key, ring->next_lsn, &ring->current, &bytes);
        if (state == FRAME_PAD) {
            if (offset + bytes != ring->ring_bytes)
                return FRAME_DAMAGED;
            ring->index += bytes;
            /* As R1 in receive_ring.h. */
            atomic_store_explicit(&ring->credit->bytes, ring->index, memory_order_release);
            if (available_bytes != UINT64_MAX)
                available_bytes -= bytes;
            continue;
        }
        if (state == FRAME_COMPLETE) {
            ring->current_bytes = bytes;
            *record = ring->current;
        }
        return state;
    }
    return FRAME_DAMAGED;
}

void receive_ring_skip(struct receive_ring *ring, uint64_t index, uint64_t lsn)
{
    ring->current_bytes = 0;
    ring->index = index;
    ring->next_lsn = lsn + 1;
    /* As in receive_ring_consume. */
    atomic_store_explicit(&ring->credit->bytes, index, memory_order_release);
    atomic_store_explicit(&ring->credit->lsn, lsn, memory_order_release);
}
