/*
 * What the network card offers beyond plain frames, as a driver in guest memory sees it: mergeable receive buffers, what
 * is left to the card when sending, the control queue, the MTU; each with a driver that keeps the rules, with random
 * ones, and with one that does not. FTVMM_TEST_SEED repeats a run.
 */
#include "virtio_driver.h"

#include <errno.h>

#define TX_GPA      0x10000u /* headers and frames to send */
#define RX_GPA      0x20000u /* receive buffers */
#define CONTROL_GPA 0x3C000u
#define RING_SIZE   256u

struct bench {
    struct machine machine;
    struct driver driver;
};

static void bench_init(struct bench *bench, uint16_t mtu, uint64_t features)
{
    machine_init_mtu(&bench->machine, mtu);
    driver_probe(&bench->driver, &bench->machine);
    driver_start(&bench->driver, features);
}

static void bench_fini(struct bench *bench)
{
    machine_fini(&bench->machine);
}

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 13 + (i >> 8));
}

/* ---- sending ---- */

/* Sends header and frame, `bytes` long, spread over so many descriptors; true if it left. */
static bool send_packet(struct bench *bench, const struct virtio_net_hdr_v1 *header, size_t bytes, unsigned descriptors)
{
    struct driver *driver = &bench->driver;
    uint64_t before = bench->machine.frames, gpa = TX_GPA;
    size_t whole = sizeof(*header) + bytes, part = whole / descriptors;
    uint32_t head, written;

    assert_true(whole < CONTROL_GPA - TX_GPA);
    memcpy(ram(driver, gpa), header, sizeof(*header));
    for (size_t i = 0; i < bytes; i++)
        *ram(driver, gpa + sizeof(*header) + i) = pattern(i);
    for (unsigned i = 0; i < descriptors; i++) {
        bool last = i + 1 == descriptors;
        uint32_t length = (uint32_t)(last ? whole : part);

        ring_describe(driver, &driver->tx, (uint16_t)i, gpa, length, last ? 0 : VRING_DESC_F_NEXT, (uint16_t)(i + 1));
        gpa += length;
        whole -= length;
    }
    ring_offer(driver, &driver->tx, 0);
    ring_notify(driver, &driver->tx);
    assert_true(ring_take(driver, &driver->tx, &head, &written)); /* sent or not, the driver gets it back */
    assert_int_equal(written, 0);
    if (bench->machine.frames == before)
        return false;
    assert_int_equal(bench->machine.frames, before + 1);
    assert_int_equal(bench->machine.frame_bytes, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (bench->machine.frame[i] != pattern(i))
            fail_msg("byte %zu of %zu", i, bytes);
    return true;
}

static struct virtio_net_hdr_v1 large_header(uint8_t type)
{
    return (struct virtio_net_hdr_v1){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = type, .gso_size = 1448,
                                      .csum_start = 34, .csum_offset = 16, .hdr_len = 54};
}

static void what_is_left_to_the_card_comes_with_the_frame(void **unused)
{
    struct virtio_net_hdr_v1 plain = {0}, sum = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 6};
    struct virtio_net_hdr_v1 large4 = large_header(VIRTIO_NET_HDR_GSO_TCPV4);
    struct virtio_net_hdr_v1 large6 = large_header(VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN);
    static struct bench bench;
    const struct net_offload *offload = &bench.machine.offload;

    (void)unused;
    bench_init(&bench, 1500, ALL_FEATURES);
    assert_true(send_packet(&bench, &plain, 60, 1));
    assert_int_equal(offload->segmentation, NET_WHOLE);
    assert_int_equal(offload->checksum_missing, 0);
    assert_true(send_packet(&bench, &sum, 1518, 3));
    assert_int_equal(offload->segmentation, NET_WHOLE);
    assert_int_equal(offload->checksum_missing, 1);
    assert_int_equal(offload->checksum_start, 34);
    assert_int_equal(offload->checksum_offset, 6);
    assert_true(send_packet(&bench, &large4, 65549, 18)); /* as Linux sends 64 KiB */
    assert_int_equal(offload->segmentation, NET_TCP4);
    assert_int_equal(offload->checksum_missing, 1);
    assert_int_equal(offload->segment_bytes, 1448);
    assert_true(send_packet(&bench, &large6, 20000, 200));
    assert_int_equal(offload->segmentation, NET_TCP6);
    assert_int_equal(bench.machine.net.state.sent_frames, 4);
    assert_int_equal(bench.machine.net.state.sent_dropped_frames, 0);
    bench_fini(&bench);
}

