/*
 * Random guests: every port in every width, rings full of nonsense, time in leaps, disk requests that end whenever
 * they like. Two machines get the same
 * accesses and must stay equal to the last byte; halfway the second one is replaced by a third that received
 * nothing but a copy of the states, as a new backup does. Sanitizers watch the bounds.
 */
#include "virtio_driver.h"

#include "vmm/pit.h"
#include "vmm/rtc.h"
#include "vmm/uart.h"

#define STEPS              200000u
#define BLK_FEATURES       (UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_BLK_F_FLUSH)
#define START_UNIX_SECONDS INT64_C(1700000000)

struct whole {
    struct machine machine;
    struct driver driver;
    struct pit pit;
    struct rtc rtc;
    struct uart uart;
    uint64_t uart_digest;
    uint64_t frame_digest; /* and of filters */
    uint64_t unfinished, large, filters;
    uint64_t read_digest;
    uint8_t *shadow; /* RAM as the guest alone wrote it, on pages that no device has marked */
};

static uint64_t digest(uint64_t before, const void *data, size_t bytes)
{
    const uint8_t *byte = data;

    for (size_t i = 0; i < bytes; i++)
        before = (before ^ byte[i]) * UINT64_C(0x100000001b3); /* FNV-1a */
    return before;
}

static void whole_transmit(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
    struct whole *whole = ctx;

    whole->frame_digest = digest(whole->frame_digest, frame, bytes);
    whole->frame_digest = digest(whole->frame_digest, offload, sizeof(*offload));
    whole->unfinished += offload->checksum_missing;
    whole->large += offload->segmentation != NET_WHOLE;
    if (offload->checksum_missing)
        assert_true(offload->checksum_start + offload->checksum_offset + 2u <= bytes);
    assert_true(bytes <= (offload->segmentation == NET_WHOLE ? 1518u : NET_SEGMENTED_MAX_BYTES));
}

static void whole_filter(void *ctx, const struct net_filter *filter)
{
    struct whole *whole = ctx;

    whole->frame_digest = digest(whole->frame_digest, filter, sizeof(*filter));
    whole->filters++;
    assert_true(filter->addresses_used <= NET_FILTER_ADDRESSES);
}

static void whole_uart_transmit(void *ctx, uint8_t byte)
{
    struct whole *whole = ctx;

    whole->uart_digest = digest(whole->uart_digest, &byte, 1);
}

static void whole_init(struct whole *whole)
{
    memset(whole, 0, sizeof(*whole));
    machine_init(&whole->machine);
    machine_add_disk(&whole->machine, false);
    whole->machine.slot = TEST_SLOT;
    whole->machine.net.cable =
        (struct virtio_net_cable){.ctx = whole, .transmit = whole_transmit, .filter = whole_filter};
    pit_init(&whole->pit, 0);
    rtc_init(&whole->rtc, START_UNIX_SECONDS, 0);
    uart_init(&whole->uart, &whole->machine.pic, whole_uart_transmit, whole);
    whole->shadow = calloc(1, TEST_RAM_BYTES);
    assert_non_null(whole->shadow);
}

static void whole_fini(struct whole *whole)
{
    machine_fini(&whole->machine);
    free(whole->shadow);
}

static void whole_copy_state(struct whole *to, const struct whole *from)
{
    to->machine.pic = from->machine.pic;
    to->machine.pci.state = from->machine.pci.state;
    to->machine.net.card.state = from->machine.net.card.state;
    to->machine.net.state = from->machine.net.state;
    to->machine.blk.card.state = from->machine.blk.card.state;
    to->machine.blk.state = from->machine.blk.state;
    *to->machine.backing = *from->machine.backing;
    to->pit = from->pit;
    to->rtc = from->rtc;
    to->uart.state = from->uart.state;
    memcpy(to->machine.memory.base, from->machine.memory.base, TEST_RAM_BYTES);
    memcpy(to->machine.dirty, from->machine.dirty, sizeof(to->machine.dirty));
    memcpy(to->shadow, from->shadow, TEST_RAM_BYTES);
    to->uart_digest = from->uart_digest;
    to->frame_digest = from->frame_digest;
    to->unfinished = from->unfinished;
    to->large = from->large;
    to->filters = from->filters;
    to->read_digest = from->read_digest;
}

