/* virtio-net: frames in and out of the queues. */
#include "vmm/virtio_net.h"

#include <errno.h>
#include <string.h>

#define DEVICE_ID_NET      1u /* virtio 1.2, 5 */
#define PCI_CLASS_ETHERNET 0x020000u

#define FEATURE_MTU      (UINT64_C(1) << 3)
#define FEATURE_MAC      (UINT64_C(1) << 5)
#define FEATURE_STATUS   (UINT64_C(1) << 16)
#define FEATURES_OFFERED (FEATURE_MTU | FEATURE_MAC | FEATURE_STATUS)

#define LINK_UP 1u

/* virtio 1.2, 5.1.6; all zero but num_buffers, which is 1 without mergeable buffers. */
#define HEADER_NUM_BUFFERS 10u

/* Sends one chain's frame, or counts why not. */
static void transmit_chain(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    uint8_t packet[VIRTIO_NET_HEADER_BYTES + VIRTIO_NET_FRAME_BYTES_MAX];
    uint32_t bytes = chain->readable_bytes;

    if (bytes < VIRTIO_NET_HEADER_BYTES + VIRTIO_NET_FRAME_BYTES_MIN || bytes > sizeof(packet)) {
        net->state.sent_dropped_frames++;
        return;
    }
    virtqueue_chain_read(chain, 0, packet, bytes);
    net->state.sent_frames++;
    net->transmit(net->ctx, packet + VIRTIO_NET_HEADER_BYTES, bytes - VIRTIO_NET_HEADER_BYTES);
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

bool virtio_net_can_receive(const struct virtio_net *net)
{
    const struct virtqueue *queue = &net->card.state.queues[VIRTIO_NET_RX];

    return virtio_pci_runs(&net->card) && virtqueue_waiting(queue, net->card.memory) != 0;
}

int virtio_net_receive(struct virtio_net *net, const uint8_t *frame, size_t bytes)
{
    struct virtqueue *queue = &net->card.state.queues[VIRTIO_NET_RX];
    uint8_t header[VIRTIO_NET_HEADER_BYTES] = {[HEADER_NUM_BUFFERS] = 1};
    struct virtqueue_chain chain;

    if (bytes < VIRTIO_NET_FRAME_BYTES_MIN || bytes > VIRTIO_NET_FRAME_BYTES_MAX)
        return -EINVAL;
    if (!virtio_net_can_receive(net))
        return -EAGAIN;
    if (virtqueue_pop(queue, net->card.memory, &chain) < 0) {
        net->state.received_dropped_frames++;
        virtio_pci_break(&net->card);
        return -EPROTO;
    }
    if (chain.writable_bytes < sizeof(header) + bytes) {
        virtqueue_unpop(queue);
        net->state.received_dropped_frames++;
        return -EMSGSIZE;
    }
    virtqueue_chain_write(&chain, net->card.memory, 0, header, sizeof(header));
    virtqueue_chain_write(&chain, net->card.memory, sizeof(header), frame, (uint32_t)bytes);
    virtqueue_push(queue, net->card.memory, chain.head, (uint32_t)(sizeof(header) + bytes));
    /* New buffers need no exit of their own: frames that wait are offered at every position. */
    virtqueue_set_notify(queue, net->card.memory, false);
    net->state.received_frames++;
    virtio_pci_signal(&net->card, VIRTIO_NET_RX);
    return 0;
}

void virtio_net_set_link(struct virtio_net *net, bool up)
{
    if (net->state.link_up == up)
        return;
    net->state.link_up = up;
    virtio_pci_config_changed(&net->card, net->card.state.driver_features & FEATURE_STATUS);
}

static void net_start(void *ctx)
{
    struct virtio_net *net = ctx;

    virtqueue_set_notify(&net->card.state.queues[VIRTIO_NET_RX], net->card.memory, false);
    transmit_waiting(net);
}

static void net_notify(void *ctx, unsigned queue)
{
    if (queue == VIRTIO_NET_TX)
        transmit_waiting(ctx);
}

/* virtio 1.2, 5.1.4: mac, status, max_virtqueue_pairs (unused without MQ), mtu. */
static void net_config(void *ctx, uint8_t *config)
{
    const struct virtio_net *net = ctx;

    memcpy(config, net->state.mac, sizeof(net->state.mac));
    config[6] = net->state.link_up ? LINK_UP : 0;
    config[10] = (uint8_t)VIRTIO_NET_MTU;
    config[11] = VIRTIO_NET_MTU >> 8;
}

int virtio_net_init(struct virtio_net *net, struct pci *pci, unsigned slot, uint16_t port, const uint8_t mac[6],
                    struct guest_memory *memory, void (*transmit)(void *ctx, const uint8_t *frame, size_t bytes),
                    void *ctx)
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
    };

    memset(net, 0, sizeof(*net));
    net->transmit = transmit;
    net->ctx = ctx;
    memcpy(net->state.mac, mac, sizeof(net->state.mac));
    net->state.link_up = true;
    return virtio_pci_init(&net->card, pci, slot, port, VIRTIO_NET_IRQ, &model, FEATURES_OFFERED, memory, net);
}
