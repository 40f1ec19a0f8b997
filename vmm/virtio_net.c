/* virtio-net: the PCI transport's registers, and frames in and out of the queues. */
#include "vmm/virtio_net.h"

#include <errno.h>
#include <string.h>

/* Identity; virtio 1.2, 4.1.2. */
#define PCI_VENDOR_VIRTIO     0x1AF4u
#define PCI_DEVICE_VIRTIO_NET 0x1041u /* 0x1040 + device id 1 */
#define PCI_SUBSYSTEM_VIRTIO  0x1100u
#define PCI_CLASS_ETHERNET    0x020000u
#define PCI_REVISION_MODERN   1u

/* Capabilities; virtio 1.2, 4.1.4. */
#define PCI_CAP_VENDOR          0x09u
#define CAP_BYTES               16u
#define CAP_NOTIFY_BYTES        20u
#define CAP_ACCESS_WINDOW_BYTES 20u
#define CAP_BAR                 4u
#define CAP_OFFSET              8u
#define CAP_LENGTH              12u
#define CAP_WINDOW_DATA         16u
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_ACCESS_WINDOW = 5 };

/* Where the structures lie in the BAR. Linux demands 4-byte alignment of common and device, 2 of notify. */
#define BAR_INDEX             0u
#define BAR_COMMON            0x00u
#define BAR_COMMON_BYTES      60u /* up to queue_reset; virtio 1.2, 4.1.4.3 */
#define BAR_ISR               0x40u
#define BAR_NOTIFY            0x44u
#define BAR_NOTIFY_MULTIPLIER 2u
#define BAR_NOTIFY_BYTES      (VIRTIO_NET_QUEUES * BAR_NOTIFY_MULTIPLIER)
#define BAR_DEVICE            0x50u
#define BAR_DEVICE_BYTES      12u

#define ISR_QUEUE  1u
#define ISR_CONFIG 2u

#define STATUS_DRIVER_OK   0x04u
#define STATUS_FEATURES_OK 0x08u
#define STATUS_NEEDS_RESET 0x40u
#define STATUS_OF_DRIVER   0x8Fu

#define FEATURE_MTU       (UINT64_C(1) << 3)
#define FEATURE_MAC       (UINT64_C(1) << 5)
#define FEATURE_STATUS    (UINT64_C(1) << 16)
#define FEATURE_INDIRECT  (UINT64_C(1) << 28)
#define FEATURE_EVENT_IDX (UINT64_C(1) << 29)
#define FEATURE_VERSION_1 (UINT64_C(1) << 32)
#define FEATURES_OFFERED                                                                                               \
    (FEATURE_MTU | FEATURE_MAC | FEATURE_STATUS | FEATURE_INDIRECT | FEATURE_EVENT_IDX | FEATURE_VERSION_1)

#define LINK_UP        1u
#define NO_MSIX_VECTOR 0xFFFFu

/* virtio 1.2, 5.1.6; all zero but num_buffers, which is 1 without mergeable buffers. */
#define HEADER_NUM_BUFFERS 10u

/* Registers of the common configuration, in the order of virtio 1.2, 4.1.4.3. */
enum common_register {
    DEVICE_FEATURE_SELECT,
    DEVICE_FEATURE,
    DRIVER_FEATURE_SELECT,
    DRIVER_FEATURE,
    MSIX_CONFIG,
    NUM_QUEUES,
    DEVICE_STATUS,
    CONFIG_GENERATION,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_MSIX_VECTOR,
    QUEUE_ENABLE,
    QUEUE_NOTIFY_OFF,
    QUEUE_DESC_LOW,
    QUEUE_DESC_HIGH,
    QUEUE_DRIVER_LOW,
    QUEUE_DRIVER_HIGH,
    QUEUE_DEVICE_LOW,
    QUEUE_DEVICE_HIGH,
    COMMON_REGISTERS,
};