static void assert_same(const struct whole *a, const struct whole *b)
{
    assert_memory_equal(&a->machine.pic, &b->machine.pic, sizeof(a->machine.pic));
    assert_memory_equal(&a->machine.pci.state, &b->machine.pci.state, sizeof(a->machine.pci.state));
    assert_memory_equal(&a->machine.net.card.state, &b->machine.net.card.state, sizeof(a->machine.net.card.state));
    assert_memory_equal(&a->machine.net.state, &b->machine.net.state, sizeof(a->machine.net.state));
    assert_memory_equal(&a->machine.blk.card.state, &b->machine.blk.card.state, sizeof(a->machine.blk.card.state));
    assert_memory_equal(&a->machine.blk.state, &b->machine.blk.state, sizeof(a->machine.blk.state));
    assert_memory_equal(a->machine.backing, b->machine.backing, sizeof(*a->machine.backing));
    assert_memory_equal(&a->pit, &b->pit, sizeof(a->pit));
    assert_memory_equal(&a->rtc, &b->rtc, sizeof(a->rtc));
    assert_memory_equal(&a->uart.state, &b->uart.state, sizeof(a->uart.state));
    assert_memory_equal(a->machine.memory.base, b->machine.memory.base, TEST_RAM_BYTES);
    assert_memory_equal(a->machine.dirty, b->machine.dirty, sizeof(a->machine.dirty));
    assert_true(a->uart_digest == b->uart_digest);
    assert_true(a->frame_digest == b->frame_digest);
    assert_true(a->read_digest == b->read_digest);
}

/* Whatever a guest does, the state it brings about may go to another host. */
static void assert_fits(struct whole *whole, uint64_t now_ns)
{
    struct machine *machine = &whole->machine;

    assert_true(pic_fits(&machine->pic));
    assert_true(pit_fits(&whole->pit, now_ns));
    assert_true(rtc_fits(&whole->rtc, now_ns));
    assert_true(uart_fits(&whole->uart.state));
    assert_true(pci_take(&machine->pci, &machine->pci.state));
    assert_true(virtio_pci_take(&machine->net.card, &machine->net.card.state));
    assert_true(virtio_pci_take(&machine->blk.card, &machine->blk.card.state));
}

/* Pages that no device marked hold what the guest wrote. */
static void assert_marks_complete(const struct whole *whole)
{
    for (unsigned page = 0; page < TEST_RAM_BYTES / GUEST_PAGE_BYTES; page++)
        if (!(whole->machine.dirty[page / 64] & UINT64_C(1) << page % 64))
            assert_memory_equal(whole->shadow + page * GUEST_PAGE_BYTES,
                                whole->machine.memory.base + page * GUEST_PAGE_BYTES, GUEST_PAGE_BYTES);
}

static uint32_t bus_read(struct whole *whole, uint16_t port, unsigned bytes, uint64_t now_ns)
{
    struct machine *machine = &whole->machine;
    unsigned bar;
    uint16_t offset;
    int slot = pci_io_find(&machine->pci, port, &bar, &offset);

    if ((port >= 0x20 && port <= 0x21) || (port >= 0xA0 && port <= 0xA1) || (port >= 0x4D0 && port <= 0x4D1))
        return pic_read(&machine->pic, port, bytes);
    if ((port >= 0x40 && port <= 0x43) || port == 0x61)
        return pit_read(&whole->pit, port, bytes, now_ns, &machine->pic);
    if (port >= 0x70 && port <= 0x71)
        return rtc_read(&whole->rtc, port, bytes, now_ns, &machine->pic);
    if (port >= 0x3F8 && port <= 0x3FF)
        return uart_read(&whole->uart, port, bytes);
    if (port >= 0xCF8 && port <= 0xCFF)
        return pci_read(&machine->pci, port, bytes);
    if (slot >= 0)
        return virtio_pci_io_read(slot == BLK_SLOT ? &machine->blk.card : &machine->net.card, offset, bytes);
    return 0;
}

