/* A small virtio driver for tests: finds a card by its capabilities and drives it through the ports only. */
#ifndef FTVMM_TESTS_VIRTIO_DRIVER_H
#define FTVMM_TESTS_VIRTIO_DRIVER_H

#include "tests/unit/cmocka_prelude.h"

#include <string.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "vmm/virtio_blk.h"
#include "vmm/virtio_net.h"

#define TEST_SLOT      3u
#define TEST_PORT      0xC000u
#define BLK_SLOT       4u
#define BLK_PORT       0xC080u
#define BLK_SECTORS    1000u /* 500,000 bytes: no whole number of requests */
#define TEST_RAM_BYTES (256u * 1024)

static const uint8_t test_mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

/* What the disk was asked, oldest first; the test says when and how it ends. */
struct backing {
    uint64_t submitted, ended;
    struct virtio_blk_request requests[VIRTIO_BLK_REQUESTS_MAX];
    uint8_t data[VIRTIO_BLK_REQUESTS_MAX][VIRTIO_BLK_DATA_BYTES_MAX];
    uint8_t image[BLK_SECTORS * VIRTIO_BLK_SECTOR_BYTES];
};

struct machine {
    struct pic pic;
    struct pci pci;
    struct virtio_net net;
    struct virtio_blk blk; /* only after machine_add_disk */
    struct backing *backing;
    unsigned slot; /* of the card that pci_get, pci_put and the driver mean */
    struct guest_memory memory;
    uint64_t dirty[TEST_RAM_BYTES / GUEST_PAGE_BYTES / 64];
    uint64_t frames;
    size_t frame_bytes; /* the last frame sent */
    uint8_t frame[NET_SEGMENTED_MAX_BYTES];
    struct net_offload offload; /* what it left to be done */
    uint64_t filters;
    struct net_filter filter; /* the last one that the guest asked for */
};

/* Where the driver puts a queue's parts, and its own counters. */
struct ring {
    unsigned queue;
    uint16_t size;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    uint16_t avail_index, used_index;
    uint16_t notify_port;
};

struct driver {
    struct machine *machine;
    uint16_t common, isr, notify, device; /* ports */
    uint32_t notify_multiplier;
    unsigned window; /* access capability, in configuration space */
    struct ring rx, tx, control; /* of the network card */
    struct ring requests; /* of the disk */
};

static inline void machine_transmit(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
    struct machine *machine = ctx;

    assert_true(bytes <= sizeof(machine->frame));
    memcpy(machine->frame, frame, bytes);
    machine->frame_bytes = bytes;
    machine->offload = *offload;
    machine->frames++;
}

static inline void machine_filter(void *ctx, const struct net_filter *filter)
{
    struct machine *machine = ctx;

    machine->filter = *filter;
    machine->filters++;
}

static inline void machine_init_mtu(struct machine *machine, uint16_t mtu)
{
    struct virtio_net_cable cable = {.ctx = machine, .transmit = machine_transmit, .filter = machine_filter};

    memset(machine, 0, sizeof(*machine));
    machine->slot = TEST_SLOT;
    machine->memory.base = calloc(1, TEST_RAM_BYTES);
    machine->memory.bytes = TEST_RAM_BYTES;
    machine->memory.dirty = machine->dirty;
    assert_non_null(machine->memory.base);
    pic_init(&machine->pic);
    pci_init(&machine->pci, &machine->pic);
    assert_int_equal(virtio_net_init(&machine->net, &machine->pci, TEST_SLOT, TEST_PORT, test_mac, mtu,
                                     &machine->memory, &cable),
                     0);
}

static inline void machine_init(struct machine *machine)
{
    machine_init_mtu(machine, NET_MTU_DEFAULT);
}

static inline void machine_fini(struct machine *machine)
{
    free(machine->memory.base);
    free(machine->backing);
}

static inline uint8_t *backing_data(void *ctx, uint64_t number)
{
    struct machine *machine = ctx;

    return machine->backing->data[number % VIRTIO_BLK_REQUESTS_MAX];
}

static inline void backing_submit(void *ctx, uint64_t number, const struct virtio_blk_request *request)
{
    struct backing *backing = ((struct machine *)ctx)->backing;

    assert_true(number == backing->submitted);
    assert_true(backing->submitted - backing->ended < VIRTIO_BLK_REQUESTS_MAX);
    assert_true(request->bytes <= VIRTIO_BLK_DATA_BYTES_MAX);
    assert_true(request->sector * 512 + request->bytes <= sizeof(backing->image));
    backing->requests[backing->submitted++ % VIRTIO_BLK_REQUESTS_MAX] = *request;
}

