/*
 * TCP segmentation in software: one large TCP segment, as a guest with TSO sends it, becomes frames of the wire's
 * size. For ports that cannot do it themselves. Behind the hold queue, so the log and both hosts count one frame.
 *
 * Own code and not librte_gso: that has no TCP over IPv6 (DPDK 22.11) and wants a chain of mbufs, where a segment can
 * be built in place from a flat frame; and this way no DPDK is needed to test it with random frames.
 */
#ifndef FTVMM_DPDK_NET_SEGMENT_H
#define FTVMM_DPDK_NET_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dpdk-net/offload.h"

/* A frame that was looked through. Borrows the frame. */
struct segments {
    const uint8_t *frame;
    uint32_t ip_at, tcp_at, payload_at; /* in the frame */
    uint32_t payload_bytes;
    uint32_t segment_bytes; /* payload of each but the last */
    uint32_t count;
    bool ipv6;
};

/* Looks through a frame whose `offload` asks for segmentation; segments longer than `frame_max_bytes` are not made.
 * 0; -EINVAL: the frame is not what the offload says (a guest may send anything), nothing can be made of it. */
int segments_parse(struct segments *segments, const uint8_t *frame, size_t bytes, const struct net_offload *offload,
                   size_t frame_max_bytes);

/* Length of segment `index` (< count), headers included. */
size_t segments_bytes(const struct segments *segments, uint32_t index);

/* Builds segment `index` into `room`, checksums and all. Any index, in any order. Returns its length. */
size_t segments_build(const struct segments *segments, uint32_t index, uint8_t *room);

#endif