static void headers_that_break_the_rules_are_dropped_and_counted(void **unused)
{
    const struct virtio_net_hdr_v1 good = large_header(VIRTIO_NET_HDR_GSO_TCPV4);
    struct virtio_net_hdr_v1 bad[12];
    const size_t count = sizeof(bad) / sizeof(bad[0]);
    static struct bench bench;

    (void)unused;
    bench_init(&bench, 1500, ALL_FEATURES);
    for (size_t i = 0; i < count; i++)
        bad[i] = good;
    bad[0].flags = 0; /* a segmentation without a checksum */
    bad[1].gso_type = VIRTIO_NET_HDR_GSO_UDP;
    bad[2].gso_type = 0x7F;
    bad[3].gso_type = VIRTIO_NET_HDR_GSO_ECN;
    bad[4].gso_size = 0;
    bad[5].gso_size = 7;
    bad[6].csum_start = 5000;
    bad[7].csum_offset = 4965;
    bad[8].csum_start = 65535;
    bad[8].csum_offset = 65535;
    bad[9].csum_start = 65535;
    bad[10].gso_type = VIRTIO_NET_HDR_GSO_NONE; /* 5000 bytes in one */
    bad[11].csum_start = 4983;
    assert_true(send_packet(&bench, &good, 5000, 4));
    for (size_t i = 0; i < count; i++)
        if (send_packet(&bench, &bad[i], 5000, 4))
            fail_msg("header %zu was taken", i);
    assert_int_equal(bench.machine.net.state.sent_dropped_frames, count);
    bad[11].csum_start = 4982; /* its field is the frame's last two bytes */
    assert_true(send_packet(&bench, &bad[11], 5000, 4));
    assert_int_equal(status_get(&bench.driver), 0x0F); /* a bad frame is no bad queue */
    assert_false(send_packet(&bench, &good, NET_SEGMENTED_MAX_BYTES + 1, 20));
    assert_true(send_packet(&bench, &good, NET_SEGMENTED_MAX_BYTES, 20));
    bench_fini(&bench);
}

static void nothing_is_left_to_a_card_without_the_feature(void **unused)
{
    struct virtio_net_hdr_v1 sum = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
    struct virtio_net_hdr_v1 large4 = large_header(VIRTIO_NET_HDR_GSO_TCPV4);
    struct virtio_net_hdr_v1 large6 = large_header(VIRTIO_NET_HDR_GSO_TCPV6);
    struct virtio_net_hdr_v1 ecn = large_header(VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN);
    static struct bench bench;

    (void)unused;
    bench_init(&bench, 1500, BASIC_FEATURES);
    assert_false(send_packet(&bench, &sum, 100, 1));
    bench_fini(&bench);
    bench_init(&bench, 1500, BASIC_FEATURES | UINT64_C(1) << VIRTIO_NET_F_CSUM | UINT64_C(1) << VIRTIO_NET_F_HOST_TSO4);
    assert_true(send_packet(&bench, &sum, 100, 1));
    assert_true(send_packet(&bench, &large4, 5000, 1));
    assert_false(send_packet(&bench, &large6, 5000, 1));
    assert_false(send_packet(&bench, &ecn, 5000, 1));
    bench_fini(&bench);
}

/* ---- receiving ---- */

static void offer_buffer(struct driver *driver, uint16_t index, uint64_t gpa, uint32_t bytes)
{
    ring_describe(driver, &driver->rx, index, gpa, bytes, VRING_DESC_F_WRITE, 0);
    ring_offer(driver, &driver->rx, index);
}

/* Puts together what has come, as Linux's receive_mergeable does; its bytes. */
static size_t collect(struct driver *driver, const uint32_t lengths[RING_SIZE], const uint64_t places[RING_SIZE],
                      struct virtio_net_hdr_v1 *header, uint8_t *frame)
{
    uint32_t head = 0, written = 0;
    size_t bytes = 0;

    for (unsigned i = 0; i == 0 || i < header->num_buffers; i++) {
        size_t skip = i == 0 ? sizeof(*header) : 0;

        assert_true(ring_take(driver, &driver->rx, &head, &written));
        assert_true(written <= lengths[head]);
        if (i == 0)
            memcpy(header, ram(driver, places[head]), sizeof(*header));
        assert_true(header->num_buffers > 0);
        if (i + 1 < header->num_buffers)
            assert_int_equal(written, lengths[head]); /* all but the last are full */
        memcpy(frame + bytes, ram(driver, places[head] + skip), written - skip);
        bytes += written - skip;
    }
    return bytes;
}

