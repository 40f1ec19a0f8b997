/*
 * Each kind of port that a machine without a spare network card can open: frames of all sizes both ways, jumbo frames,
 * a flood, and what the guest left to be done; contents compared. In a network namespace of the test's own.
 */
#include "tcp_frames.h"

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_packet.h>

#include "base/clock.h"
#include "raw_port.h"

#define WAIT_NS (10 * NS_PER_S)
#define FLOOD_FRAMES 3000u

/* A cable: the guest's port at the one end, another port or a raw socket at the other. */
struct cable {
    struct net *near, *far;
    int far_fd; /* if there is no `far` */
    uint32_t mtu;
};

static uint8_t frame[NET_SEGMENTED_MAX_BYTES], seen[NET_SEGMENTED_MAX_BYTES];

static bool run(const char *command)
{
    return system(command) == 0;
}

static struct net *net_try(const char *port, uint32_t mtu, const uint8_t mac[6], uint32_t receive_frames)
{
    struct net_options options = { .port = port, .mtu = mtu, .receive_frames = receive_frames };
    struct net *net = NULL;

    memcpy(options.mac, mac, 6);
    (void)net_open(&net, &options);
    return net;
}

static const uint8_t anybody[6];

static int raw_socket(const char *interface)
{
    struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(0x0003),
                                   .sll_ifindex = (int)if_nametoindex(interface) };
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(0x0003)), one = 1, room = 64 << 20;

    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)), 0);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void cable_close(struct cable *cable)
{
    net_close(cable->near);
    /* EAL's interrupt thread frees what a memif had when it sees that the other end has gone, and DPDK 22.11 does not
     * keep that apart from closing it here: with both ends in one process, that would be a double free. */
    if (cable->far != NULL)
        clock_sleep_ns(100 * NS_PER_MS);
    net_close(cable->far);
    if (cable->far == NULL)
        close(cable->far_fd);
}

/* ---- the kinds ---- */

static struct cable veth_cable(uint32_t mtu)
{
    struct cable cable = { .mtu = mtu };
    char command[200];

    (void)!run("ip link del ftport 2>/dev/null");
    snprintf(command, sizeof(command), "ip link add ftport type veth peer name ftpeer && ip link set ftport mtu %u up && "
                                       "ip link set ftpeer mtu %u up", mtu, mtu);
    assert_true(run(command));
    cable.far_fd = raw_socket("ftpeer");
    cable.near = net_try("af_packet:ftport", mtu, guest_mac, 0);
    assert_non_null(cable.near);
    return cable;
}

/* Its kernel side is slow to be there, and needs a file system for the program that it loads. */
static struct cable xdp_cable(uint32_t mtu)
{
    struct cable cable = { .mtu = mtu };

    (void)!run("ip link del ftport 2>/dev/null");
    assert_true(run("ip link add ftport type veth peer name ftpeer && ip link set ftport up && ip link set ftpeer up"));
    cable.far_fd = raw_socket("ftpeer");
    cable.near = net_try("af_xdp:ftport", mtu, guest_mac, 0);
    assert_non_null(cable.near);
    return cable;
}

static struct cable tap_cable(uint32_t mtu)
{
    struct cable cable = { .mtu = mtu };

    cable.near = net_try("tap:fttap", mtu, guest_mac, 0);
    assert_non_null(cable.near);
    cable.far_fd = raw_socket("fttap");
    return cable;
}

/* One that is never read fast enough: its receive queue is short. */
static struct cable memif_cable(uint32_t mtu)
{
    struct cable cable = { .mtu = mtu };
    char server[100], client[120];

    snprintf(server, sizeof(server), "memif:/tmp/ftvmm-ports-%d.sock", (int)getpid());
    snprintf(client, sizeof(client), "%s,client", server);
    cable.near = net_try(server, mtu, guest_mac, 8);
    assert_non_null(cable.near);
    cable.far = net_try(client, mtu, anybody, 8);
    assert_non_null(cable.far);
    return cable;
}

static struct cable vhost_cable(uint32_t mtu)
{
    struct cable cable = { .mtu = mtu };
    static unsigned number;
    char server[120], client[120];