/* From here on the driver drives the disk. */
static inline void machine_add_disk(struct machine *machine, bool readonly)
{
    struct virtio_blk_file file = {.ctx = machine, .data = backing_data, .submit = backing_submit};

    machine->slot = BLK_SLOT;
    machine->backing = calloc(1, sizeof(*machine->backing));
    assert_non_null(machine->backing);
    assert_int_equal(virtio_blk_init(&machine->blk, &machine->pci, BLK_SLOT, BLK_PORT, BLK_SECTORS, readonly,
                                     &machine->memory, &file),
                     0);
}

/* Carries out the oldest request and tells the guest; false if there is none. */
static inline bool backing_end(struct machine *machine, enum virtio_blk_status status)
{
    struct backing *backing = machine->backing;
    const struct virtio_blk_request *request = &backing->requests[backing->ended % VIRTIO_BLK_REQUESTS_MAX];
    uint8_t *data = backing->data[backing->ended % VIRTIO_BLK_REQUESTS_MAX];
    uint8_t *place = backing->image + request->sector * VIRTIO_BLK_SECTOR_BYTES;

    if (backing->ended == backing->submitted)
        return false;
    if (status == VIRTIO_BLK_OK && request->operation == VIRTIO_BLK_WRITE)
        memcpy(place, data, request->bytes);
    if (status == VIRTIO_BLK_OK && request->operation == VIRTIO_BLK_READ)
        memcpy(data, place, request->bytes);
    assert_int_equal(virtio_blk_complete(&machine->blk, backing->ended++, status, data), 0);
    return true;
}

static inline bool machine_interrupted(const struct machine *machine)
{
    return machine->pic.chips[1].lines & 1u << ((machine->slot == BLK_SLOT ? VIRTIO_BLK_IRQ : VIRTIO_NET_IRQ) - 8);
}

static inline void pci_select(struct machine *machine, unsigned slot, unsigned offset)
{
    pci_write(&machine->pci, 0xCF8, 4, 0x80000000u | slot << 11 | (offset & 0xFC));
}

static inline uint32_t pci_get(struct machine *machine, unsigned offset, unsigned bytes)
{
    pci_select(machine, machine->slot, offset);
    return pci_read(&machine->pci, (uint16_t)(0xCFC + offset % 4), bytes);
}

static inline void pci_put(struct machine *machine, unsigned offset, unsigned bytes, uint32_t value)
{
    pci_select(machine, machine->slot, offset);
    pci_write(&machine->pci, (uint16_t)(0xCFC + offset % 4), bytes, value);
}

static inline struct virtio_pci *machine_card(struct machine *machine)
{
    return machine->slot == BLK_SLOT ? &machine->blk.card : &machine->net.card;
}

static inline uint32_t port_get(struct machine *machine, uint16_t port, unsigned bytes)
{
    unsigned bar;
    uint16_t offset;

    assert_int_equal(pci_io_find(&machine->pci, port, &bar, &offset), machine->slot);
    assert_int_equal(bar, 0);
    return virtio_pci_io_read(machine_card(machine), offset, bytes);
}

static inline void port_put(struct machine *machine, uint16_t port, unsigned bytes, uint32_t value)
{
    unsigned bar;
    uint16_t offset;

    assert_int_equal(pci_io_find(&machine->pci, port, &bar, &offset), machine->slot);
    virtio_pci_io_write(machine_card(machine), offset, bytes, value);
}

