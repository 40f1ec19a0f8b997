/* Which arriving frames the guest wants: what a network card's address filter holds. Every frame that the guest gets
 * costs a record in the log, so what it does not want is kept from it. */
#ifndef FTVMM_DPDK_NET_FILTER_H
#define FTVMM_DPDK_NET_FILTER_H

#include <stdbool.h>
#include <stdint.h>

#define NET_FILTER_ADDRESSES 64u

/* No pointers, no padding. */
struct net_filter {
    uint8_t mac[6]; /* the card's own */
    uint8_t promiscuous; /* 1: everything, whatever the others say */
    uint8_t all_unicast, all_multicast;
    uint8_t more_unicast, more_multicast; /* there are further ones that had no room: all of their kind */
    uint8_t no_unicast, no_multicast, no_broadcast;
    uint16_t addresses_used;
    uint8_t addresses[NET_FILTER_ADDRESSES][6]; /* further ones, of stations and groups */
};
_Static_assert(sizeof(struct net_filter) == 16 + 6 * NET_FILTER_ADDRESSES, "struct net_filter has padding");

/* Of a card that was told its address and nothing else: its own, all groups. */
void net_filter_init(struct net_filter *filter, const uint8_t mac[6]);

/* Would the guest take a frame that begins with this destination address? */
bool net_filter_takes(const struct net_filter *filter, const uint8_t destination[6]);

#endif