    snprintf(server, sizeof(server), "net_vhost%u,iface=/tmp/ftvmm-vhost-%d-%u.sock", number, (int)getpid(), number);
    snprintf(client, sizeof(client), "net_virtio_user%u,path=/tmp/ftvmm-vhost-%d-%u.sock", number, (int)getpid(), number);
    number++;
    cable.far = net_try(server, mtu, anybody, 8);
    assert_non_null(cable.far);
    cable.near = net_try(client, mtu, guest_mac, 8);
    assert_non_null(cable.near);
    return cable;
}

/* ---- moving frames ---- */

static unsigned poll_both(struct cable *cable)
{
    unsigned moved = net_poll_live(cable->near, UINT64_MAX);

    if (cable->far != NULL)
        moved += net_poll_live(cable->far, UINT64_MAX);
    if (moved == 0)
        clock_sleep_ns(100 * NS_PER_US);
    return moved;
}

static void guest_send(struct cable *cable, size_t bytes, const struct net_offload *offload)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;

    while (net_hold_crowded(cable->near) && clock_now_ns() < deadline_ns)
        poll_both(cable);
    assert_int_equal(net_hold(cable->near, frame, bytes, offload, 0, clock_now_ns()), 0);
}

static void far_send(struct cable *cable, size_t bytes)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;

    if (cable->far == NULL) {
        assert_int_equal(send(cable->far_fd, frame, bytes, 0), bytes);
        return;
    }
    while (net_hold_crowded(cable->far) && clock_now_ns() < deadline_ns)
        poll_both(cable);
    assert_int_equal(net_hold(cable->far, frame, bytes, &finished, 0, clock_now_ns()), 0);
}

static size_t take(struct net *net)
{
    size_t bytes;
    const void *waiting = net_receive_peek(net, &bytes, &checksum_right);

    if (waiting == NULL)
        return 0;
    memcpy(seen, waiting, bytes);
    net_receive_pop(net);
    return bytes;
}

/* The next frame at the far end, in `seen`; 0: none came in time. What the kernel itself says is passed over. */
static size_t far_receive(struct cable *cable)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;

    do {
        ssize_t bytes = cable->far != NULL ? (ssize_t)take(cable->far) : recv(cable->far_fd, seen, sizeof(seen), 0);

        if (bytes > 0 && memcmp(seen + 6, guest_mac, 6) == 0)
            return (size_t)bytes;
        poll_both(cable);
    } while (clock_now_ns() < deadline_ns);
    return 0;
}

static size_t guest_receive(struct cable *cable)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;

    do {
        size_t bytes = take(cable->near);

        if (bytes > 0 && memcmp(seen + 6, other_mac, 6) == 0)
            return bytes;
        poll_both(cable);
    } while (clock_now_ns() < deadline_ns);
    return 0;
}

/* ---- what every kind must do ---- */

static void wait_for_link(struct cable *cable)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS, settled_ns = clock_now_ns() + 300 * NS_PER_MS;

    while ((!net_link_up(cable->near) || clock_now_ns() < settled_ns) && clock_now_ns() < deadline_ns)
        poll_both(cable);
    assert_true(net_link_up(cable->near));
}

static void carries_frames_of_all_sizes(struct cable *cable)
{
    size_t most = 14 + cable->mtu, sizes[] = { 60, 61, 128, 1000, 1514, 2000, 2048, 4096, 8999, most - 1, most };

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (sizes[i] > most)
            continue;
        frame_fill(frame, sizes[i], other_mac, guest_mac, 0x0a0b0c00 + (uint32_t)i);
        guest_send(cable, sizes[i], &finished);
        assert_int_equal(far_receive(cable), sizes[i]);
        assert_memory_equal(seen, frame, sizes[i]);
        frame_fill(frame, sizes[i], guest_mac, other_mac, 0x01020300 + (uint32_t)i);
        far_send(cable, sizes[i]);
        assert_int_equal(guest_receive(cable), sizes[i]);
        assert_memory_equal(seen, frame, sizes[i]);
    }
}