static void bus_write(struct whole *whole, uint16_t port, unsigned bytes, uint32_t value, uint64_t now_ns)
{
    struct machine *machine = &whole->machine;
    unsigned bar;
    uint16_t offset;
    int slot = pci_io_find(&machine->pci, port, &bar, &offset);

    virtio_blk_continue(&machine->blk);
    if ((port >= 0x20 && port <= 0x21) || (port >= 0xA0 && port <= 0xA1) || (port >= 0x4D0 && port <= 0x4D1))
        pic_write(&machine->pic, port, bytes, value);
    else if ((port >= 0x40 && port <= 0x43) || port == 0x61)
        pit_write(&whole->pit, port, bytes, value, now_ns, &machine->pic);
    else if (port >= 0x70 && port <= 0x71)
        rtc_write(&whole->rtc, port, bytes, value, now_ns, &machine->pic);
    else if (port >= 0x3F8 && port <= 0x3FF)
        uart_write(&whole->uart, port, bytes, value);
    else if (port >= 0xCF8 && port <= 0xCFF)
        pci_write(&machine->pci, port, bytes, value);
    else if (slot >= 0)
        virtio_pci_io_write(slot == BLK_SLOT ? &machine->blk.card : &machine->net.card, offset, bytes, value);
}

static uint16_t random_port(uint64_t *random)
{
    static const uint16_t bases[] = {0x20, 0xA0, 0x4D0, 0x40, 0x61, 0x70, 0x3F8, 0xCF8, 0xCFC};
    static const uint8_t counts[] = {2, 2, 2, 4, 1, 2, 8, 4, 4};
    uint64_t which = test_random(random) % 16;

    if (which >= 9)
        return (uint16_t)(TEST_PORT + test_random(random) % (2 * VIRTIO_PCI_BAR_BYTES)); /* the disk's BAR is next */
    return (uint16_t)(bases[which] + test_random(random) % counts[which]);
}

/* Values that mean something more often than chance would have it. */
static uint32_t random_value(uint64_t *random)
{
    switch (test_random(random) % 4) {
    case 0:
        return (uint32_t)(test_random(random) % 16);
    case 1:
        return 0x80000000u | (TEST_SLOT + (uint32_t)(test_random(random) % 2)) << 11 |
               (uint32_t)(test_random(random) & 0xFC);
    case 2:
        return (uint32_t)(test_random(random) % (TEST_RAM_BYTES + 64)) & ~15u;
    default:
        return (uint32_t)test_random(random);
    }
}

static void guest_store(struct whole *whole, uint64_t gpa, const void *data, size_t bytes)
{
    memcpy(whole->machine.memory.base + gpa, data, bytes);
    memcpy(whole->shadow + gpa, data, bytes);
}

/* A guest whose rings are mostly right, so that the walk gets deep before it meets what is wrong. Receive
 * buffers are writable, the others readable; the table at 0x9000 serves as indirect. */
static void store_descriptor(struct whole *whole, uint64_t *random)
{
    static const uint64_t tables[] = {0x1000, 0x5000, 0x9000};
    uint64_t bits = test_random(random);
    unsigned table = (bits >> 32) % 3;
    unsigned index = (bits >> 40) % 16;
    struct vring_desc desc = {
        .addr = 0xA000 + test_random(random) % (TEST_RAM_BYTES - 0xA000 - 2000),
        .len = (uint32_t)(1 + test_random(random) % (bits >> 16 & 1 ? 40 : 1600)),
        .flags = (uint16_t)((table == 0 ? VRING_DESC_F_WRITE : 0) | ((bits >> 8) % 4 == 0 ? VRING_DESC_F_NEXT : 0)),
        .next = (uint16_t)(index + 1),
    };

    if ((bits >> 12) % 8 == 0 && table != 2) {
        desc.addr = 0x9000;
        desc.len = 16 * (uint32_t)(1 + test_random(random) % 16);
        desc.flags = VRING_DESC_F_INDIRECT;
    }
    switch (bits % 256) { /* now and then, something that is wrong */
    case 0:
        desc.addr = test_random(random);
        break;
    case 1:
        desc.len = (uint32_t)test_random(random);
        break;
    case 2:
        desc.flags = (uint16_t)test_random(random);
        break;
    case 3:
        desc.next = (uint16_t)test_random(random);
        break;
    default:
        break;
    }
    guest_store(whole, tables[table] + 16 * index, &desc, sizeof(desc));
}

