/*
 * The receiver's side of a ring: finds the record that is due, checks it, and gives its place back. One
 * thread looks and consumes.
 */
#ifndef FTVMM_CHANNEL_RECEIVE_RING_H
#define FTVMM_CHANNEL_RECEIVE_RING_H

#include "channel/record.h"
#include "channel/send_ring.h"

struct receive_ring {
    const uint8_t *base;
    uint64_t ring_bytes; /* as the sender's */
    uint64_t key;
    struct ring_credit *credit; /* where we say how far we are; in the sender's reach, or the link's own */

    uint64_t index;    /* of the frame that is due */
    uint64_t next_lsn; /* its LSN */
    uint64_t current_bytes; /* of the frame found and not yet consumed; 0: none */
    struct channel_record current;
};

/* `base`: ring_bytes of memory, 64-byte aligned, owned by the caller. */
void receive_ring_init(struct receive_ring *ring, const void *base, uint64_t ring_bytes, uint64_t key,
                       struct ring_credit *credit);
/* Goes on behind the record `lsn`, which ends at `index`, and was looked at elsewhere. */
void receive_ring_skip(struct receive_ring *ring, uint64_t index, uint64_t lsn);
/* receive_ring_look without the short way. */
enum frame_state receive_ring_look_again(struct receive_ring *ring, uint64_t available_bytes,
                                         struct channel_record *record);

/* These are what each record costs: inline, and they allocate nothing, take no lock, make no system call. */

/* As receive_ring_look; FRAME_DAMAGED: there is more to it, a record that was found before, a long one, a pad, damage,
 * and receive_ring_look_again tells. */
static inline enum frame_state receive_ring_look_short(struct receive_ring *ring, uint64_t available_bytes,
                                                       struct channel_record *record)
{
    uint64_t offset = ring->index & (ring->ring_bytes - 1), room = ring->ring_bytes - offset;
    const uint8_t *frame = ring->base + offset;
    struct frame_found found;
    enum frame_state state;

    if (__builtin_expect(ring->current_bytes != 0, false))
        return FRAME_DAMAGED;
    state = frame_look_short(frame, room < available_bytes ? room : available_bytes, ring->key, ring->next_lsn, &found);
    if (__builtin_expect(state == FRAME_COMPLETE, true)) {
        frame_tell(frame, ring->next_lsn, &found, record);
        frame_tell(frame, ring->next_lsn, &found, &ring->current);
        ring->current_bytes = found.whole_bytes;
    }
    return state;
}

/* Looks for the record that is due within the `available_bytes` behind the place we are at (UINT64_MAX when
 * unknown). Steps over pads; never returns FRAME_PAD. */
static inline enum frame_state receive_ring_look(struct receive_ring *ring, uint64_t available_bytes,
                                                 struct channel_record *record)
{
    enum frame_state state = receive_ring_look_short(ring, available_bytes, record);

    return state == FRAME_DAMAGED ? receive_ring_look_again(ring, available_bytes, record) : state;
}

/* Gives back the record found last; does nothing when there is none. */
static inline void receive_ring_consume(struct receive_ring *ring)
{
    uint64_t bytes = ring->current_bytes;

    if (bytes == 0)
        return;
    ring->current_bytes = 0;
    ring->index += bytes;
    /* R1 release, pairs with S1 in send_ring.c: our reads of the frame come before its place is given back. */
    atomic_store_explicit(&ring->credit->bytes, ring->index, memory_order_release);
    /* A5 release: the caller's effects of the record come before the word that it is consumed */
    atomic_store_explicit(&ring->credit->lsn, ring->next_lsn, memory_order_release);
    ring->next_lsn++;
}

#endif
