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
    _Atomic uint64_t records, record_bytes; /* consumed; pads count as bytes */
};

/* `base`: ring_bytes of memory, 64-byte aligned, owned by the caller. */
void receive_ring_init(struct receive_ring *ring, const void *base, uint64_t ring_bytes, uint64_t key,
                       struct ring_credit *credit);
/* Looks for the record that is due within the `available_bytes` behind the place we are at (UINT64_MAX when
 * unknown). Steps over pads; never returns FRAME_PAD. */
enum frame_state receive_ring_look(struct receive_ring *ring, uint64_t available_bytes,
                                   struct channel_record *record);
/* Goes on behind the record `lsn`, which ends at `index`, and was looked at elsewhere. */
void receive_ring_skip(struct receive_ring *ring, uint64_t index, uint64_t lsn);
/* Gives back the record found last; does nothing when there is none. */
void receive_ring_consume(struct receive_ring *ring);

#endif
