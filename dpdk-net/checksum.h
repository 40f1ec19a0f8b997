/* The Internet checksum (RFC 1071) of IPv4, TCP, UDP and ICMPv6. */
#ifndef FTVMM_DPDK_NET_CHECKSUM_H
#define FTVMM_DPDK_NET_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Adds `bytes` (at most 128 KiB) of big-endian 16-bit words to `sum` (an odd last byte counts as its word's high
 * half). What comes out is good for checksum_fold and for further adding, and is not the plain sum. */
uint32_t checksum_add(uint32_t sum, const void *data, size_t bytes);
/* Folds the sum to 16 bits, not complemented, host order. */
uint16_t checksum_fold(uint32_t sum);

/* What a frame's TCP or UDP checksum is worth. */
enum checksum_state {
    CHECKSUM_UNKNOWN, /* there is none to be seen: another protocol, a fragment, cut short, UDP without one */
    CHECKSUM_WRONG,   /* left as it is: who it is for shall see it */
    CHECKSUM_RIGHT,
};

/*
 * Looks at the TCP or UDP checksum of a frame, and finishes it if its sender left that to hardware which it never met.
 *
 * A local sender (a veth peer, a virtio NIC of the same host) writes only the pseudo-header's sum into the
 * field and marks the packet for the NIC to finish. AF_PACKET hands such frames out as they are, and the
 * guest would throw them away. The mark is lost, but the field is known: it equals the pseudo-header's sum.
 * A frame with any other value is left alone, right or wrong.
 */
enum checksum_state checksum_examine(uint8_t *frame, size_t bytes);

/* Finishes the checksum of a frame of which its sender says where (struct net_offload): the sum from `start` to the
 * frame's end goes to start + offset. -EINVAL: these lie outside the frame. */
int checksum_complete(uint8_t *frame, size_t bytes, size_t start, size_t offset);

#endif
