/* The PCI transport of virtio devices: the registers in the BAR, and how a driver finds and starts the device. */
#include "vmm/virtio_pci.h"

#include <string.h>

/* Identity; virtio 1.2, 4.1.2. */
#define PCI_VENDOR_VIRTIO     0x1AF4u
#define PCI_DEVICE_MODERN     0x1040u /* plus the device's id */
#define PCI_SUBSYSTEM_VIRTIO  0x1100u
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
#define BAR_DEVICE            0x50u
_Static_assert(BAR_NOTIFY + VIRTIO_PCI_QUEUES_MAX * BAR_NOTIFY_MULTIPLIER <= BAR_DEVICE, "notify registers overlap");
_Static_assert(BAR_DEVICE + VIRTIO_PCI_CONFIG_BYTES_MAX <= VIRTIO_PCI_BAR_BYTES, "device configuration overruns");

#define ISR_QUEUE  1u
#define ISR_CONFIG 2u

#define STATUS_DRIVER_OK   0x04u
#define STATUS_FEATURES_OK 0x08u
#define STATUS_NEEDS_RESET 0x40u
#define STATUS_OF_DRIVER   0x8Fu

#define NO_MSIX_VECTOR 0xFFFFu

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

static void interrupt_raise(struct virtio_pci *card, uint8_t cause)
{
    card->state.isr |= cause;
    pci_set_interrupt(card->pci, card->slot, true);
}

bool virtio_pci_runs(const struct virtio_pci *card)
{
    return (card->state.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) == STATUS_DRIVER_OK;
}

void virtio_pci_break(struct virtio_pci *card)
{
    bool told = card->state.status & STATUS_NEEDS_RESET;

    card->state.status |= STATUS_NEEDS_RESET;
    if (!told && (card->state.status & STATUS_DRIVER_OK))
        interrupt_raise(card, ISR_CONFIG);
}

void virtio_pci_signal(struct virtio_pci *card, unsigned queue)
{
    if (virtqueue_interrupt_due(&card->state.queues[queue], card->memory))
        interrupt_raise(card, ISR_QUEUE);
}

void virtio_pci_config_changed(struct virtio_pci *card, bool tell)
{
    card->state.config_generation++;
    if (tell && virtio_pci_runs(card))
        interrupt_raise(card, ISR_CONFIG);
}

static void device_reset(struct virtio_pci *card)
{
    struct virtio_pci_state *state = &card->state;

    for (unsigned i = 0; i < VIRTIO_PCI_QUEUES_MAX; i++)
        virtqueue_init(&state->queues[i], i < card->model->queues ? card->model->queue_size : 0);
    state->driver_features = 0;
    state->device_feature_select = 0;
    state->driver_feature_select = 0;
    state->queue_select = 0;
    state->status = 0;
    state->isr = 0;
    pci_set_interrupt(card->pci, card->slot, false);
    if (card->model->reset != NULL)
        card->model->reset(card->ctx);
}

static void status_write(struct virtio_pci *card, uint8_t value)
{
    struct virtio_pci_state *state = &card->state;
    uint8_t added;

    if (value == 0) {
        device_reset(card);
        return;
    }
    /* A driver only adds bits, short of a reset; virtio 1.2, 2.1.1. */
    added = value & STATUS_OF_DRIVER & (uint8_t)~state->status;
    if ((added & STATUS_FEATURES_OK) &&
        ((state->driver_features & ~card->features) || !(state->driver_features & VIRTIO_PCI_FEATURE_VERSION_1)))
        added &= (uint8_t)~STATUS_FEATURES_OK;
    if (!((state->status | added) & STATUS_FEATURES_OK))
        added &= (uint8_t)~STATUS_DRIVER_OK;
    state->status |= added;
    if (added & STATUS_DRIVER_OK)
        card->model->start(card->ctx);
}

static void driver_feature_write(struct virtio_pci_state *state, uint32_t value)
{
    unsigned shift = state->driver_feature_select * 32;

    if (state->driver_feature_select > 1 || (state->status & STATUS_FEATURES_OK))
        return;
    state->driver_features = (state->driver_features & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)value << shift;
}

static void queue_enable_write(struct virtio_pci *card, struct virtqueue *queue, uint32_t value)
{
    uint64_t features = card->state.driver_features;

    if (value != 1 || !(card->state.status & STATUS_FEATURES_OK))
        return;
    if (virtqueue_enable(queue, card->memory, features & VIRTIO_PCI_FEATURE_EVENT_IDX,
                         features & VIRTIO_PCI_FEATURE_INDIRECT) != 0)
        virtio_pci_break(card);
}

/* The queue that queue_select names, or NULL. */
static struct virtqueue *selected_queue(struct virtio_pci *card)
{
    return card->state.queue_select < card->model->queues ? &card->state.queues[card->state.queue_select] : NULL;
}

