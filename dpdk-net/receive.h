/*
 * The bounce queue: frames that arrived wait here for the guest, who gets each at a position of its own.
 * The I/O thread puts; the machine thread peeks and pops.
 */
#ifndef FTVMM_DPDK_NET_RECEIVE_H
#define FTVMM_DPDK_NET_RECEIVE_H

#include "dpdk-net/filter.h"
#include "dpdk-net/frame_ring.h"

struct receive {
    struct frame_ring ring;
    struct net_filter filter; /* I/O thread */
    uint32_t frame_max_bytes;
    _Atomic uint64_t received, received_bytes, dropped_full, dropped_oversize, other_station; /* I/O thread */
};

/* How the port delivered a frame. */
struct receive_frame {
    const void *data;
    size_t bytes;  /* in `data` */
    bool whole;    /* all of it is in `data` */
    bool checksum_right; /* the port has looked */
    bool tagged;   /* a VLAN tag was taken out of it ... */
    uint16_t vlan; /* ... with this TCI, and must be put back */
    uint64_t arrived_ns; /* clock_now_ns() when the port gave it */
};

/* `mac` all zero: takes frames for anybody. */
int receive_init(struct receive *receive, uint32_t capacity, uint32_t frame_max_bytes, const uint8_t mac[6]);
void receive_fini(struct receive *receive);

/* I/O thread. How many frames there is room for. What the port has beyond that should stay there: a sender that can
 * wait will, and a port that must drop counts it. */
unsigned receive_room(struct receive *receive, unsigned most);

/* I/O thread. Before a burst: if the guest has taken all, the frames to come lie where the last ones did, in the
 * cache. */
static inline void receive_begin(struct receive *receive)
{
    frame_ring_rewind(&receive->ring);
}

/* I/O thread. Queues a frame, its checksum finished, or drops and counts it. True if it was queued. */
bool receive_put(struct receive *receive, const struct receive_frame *frame);

#endif