/* Walks the capability list as Linux's vp_modern_probe does, with its checks of length and alignment. */
static inline void driver_probe(struct driver *driver, struct machine *machine)
{
    uint32_t bar;
    unsigned found = 0;

    memset(driver, 0, sizeof(*driver));
    driver->machine = machine;
    pci_put(machine, 0x04, 2, 0x0005);
    bar = pci_get(machine, 0x10, 4);
    assert_int_equal(bar & 3, 1);
    bar &= ~3u;
    assert_true(pci_get(machine, 0x06, 2) & 0x10);
    for (unsigned at = pci_get(machine, 0x34, 1); at != 0; at = pci_get(machine, at + 1, 1)) {
        uint32_t offset = pci_get(machine, at + 8, 4);
        uint32_t length = pci_get(machine, at + 12, 4);

        assert_in_range(at, 0x40, 0xFC);
        assert_true(found++ < 5);
        assert_int_equal(pci_get(machine, at, 1), 0x09);
        switch (pci_get(machine, at + 3, 1)) {
        case VIRTIO_PCI_CAP_COMMON_CFG:
            assert_true(length >= sizeof(struct virtio_pci_common_cfg) && offset % 4 == 0);
            driver->common = (uint16_t)(bar + offset);
            break;
        case VIRTIO_PCI_CAP_NOTIFY_CFG:
            assert_true(length >= 2 && offset % 2 == 0);
            driver->notify = (uint16_t)(bar + offset);
            driver->notify_multiplier = pci_get(machine, at + 16, 4);
            break;
        case VIRTIO_PCI_CAP_ISR_CFG:
            assert_true(length >= 1);
            driver->isr = (uint16_t)(bar + offset);
            break;
        case VIRTIO_PCI_CAP_DEVICE_CFG:
            assert_true(offset % 4 == 0);
            driver->device = (uint16_t)(bar + offset);
            break;
        case VIRTIO_PCI_CAP_PCI_CFG:
            driver->window = at;
            continue; /* its place in the BAR is the driver's to choose */
        default:
            fail_msg("unknown capability");
        }
        assert_int_equal(pci_get(machine, at + 4, 1), 0);
        assert_true(offset + length <= 0x80);
    }
    assert_int_equal(found, 5);
}

static inline uint32_t common_get(struct driver *driver, unsigned offset, unsigned bytes)
{
    return port_get(driver->machine, (uint16_t)(driver->common + offset), bytes);
}

static inline void common_put(struct driver *driver, unsigned offset, unsigned bytes, uint32_t value)
{
    port_put(driver->machine, (uint16_t)(driver->common + offset), bytes, value);
}

static inline uint8_t status_get(struct driver *driver)
{
    return (uint8_t)common_get(driver, VIRTIO_PCI_COMMON_STATUS, 1);
}

static inline void status_put(struct driver *driver, uint8_t status)
{
    common_put(driver, VIRTIO_PCI_COMMON_STATUS, 1, status);
}

static inline uint64_t features_get(struct driver *driver)
{
    uint64_t features;

    common_put(driver, VIRTIO_PCI_COMMON_DFSELECT, 4, 0);
    features = common_get(driver, VIRTIO_PCI_COMMON_DF, 4);
    common_put(driver, VIRTIO_PCI_COMMON_DFSELECT, 4, 1);
    return features | (uint64_t)common_get(driver, VIRTIO_PCI_COMMON_DF, 4) << 32;
}