/* What a driver does after a reset: empty rings, descriptors that work. */
static void clean_rings(struct whole *whole, uint64_t *random)
{
    static const uint8_t zero[4096];

    for (uint64_t gpa = 0x1000; gpa < 0xA000; gpa += sizeof(zero))
        guest_store(whole, gpa, zero, sizeof(zero));
    for (unsigned i = 0; i < 100; i++)
        store_descriptor(whole, random);
}

/* A disk request, mostly a possible one, in the ring's descriptors 4 n to 4 n + 3. */
static void offer_disk_request(struct whole *whole, uint64_t *random)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_IN, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_OUT,
                                     VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, 99};
    uint64_t bits = test_random(random);
    unsigned n = bits % 16;
    uint64_t place = 0xA000 + test_random(random) % (TEST_RAM_BYTES - 0xA000 - 10000);
    struct virtio_blk_outhdr header = {
        .type = types[(bits >> 8) % 7],
        .sector = bits >> 56 == 0 ? test_random(random) : test_random(random) % (BLK_SECTORS + 4),
    };
    uint16_t data_flags = VRING_DESC_F_NEXT | (header.type == VIRTIO_BLK_T_OUT ? 0 : VRING_DESC_F_WRITE);
    struct vring_desc desc[4] = {
        {.addr = place, .len = 16, .flags = VRING_DESC_F_NEXT, .next = (uint16_t)(4 * n + (bits >> 16 & 1 ? 1 : 3))},
        {.addr = place + 16, .len = 512 * (uint32_t)(1 + (bits >> 20) % 8), .flags = data_flags,
         .next = (uint16_t)(4 * n + 2)},
        {.addr = place + 5000, .len = 512 * (uint32_t)(1 + (bits >> 24) % 8), .flags = data_flags,
         .next = (uint16_t)(4 * n + 3)},
        {.addr = place + 9999, .len = 1, .flags = VRING_DESC_F_WRITE},
    };
    uint16_t head = (uint16_t)(4 * n), index;

    switch ((bits >> 32) % 256) { /* now and then, something that is wrong */
    case 0:
        desc[bits >> 40 & 3].addr = test_random(random);
        break;
    case 1:
        desc[bits >> 40 & 3].next = (uint16_t)test_random(random);
        break;
    case 2:
        desc[bits >> 40 & 3].flags = (uint16_t)test_random(random);
        break;
    default:
        if ((bits >> 40) % 16 == 0)
            desc[bits >> 44 & 3].len = (uint32_t)(1 + test_random(random) % 3000);
        break;
    }
    guest_store(whole, place, &header, sizeof(header));
    guest_store(whole, 0x8000 + 64 * n, desc, sizeof(desc));
    memcpy(&index, whole->machine.memory.base + 0x8400 + 2, 2);
    guest_store(whole, 0x8400 + 4 + 2 * (index % 64), &head, 2);
    index++;
    guest_store(whole, 0x8400 + 2, &index, 2);
}

static void start_disk(struct whole *whole, uint64_t *random)
{
    static const uint8_t zero[4096];
    struct machine *machine = &whole->machine;

    machine->slot = BLK_SLOT;
    bus_write(whole, 0xCF8, 4, 0x80000000u | BLK_SLOT << 11 | 0x10, 0);
    bus_write(whole, 0xCFC, 4, BLK_PORT, 0);
    driver_probe(&whole->driver, machine);
    guest_store(whole, 0x8000, zero, sizeof(zero));
    driver_negotiate(&whole->driver, BLK_FEATURES);
    if (test_random(random) % 16 == 0)
        whole->driver.requests.used_gpa = random_value(random);
    ring_setup(&whole->driver, &whole->driver.requests);
    status_put(&whole->driver, 0x0F);
    machine->slot = TEST_SLOT;
}