static void carries_a_flood_in_order(struct cable *cable)
{
    struct net_statistics statistics;
    uint32_t sent = 0, back = 0;

    for (uint32_t i = 0; i < FLOOD_FRAMES; i++) {
        frame_fill(frame, 60 + i % 1400, other_mac, guest_mac, i);
        guest_send(cable, 60 + i % 1400, &finished);
        if (i % 100 == 99)
            for (; sent <= i; sent++) {
                size_t bytes = far_receive(cable);

                frame_fill(frame, bytes, other_mac, guest_mac, sent);
                assert_int_equal(bytes, 60 + sent % 1400);
                assert_memory_equal(seen, frame, bytes);
            }
    }
    for (uint32_t i = 0; i < FLOOD_FRAMES; i++) {
        frame_fill(frame, 60 + i % 1400, guest_mac, other_mac, i);
        far_send(cable, 60 + i % 1400);
        if (i % 100 == 99)
            for (; back <= i; back++) {
                size_t bytes = guest_receive(cable);

                frame_fill(frame, bytes, guest_mac, other_mac, back);
                assert_int_equal(bytes, 60 + back % 1400);
                assert_memory_equal(seen, frame, bytes);
            }
    }
    net_get_statistics(cable->near, &statistics);
    assert_int_equal(statistics.dropped_receive_full, 0);
    assert_int_equal(statistics.dropped_hold_full, 0);
    assert_int_equal(statistics.dropped_transmit, 0);
}

static void sends_one_shape(struct cable *cable, const struct tcp_shape *shape)
{
    struct net_offload offload;
    size_t bytes = tcp_build(shape, frame, &offload);
    uint32_t done = 0, segments = 0;

    guest_send(cable, bytes, &offload);
    do {
        bytes = far_receive(cable);
        assert_true(bytes > 0 && bytes <= NET_LINK_BYTES + cable->mtu);
        done += tcp_check_segment(shape, seen, bytes, segments++, done);
    } while (done < shape->payload_bytes);
    assert_int_equal(segments, shape->segment_bytes == 0 || done == 0
                                   ? 1 : (shape->payload_bytes + shape->segment_bytes - 1) / shape->segment_bytes);
}

static void finishes_what_the_guest_left(struct cable *cable)
{
    uint16_t segment_bytes = (uint16_t)(cable->mtu - 120);
    struct net_statistics before, after;

    net_get_statistics(cable->near, &before);
    for (unsigned i = 0; i < 8; i++) {
        struct tcp_shape shape = { .ipv6 = i & 1, .tagged = i >> 1 & 1, .tcp_option_words = i >> 2 ? 3 : 0,
                                   .flags = 0x99, .sequence = 0xfffff000 };

        if (shape.tagged && cable->far == NULL)
            continue; /* the kernel takes the tag out of what it gives to a socket */
        shape.payload_bytes = 1 + i * 100;
        sends_one_shape(cable, &shape); /* a checksum alone */
        shape.payload_bytes = 65000;
        shape.segment_bytes = segment_bytes;
        sends_one_shape(cable, &shape);
        shape.payload_bytes = segment_bytes * 2u;
        sends_one_shape(cable, &shape);
        shape.payload_bytes = 30000;
        shape.segment_bytes = 200; /* several bursts */
        sends_one_shape(cable, &shape);
    }
    net_get_statistics(cable->near, &after);
    assert_int_equal(after.dropped_malformed - before.dropped_malformed, 0);
    assert_true(after.segmented - before.segmented >= 12);
}

/* What the guest is told about a checksum; one that was left to hardware is finished. */
static void tells_what_checksums_are_worth(struct cable *cable)
{
    struct tcp_shape shape = { .payload_bytes = 500, .sequence = 5 };
    struct net_offload offload;
    size_t bytes = tcp_build(&shape, frame, &offload);

    memcpy(frame, guest_mac, 6);
    memcpy(frame + 6, other_mac, 6);
    far_send(cable, bytes);
    assert_int_equal(guest_receive(cable), bytes);
    assert_true(checksum_right);
    assert_int_equal(checksum_complete(frame, bytes, offload.checksum_start, offload.checksum_offset), 0);
    assert_memory_equal(seen, frame, bytes);
    far_send(cable, bytes);
    assert_int_equal(guest_receive(cable), bytes);
    assert_true(checksum_right);
    frame[bytes - 1] ^= 1;
    far_send(cable, bytes);
    assert_int_equal(guest_receive(cable), bytes);
    assert_false(checksum_right);
    assert_memory_equal(seen, frame, bytes);
}

static void check_all(struct cable cable)
{
    wait_for_link(&cable);
    carries_frames_of_all_sizes(&cable);
    finishes_what_the_guest_left(&cable);
    tells_what_checksums_are_worth(&cable);
    carries_a_flood_in_order(&cable);
    cable_close(&cable);
}

/* ---- tests ---- */

