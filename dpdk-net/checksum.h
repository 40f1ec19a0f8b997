/* The Internet checksum (RFC 1071) of IPv4, TCP, UDP and ICMPv6. */
#ifndef FTVMM_DPDK_NET_CHECKSUM_H
#define FTVMM_DPDK_NET_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Adds `bytes` of big-endian 16-bit words to `sum` (an odd last byte counts as its word's high half). */
uint32_t checksum_add(uint32_t sum, const void *data, size_t bytes);
/* Folds the sum to 16 bits, not complemented, host order. */
uint16_t checksum_fold(uint32_t sum);

/*
 * Finishes the TCP or UDP checksum of a frame whose sender left that to hardware which it never met.
 *
 * A local sender (a veth peer, a virtio NIC of the same host) writes only the pseudo-header's sum into the
 * field and marks the packet for the NIC to finish. AF_PACKET hands such frames out as they are, and the
 * guest would throw them away. The mark is lost, but the field is known: it equals the pseudo-header's sum.
 * A frame with any other value is left alone, right or wrong. True if the frame was changed.
 */
bool checksum_finish(uint8_t *frame, size_t bytes);

#endif
