/* A real wire: DPDK's af_packet port on one end of a veth pair, a raw socket on the other, in a network
 * namespace of the test's own, which disappears with it. */
#include "support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>

#include "base/clock.h"
#include "dpdk-net/checksum.h"
#include "dpdk-net/net.h"

#define WAIT_NS (3 * NS_PER_S)
#define PORT_INTERFACE "ftport"
#define PEER_INTERFACE "ftpeer"

static int peer_fd = -1;
static struct net *net;

static bool run(const char *command)
{
    return system(command) == 0;
}

static const char *build_wire(void)
{
    if (unshare(CLONE_NEWNET) != 0)
        return "needs root (or CAP_SYS_ADMIN) for a network namespace of its own";
    /* no router solicitations between our frames */
    (void)!run("echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/default/disable_ipv6");
    if (!run("ip link add " PORT_INTERFACE " type veth peer name " PEER_INTERFACE " 2>/dev/null"))
        return "needs `ip` (package iproute2) and a kernel with veth";
    if (!run("ip link set " PORT_INTERFACE " mtu 3000 up && ip link set " PEER_INTERFACE " mtu 3000 up && "
             "ip addr add 10.9.8.1/24 dev " PEER_INTERFACE " && "
             "ip neigh add 10.9.8.2 lladdr 52:54:00:12:34:56 dev " PEER_INTERFACE))
        return "cannot set up the veth pair";
    return NULL;
}

static int open_peer(void)
{
    struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(0x0003),
                                   .sll_ifindex = (int)if_nametoindex(PEER_INTERFACE) };
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(0x0003));
    int one = 1;

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) != 0)
        return -1;
    return fd;
}

static int set_up(void **state)
{
    struct net_options options = { .port = "af_packet:" PORT_INTERFACE, .receive_frames = 64 };

    (void)state;
    memcpy(options.mac, guest_mac, 6);
    peer_fd = open_peer();
    return peer_fd >= 0 ? net_open(&net, &options) : -1;
}

static int tear_down(void **state)
{
    (void)state;
    net_close(net);
    close(peer_fd);
    net = NULL;
    return 0;
}

/* Polls the port until the peer has a frame; its bytes, or 0 after `wait_ns`. */
static size_t peer_receive(uint8_t *frame, size_t size, uint64_t acked_lsn, uint64_t wait_ns)
{
    uint64_t deadline_ns = clock_now_ns() + wait_ns;

    do {
        ssize_t bytes = recv(peer_fd, frame, size, 0);

        if (bytes > 0)
            return (size_t)bytes;
        if (net_poll_live(net, acked_lsn) == 0)
            clock_sleep_ns(NS_PER_MS);
    } while (clock_now_ns() < deadline_ns);
    return 0;
}

/* Polls until the guest has a frame. */
static const uint8_t *guest_receive(size_t *bytes)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;
    const uint8_t *frame;

    while ((frame = net_receive_peek(net, bytes, &checksum_right)) == NULL && clock_now_ns() < deadline_ns)
        if (net_poll_live(net, 0) == 0)
            clock_sleep_ns(NS_PER_MS);
    return frame;
}

static void held_frame_reaches_the_wire_only_when_acked(void **state)
{
    uint8_t frame[NET_LINK_BYTES + NET_MTU_DEFAULT], seen[4096];

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        frame_fill(frame, sizeof(frame) - i * 700, other_mac, guest_mac, 0x01020304 + i);
        assert_int_equal(net_hold(net, frame, sizeof(frame) - i * 700, &finished, 5 + i, clock_now_ns()), 0);
    }
    assert_int_equal(peer_receive(seen, sizeof(seen), 4, 100 * NS_PER_MS), 0);
    for (uint32_t i = 0; i < 3; i++) {
        size_t bytes = sizeof(frame) - i * 700;

        frame_fill(frame, bytes, other_mac, guest_mac, 0x01020304 + i);
        assert_int_equal(peer_receive(seen, sizeof(seen), 5 + i, WAIT_NS), bytes);
        assert_memory_equal(seen, frame, bytes);
        assert_int_equal(peer_receive(seen, sizeof(seen), 5 + i, 20 * NS_PER_MS), 0);
    }
}

