/* virtio-net: frames in and out of the queues. What the control queue sets is in virtio_net_control.c. */
#include "vmm/virtio_net.h"

#include <errno.h>
#include <string.h>

#include "vmm/state_check.h"

#define DEVICE_ID_NET      1u /* virtio 1.2, 5 */
#define PCI_CLASS_ETHERNET 0x020000u

#define LINK_UP 1u

/* virtio 1.2, 5.1.6. */
#define HEADER_NEEDS_CHECKSUM 1u
#define HEADER_DATA_VALID     2u
#define HEADER_WHOLE          0u
#define HEADER_TCP4           1u
#define HEADER_TCP6           4u
#define HEADER_ECN            0x80u

/* The least payload that Linux cuts up for (net/tcp.h, TCP_MIN_GSO_SIZE); less would only make work. */
#define SEGMENT_BYTES_MIN 8u

/* As in guest memory, little endian as the host is (x86-64). */
struct header {
    uint8_t flags;
    uint8_t segmentation;
    uint16_t header_bytes; /* a hint, which nobody needs here */
    uint16_t segment_bytes;
    uint16_t checksum_start;
    uint16_t checksum_offset;
    uint16_t buffers; /* only in what is received */
};
_Static_assert(sizeof(struct header) == VIRTIO_NET_HEADER_BYTES, "the header's layout is virtio's");

static bool negotiated(const struct virtio_net *net, uint64_t features)
{
    return (net->card.state.driver_features & features) == features;
}

static size_t frame_bytes_max(const struct virtio_net *net)
{
    return NET_LINK_BYTES + net->state.mtu;
}

/* What the driver left to the card, as far as the queue's rules tell; virtio 1.2, 5.1.6.2.1. False: it breaks them. */
static bool read_header(const struct virtio_net *net, const struct header *header, size_t bytes,
                        struct net_offload *offload)
{
    uint8_t segmentation = header->segmentation & (uint8_t)~HEADER_ECN;
    bool ecn = header->segmentation & HEADER_ECN;

    *offload = (struct net_offload){ .segmentation = NET_WHOLE };
    if (header->flags & HEADER_NEEDS_CHECKSUM) {
        offload->checksum_missing = 1;
        offload->checksum_start = header->checksum_start;
        offload->checksum_offset = header->checksum_offset;
        if (!negotiated(net, VIRTIO_NET_FEATURE_CSUM) ||
            (size_t)header->checksum_start + header->checksum_offset + 2 > bytes)
            return false;
    }
    if (segmentation == HEADER_WHOLE)
        return !ecn && bytes <= frame_bytes_max(net);
    offload->segmentation = segmentation == HEADER_TCP4 ? NET_TCP4 : NET_TCP6;
    offload->segment_bytes = header->segment_bytes;
    return (segmentation == HEADER_TCP4 || segmentation == HEADER_TCP6) && offload->checksum_missing &&
           negotiated(net, segmentation == HEADER_TCP4 ? VIRTIO_NET_FEATURE_HOST_TSO4 : VIRTIO_NET_FEATURE_HOST_TSO6) &&
           (!ecn || negotiated(net, VIRTIO_NET_FEATURE_HOST_ECN)) && header->segment_bytes >= SEGMENT_BYTES_MIN;
}

/* Sends one chain's frame, or counts why not. */
static void transmit_chain(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    uint8_t frame[NET_SEGMENTED_MAX_BYTES];
    uint32_t bytes = chain->readable_bytes - VIRTIO_NET_HEADER_BYTES;
    struct net_offload offload;
    struct header header;

    if (chain->readable_bytes < VIRTIO_NET_HEADER_BYTES + VIRTIO_NET_FRAME_BYTES_MIN || bytes > sizeof(frame)) {
        net->state.sent_dropped_frames++;
        return;
    }
    virtqueue_chain_read(chain, 0, &header, sizeof(header));
    if (!read_header(net, &header, bytes, &offload)) {
        net->state.sent_dropped_frames++;
        return;
    }
    virtqueue_chain_read(chain, sizeof(header), frame, bytes);
    net->state.sent_frames++;
    net->cable.transmit(net->cable.ctx, frame, bytes, &offload);
}