static const struct {
    uint8_t offset;
    uint8_t bytes;
} common_registers[COMMON_REGISTERS] = {
    [DEVICE_FEATURE_SELECT] = {0, 4}, [DEVICE_FEATURE] = {4, 4},     [DRIVER_FEATURE_SELECT] = {8, 4},
    [DRIVER_FEATURE] = {12, 4},       [MSIX_CONFIG] = {16, 2},       [NUM_QUEUES] = {18, 2},
    [DEVICE_STATUS] = {20, 1},        [CONFIG_GENERATION] = {21, 1}, [QUEUE_SELECT] = {22, 2},
    [QUEUE_SIZE] = {24, 2},           [QUEUE_MSIX_VECTOR] = {26, 2}, [QUEUE_ENABLE] = {28, 2},
    [QUEUE_NOTIFY_OFF] = {30, 2},     [QUEUE_DESC_LOW] = {32, 4},    [QUEUE_DESC_HIGH] = {36, 4},
    [QUEUE_DRIVER_LOW] = {40, 4},     [QUEUE_DRIVER_HIGH] = {44, 4}, [QUEUE_DEVICE_LOW] = {48, 4},
    [QUEUE_DEVICE_HIGH] = {52, 4},
};

static void put_bytes(uint8_t *target, uint32_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        target[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get_bytes(const uint8_t *source, unsigned bytes)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value |= (uint32_t)source[i] << (8 * i);
    return value;
}

static void interrupt_raise(struct virtio_net *net, uint8_t cause)
{
    net->state.isr |= cause;
    pci_set_interrupt(net->pci, net->slot, true);
}

static bool device_runs(const struct virtio_net *net)
{
    return (net->state.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) == STATUS_DRIVER_OK;
}

/* The guest broke the rules: nothing more happens until it resets the device; virtio 1.2, 2.1.2. */
static void device_break(struct virtio_net *net)
{
    bool told = net->state.status & STATUS_NEEDS_RESET;

    net->state.status |= STATUS_NEEDS_RESET;
    if (!told && (net->state.status & STATUS_DRIVER_OK))
        interrupt_raise(net, ISR_CONFIG);
}

static void device_reset(struct virtio_net *net)
{
    struct virtio_net_state *state = &net->state;

    for (unsigned i = 0; i < VIRTIO_NET_QUEUES; i++)
        virtqueue_init(&state->queues[i], VIRTIO_NET_QUEUE_SIZE);
    state->driver_features = 0;
    state->device_feature_select = 0;
    state->driver_feature_select = 0;
    state->queue_select = 0;
    state->status = 0;
    state->isr = 0;
    pci_set_interrupt(net->pci, net->slot, false);
}

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
    struct virtqueue *queue = &net->state.queues[VIRTIO_NET_TX];
    struct virtqueue_chain chain;
    int popped = 0;

    if (!device_runs(net))
        return;
    /* No more than a ringful: a hostile guest may lay its used ring over its available index, and then each
     * returned chain would make further ones appear. */
    for (unsigned i = 0; i < VIRTQUEUE_SIZE_MAX; i++) {
        popped = virtqueue_pop(queue, net->memory, &chain);
        if (popped <= 0)
            break;
        transmit_chain(net, &chain);
        virtqueue_push(queue, net->memory, chain.head, 0);
    }
    virtqueue_set_notify(queue, net->memory, true);
    if (virtqueue_interrupt_due(queue, net->memory))
        interrupt_raise(net, ISR_QUEUE);
    if (popped < 0)
        device_break(net);
}

bool virtio_net_can_receive(const struct virtio_net *net)
{
    return device_runs(net) && virtqueue_waiting(&net->state.queues[VIRTIO_NET_RX], net->memory) != 0;
}

