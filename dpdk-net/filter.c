/* The address filter; see filter.h. Source: virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2. */
#include "dpdk-net/filter.h"

#include <string.h>

void net_filter_init(struct net_filter *filter, const uint8_t mac[6])
{
    memset(filter, 0, sizeof(*filter));
    memcpy(filter->mac, mac, sizeof(filter->mac));
    filter->all_multicast = 1;
}

static bool lists(const struct net_filter *filter, const uint8_t address[6])
{
    for (unsigned i = 0; i < filter->addresses_used && i < NET_FILTER_ADDRESSES; i++)
        if (memcmp(filter->addresses[i], address, 6) == 0)
            return true;
    return false;
}

bool net_filter_takes(const struct net_filter *filter, const uint8_t destination[6])
{
    static const uint8_t everybody[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

    if (filter->promiscuous)
        return true;
    if (memcmp(destination, everybody, 6) == 0)
        return !filter->no_broadcast;
    if (destination[0] & 1)
        return !filter->no_multicast && (filter->all_multicast || filter->more_multicast || lists(filter, destination));
    return !filter->no_unicast && (filter->all_unicast || filter->more_unicast ||
                                   memcmp(destination, filter->mac, 6) == 0 || lists(filter, destination));
}