static void arriving_frame_reaches_the_guest(void **state)
{
    uint8_t frame[1514];
    const uint8_t *seen;
    size_t bytes = 0;

    (void)state;
    frame_fill(frame, sizeof(frame), other_mac, guest_mac, 1); /* somebody else's: not taken */
    assert_int_equal(send(peer_fd, frame, sizeof(frame), 0), sizeof(frame));
    frame_fill(frame, sizeof(frame), guest_mac, other_mac, 2);
    assert_int_equal(send(peer_fd, frame, sizeof(frame), 0), sizeof(frame));
    seen = guest_receive(&bytes);
    assert_non_null(seen);
    assert_int_equal(bytes, sizeof(frame));
    assert_memory_equal(seen, frame, sizeof(frame));
    net_receive_pop(net);
    assert_false(net_receive_waiting(net));
}

static void tagged_frame_keeps_its_tag(void **state)
{
    uint8_t frame[100];
    const uint8_t *seen;
    size_t bytes = 0;

    (void)state;
    frame_fill(frame, sizeof(frame), guest_mac, other_mac, 3);
    memcpy(frame + 12, (uint8_t[]){ 0x81, 0x00, 0x00, 0x2a, 0x88, 0xb5 }, 6);
    assert_int_equal(send(peer_fd, frame, sizeof(frame), 0), sizeof(frame));
    seen = guest_receive(&bytes);
    assert_non_null(seen);
    assert_int_equal(bytes, sizeof(frame));
    assert_memory_equal(seen, frame, sizeof(frame));
    net_receive_pop(net);
}

static void oversize_frame_is_dropped_and_counted(void **state)
{
    struct net_statistics before, after;
    uint8_t frame[2000];
    size_t bytes = 0;

    (void)state;
    net_get_statistics(net, &before);
    frame_fill(frame, sizeof(frame), guest_mac, other_mac, 4);
    assert_int_equal(send(peer_fd, frame, sizeof(frame), 0), sizeof(frame));
    frame_fill(frame, 60, guest_mac, other_mac, 5);
    assert_int_equal(send(peer_fd, frame, 60, 0), 60);
    assert_non_null(guest_receive(&bytes));
    assert_int_equal(bytes, 60);
    net_receive_pop(net);
    net_get_statistics(net, &after);
    assert_int_equal(after.dropped_oversize - before.dropped_oversize, 1);
}

/* The kernel leaves a local sender's UDP checksum to the veth's "hardware". */
static void checksum_left_to_hardware_is_finished(void **state)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(9) };
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    const uint8_t *seen;
    size_t bytes = 0;
    uint32_t sum;

    (void)state;
    inet_pton(AF_INET, "10.9.8.2", &to.sin_addr);
    assert_int_equal(sendto(fd, "hello, guest!", 13, 0, (struct sockaddr *)&to, sizeof(to)), 13);
    close(fd);
    seen = guest_receive(&bytes);
    assert_non_null(seen);
    assert_int_equal(bytes, 14 + 20 + 8 + 13);
    assert_memory_equal(seen + 42, "hello, guest!", 13);
    sum = checksum_add(17 + 8 + 13, seen + 26, 8);
    assert_int_equal(checksum_fold(checksum_add(sum, seen + 34, 8 + 13)), 0xffff);
    net_receive_pop(net);
}