int virtio_net_receive(struct virtio_net *net, const uint8_t *frame, size_t bytes)
{
    struct virtqueue *queue = &net->state.queues[VIRTIO_NET_RX];
    uint8_t header[VIRTIO_NET_HEADER_BYTES] = {[HEADER_NUM_BUFFERS] = 1};
    struct virtqueue_chain chain;

    if (bytes < VIRTIO_NET_FRAME_BYTES_MIN || bytes > VIRTIO_NET_FRAME_BYTES_MAX)
        return -EINVAL;
    if (!virtio_net_can_receive(net))
        return -EAGAIN;
    if (virtqueue_pop(queue, net->memory, &chain) < 0) {
        net->state.received_dropped_frames++;
        device_break(net);
        return -EPROTO;
    }
    if (chain.writable_bytes < sizeof(header) + bytes) {
        virtqueue_unpop(queue);
        net->state.received_dropped_frames++;
        return -EMSGSIZE;
    }
    virtqueue_chain_write(&chain, net->memory, 0, header, sizeof(header));
    virtqueue_chain_write(&chain, net->memory, sizeof(header), frame, (uint32_t)bytes);
    virtqueue_push(queue, net->memory, chain.head, (uint32_t)(sizeof(header) + bytes));
    /* New buffers need no exit of their own: frames that wait are offered at every position. */
    virtqueue_set_notify(queue, net->memory, false);
    net->state.received_frames++;
    if (virtqueue_interrupt_due(queue, net->memory))
        interrupt_raise(net, ISR_QUEUE);
    return 0;
}

void virtio_net_set_link(struct virtio_net *net, bool up)
{
    if (net->state.link_up == up)
        return;
    net->state.link_up = up;
    net->state.config_generation++;
    if (device_runs(net) && (net->state.driver_features & FEATURE_STATUS))
        interrupt_raise(net, ISR_CONFIG);
}

static void status_write(struct virtio_net *net, uint8_t value)
{
    struct virtio_net_state *state = &net->state;
    uint8_t added;

    if (value == 0) {
        device_reset(net);
        return;
    }
    /* A driver only adds bits, short of a reset; virtio 1.2, 2.1.1. */
    added = value & STATUS_OF_DRIVER & (uint8_t)~state->status;
    if ((added & STATUS_FEATURES_OK) &&
        ((state->driver_features & ~FEATURES_OFFERED) || !(state->driver_features & FEATURE_VERSION_1)))
        added &= (uint8_t)~STATUS_FEATURES_OK;
    if (!((state->status | added) & STATUS_FEATURES_OK))
        added &= (uint8_t)~STATUS_DRIVER_OK;
    state->status |= added;
    if (added & STATUS_DRIVER_OK) {
        virtqueue_set_notify(&state->queues[VIRTIO_NET_RX], net->memory, false);
        transmit_waiting(net);
    }
}

static void driver_feature_write(struct virtio_net_state *state, uint32_t value)
{
    unsigned shift = state->driver_feature_select * 32;

    if (state->driver_feature_select > 1 || (state->status & STATUS_FEATURES_OK))
        return;
    state->driver_features = (state->driver_features & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)value << shift;
}

static void queue_enable_write(struct virtio_net *net, struct virtqueue *queue, uint32_t value)
{
    uint64_t features = net->state.driver_features;

    if (value != 1 || !(net->state.status & STATUS_FEATURES_OK))
        return;
    if (virtqueue_enable(queue, net->memory, features & FEATURE_EVENT_IDX, features & FEATURE_INDIRECT) != 0)
        device_break(net);
}

/* The queue that queue_select names, or NULL. */
static struct virtqueue *selected_queue(struct virtio_net_state *state)
{
    return state->queue_select < VIRTIO_NET_QUEUES ? &state->queues[state->queue_select] : NULL;
}

static void set_low(uint64_t *gpa, uint32_t value)
{
    *gpa = (*gpa & ~(uint64_t)UINT32_MAX) | value;
}

static void set_high(uint64_t *gpa, uint32_t value)
{
    *gpa = (*gpa & UINT32_MAX) | (uint64_t)value << 32;
}