/* A header, mostly of a frame with something left to be done, where one of the transmit queue's buffers begins. */
static void store_header(struct whole *whole, uint64_t *random)
{
    static const uint8_t kinds[] = {VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
                                    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN,
                                    VIRTIO_NET_HDR_GSO_UDP, 0xFF};
    uint64_t bits = test_random(random);
    struct virtio_net_hdr_v1 header = {
        .flags = bits % 8 == 0 ? (uint8_t)(bits >> 8) : VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = kinds[(bits >> 16) % 7],
        .gso_size = (uint16_t)(bits >> 24 & 1 ? 1448 : bits >> 40),
        .csum_start = (uint16_t)(bits >> 56 & 7 ? 34 : bits >> 32),
        .csum_offset = (uint16_t)(bits >> 59 & 7 ? 16 : bits >> 33),
    };
    struct vring_desc desc;

    memcpy(&desc, whole->machine.memory.base + 0x5000 + 16 * (test_random(random) % 16), sizeof(desc));
    if (desc.addr >= 0xA000 && desc.addr < TEST_RAM_BYTES - sizeof(header) && !(desc.flags & VRING_DESC_F_INDIRECT))
        guest_store(whole, desc.addr, &header, sizeof(header));
}

/* A command of the control queue, mostly one that makes sense, in descriptors 2 n and 2 n + 1. */
static void offer_command(struct whole *whole, uint64_t *random)
{
    uint64_t bits = test_random(random), place = 0xA000 + bits % 0x1000;
    unsigned n = bits >> 16 & 7;
    uint8_t command[2 + 4 + 6 * 70 + 4] = {(uint8_t)(bits >> 20 & 1), (uint8_t)((bits >> 24) % 7), (uint8_t)(bits >> 28 & 1)};
    uint32_t used = 3, count = (uint32_t)(bits >> 32) % 70;
    struct vring_desc desc[2] = {
        {.addr = place, .flags = VRING_DESC_F_NEXT, .next = (uint16_t)(2 * n + 1)},
        {.addr = place + sizeof(command), .len = 1, .flags = VRING_DESC_F_WRITE},
    };
    uint16_t head = (uint16_t)(2 * n), index;

    if (command[0] == 1) { /* the address, or a table of some stations and no groups */
        command[1] = bits >> 24 & 1;
        for (unsigned i = 2; i < sizeof(command); i++)
            command[i] = (uint8_t)(test_random(random) & 0xFE);
        used = 2 + 6;
        if (command[1] == 0) {
            memcpy(command + 2, &count, sizeof(count));
            memset(command + 6 + 6 * count, 0, 4);
            used = 2 + 4 + 6 * count + 4;
        }
    }
    desc[0].len = used;
    if ((bits >> 48) % 16 == 0)
        desc[0].len = (uint32_t)(1 + test_random(random) % sizeof(command));
    if ((bits >> 52) % 256 == 0)
        desc[1].flags = 0; /* no room for an answer */
    guest_store(whole, place, command, sizeof(command));
    guest_store(whole, 0x9200 + 32 * n, desc, sizeof(desc));
    memcpy(&index, whole->machine.memory.base + 0x9300 + 2, 2);
    guest_store(whole, 0x9300 + 4 + 2 * (index % 16), &head, 2);
    index++;
    guest_store(whole, 0x9300 + 2, &index, 2);
}

static void offer_random_head(struct whole *whole, uint64_t *random)
{
    uint64_t avail = test_random(random) % 2 ? 0x2000 : 0x6000;
    uint16_t head = (uint16_t)(test_random(random) % (test_random(random) % 256 == 0 ? 65536 : 16));
    uint16_t index;

    memcpy(&index, whole->machine.memory.base + avail + 2, 2);
    guest_store(whole, avail + 4 + 2 * (index % 256), &head, 2);
    index = (uint16_t)(test_random(random) % 512 == 0 ? test_random(random) : index + 1u);
    guest_store(whole, avail + 2, &index, 2);
}