static void frames_are_spread_over_random_buffers(void **unused)
{
    uint64_t random = test_seed(__func__), spread = 0;
    uint8_t frame[NET_FRAME_MAX_BYTES], came[NET_FRAME_MAX_BYTES];
    static struct bench bench;
    struct driver *driver = &bench.driver;
    uint64_t places[RING_SIZE];
    uint32_t lengths[RING_SIZE];
    unsigned given = 0, waiting_bytes = 0, waits = 0;

    (void)unused;
    bench_init(&bench, 9000, ALL_FEATURES);
    for (unsigned round = 0; round < 3000; round++) {
        size_t bytes = 14 + test_random(&random) % (test_random(&random) % 2 ? 200 : sizeof(frame) - 13);
        bool right = test_random(&random) % 2;
        struct virtio_net_hdr_v1 header;
        unsigned fits;

        /* Buffers until it fits; before, the card says that it has no room, and changes nothing. */
        for (fits = 0; waiting_bytes < sizeof(header) + bytes; fits++) {
            unsigned index = given++ % RING_SIZE;

            if (waiting_bytes > 0) {
                assert_false(virtio_net_can_receive(&bench.machine.net, bytes));
                assert_int_equal(virtio_net_receive(&bench.machine.net, frame, bytes, right), -EAGAIN);
                waits++;
            }
            lengths[index] = 12 + (uint32_t)(test_random(&random) % 1600);
            places[index] = RX_GPA + index % 60 * 1700;
            offer_buffer(driver, (uint16_t)index, places[index], lengths[index]);
            waiting_bytes += lengths[index];
        }
        for (size_t i = 0; i < bytes; i++)
            frame[i] = (uint8_t)test_random(&random);
        assert_true(virtio_net_can_receive(&bench.machine.net, bytes));
        assert_int_equal(virtio_net_receive(&bench.machine.net, frame, bytes, right), 0);
        memset(&header, 0, sizeof(header));
        assert_int_equal(collect(driver, lengths, places, &header, came), bytes);
        assert_memory_equal(came, frame, bytes);
        assert_int_equal(header.flags, right ? VIRTIO_NET_HDR_F_DATA_VALID : 0);
        assert_int_equal(header.gso_type, VIRTIO_NET_HDR_GSO_NONE);
        spread += header.num_buffers > 1;
        waiting_bytes = 0; /* what the last chain had left is lost with it; count the rest anew */
        for (uint16_t at = driver->rx.used_index; at != driver->rx.avail_index; at++)
            waiting_bytes += lengths[at % RING_SIZE];
    }
    assert_true(spread > 500 && waits > 500);
    assert_int_equal(bench.machine.net.state.received_frames, 3000);
    assert_int_equal(bench.machine.net.state.received_dropped_frames, 0);
    bench_fini(&bench);
}

static void frame_is_dropped_when_all_buffers_together_are_too_small(void **unused)
{
    uint8_t frame[9000] = {0};
    static struct bench bench;

    (void)unused;
    bench_init(&bench, 9000, ALL_FEATURES);
    for (unsigned i = 0; i < RING_SIZE - 1; i++)
        offer_buffer(&bench.driver, (uint16_t)i, RX_GPA + i * 20, 20);
    assert_false(virtio_net_can_receive(&bench.machine.net, sizeof(frame))); /* one more may come, and be large */
    offer_buffer(&bench.driver, RING_SIZE - 1, RX_GPA + 255 * 20, 20);
    assert_true(virtio_net_can_receive(&bench.machine.net, sizeof(frame)));
    assert_int_equal(virtio_net_receive(&bench.machine.net, frame, sizeof(frame), false), -EMSGSIZE);
    assert_int_equal(bench.machine.net.state.received_dropped_frames, 1);
    assert_int_equal(ring_u16(&bench.driver, bench.driver.rx.used_gpa + 2), 0);
    assert_int_equal(virtio_net_receive(&bench.machine.net, frame, 1000, false), 0);
    assert_int_equal(ring_u16(&bench.driver, bench.driver.rx.used_gpa + 2), 51);
    bench_fini(&bench);
}