static uint32_t common_read(struct virtio_net_state *state, enum common_register reg)
{
    const struct virtqueue *queue = selected_queue(state);

    switch (reg) {
    case DEVICE_FEATURE_SELECT:
        return state->device_feature_select;
    case DEVICE_FEATURE:
        return state->device_feature_select > 1 ? 0 : (uint32_t)(FEATURES_OFFERED >> 32 * state->device_feature_select);
    case DRIVER_FEATURE_SELECT:
        return state->driver_feature_select;
    case DRIVER_FEATURE:
        return state->driver_feature_select > 1
                   ? 0
                   : (uint32_t)(state->driver_features >> 32 * state->driver_feature_select);
    case MSIX_CONFIG:
    case QUEUE_MSIX_VECTOR:
        return NO_MSIX_VECTOR;
    case NUM_QUEUES:
        return VIRTIO_NET_QUEUES;
    case DEVICE_STATUS:
        return state->status;
    case CONFIG_GENERATION:
        return state->config_generation;
    case QUEUE_SELECT:
        return state->queue_select;
    case QUEUE_SIZE: /* 0: no such queue; virtio 1.2, 4.1.4.3.1 */
        return queue == NULL ? 0 : queue->size;
    case QUEUE_ENABLE:
        return queue != NULL && queue->enabled;
    case QUEUE_NOTIFY_OFF:
        return state->queue_select;
    case QUEUE_DESC_LOW:
        return queue == NULL ? 0 : (uint32_t)queue->descriptors_gpa;
    case QUEUE_DESC_HIGH:
        return queue == NULL ? 0 : (uint32_t)(queue->descriptors_gpa >> 32);
    case QUEUE_DRIVER_LOW:
        return queue == NULL ? 0 : (uint32_t)queue->available_gpa;
    case QUEUE_DRIVER_HIGH:
        return queue == NULL ? 0 : (uint32_t)(queue->available_gpa >> 32);
    case QUEUE_DEVICE_LOW:
        return queue == NULL ? 0 : (uint32_t)queue->used_gpa;
    case QUEUE_DEVICE_HIGH:
        return queue == NULL ? 0 : (uint32_t)(queue->used_gpa >> 32);
    case COMMON_REGISTERS:
        break;
    }
    return 0;
}

static void queue_write(struct virtio_net *net, struct virtqueue *queue, enum common_register reg, uint32_t value)
{
    /* A queue that runs, or broke, keeps its rings until reset. */
    if (queue == NULL || queue->enabled || queue->fault != VIRTQUEUE_WHOLE)
        return;
    if (reg == QUEUE_SIZE)
        queue->size = (uint16_t)value;
    else if (reg == QUEUE_ENABLE)
        queue_enable_write(net, queue, value);
    else if (reg == QUEUE_DESC_LOW)
        set_low(&queue->descriptors_gpa, value);
    else if (reg == QUEUE_DESC_HIGH)
        set_high(&queue->descriptors_gpa, value);
    else if (reg == QUEUE_DRIVER_LOW)
        set_low(&queue->available_gpa, value);
    else if (reg == QUEUE_DRIVER_HIGH)
        set_high(&queue->available_gpa, value);
    else if (reg == QUEUE_DEVICE_LOW)
        set_low(&queue->used_gpa, value);
    else if (reg == QUEUE_DEVICE_HIGH)
        set_high(&queue->used_gpa, value);
}

static void common_write(struct virtio_net *net, enum common_register reg, uint32_t value)
{
    struct virtio_net_state *state = &net->state;

    switch (reg) {
    case DEVICE_FEATURE_SELECT:
        state->device_feature_select = value;
        break;
    case DRIVER_FEATURE_SELECT:
        state->driver_feature_select = value;
        break;
    case DRIVER_FEATURE:
        driver_feature_write(state, value);
        break;
    case DEVICE_STATUS:
        status_write(net, (uint8_t)value);
        break;
    case QUEUE_SELECT:
        state->queue_select = (uint16_t)value;
        break;
    case QUEUE_SIZE:
    case QUEUE_ENABLE:
    case QUEUE_DESC_LOW:
    case QUEUE_DESC_HIGH:
    case QUEUE_DRIVER_LOW:
    case QUEUE_DRIVER_HIGH:
    case QUEUE_DEVICE_LOW:
    case QUEUE_DEVICE_HIGH:
        queue_write(net, selected_queue(state), reg, value);
        break;
    case DEVICE_FEATURE: /* read-only from here on */
    case MSIX_CONFIG:
    case NUM_QUEUES:
    case CONFIG_GENERATION:
    case QUEUE_MSIX_VECTOR:
    case QUEUE_NOTIFY_OFF:
    case COMMON_REGISTERS:
        break;
    }
}