static void transmit_waiting(struct virtio_net *net)
{
    struct virtqueue *queue = &net->card.state.queues[VIRTIO_NET_TX];
    struct virtqueue_chain chain;
    int popped = 0;

    if (!virtio_pci_runs(&net->card))
        return;
    /* No more than a ringful: a hostile guest may lay its used ring over its available index, and then each
     * returned chain would make further ones appear. */
    for (unsigned i = 0; i < VIRTQUEUE_SIZE_MAX; i++) {
        popped = virtqueue_pop(queue, net->card.memory, &chain);
        if (popped <= 0)
            break;
        transmit_chain(net, &chain);
        virtqueue_push(queue, net->card.memory, chain.head, 0);
    }
    virtqueue_set_notify(queue, net->card.memory, true);
    virtio_pci_signal(&net->card, VIRTIO_NET_TX);
    if (popped < 0)
        virtio_pci_break(&net->card);
}

/*
 * How many of the chains that wait in `queue` a frame fills, header included; nothing but `queue`, a copy, is changed.
 * 0: those that are there are too few, more may come. -EMSGSIZE: it cannot have more than it has, or may not be spread.
 * -EPROTO: a chain breaks the rules.
 */
static int chains_filled(const struct virtio_net *net, struct virtqueue *queue, size_t bytes)
{
    bool merged = negotiated(net, VIRTIO_NET_FEATURE_MRG_RXBUF);
    struct virtqueue_chain chain;
    size_t room = 0;
    int chains = 0;

    for (;;) {
        int popped = virtqueue_pop(queue, net->card.memory, &chain);

        if (popped <= 0)
            return popped == 0 && chains == queue->size ? -EMSGSIZE : popped;
        chains++;
        room += chain.writable_bytes;
        if (room >= VIRTIO_NET_HEADER_BYTES + bytes)
            return chains;
        if (!merged)
            return -EMSGSIZE;
    }
}

bool virtio_net_can_receive(const struct virtio_net *net, size_t bytes)
{
    struct virtqueue look = net->card.state.queues[VIRTIO_NET_RX];

    return virtio_pci_runs(&net->card) && chains_filled(net, &look, bytes) != 0;
}

/* Spreads a frame behind its header over so many chains. -EPROTO: a hostile ring lies where its own frame is written,
 * and is no longer what it was when chains_filled looked. */
static int fill_chains(struct virtio_net *net, const struct header *header, const uint8_t *frame, size_t bytes)
{
    struct virtqueue *queue = &net->card.state.queues[VIRTIO_NET_RX];
    struct virtqueue_chain chain;
    uint32_t ahead = sizeof(*header); /* still to be written of the header */

    for (unsigned i = 0; i < header->buffers; i++) {
        uint32_t part, more;

        if (virtqueue_pop(queue, net->card.memory, &chain) <= 0)
            return -EPROTO;
        part = virtqueue_chain_write(&chain, net->card.memory, 0, (const uint8_t *)(header + 1) - ahead, ahead);
        ahead -= part;
        more = virtqueue_chain_write(&chain, net->card.memory, part, frame, (uint32_t)bytes);
        frame += more;
        bytes -= more;
        virtqueue_push(queue, net->card.memory, chain.head, part + more);
    }
    return 0;
}