static void broken_chain_in_the_midst_of_a_frame_breaks_the_card(void **unused)
{
    uint8_t frame[1000] = {0};
    static struct bench bench;

    (void)unused;
    bench_init(&bench, 1500, ALL_FEATURES);
    offer_buffer(&bench.driver, 0, RX_GPA, 100);
    offer_buffer(&bench.driver, 1, TEST_RAM_BYTES - 1, 2000);
    assert_true(virtio_net_can_receive(&bench.machine.net, sizeof(frame)));
    assert_int_equal(virtio_net_receive(&bench.machine.net, frame, sizeof(frame), true), -EPROTO);
    assert_int_equal(bench.machine.net.card.state.queues[VIRTIO_NET_RX].fault, VIRTQUEUE_BUFFER_OUTSIDE);
    assert_int_equal(status_get(&bench.driver), 0x4F);
    assert_int_equal(ring_u16(&bench.driver, bench.driver.rx.used_gpa + 2), 0); /* no half frame was given */
    assert_false(virtio_net_can_receive(&bench.machine.net, 60));
    bench_fini(&bench);
}

/* The frame is written over the ring that says where its rest goes. */
static void frame_written_over_its_own_ring_ends(void **unused)
{
    uint64_t random = test_seed(__func__);
    uint8_t frame[NET_FRAME_MAX_BYTES];
    unsigned broken = 0;

    (void)unused;
    for (unsigned round = 0; round < 300; round++) {
        static struct bench bench;

        bench_init(&bench, 9000, ALL_FEATURES);
        for (size_t i = 0; i < sizeof(frame); i++)
            frame[i] = (uint8_t)test_random(&random);
        for (unsigned i = 0; i < RING_SIZE; i++) /* 0x1000 to 0x4000: descriptors, available and used ring */
            offer_buffer(&bench.driver, (uint16_t)i, 0x1000 + test_random(&random) % 0x3000,
                         (uint32_t)(12 + test_random(&random) % 500));
        for (unsigned i = 0; i < 20; i++) {
            size_t bytes = 14 + test_random(&random) % (sizeof(frame) - 13);
            int rc = virtio_net_receive(&bench.machine.net, frame, bytes, false);

            assert_true(rc == 0 || rc == -EPROTO || rc == -EMSGSIZE || rc == -EAGAIN);
        }
        broken += status_get(&bench.driver) != 0x0F;
        bench_fini(&bench);
    }
    assert_true(broken > 100);
}

static void frame_sizes_end_where_the_mtu_says(void **unused)
{
    const uint16_t mtus[] = {NET_MTU_MIN, 1500, NET_MTU_MAX};
    const struct virtio_net_hdr_v1 plain = {0};
    uint8_t frame[NET_FRAME_MAX_BYTES + 1] = {0};

    (void)unused;
    for (unsigned i = 0; i < 3; i++) {
        static struct bench bench;

        bench_init(&bench, mtus[i], ALL_FEATURES);
        assert_int_equal(port_get(&bench.machine, bench.driver.device + 10, 2), mtus[i]);
        offer_buffer(&bench.driver, 0, RX_GPA, 12 + NET_FRAME_MAX_BYTES);
        assert_int_equal(virtio_net_receive(&bench.machine.net, frame, 18u + mtus[i] + 1, false), -EINVAL);
        assert_int_equal(virtio_net_receive(&bench.machine.net, frame, 18u + mtus[i], false), 0);
        assert_true(send_packet(&bench, &plain, 18u + mtus[i], 2));
        assert_false(send_packet(&bench, &plain, 18u + mtus[i] + 1, 2));
        bench_fini(&bench);
    }
}

/* ---- the control queue ---- */

/* Gives one command; its answer, or -1 if there was none. */
static int command(struct bench *bench, uint8_t class, uint8_t what, const void *data, uint32_t bytes)
{
    struct driver *driver = &bench->driver;
    uint32_t head, written;

    *ram(driver, CONTROL_GPA) = class;
    *ram(driver, CONTROL_GPA + 1) = what;
    memcpy(ram(driver, CONTROL_GPA + 2), data, bytes);
    *ram(driver, CONTROL_GPA + 0x1000) = 0xEE;
    ring_describe(driver, &driver->control, 0, CONTROL_GPA, 2, VRING_DESC_F_NEXT, bytes > 0 ? 1 : 2); /* as Linux does */
    ring_describe(driver, &driver->control, 1, CONTROL_GPA + 2, bytes, VRING_DESC_F_NEXT, 2);
    ring_describe(driver, &driver->control, 2, CONTROL_GPA + 0x1000, 1, VRING_DESC_F_WRITE, 0);
    ring_offer(driver, &driver->control, 0);
    ring_notify(driver, &driver->control);
    if (!ring_take(driver, &driver->control, &head, &written))
        return -1;
    assert_int_equal(written, 1);
    return *ram(driver, CONTROL_GPA + 0x1000);
}