/* One step; everything it does follows from `random` and the state. */
static void whole_step(struct whole *whole, uint64_t random, uint64_t now_ns)
{
    static const uint8_t widths[] = {1, 2, 4};
    uint64_t kind = test_random(&random) % 128;
    struct machine *machine = &whole->machine;
    uint8_t frame[1520];
    uint16_t port = random_port(&random);
    unsigned bytes = widths[test_random(&random) % 3];
    uint32_t value;

    if (test_random(&random) % 4 == 0) { /* the disk's turn */
        if (kind < 4 && machine->blk.card.state.status != 0x0F) {
            start_disk(whole, &random);
        } else if (kind < 70) {
            offer_disk_request(whole, &random);
            virtio_pci_io_write(&machine->blk.card, 0x44, 2, 0);
        } else {
            backing_end(machine, kind < 80 ? VIRTIO_BLK_IOERR : VIRTIO_BLK_OK);
        }
    } else if (kind < 16) {
        value = bus_read(whole, port, bytes, now_ns);
        assert_true(bytes == 4 || value >> (8 * bytes) == 0);
        whole->read_digest = digest(whole->read_digest, &value, sizeof(value));
    } else if (kind < 20) {
        bus_write(whole, port, bytes, random_value(&random), now_ns);
    } else if (kind < 40) {
        store_descriptor(whole, &random);
    } else if (kind < 46) {
        store_header(whole, &random);
    } else if (kind < 54) {
        offer_command(whole, &random);
        virtio_pci_io_write(&machine->net.card, 0x48, 2, 2);
    } else if (kind < 94) {
        offer_random_head(whole, &random);
        virtio_pci_io_write(&machine->net.card, 0x46, 2, 1);
    } else if (kind < 110) {
        memset(frame, (int)(random & 0xFF), sizeof(frame));
        virtio_net_receive(&machine->net, frame, test_random(&random) % sizeof(frame), random & 1);
    } else if (kind < 114) {
        uart_receive(&whole->uart, (uint8_t)test_random(&random));
    } else if (kind < 118) {
        pit_advance(&whole->pit, now_ns, &machine->pic);
        rtc_advance(&whole->rtc, now_ns, &machine->pic);
        assert_true(pit_deadline_ns(&whole->pit) > now_ns);
        assert_true(rtc_deadline_ns(&whole->rtc) > now_ns);
    } else if (kind < 122) {
        if (pic_output(&machine->pic))
            whole->read_digest = digest(whole->read_digest, &(uint8_t){pic_acknowledge(&machine->pic)}, 1);
    } else if (kind < 123) {
        virtio_net_set_link(&machine->net, test_random(&random) % 2);
    } else if (machine->net.card.state.status != 0x0F) {
        bus_write(whole, 0xCF8, 4, 0x80000000u | TEST_SLOT << 11 | 0x10, now_ns);
        bus_write(whole, 0xCFC, 4, TEST_PORT, now_ns);
        driver_probe(&whole->driver, machine);
        clean_rings(whole, &random);
        driver_negotiate(&whole->driver, random % 3 == 0 ? BASIC_FEATURES : ALL_FEATURES);
        if (random % 8 == 0) /* rings anywhere, on top of each other or outside */
            whole->driver.tx.used_gpa = random_value(&random);
        if (random % 16 == 0)
            whole->driver.rx.avail_gpa = random_value(&random);
        ring_setup(&whole->driver, &whole->driver.rx);
        ring_setup(&whole->driver, &whole->driver.tx);
        ring_setup(&whole->driver, &whole->driver.control);
        status_put(&whole->driver, 0x0F);
    }
}

static void equal_accesses_keep_machines_equal_and_inside_their_bounds(void **unused)
{
    uint64_t random = test_seed(__func__);
    struct whole *a = malloc(sizeof(*a));
    struct whole *b = malloc(sizeof(*b));
    uint64_t now_ns = 0;

    (void)unused;
    assert_non_null(a);
    assert_non_null(b);
    whole_init(a);
    whole_init(b);
    for (unsigned step = 0; step < STEPS; step++) {
        uint64_t choice = test_random(&random);

        now_ns += choice % 1024 == 0 ? choice >> 20 : choice % 100000;
        whole_step(a, choice, now_ns);
        whole_step(b, choice, now_ns);
        if (step % 16 == 0)
            assert_fits(a, now_ns);
        if (step % 4096 == 0) {
            assert_same(a, b);
            assert_marks_complete(a);
        }
        if (step == STEPS / 2) {
            whole_fini(b);
            whole_init(b);
            whole_copy_state(b, a);
        }
    }
    assert_same(a, b);
    assert_marks_complete(a);
    print_message("frames out %llu (dropped %llu), in %llu (dropped %llu), virtual time %llu s\n",
                  (unsigned long long)a->machine.net.state.sent_frames,
                  (unsigned long long)a->machine.net.state.sent_dropped_frames,
                  (unsigned long long)a->machine.net.state.received_frames,
                  (unsigned long long)a->machine.net.state.received_dropped_frames,
                  (unsigned long long)(now_ns / 1000000000));
    print_message("disk requests %llu, refused %llu\n", (unsigned long long)a->machine.backing->submitted,
                  (unsigned long long)a->machine.blk.state.refused);
    /* The random guest must have got somewhere, or this test shows nothing. */
    assert_true(a->machine.backing->ended > 500);
    assert_true(a->machine.blk.state.refused > 100);
    assert_true(a->machine.net.state.sent_frames > 500);
    assert_true(a->machine.net.state.received_frames > 500);
    assert_true(a->machine.net.state.received_dropped_frames > 50);
    print_message("left to the card: checksums %llu, segments %llu; filters %llu\n", (unsigned long long)a->unfinished,
                  (unsigned long long)a->large, (unsigned long long)a->filters);
    assert_true(a->unfinished > 100);
    assert_true(a->large > 50);
    assert_true(a->filters > 100);
    whole_fini(a);
    whole_fini(b);
    free(a);
    free(b);
}