/* The BAR's bytes as the guest may read them now, but for the ISR, whose reading has an effect. */
static void bar_image(struct virtio_net *net, uint8_t image[VIRTIO_NET_BAR_BYTES])
{
    struct virtio_net_state *state = &net->state;

    memset(image, 0, VIRTIO_NET_BAR_BYTES);
    for (unsigned reg = 0; reg < COMMON_REGISTERS; reg++)
        put_bytes(image + BAR_COMMON + common_registers[reg].offset, common_read(state, reg),
                  common_registers[reg].bytes);
    /* virtio 1.2, 5.1.4: mac, status, max_virtqueue_pairs (unused without MQ), mtu */
    memcpy(image + BAR_DEVICE, state->mac, sizeof(state->mac));
    put_bytes(image + BAR_DEVICE + 6, state->link_up ? LINK_UP : 0, 2);
    put_bytes(image + BAR_DEVICE + 10, VIRTIO_NET_MTU, 2);
}

uint32_t virtio_net_io_read(struct virtio_net *net, uint16_t offset, unsigned bytes)
{
    uint8_t image[VIRTIO_NET_BAR_BYTES];
    uint8_t isr = net->state.isr;

    if (bytes == 0 || bytes > 4 || offset + bytes > VIRTIO_NET_BAR_BYTES)
        return UINT32_MAX >> (32 - 8 * (bytes < 4 && bytes > 0 ? bytes : 4));
    if (offset > BAR_ISR || offset + bytes <= BAR_ISR) {
        bar_image(net, image);
        return get_bytes(image + offset, bytes);
    }
    net->state.isr = 0; /* reading acknowledges; virtio 1.2, 4.1.4.5 */
    pci_set_interrupt(net->pci, net->slot, false);
    return (uint32_t)isr << 8 * (BAR_ISR - offset);
}

void virtio_net_io_write(struct virtio_net *net, uint16_t offset, unsigned bytes, uint32_t value)
{
    uint8_t image[VIRTIO_NET_BAR_BYTES];

    if (bytes == 0 || bytes > 4 || offset + bytes > VIRTIO_NET_BAR_BYTES)
        return;
    if (offset >= BAR_NOTIFY && offset < BAR_NOTIFY + BAR_NOTIFY_BYTES) {
        if ((offset - BAR_NOTIFY) / BAR_NOTIFY_MULTIPLIER == VIRTIO_NET_TX)
            transmit_waiting(net);
        return;
    }
    if (offset >= BAR_COMMON + BAR_COMMON_BYTES)
        return;
    /* A register written in part keeps its other bytes; one access may cover several small registers. */
    bar_image(net, image);
    put_bytes(image + offset, value, bytes);
    for (unsigned reg = 0; reg < COMMON_REGISTERS; reg++) {
        unsigned start = BAR_COMMON + common_registers[reg].offset;

        if (start < offset + bytes && offset < start + common_registers[reg].bytes)
            common_write(net, reg, get_bytes(image + start, common_registers[reg].bytes));
    }
}

/* The access window: configuration space as another way to the BAR; virtio 1.2, 4.1.4.9. Returns the length
 * that the guest set, 0 if the window names no place in the BAR. */
static unsigned window_place(struct virtio_net *net, unsigned offset, unsigned bytes, uint16_t *place)
{
    const uint8_t *cap = pci_function_at(net->pci, net->slot)->config + net->access_window_offset;
    unsigned data = net->access_window_offset + CAP_WINDOW_DATA;
    uint32_t start = get_bytes(cap + CAP_OFFSET, 4);
    uint32_t length = get_bytes(cap + CAP_LENGTH, 4);

    if (net->access_window_offset == 0 || offset + bytes <= data || offset >= data + 4)
        return 0;
    if (cap[CAP_BAR] != BAR_INDEX || (length != 1 && length != 2 && length != 4) || start % length != 0 ||
        start >= VIRTIO_NET_BAR_BYTES)
        return 0;
    *place = (uint16_t)start;
    return length;
}