static int set_mode(struct bench *bench, uint8_t what, uint8_t on)
{
    return command(bench, VIRTIO_NET_CTRL_RX, what, &on, 1);
}

static int set_table(struct bench *bench, uint32_t stations, uint32_t groups)
{
    uint8_t data[8 + 200 * 6];
    uint32_t at = 0;

    for (uint32_t table = 0; table < 2; table++) {
        uint32_t count = table == 0 ? stations : groups;

        memcpy(data + at, &count, 4);
        at += 4;
        for (uint32_t i = 0; i < count; i++, at += 6)
            memcpy(data + at, (uint8_t[]){(uint8_t)(table == 0 ? 2 : 0x33), (uint8_t)(table * 0x33), 0, 0, 0, (uint8_t)i}, 6);
    }
    return command(bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, data, at);
}

static void driver_sets_what_it_wants_to_hear(void **unused)
{
    static struct bench bench;
    const struct net_filter *filter = &bench.machine.filter;

    (void)unused;
    bench_init(&bench, 1500, ALL_FEATURES);
    assert_memory_equal(filter->mac, test_mac, 6); /* told at the start already */
    assert_int_equal(filter->all_multicast, 1);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_PROMISC, 1), VIRTIO_NET_OK);
    assert_int_equal(filter->promiscuous, 1);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
    assert_int_equal(filter->promiscuous, 0);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_ALLMULTI, 0), VIRTIO_NET_OK);
    assert_int_equal(filter->all_multicast, 0);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_ALLUNI, 1), VIRTIO_NET_OK);
    assert_int_equal(filter->all_unicast, 1);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_NOMULTI, 1), VIRTIO_NET_OK);
    assert_int_equal(filter->no_multicast, 1);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_NOUNI, 1), VIRTIO_NET_OK);
    assert_int_equal(filter->no_unicast, 1);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_NOBCAST, 1), VIRTIO_NET_OK);
    assert_int_equal(filter->no_broadcast, 1);
    assert_int_equal(set_table(&bench, 2, 3), VIRTIO_NET_OK);
    assert_int_equal(filter->addresses_used, 5);
    assert_memory_equal(filter->addresses[1], "\x02\0\0\0\0\x01", 6);
    assert_memory_equal(filter->addresses[4], "\x33\x33\0\0\0\x02", 6);
    assert_int_equal(set_table(&bench, 2, 63), VIRTIO_NET_OK); /* the groups have no room */
    assert_int_equal(filter->addresses_used, 2);
    assert_int_equal(filter->more_multicast, 1);
    assert_int_equal(filter->more_unicast, 0);
    assert_int_equal(set_table(&bench, 65, 64), VIRTIO_NET_OK);
    assert_int_equal(filter->addresses_used, 64);
    assert_int_equal(filter->more_multicast, 0);
    assert_int_equal(filter->more_unicast, 1);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x02\x01\x02\x03\x04\x05", 6),
                     VIRTIO_NET_OK);
    assert_memory_equal(filter->mac, "\x02\x01\x02\x03\x04\x05", 6);
    assert_int_equal(port_get(&bench.machine, bench.driver.device, 4), 0x03020102);
    status_put(&bench.driver, 0); /* a reset forgets it all */
    assert_memory_equal(filter->mac, test_mac, 6);
    assert_int_equal(filter->all_multicast, 1);
    assert_int_equal(filter->addresses_used, 0);
    bench_fini(&bench);
}

static void commands_that_make_no_sense_are_answered_with_an_error(void **unused)
{
    static struct bench bench;
    uint32_t huge[4] = {0xFFFFFFFF, 0, 0x2AAAAAAB, 0};
    struct net_filter before;
    uint64_t filters;

    (void)unused;
    bench_init(&bench, 1500, ALL_FEATURES);
    before = bench.machine.net.state.filter;
    filters = bench.machine.filters;
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_NOBCAST + 1, 1), VIRTIO_NET_ERR);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_PROMISC, 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, "", 0), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, "\0\x2A", 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MQ, 0, "\0\1", 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x01\0\0\0\0\0", 6),
                     VIRTIO_NET_ERR); /* a group is no card's address */
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x02\0\0\0\0", 5), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, huge, 16), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, huge + 2, 8), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, huge + 1, 4), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, 7, "\x02\0\0\0\0\0", 6), VIRTIO_NET_ERR);
    assert_memory_equal(&bench.machine.net.state.filter, &before, sizeof(before));
    assert_int_equal(bench.machine.filters, filters);
    assert_int_equal(status_get(&bench.driver), 0x0F);
    bench_fini(&bench);
}