static void af_packet_carries_everything(void **state)
{
    (void)state;
    check_all(veth_cable(1500));
    check_all(veth_cable(9000));
}

/* No flood: DPDK 22.11's driver, on Linux 6.18 and a veth, stops sending in the midst of one, and says nothing of it. */
static void af_xdp_carries_frames(void **state)
{
    int fd = socket(AF_XDP, SOCK_RAW, 0);
    struct cable cable;

    (void)state;
    if (fd < 0 || unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL) != 0) {
        print_message("no AF_XDP here: %s\n", strerror(errno));
        close(fd);
        skip();
    }
    close(fd);
    cable = xdp_cable(1500);
    wait_for_link(&cable);
    carries_frames_of_all_sizes(&cable);
    tells_what_checksums_are_worth(&cable);
    cable_close(&cable);
}

static void tap_carries_everything(void **state)
{
    (void)state;
    check_all(tap_cable(1500));
}

static void memif_carries_everything(void **state)
{
    (void)state;
    check_all(memif_cable(1500));
    check_all(memif_cable(9000));
}

static void virtio_user_carries_everything(void **state)
{
    (void)state;
    check_all(vhost_cable(1500));
    check_all(vhost_cable(9000));
}

static void pcap_file_holds_what_was_sent(void **state)
{
    char path[64], writing[160], reading[160];
    struct cable cable = { .mtu = 1500 };
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;

    (void)state;
    snprintf(path, sizeof(path), "/tmp/ftvmm-ports-%d.pcap", (int)getpid());
    snprintf(writing, sizeof(writing), "net_pcap0,tx_pcap=%s", path);
    snprintf(reading, sizeof(reading), "net_pcap1,rx_pcap=%s", path);
    cable.near = net_try(writing, 1500, guest_mac, 0);
    assert_non_null(cable.near);
    for (uint32_t i = 0; i < 200; i++) {
        frame_fill(frame, 60 + 7 * i, other_mac, guest_mac, i);
        guest_send(&cable, 60 + 7 * i, &finished);
    }
    while (net_sent_count(cable.near) < 200 && clock_now_ns() < deadline_ns)
        net_poll_live(cable.near, UINT64_MAX);
    net_close(cable.near);
    cable.near = net_try(reading, 1500, anybody, 0);
    assert_non_null(cable.near);
    for (uint32_t i = 0; i < 200; i++) {
        size_t bytes = 0;

        while (bytes == 0 && clock_now_ns() < deadline_ns) {
            bytes = take(cable.near);
            if (bytes == 0)
                net_poll_live(cable.near, UINT64_MAX);
        }
        frame_fill(frame, bytes, other_mac, guest_mac, i);
        assert_int_equal(bytes, 60 + 7 * i);
        assert_memory_equal(seen, frame, bytes);
    }
    net_close(cable.near);
    unlink(path);
}

/* A port that segments by itself gets the frame whole. The far end is read by DPDK, which alone can take it so. */
static void port_that_segments_gets_the_whole_frame(void **state)
{
    struct tcp_shape shape = { .payload_bytes = 60000, .segment_bytes = 1428, .tcp_option_words = 3, .flags = 0x18 };
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;
    char server[120], client[120];
    struct net_statistics statistics;
    struct net_offload offload;
    struct raw_port far;
    struct net *near;

    (void)state;
    snprintf(server, sizeof(server), "net_vhost90,iface=/tmp/ftvmm-tso-%d.sock,tso=1", (int)getpid());
    snprintf(client, sizeof(client), "net_virtio_user90,path=/tmp/ftvmm-tso-%d.sock", (int)getpid());
    assert_int_equal(raw_port_open(&far, server), 0); /* EAL runs since the tests before */
    near = net_try(client, 1500, guest_mac, 0);
    assert_non_null(near);
    for (int round = 0; round < 2; round++) {
        size_t bytes, got = 0;

        shape.ipv6 = round == 1;
        bytes = tcp_build(&shape, frame, &offload);
        assert_int_equal(net_hold(near, frame, bytes, &offload, 0, clock_now_ns()), 0);
        while (got == 0 && clock_now_ns() < deadline_ns) {
            net_poll_live(near, UINT64_MAX);
            got = raw_port_receive(&far, seen, sizeof(seen));
        }
        assert_int_equal(got, bytes);
        assert_memory_equal(seen + tcp_payload_at(&shape), frame + tcp_payload_at(&shape), shape.payload_bytes);
    }
    net_get_statistics(near, &statistics);
    assert_int_equal(statistics.segmented, 0);
    assert_int_equal(statistics.transmitted, 2 * 43);
    net_close(near);
    raw_port_close(&far);
}

