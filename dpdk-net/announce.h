/*
 * Where the guest is now: which addresses it uses, and the frames that tell the LAN.
 *
 * The addresses are learned from the guest's own frames. What it claims in ARP or NDP is its own; the
 * source of an IP packet may be somebody's behind it (a guest may route), so that only counts while
 * the guest has claimed nothing of that family.
 */
#ifndef FTVMM_DPDK_NET_ANNOUNCE_H
#define FTVMM_DPDK_NET_ANNOUNCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ANNOUNCE_ADDRESSES 8u /* of each kind; a new one then takes the oldest one's place */
#define ANNOUNCE_FRAME_MAX_BYTES 86u /* Ethernet, IPv6 and a neighbour advertisement with one option */

struct announce_addresses {
    uint8_t address[ANNOUNCE_ADDRESSES][16]; /* IPv4: the first four bytes */
    uint32_t learned;                        /* ever; the place of the next is learned % ANNOUNCE_ADDRESSES */
};

/* Zero-initialise, then announce_set_mac. One thread's (the I/O thread's). */
struct announce {
    uint8_t mac[6];
    struct announce_addresses arp, ipv4; /* claimed, merely used */
    struct announce_addresses ndp, ipv6;
};

/* The guest's MAC address, which it may change; what was learned of another one is forgotten. */
void announce_set_mac(struct announce *announce, const uint8_t mac[6]);

/* Looks at a frame that the guest sent. */
void announce_learn(struct announce *announce, const uint8_t *frame, size_t bytes);

/*
 * Builds the announcement number `index` (0, 1, ...) into `frame`: first the RARP request that moves the
 * switches' tables (as QEMU sends after a migration), then an ARP announcement (RFC 5227, 2.3) for each IPv4
 * address, then an unsolicited neighbour advertisement (RFC 4861, 7.2.6) for each IPv6 address.
 * Returns its bytes; 0: there are no more.
 */
size_t announce_build(const struct announce *announce, unsigned index, uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES]);

#endif