/* One byte, or a few, of one of the states; true: it is believed all the same. */
static bool spoil_and_take(struct whole *whole, uint64_t *random, uint64_t now_ns)
{
    struct machine *machine = &whole->machine;
    static union {
        struct pic pic;
        struct pit pit;
        struct rtc rtc;
        struct uart_state uart;
        struct pci_state pci;
        struct virtio_pci_state card;
    } spoiled;
    struct virtio_pci *card = test_random(random) % 2 ? &machine->net.card : &machine->blk.card;
    const struct {
        void *state;
        size_t bytes;
    } parts[] = {
        { &machine->pic, sizeof(struct pic) },        { &whole->pit, sizeof(struct pit) },
        { &whole->rtc, sizeof(struct rtc) },          { &whole->uart.state, sizeof(struct uart_state) },
        { &machine->pci.state, sizeof(struct pci_state) }, { &card->state, sizeof(struct virtio_pci_state) },
    };
    unsigned part = (unsigned)(test_random(random) % (sizeof(parts) / sizeof(parts[0])));

    memcpy(&spoiled, parts[part].state, parts[part].bytes);
    for (uint64_t left = 1 + test_random(random) % 4; left > 0; left--)
        ((uint8_t *)&spoiled)[test_random(random) % parts[part].bytes] = (uint8_t)test_random(random);
    switch (part) {
    case 0:
        if (!pic_fits(&spoiled.pic))
            return false;
        machine->pic = spoiled.pic;
        return true;
    case 1:
        if (!pit_fits(&spoiled.pit, now_ns))
            return false;
        whole->pit = spoiled.pit;
        return true;
    case 2:
        if (!rtc_fits(&spoiled.rtc, now_ns))
            return false;
        whole->rtc = spoiled.rtc;
        return true;
    case 3:
        if (!uart_fits(&spoiled.uart))
            return false;
        whole->uart.state = spoiled.uart;
        return true;
    case 4: return pci_take(&machine->pci, &spoiled.pci);
    default: return virtio_pci_take(card, &spoiled.card);
    }
}

/* What the sanitized twin of this test is for: a state that is believed leads no device outside its tables. */
static void spoiled_states_are_refused_or_do_no_harm(void **unused)
{
    struct whole *whole = malloc(sizeof(*whole));
    uint64_t random = 4242, now_ns = 0;
    unsigned refused = 0, taken = 0;

    (void)unused;
    assert_non_null(whole);
    for (unsigned round = 0; round < 60; round++) {
        whole_init(whole);
        for (unsigned step = 0; step < 3000; step++) {
            uint64_t choice = test_random(&random);

            now_ns += choice % 100000;
            whole_step(whole, choice, now_ns);
            if (step % 8 == 0 && spoil_and_take(whole, &random, now_ns))
                taken++;
            else if (step % 8 == 0)
                refused++;
        }
        now_ns = 0;
        whole_fini(whole);
    }
    print_message("%u spoiled states refused, %u taken\n", refused, taken);
    assert_true(refused > 1000 && taken > 1000);
    free(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spoiled_states_are_refused_or_do_no_harm),
        cmocka_unit_test(equal_accesses_keep_machines_equal_and_inside_their_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
