/*
 * The output rule: frames that the guest sent wait here, each with its LSN, until that LSN is acked.
 *
 * A frame waits as the guest sent it: large segments are cut up and checksums finished behind the queue, so that it
 * counts as one on both hosts, whatever their ports can do.
 *
 * The queue is in order, so a head that must wait makes all behind it wait too (LSNs never fall). The
 * machine thread puts; the I/O thread asks, releases and forgets.
 */
#ifndef FTVMM_DPDK_NET_HOLD_H
#define FTVMM_DPDK_NET_HOLD_H

#include "base/histogram.h"
#include "dpdk-net/frame_ring.h"

struct hold {
    struct frame_ring ring;
    uint32_t frame_max_bytes; /* of a frame that is not to be cut up */
    alignas(128) _Atomic uint64_t next_number; /* machine thread: frames put, those refused included */
    _Atomic uint64_t refused_full, refused_size; /* machine thread */
    alignas(128) _Atomic uint64_t gone_number; /* I/O thread: all frames numbered below have left */
    uint64_t forget_below;                     /* I/O thread: the peer has sent all frames numbered below */
};

/* Room for `capacity` frames (a power of two); fewer if they are long. */
int hold_init(struct hold *hold, uint32_t capacity, uint32_t frame_max_bytes);
void hold_fini(struct hold *hold);

/* Machine thread. The call takes a number whatever it returns, so that two hosts which see the same
 * frames number them alike even if one of them has no room. -EMSGSIZE, -ENOBUFS (each counted). */
int hold_put(struct hold *hold, const void *frame, size_t bytes, const struct net_offload *offload, uint64_t lsn,
             uint64_t now_ns);

/* Machine thread. The queue is more than half full: who can wait should. */
bool hold_crowded(struct hold *hold);

/* I/O thread. The frame `offset` places behind the oldest if it may leave, else NULL. */
const struct frame_slot *hold_releasable(struct hold *hold, uint64_t offset, uint64_t acked_lsn);
/* I/O thread. Records how long the `count` oldest frames, which go now, have waited. Before hold_release. */
void hold_measure(struct hold *hold, uint64_t count, uint64_t now_ns, struct histogram *waited_ns);
/* I/O thread. The `count` oldest frames have left for the wire. */
void hold_release(struct hold *hold, uint64_t count);
/* I/O thread. The peer has sent all frames numbered < sent_count; those held later are included. `seen`
 * (may be NULL) is shown each frame that is forgotten. Returns how many were. */
unsigned hold_forget(struct hold *hold, uint64_t sent_count, void (*seen)(void *ctx, const struct frame_slot *slot),
                     void *ctx);

#endif