static void standby_sends_nothing_and_live_sends_the_rest(void **state)
{
    uint64_t first = net_held_count(net);
    uint8_t frame[60], seen[4096];

    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        frame_fill(frame, sizeof(frame), other_mac, guest_mac, i);
        net_hold(net, frame, sizeof(frame), &finished, 0, clock_now_ns());
    }
    for (int i = 0; i < 20; i++) {
        net_poll_standby(net, first + 3);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_int_equal(recv(peer_fd, seen, sizeof(seen), 0), -1);
    assert_int_equal(errno, EAGAIN);
    net_announce(net);
    assert_int_equal(peer_receive(seen, sizeof(seen), UINT64_MAX, WAIT_NS), 60);
    assert_int_equal(seen[12] << 8 | seen[13], 0x8035);
    assert_memory_equal(seen + 6, guest_mac, 6);
    assert_int_equal(peer_receive(seen, sizeof(seen), UINT64_MAX, WAIT_NS), 60);
    assert_int_equal(frame_value(seen), 3);
}

/* The I/O thread keeps the heartbeat too, so a dead link must not hold it. */
static void interface_outage_blocks_nobody_and_ends(void **state)
{
    uint8_t frame[60], seen[4096];
    struct net_statistics statistics;
    uint64_t begin_ns, worst_ns = 0, deadline_ns;
    bool arrived = false;

    (void)state;
    assert_true(run("ip link set " PORT_INTERFACE " down"));
    begin_ns = clock_now_ns();
    while (clock_now_ns() - begin_ns < 1500 * NS_PER_MS) {
        uint64_t before_ns;

        frame_fill(frame, sizeof(frame), other_mac, guest_mac, 1);
        for (int i = 0; i < 10; i++)
            (void)net_hold(net, frame, sizeof(frame), &finished, 0, clock_now_ns());
        before_ns = clock_now_ns();
        net_poll_live(net, 0);
        if (clock_now_ns() - before_ns > worst_ns)
            worst_ns = clock_now_ns() - before_ns;
        clock_sleep_ns(NS_PER_MS);
    }
    assert_true(worst_ns < 500 * NS_PER_MS);
    net_get_statistics(net, &statistics);
    assert_true(statistics.dropped_transmit > 0);
    assert_true(run("ip link set " PORT_INTERFACE " up"));
    deadline_ns = clock_now_ns() + WAIT_NS;
    frame_fill(frame, sizeof(frame), other_mac, guest_mac, 0x77777777);
    while (net_hold(net, frame, sizeof(frame), &finished, 0, clock_now_ns()) != 0 && clock_now_ns() < deadline_ns)
        net_poll_live(net, 0);
    while (!arrived && clock_now_ns() < deadline_ns)
        arrived = peer_receive(seen, sizeof(seen), 0, 10 * NS_PER_MS) == sizeof(frame) &&
                  memcmp(seen, frame, sizeof(frame)) == 0;
    assert_true(arrived);
}

static void merging_of_frames_is_switched_off(void **state)
{
    struct ethtool_value gro = { .cmd = ETHTOOL_SGRO, .data = 1 };
    struct ifreq request = { .ifr_name = PORT_INTERFACE, .ifr_data = (char *)&gro };
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    net_close(net);
    net = NULL;
    if (ioctl(fd, SIOCETHTOOL, &request) != 0) {
        close(fd);
        skip(); /* this kernel's veth has no GRO */
    }
    close(peer_fd);
    assert_int_equal(set_up(state), 0);
    gro = (struct ethtool_value){ .cmd = ETHTOOL_GGRO, .data = 1 };
    assert_int_equal(ioctl(fd, SIOCETHTOOL, &request), 0);
    assert_int_equal(gro.data, 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(held_frame_reaches_the_wire_only_when_acked),
        cmocka_unit_test(arriving_frame_reaches_the_guest),
        cmocka_unit_test(tagged_frame_keeps_its_tag),
        cmocka_unit_test(oversize_frame_is_dropped_and_counted),
        cmocka_unit_test(checksum_left_to_hardware_is_finished),
        cmocka_unit_test(standby_sends_nothing_and_live_sends_the_rest),
        cmocka_unit_test(interface_outage_blocks_nobody_and_ends),
        cmocka_unit_test(merging_of_frames_is_switched_off),
    };
    const char *missing = build_wire();

    if (missing != NULL) {
        printf("skipped: %s\n", missing);
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