static void set_low(uint64_t *gpa, uint32_t value)
{
    *gpa = (*gpa & ~(uint64_t)UINT32_MAX) | value;
}

static void set_high(uint64_t *gpa, uint32_t value)
{
    *gpa = (*gpa & UINT32_MAX) | (uint64_t)value << 32;
}

static uint32_t common_read(struct virtio_pci *card, enum common_register reg)
{
    const struct virtio_pci_state *state = &card->state;
    const struct virtqueue *queue = selected_queue(card);

    switch (reg) {
    case DEVICE_FEATURE_SELECT:
        return state->device_feature_select;
    case DEVICE_FEATURE:
        return state->device_feature_select > 1 ? 0 : (uint32_t)(card->features >> 32 * state->device_feature_select);
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
        return card->model->queues;
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

static void queue_write(struct virtio_pci *card, struct virtqueue *queue, enum common_register reg, uint32_t value)
{
    /* A queue that runs, or broke, keeps its rings until reset. */
    if (queue == NULL || queue->enabled || queue->fault != VIRTQUEUE_WHOLE)
        return;
    if (reg == QUEUE_SIZE)
        queue->size = (uint16_t)value;
    else if (reg == QUEUE_ENABLE)
        queue_enable_write(card, queue, value);
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

static void common_write(struct virtio_pci *card, enum common_register reg, uint32_t value)
{
    struct virtio_pci_state *state = &card->state;

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
        status_write(card, (uint8_t)value);
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
        queue_write(card, selected_queue(card), reg, value);
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
static void bar_image(struct virtio_pci *card, uint8_t image[VIRTIO_PCI_BAR_BYTES])
{
    memset(image, 0, VIRTIO_PCI_BAR_BYTES);
    for (unsigned reg = 0; reg < COMMON_REGISTERS; reg++)
        put_bytes(image + BAR_COMMON + common_registers[reg].offset, common_read(card, reg),
                  common_registers[reg].bytes);
    card->model->config(card->ctx, image + BAR_DEVICE);
}

uint32_t virtio_pci_io_read(struct virtio_pci *card, uint16_t offset, unsigned bytes)
{
    uint8_t image[VIRTIO_PCI_BAR_BYTES];
    uint8_t isr = card->state.isr;

    if (bytes == 0 || bytes > 4 || offset + bytes > VIRTIO_PCI_BAR_BYTES)
        return UINT32_MAX >> (32 - 8 * (bytes < 4 && bytes > 0 ? bytes : 4));
    if (offset > BAR_ISR || offset + bytes <= BAR_ISR) {
        bar_image(card, image);
        return get_bytes(image + offset, bytes);
    }
    card->state.isr = 0; /* reading acknowledges; virtio 1.2, 4.1.4.5 */
    pci_set_interrupt(card->pci, card->slot, false);
    return (uint32_t)isr << 8 * (BAR_ISR - offset);
}

void virtio_pci_io_write(struct virtio_pci *card, uint16_t offset, unsigned bytes, uint32_t value)
{
    uint8_t image[VIRTIO_PCI_BAR_BYTES];

    if (bytes == 0 || bytes > 4 || offset + bytes > VIRTIO_PCI_BAR_BYTES)
        return;
    if (offset >= BAR_NOTIFY && offset < BAR_NOTIFY + card->model->queues * BAR_NOTIFY_MULTIPLIER) {
        card->model->notify(card->ctx, (offset - BAR_NOTIFY) / BAR_NOTIFY_MULTIPLIER);
        return;
    }
    if (offset >= BAR_COMMON + BAR_COMMON_BYTES)
        return;
    /* A register written in part keeps its other bytes; one access may cover several small registers. */
    bar_image(card, image);
    put_bytes(image + offset, value, bytes);
    for (unsigned reg = 0; reg < COMMON_REGISTERS; reg++) {
        unsigned start = BAR_COMMON + common_registers[reg].offset;

        if (start < offset + bytes && offset < start + common_registers[reg].bytes)
            common_write(card, reg, get_bytes(image + start, common_registers[reg].bytes));
    }
}

/* The access window: configuration space as another way to the BAR; virtio 1.2, 4.1.4.9. Returns the length
 * that the guest set, 0 if the window names no place in the BAR. */
static unsigned window_place(struct virtio_pci *card, unsigned offset, unsigned bytes, uint16_t *place)
{
    const uint8_t *cap = pci_function_at(card->pci, card->slot)->config + card->access_window_offset;
    unsigned data = card->access_window_offset + CAP_WINDOW_DATA;
    uint32_t start = get_bytes(cap + CAP_OFFSET, 4);
    uint32_t length = get_bytes(cap + CAP_LENGTH, 4);

    if (card->access_window_offset == 0 || offset + bytes <= data || offset >= data + 4)
        return 0;
    if (cap[CAP_BAR] != BAR_INDEX || (length != 1 && length != 2 && length != 4) || start % length != 0 ||
        start >= VIRTIO_PCI_BAR_BYTES)
        return 0;
    *place = (uint16_t)start;
    return length;
}

static void window_before_read(void *ctx, unsigned offset, unsigned bytes)
{
    struct virtio_pci *card = ctx;
    uint16_t place;
    unsigned length = window_place(card, offset, bytes, &place);
    uint8_t *data = pci_function_at(card->pci, card->slot)->config + card->access_window_offset + CAP_WINDOW_DATA;

    if (length != 0)
        put_bytes(data, virtio_pci_io_read(card, place, length), length);
}

static void window_after_write(void *ctx, unsigned offset, unsigned bytes)
{
    struct virtio_pci *card = ctx;
    uint16_t place;
    unsigned length = window_place(card, offset, bytes, &place);
    const uint8_t *data = pci_function_at(card->pci, card->slot)->config + card->access_window_offset + CAP_WINDOW_DATA;

    if (length != 0)
        virtio_pci_io_write(card, place, length, get_bytes(data, length));
}

static int add_capability(struct virtio_pci *card, uint8_t type, uint32_t offset, uint32_t length, uint8_t bytes)
{
    uint8_t cap[CAP_NOTIFY_BYTES] = {[0] = PCI_CAP_VENDOR, [2] = bytes, [3] = type, [CAP_BAR] = BAR_INDEX};

    put_bytes(cap + CAP_OFFSET, offset, 4);
    put_bytes(cap + CAP_LENGTH, length, 4);
    if (type == CAP_NOTIFY)
        put_bytes(cap + CAP_BYTES, BAR_NOTIFY_MULTIPLIER, 4);
    return pci_add_capability(card->pci, card->slot, cap, bytes);
}

int virtio_pci_init(struct virtio_pci *card, struct pci *pci, unsigned slot, uint16_t port, uint8_t irq,
                    const struct virtio_pci_model *model, uint64_t features, struct guest_memory *memory, void *ctx)
{
    struct pci_identity identity = {
        .vendor = PCI_VENDOR_VIRTIO,
        .device = (uint16_t)(PCI_DEVICE_MODERN + model->device_id),
        .subsystem_vendor = PCI_VENDOR_VIRTIO,
        .subsystem = PCI_SUBSYSTEM_VIRTIO,
        .class_code = model->class_code,
        .revision = PCI_REVISION_MODERN,
    };
    struct pci_watch watch = {.ctx = card, .before_read = window_before_read, .after_write = window_after_write};
    uint8_t *writable;
    int err;

    memset(card, 0, sizeof(*card));
    card->pci = pci;
    card->slot = slot;
    card->model = model;
    card->features =
        features | VIRTIO_PCI_FEATURE_INDIRECT | VIRTIO_PCI_FEATURE_EVENT_IDX | VIRTIO_PCI_FEATURE_VERSION_1;
    card->memory = memory;
    card->ctx = ctx;
    err = pci_add(pci, slot, &identity, irq, &watch);
    if (err != 0)
        return err;
    err = pci_add_io_bar(pci, slot, BAR_INDEX, VIRTIO_PCI_BAR_BYTES, port);
    if (err != 0)
        return err;
    add_capability(card, CAP_COMMON, BAR_COMMON, BAR_COMMON_BYTES, CAP_BYTES);
    add_capability(card, CAP_NOTIFY, BAR_NOTIFY, model->queues * BAR_NOTIFY_MULTIPLIER, CAP_NOTIFY_BYTES);
    add_capability(card, CAP_ISR, BAR_ISR, 1, CAP_BYTES);
    add_capability(card, CAP_DEVICE, BAR_DEVICE, model->config_bytes, CAP_BYTES);
    err = add_capability(card, CAP_ACCESS_WINDOW, 0, 0, CAP_ACCESS_WINDOW_BYTES);
    if (err < 0)
        return err;
    card->access_window_offset = (unsigned)err;
    writable = pci_function_at(pci, slot)->writable + card->access_window_offset;
    memset(writable + CAP_BAR, 0xFF, 1);
    memset(writable + CAP_OFFSET, 0xFF, CAP_ACCESS_WINDOW_BYTES - CAP_OFFSET);
    device_reset(card);
    return 0;
}

bool virtio_pci_take(struct virtio_pci *card, const struct virtio_pci_state *state)
{
    if ((state->status & STATUS_FEATURES_OK) && (state->driver_features & ~card->features))
        return false;
    for (unsigned i = 0; i < VIRTIO_PCI_QUEUES_MAX; i++)
        if (!virtqueue_fits(&state->queues[i], card->memory))
            return false;
    card->state = *state;
    return true;
}