static void control_queue_works_as_far_as_negotiated(void **unused)
{
    static struct bench bench;

    (void)unused;
    bench_init(&bench, 1500, BASIC_FEATURES);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_PROMISC, 1), -1);
    bench_fini(&bench);
    bench_init(&bench, 1500, BASIC_FEATURES | UINT64_C(1) << VIRTIO_NET_F_CTRL_VQ);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_PROMISC, 1), VIRTIO_NET_ERR);
    assert_int_equal(set_table(&bench, 1, 1), VIRTIO_NET_ERR);
    assert_int_equal(command(&bench, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x02\0\0\0\0\1", 6), VIRTIO_NET_ERR);
    bench_fini(&bench);
    bench_init(&bench, 1500, BASIC_FEATURES | UINT64_C(1) << VIRTIO_NET_F_CTRL_VQ | UINT64_C(1) << VIRTIO_NET_F_CTRL_RX);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_ALLMULTI, 0), VIRTIO_NET_OK);
    assert_int_equal(set_mode(&bench, VIRTIO_NET_CTRL_RX_NOBCAST, 1), VIRTIO_NET_ERR);
    bench_fini(&bench);
}

static void command_without_room_for_an_answer_breaks_the_card(void **unused)
{
    static struct bench bench;
    struct driver *driver = &bench.driver;

    (void)unused;
    bench_init(&bench, 1500, ALL_FEATURES);
    ring_describe(driver, &driver->control, 0, CONTROL_GPA, 3, 0, 0);
    ring_offer(driver, &driver->control, 0);
    ring_notify(driver, &driver->control);
    assert_int_equal(status_get(driver), 0x4F);
    bench_fini(&bench);
}

static void state_of_another_card_does_not_fit(void **unused)
{
    static struct bench bench;
    struct virtio_net_state state;
    uint64_t filters;

    (void)unused;
    bench_init(&bench, 1500, ALL_FEATURES);
    assert_int_equal(set_table(&bench, 1, 1), VIRTIO_NET_OK);
    state = bench.machine.net.state;
    assert_true(virtio_net_state_fits(&bench.machine.net, &state));
    state.mtu = 1400;
    assert_false(virtio_net_state_fits(&bench.machine.net, &state));
    state = bench.machine.net.state;
    state.filter.addresses_used = NET_FILTER_ADDRESSES + 1;
    assert_false(virtio_net_state_fits(&bench.machine.net, &state));
    state = bench.machine.net.state;
    state.reset_mac[5]++;
    assert_false(virtio_net_state_fits(&bench.machine.net, &state));
    state = bench.machine.net.state;
    state.filter.promiscuous = 1;
    filters = bench.machine.filters;
    virtio_net_take(&bench.machine.net, &state);
    assert_int_equal(bench.machine.filters, filters + 1); /* the port learns what the guest had asked for elsewhere */
    assert_int_equal(bench.machine.filter.promiscuous, 1);
    assert_int_equal(bench.machine.filter.addresses_used, 2);
    bench_fini(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_left_to_the_card_comes_with_the_frame),
        cmocka_unit_test(headers_that_break_the_rules_are_dropped_and_counted),
        cmocka_unit_test(nothing_is_left_to_a_card_without_the_feature),
        cmocka_unit_test(frames_are_spread_over_random_buffers),
        cmocka_unit_test(frame_is_dropped_when_all_buffers_together_are_too_small),
        cmocka_unit_test(broken_chain_in_the_midst_of_a_frame_breaks_the_card),
        cmocka_unit_test(frame_written_over_its_own_ring_ends),
        cmocka_unit_test(frame_sizes_end_where_the_mtu_says),
        cmocka_unit_test(driver_sets_what_it_wants_to_hear),
        cmocka_unit_test(commands_that_make_no_sense_are_answered_with_an_error),
        cmocka_unit_test(control_queue_works_as_far_as_negotiated),
        cmocka_unit_test(command_without_room_for_an_answer_breaks_the_card),
        cmocka_unit_test(state_of_another_card_does_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
