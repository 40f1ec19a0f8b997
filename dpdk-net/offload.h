/*
 * What the sender of a frame has left to be done before the frame can be on a wire. It travels with the frame through
 * the hold queue, and is done behind it: by the port's hardware if it can, else here (segment.h, checksum.h).
 */
#ifndef FTVMM_DPDK_NET_OFFLOAD_H
#define FTVMM_DPDK_NET_OFFLOAD_H

#include <stdint.h>

enum net_segmentation {
    NET_WHOLE, /* the frame goes out as it is */
    NET_TCP4,  /* one large TCP segment over IPv4, to be cut up */
    NET_TCP6,  /* the same over IPv6 */
};

/* All zero: the frame is finished. Eight bytes without padding, so that it can be digested as it lies. */
struct net_offload {
    uint8_t segmentation;     /* enum net_segmentation */
    uint8_t checksum_missing; /* 1: the field holds the pseudo-header's sum only; always so with a segmentation */
    uint16_t checksum_start;  /* in the frame: the sum covers all from here on */
    uint16_t checksum_offset; /* from there: the field */
    uint16_t segment_bytes;   /* payload of a segment; the last may have less */
};
_Static_assert(sizeof(struct net_offload) == 8, "struct net_offload has padding");

#endif
