/*
 * What a driver sets through the network card's control queue: which frames it wants, and the card's address. Served
 * at once. A command that is not offered or makes no sense is answered with an error; a chain that has no room for an
 * answer breaks the card.
 * Source: virtio 1.2, 5.1.6.5.
 */
#include "vmm/virtio_net.h"

#include <errno.h>
#include <string.h>

#define CLASS_RX  0u
#define CLASS_MAC 1u

/* Of CLASS_RX; each followed by one byte, 0 or 1. The last four are CTRL_RX_EXTRA's. */
enum { RX_PROMISCUOUS, RX_ALL_MULTICAST, RX_ALL_UNICAST, RX_NO_MULTICAST, RX_NO_UNICAST, RX_NO_BROADCAST };

#define MAC_TABLE_SET   0u
#define MAC_ADDRESS_SET 1u

#define ANSWER_OK    0u
#define ANSWER_ERROR 1u

#define COMMAND_BYTES 2u /* class, command */
#define ADDRESS_BYTES 6u

/* `bytes` of the command's data from `offset` on; false: it has not so many. */
static bool read_data(const struct virtqueue_chain *chain, uint32_t offset, void *data, uint32_t bytes)
{
    return virtqueue_chain_read(chain, COMMAND_BYTES + offset, data, bytes) == bytes;
}

static bool set_mode(struct virtio_net *net, uint8_t command, const struct virtqueue_chain *chain)
{
    uint64_t features = net->card.state.driver_features;
    struct net_filter *filter = &net->state.filter;
    uint8_t on;

    if (!(features & VIRTIO_NET_FEATURE_CTRL_RX) ||
        (command > RX_ALL_MULTICAST && !(features & VIRTIO_NET_FEATURE_CTRL_RX_EXTRA)) ||
        !read_data(chain, 0, &on, 1) || on > 1)
        return false;
    switch (command) {
    case RX_PROMISCUOUS: filter->promiscuous = on; return true;
    case RX_ALL_MULTICAST: filter->all_multicast = on; return true;
    case RX_ALL_UNICAST: filter->all_unicast = on; return true;
    case RX_NO_MULTICAST: filter->no_multicast = on; return true;
    case RX_NO_UNICAST: filter->no_unicast = on; return true;
    case RX_NO_BROADCAST: filter->no_broadcast = on; return true;
    default: return false;
    }
}

/* One table: a count and as many addresses. False: the command is cut short. */
static bool read_table(const struct virtqueue_chain *chain, uint32_t *offset, struct net_filter *filter,
                       uint8_t *more)
{
    uint32_t count;

    if (!read_data(chain, *offset, &count, sizeof(count)))
        return false;
    *offset += sizeof(count);
    if (count > (chain->readable_bytes - COMMAND_BYTES - *offset) / ADDRESS_BYTES)
        return false;
    if (count > NET_FILTER_ADDRESSES - filter->addresses_used)
        *more = 1;
    else if (read_data(chain, *offset, filter->addresses[filter->addresses_used], count * ADDRESS_BYTES))
        filter->addresses_used = (uint16_t)(filter->addresses_used + count);
    *offset += count * ADDRESS_BYTES;
    return true;
}

static bool set_table(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    struct net_filter filter = net->state.filter;
    uint32_t offset = 0;

    filter.addresses_used = 0;
    filter.more_unicast = filter.more_multicast = 0;
    memset(filter.addresses, 0, sizeof(filter.addresses));
    if (!read_table(chain, &offset, &filter, &filter.more_unicast) ||
        !read_table(chain, &offset, &filter, &filter.more_multicast))
        return false;
    net->state.filter = filter;
    return true;
}

static bool set_address(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    uint8_t address[ADDRESS_BYTES];

    if (!(net->card.state.driver_features & VIRTIO_NET_FEATURE_CTRL_MAC_ADDR) ||
        !read_data(chain, 0, address, sizeof(address)) || (address[0] & 1) != 0)
        return false;
    memcpy(net->state.filter.mac, address, sizeof(address));
    return true;
}

static bool obey(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    uint8_t command[COMMAND_BYTES];

    if (virtqueue_chain_read(chain, 0, command, sizeof(command)) != sizeof(command))
        return false;
    if (command[0] == CLASS_RX)
        return set_mode(net, command[1], chain);
    if (command[0] == CLASS_MAC && command[1] == MAC_TABLE_SET)
        return (net->card.state.driver_features & VIRTIO_NET_FEATURE_CTRL_RX) && set_table(net, chain);
    return command[0] == CLASS_MAC && command[1] == MAC_ADDRESS_SET && set_address(net, chain);
}

void virtio_net_control(struct virtio_net *net)
{
    struct virtqueue *queue = &net->card.state.queues[VIRTIO_NET_CONTROL];
    struct virtqueue_chain chain;
    int popped = 0;

    if (!virtio_pci_runs(&net->card) || !(net->card.state.driver_features & VIRTIO_NET_FEATURE_CTRL_VQ))
        return;
    for (unsigned i = 0; i < VIRTQUEUE_SIZE_MAX; i++) { /* as in transmit_waiting */
        uint8_t answer = ANSWER_ERROR;

        popped = virtqueue_pop(queue, net->card.memory, &chain);
        if (popped <= 0)
            break;
        if (chain.writable_bytes == 0) {
            popped = -EPROTO;
            break;
        }
        if (obey(net, &chain)) {
            answer = ANSWER_OK;
            net->cable.filter(net->cable.ctx, &net->state.filter);
        }
        virtqueue_chain_write(&chain, net->card.memory, 0, &answer, sizeof(answer));
        virtqueue_push(queue, net->card.memory, chain.head, sizeof(answer));
    }
    virtqueue_set_notify(queue, net->card.memory, true);
    virtio_pci_signal(&net->card, VIRTIO_NET_CONTROL);
    if (popped < 0)
        virtio_pci_break(&net->card);
}