static void frame_that_cannot_be_cut_up_is_dropped_and_counted(void **state)
{
    struct tcp_shape shape = { .payload_bytes = 9000, .segment_bytes = 1448 };
    struct cable cable = memif_cable(1500);
    struct net_statistics statistics;
    struct net_offload offload;
    size_t bytes = tcp_build(&shape, frame, &offload);

    (void)state;
    wait_for_link(&cable);
    offload.segmentation = NET_TCP6; /* which it is not */
    for (int i = 0; i < 3; i++)
        guest_send(&cable, bytes, &offload);
    frame_fill(frame, 60, other_mac, guest_mac, 7);
    guest_send(&cable, 60, &finished);
    assert_int_equal(far_receive(&cable), 60);
    net_get_statistics(cable.near, &statistics);
    assert_int_equal(statistics.dropped_malformed, 3);
    assert_int_equal(net_sent_count(cable.near), net_held_count(cable.near));
    cable_close(&cable);
}

static void link_follows_the_cable(void **state)
{
    struct cable cable = veth_cable(1500);
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;
    struct net *lonely;

    (void)state;
    wait_for_link(&cable);
    assert_true(run("ip link set ftpeer down"));
    while (net_link_up(cable.near) && clock_now_ns() < deadline_ns)
        net_poll_standby(cable.near, 0);
    assert_false(net_link_up(cable.near));
    assert_true(run("ip link set ftpeer up"));
    wait_for_link(&cable);
    cable_close(&cable);
    lonely = net_try("memif:ftvmm-lonely", 1500, guest_mac, 0);
    assert_non_null(lonely);
    assert_true(net_link_up(lonely)); /* nobody has looked */
    net_poll_live(lonely, 0);
    assert_false(net_link_up(lonely));
    net_close(lonely);
}

static void filter_of_the_guest_reaches_the_port(void **state)
{
    static const uint8_t group[6] = { 0x33, 0x33, 0, 0, 0, 9 };
    struct cable cable = memif_cable(1500);
    struct net_statistics statistics;
    struct net_filter filter;

    (void)state;
    wait_for_link(&cable);
    net_filter_init(&filter, other_mac); /* the guest changes its address, and wants one group */
    filter.all_multicast = 0;
    memcpy(filter.addresses[0], group, 6);
    filter.addresses_used = 1;
    net_set_filter(cable.near, &filter);
    for (uint32_t i = 0; i < 4; i++) {
        static const uint8_t another_group[6] = { 0x33, 0x33, 0, 0, 0, 8 };
        const uint8_t *to[] = { guest_mac, another_group, group, other_mac };

        frame_fill(frame, 60, to[i], other_mac, i);
        far_send(&cable, 60);
    }
    assert_int_equal(guest_receive(&cable), 60);
    assert_int_equal(frame_value(seen), 2);
    assert_int_equal(guest_receive(&cable), 60);
    assert_int_equal(frame_value(seen), 3);
    net_get_statistics(cable.near, &statistics);
    assert_int_equal(statistics.received_for_others, 2);
    cable_close(&cable);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(af_packet_carries_everything),
        cmocka_unit_test(af_xdp_carries_frames),
        cmocka_unit_test(tap_carries_everything),
        cmocka_unit_test(memif_carries_everything),
        cmocka_unit_test(virtio_user_carries_everything),
        cmocka_unit_test(pcap_file_holds_what_was_sent),
        cmocka_unit_test(port_that_segments_gets_the_whole_frame),
        cmocka_unit_test(frame_that_cannot_be_cut_up_is_dropped_and_counted),
        cmocka_unit_test(link_follows_the_cable),
        cmocka_unit_test(filter_of_the_guest_reaches_the_port),
    };

    signal(SIGPIPE, SIG_IGN); /* as ftvmm does: a vhost-user peer may go first */
    if (unshare(CLONE_NEWNET) != 0) {
        printf("skipped: needs root (or CAP_SYS_ADMIN) for a network namespace of its own\n");
        return SKIPPED;
    }
    (void)!run("echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/default/disable_ipv6");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