static void window_before_read(void *ctx, unsigned offset, unsigned bytes)
{
    struct virtio_net *net = ctx;
    uint16_t place;
    unsigned length = window_place(net, offset, bytes, &place);
    uint8_t *data = pci_function_at(net->pci, net->slot)->config + net->access_window_offset + CAP_WINDOW_DATA;

    if (length != 0)
        put_bytes(data, virtio_net_io_read(net, place, length), length);
}

static void window_after_write(void *ctx, unsigned offset, unsigned bytes)
{
    struct virtio_net *net = ctx;
    uint16_t place;
    unsigned length = window_place(net, offset, bytes, &place);
    const uint8_t *data = pci_function_at(net->pci, net->slot)->config + net->access_window_offset + CAP_WINDOW_DATA;

    if (length != 0)
        virtio_net_io_write(net, place, length, get_bytes(data, length));
}

static int add_capability(struct virtio_net *net, uint8_t type, uint32_t offset, uint32_t length, uint8_t bytes)
{
    uint8_t cap[CAP_NOTIFY_BYTES] = {[0] = PCI_CAP_VENDOR, [2] = bytes, [3] = type, [CAP_BAR] = BAR_INDEX};

    put_bytes(cap + CAP_OFFSET, offset, 4);
    put_bytes(cap + CAP_LENGTH, length, 4);
    if (type == CAP_NOTIFY)
        put_bytes(cap + CAP_BYTES, BAR_NOTIFY_MULTIPLIER, 4);
    return pci_add_capability(net->pci, net->slot, cap, bytes);
}

int virtio_net_init(struct virtio_net *net, struct pci *pci, unsigned slot, uint16_t port, const uint8_t mac[6],
                    struct guest_memory *memory, void (*transmit)(void *ctx, const uint8_t *frame, size_t bytes),
                    void *ctx)
{
    static const struct pci_identity identity = {
        .vendor = PCI_VENDOR_VIRTIO,
        .device = PCI_DEVICE_VIRTIO_NET,
        .subsystem_vendor = PCI_VENDOR_VIRTIO,
        .subsystem = PCI_SUBSYSTEM_VIRTIO,
        .class_code = PCI_CLASS_ETHERNET,
        .revision = PCI_REVISION_MODERN,
    };
    struct pci_watch watch = {.ctx = net, .before_read = window_before_read, .after_write = window_after_write};
    uint8_t *writable;
    int err;

    memset(net, 0, sizeof(*net));
    net->pci = pci;
    net->slot = slot;
    net->memory = memory;
    net->transmit = transmit;
    net->ctx = ctx;
    err = pci_add(pci, slot, &identity, VIRTIO_NET_IRQ, &watch);
    if (err != 0)
        return err;
    memcpy(net->state.mac, mac, sizeof(net->state.mac));
    net->state.link_up = true;
    err = pci_add_io_bar(pci, slot, BAR_INDEX, VIRTIO_NET_BAR_BYTES, port);
    if (err != 0)
        return err;
    add_capability(net, CAP_COMMON, BAR_COMMON, BAR_COMMON_BYTES, CAP_BYTES);
    add_capability(net, CAP_NOTIFY, BAR_NOTIFY, BAR_NOTIFY_BYTES, CAP_NOTIFY_BYTES);
    add_capability(net, CAP_ISR, BAR_ISR, 1, CAP_BYTES);
    add_capability(net, CAP_DEVICE, BAR_DEVICE, BAR_DEVICE_BYTES, CAP_BYTES);
    err = add_capability(net, CAP_ACCESS_WINDOW, 0, 0, CAP_ACCESS_WINDOW_BYTES);
    if (err < 0)
        return err;
    net->access_window_offset = (unsigned)err;
    writable = pci_function_at(pci, slot)->writable + net->access_window_offset;
    memset(writable + CAP_BAR, 0xFF, 1);
    memset(writable + CAP_OFFSET, 0xFF, CAP_ACCESS_WINDOW_BYTES - CAP_OFFSET);
    device_reset(net);
    return 0;
}