int virtio_net_receive(struct virtio_net *net, const uint8_t *frame, size_t bytes, bool checksum_right)
{
    struct virtqueue *queue = &net->card.state.queues[VIRTIO_NET_RX], look = *queue;
    bool valid = checksum_right && negotiated(net, VIRTIO_NET_FEATURE_GUEST_CSUM);
    struct header header = { .flags = valid ? HEADER_DATA_VALID : 0 };
    int chains, err;

    if (bytes < VIRTIO_NET_FRAME_BYTES_MIN || bytes > frame_bytes_max(net))
        return -EINVAL;
    chains = virtio_pci_runs(&net->card) ? chains_filled(net, &look, bytes) : 0;
    if (chains == 0)
        return -EAGAIN;
    if (chains > 0) {
        header.buffers = (uint16_t)chains;
        err = fill_chains(net, &header, frame, bytes);
    } else {
        queue->fault = look.fault;
        err = chains;
    }
    if (err != 0)
        net->state.received_dropped_frames++;
    else
        net->state.received_frames++;
    /* New buffers need no exit of their own: frames that wait are offered at every position. */
    virtqueue_set_notify(queue, net->card.memory, false);
    virtio_pci_signal(&net->card, VIRTIO_NET_RX);
    if (err == -EPROTO)
        virtio_pci_break(&net->card);
    return err;
}

void virtio_net_set_link(struct virtio_net *net, bool up)
{
    if (net->state.link_up == up)
        return;
    net->state.link_up = up;
    virtio_pci_config_changed(&net->card, negotiated(net, VIRTIO_NET_FEATURE_STATUS));
}

bool virtio_net_state_fits(const struct virtio_net *net, const struct virtio_net_state *state)
{
    return STATE_BOOL_FITS(state->link_up) && state->mtu == net->state.mtu &&
           memcmp(state->reset_mac, net->state.reset_mac, sizeof(state->reset_mac)) == 0 &&
           state->filter.addresses_used <= NET_FILTER_ADDRESSES;
}

void virtio_net_take(struct virtio_net *net, const struct virtio_net_state *state)
{
    net->state = *state;
    net->cable.filter(net->cable.ctx, &net->state.filter);
}

static void net_start(void *ctx)
{
    struct virtio_net *net = ctx;

    virtqueue_set_notify(&net->card.state.queues[VIRTIO_NET_RX], net->card.memory, false);
    transmit_waiting(net);
    virtio_net_control(net);
}

static void net_notify(void *ctx, unsigned queue)
{
    if (queue == VIRTIO_NET_TX)
        transmit_waiting(ctx);
    else if (queue == VIRTIO_NET_CONTROL)
        virtio_net_control(ctx);
}

static void net_reset(void *ctx)
{
    struct virtio_net *net = ctx;

    net_filter_init(&net->state.filter, net->state.reset_mac);
    net->cable.filter(net->cable.ctx, &net->state.filter);
}

/* virtio 1.2, 5.1.4: mac, status, max_virtqueue_pairs (unused without MQ), mtu. */
static void net_config(void *ctx, uint8_t *config)
{
    const struct virtio_net *net = ctx;

    memcpy(config, net->state.filter.mac, sizeof(net->state.filter.mac));
    config[6] = net->state.link_up ? LINK_UP : 0;
    config[10] = (uint8_t)net->state.mtu;
    config[11] = (uint8_t)(net->state.mtu >> 8);
}

int virtio_net_init(struct virtio_net *net, struct pci *pci, unsigned slot, uint16_t port, const uint8_t mac[6],
                    uint16_t mtu, struct guest_memory *memory, const struct virtio_net_cable *cable)
{
    static const struct virtio_pci_model model = {
        .device_id = DEVICE_ID_NET,
        .class_code = PCI_CLASS_ETHERNET,
        .queues = VIRTIO_NET_QUEUES,
        .queue_size = VIRTIO_NET_QUEUE_SIZE,
        .config_bytes = 12,
        .config = net_config,
        .start = net_start,
        .notify = net_notify,
        .reset = net_reset,
    };

    memset(net, 0, sizeof(*net));
    net->cable = *cable;
    memcpy(net->state.reset_mac, mac, sizeof(net->state.reset_mac));
    net->state.mtu = mtu;
    net->state.link_up = true;
    return virtio_pci_init(&net->card, pci, slot, port, VIRTIO_NET_IRQ, &model, VIRTIO_NET_FEATURES, memory, net);
}