static inline void features_put(struct driver *driver, uint64_t features)
{
    common_put(driver, VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
    common_put(driver, VIRTIO_PCI_COMMON_GF, 4, (uint32_t)features);
    common_put(driver, VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
    common_put(driver, VIRTIO_PCI_COMMON_GF, 4, (uint32_t)(features >> 32));
}

static inline uint8_t *ram(struct driver *driver, uint64_t gpa)
{
    return driver->machine->memory.base + gpa;
}

static inline void ring_setup(struct driver *driver, struct ring *ring)
{
    common_put(driver, VIRTIO_PCI_COMMON_Q_SELECT, 2, ring->queue);
    assert_int_equal(common_get(driver, VIRTIO_PCI_COMMON_Q_SIZE, 2), driver->machine->slot == BLK_SLOT ? 64 : 256);
    assert_int_equal(common_get(driver, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    common_put(driver, VIRTIO_PCI_COMMON_Q_SIZE, 2, ring->size);
    common_put(driver, VIRTIO_PCI_COMMON_Q_DESCLO, 4, (uint32_t)ring->desc_gpa);
    common_put(driver, VIRTIO_PCI_COMMON_Q_DESCHI, 4, (uint32_t)(ring->desc_gpa >> 32));
    common_put(driver, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, (uint32_t)ring->avail_gpa);
    common_put(driver, VIRTIO_PCI_COMMON_Q_AVAILHI, 4, (uint32_t)(ring->avail_gpa >> 32));
    common_put(driver, VIRTIO_PCI_COMMON_Q_USEDLO, 4, (uint32_t)ring->used_gpa);
    common_put(driver, VIRTIO_PCI_COMMON_Q_USEDHI, 4, (uint32_t)(ring->used_gpa >> 32));
    ring->notify_port =
        (uint16_t)(driver->notify + common_get(driver, VIRTIO_PCI_COMMON_Q_NOFF, 2) * driver->notify_multiplier);
    common_put(driver, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

/* Up to and with FEATURES_OK; the queues lie in the first 64 KiB of RAM. */
static inline void driver_negotiate(struct driver *driver, uint64_t features)
{
    status_put(driver, 0);
    assert_int_equal(status_get(driver), 0);
    status_put(driver, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    status_put(driver, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    features_put(driver, features);
    status_put(driver, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    driver->rx = (struct ring){.queue = 0, .size = 256, .desc_gpa = 0x1000, .avail_gpa = 0x2000, .used_gpa = 0x3000};
    driver->tx = (struct ring){.queue = 1, .size = 256, .desc_gpa = 0x5000, .avail_gpa = 0x6000, .used_gpa = 0x7000};
    driver->control =
        (struct ring){.queue = 2, .size = 16, .desc_gpa = 0x9200, .avail_gpa = 0x9300, .used_gpa = 0x9400};
    driver->requests = (struct ring){.size = 64, .desc_gpa = 0x8000, .avail_gpa = 0x8400, .used_gpa = 0x8800};
}

static inline void driver_start(struct driver *driver, uint64_t features)
{
    driver_negotiate(driver, features);
    assert_true(status_get(driver) & VIRTIO_CONFIG_S_FEATURES_OK);
    if (driver->machine->slot == BLK_SLOT) {
        ring_setup(driver, &driver->requests);
    } else {
        ring_setup(driver, &driver->rx);
        ring_setup(driver, &driver->tx);
        ring_setup(driver, &driver->control);
    }
    status_put(driver, 0x0F);
}

static inline void ring_describe(struct driver *driver, struct ring *ring, uint16_t index, uint64_t gpa, uint32_t bytes,
                                 uint16_t flags, uint16_t next)
{
    struct vring_desc desc = {.addr = gpa, .len = bytes, .flags = flags, .next = next};

    memcpy(ram(driver, ring->desc_gpa + index * sizeof(desc)), &desc, sizeof(desc));
}

static inline void ring_offer(struct driver *driver, struct ring *ring, uint16_t head)
{
    memcpy(ram(driver, ring->avail_gpa + 4 + 2u * (ring->avail_index % ring->size)), &head, 2);
    ring->avail_index++;
    memcpy(ram(driver, ring->avail_gpa + 2), &ring->avail_index, 2);
}

static inline uint16_t ring_u16(struct driver *driver, uint64_t gpa)
{
    uint16_t value;

    memcpy(&value, ram(driver, gpa), 2);
    return value;
}

static inline void ring_put_u16(struct driver *driver, uint64_t gpa, uint16_t value)
{
    memcpy(ram(driver, gpa), &value, 2);
}

/* Takes the next used entry; false if there is none. */
static inline bool ring_take(struct driver *driver, struct ring *ring, uint32_t *head, uint32_t *bytes)
{
    uint64_t entry = ring->used_gpa + 4 + 8u * (ring->used_index % ring->size);

    if (ring_u16(driver, ring->used_gpa + 2) == ring->used_index)
        return false;
    memcpy(head, ram(driver, entry), 4);
    memcpy(bytes, ram(driver, entry + 4), 4);
    ring->used_index++;
    return true;
}

static inline void ring_notify(struct driver *driver, struct ring *ring)
{
    port_put(driver->machine, ring->notify_port, 2, ring->queue);
}

#define BASIC_FEATURES (UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_NET_F_MAC)
/* As Linux names them. */
#define ALL_FEATURES                                                                                                   \
    (BASIC_FEATURES | UINT64_C(1) << VIRTIO_NET_F_STATUS | UINT64_C(1) << VIRTIO_NET_F_MTU |                           \
     UINT64_C(1) << VIRTIO_NET_F_CSUM | UINT64_C(1) << VIRTIO_NET_F_GUEST_CSUM |                                       \
     UINT64_C(1) << VIRTIO_NET_F_HOST_TSO4 | UINT64_C(1) << VIRTIO_NET_F_HOST_TSO6 |                                   \
     UINT64_C(1) << VIRTIO_NET_F_HOST_ECN | UINT64_C(1) << VIRTIO_NET_F_MRG_RXBUF |                                    \
     UINT64_C(1) << VIRTIO_NET_F_CTRL_VQ | UINT64_C(1) << VIRTIO_NET_F_CTRL_RX |                                       \
     UINT64_C(1) << VIRTIO_NET_F_CTRL_RX_EXTRA | UINT64_C(1) << VIRTIO_NET_F_CTRL_MAC_ADDR |                           \
     UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC | UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX)

#endif
