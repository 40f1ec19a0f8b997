/*
 * Floods against a guest that takes nothing: the smallest frames, frames that its MTU does not allow, and noise, from
 * the wire into the port, and from the guest into the hold queue. Memory stays as it is, every frame is either
 * delivered or counted as dropped with a reason, and when the guest looks again, new frames come through. The seed is
 * printed.
 */
#include "support.h"

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <linux/if_packet.h>

#include "base/clock.h"

#define WAIT_NS         (20 * NS_PER_S)
#define FLOOD_FRAMES    20000u
#define RECEIVE_FRAMES  64u
#define HOLD_FRAMES     64u
#define MEMORY_SLACK_KB 2048
/* At most: of some noise (tags within tags) the kernel makes nothing, before any port sees it. */
#define NOISE_LOST 20u

static uint8_t frame[NET_SEGMENTED_MAX_BYTES];
static uint64_t seed;

static uint32_t noise(void)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33);
}

static long resident_kb(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    long pages = 0, resident = 0;

    assert_non_null(file);
    assert_int_equal(fscanf(file, "%ld %ld", &pages, &resident), 2);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static struct net *open_net(const char *port, const uint8_t mac[6])
{
    struct net_options options = {
        .port = port, .mtu = 1500, .hold_frames = HOLD_FRAMES, .receive_frames = RECEIVE_FRAMES};
    struct net *net = NULL;

    memcpy(options.mac, mac, 6);
    (void)net_open(&net, &options);
    assert_non_null(net);
    return net;
}

static uint64_t dropped_arriving(const struct net *net)
{
    struct net_statistics statistics;

    net_get_statistics(net, &statistics);
    return statistics.dropped_receive_full + statistics.dropped_oversize + statistics.dropped_port_missed +
           statistics.received_for_others;
}

static uint64_t received(const struct net *net)
{
    struct net_statistics statistics;

    net_get_statistics(net, &statistics);
    return statistics.received;
}

static unsigned drain(struct net *net)
{
    unsigned count = 0;
    size_t bytes;

    for (; net_receive_peek(net, &bytes, &checksum_right) != NULL; count++) {
        assert_true(bytes >= 14 && bytes <= NET_LINK_BYTES + 1500);
        net_receive_pop(net);
    }
    return count;
}

/* One frame of a flood; its bytes. `kind` 0: the smallest, 1: oversize, 2: noise, whose length is one that the kernel
 * lets through (it drops what ends within a VLAN tag itself). */
static size_t make_frame(unsigned kind)
{
    size_t bytes = kind == 0 ? 60 : kind == 1 ? 1519 + noise() % 7000 : 20 + noise() % 1494;

    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t value = noise();

        memcpy(frame + i, &value, 4);
    }
    if (kind < 2 || noise() % 2 == 0)
        memcpy(frame, guest_mac, 6);
    if (kind == 2 && noise() % 2 == 0) { /* it begins as if it were IP or a tag */
        static const uint8_t types[4][2] = {{0x08, 0x00}, {0x86, 0xdd}, {0x81, 0x00}, {0x08, 0x06}};

        memcpy(frame + 12, types[noise() % 4], 2);
    }
    return bytes;
}

/* ---- from the wire: a raw socket on a veth of a larger MTU ---- */

static int raw_socket(const char *interface)
{
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(0x0003), .sll_ifindex = (int)if_nametoindex(interface)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void flood_of_the_wire_is_counted_and_costs_no_memory(void **state)
{
    uint64_t sent = 0, begin_ns = clock_now_ns();
    struct net *net;
    long before_kb;
    int fd;

    (void)state;
    assert_int_equal(system("ip link add ftport mtu 9000 type veth peer name ftpeer && ip link set ftport up && "
                            "ip link set ftpeer mtu 9000 up"),
                     0);
    fd = raw_socket("ftpeer");
    net = open_net("af_packet:ftport", guest_mac);
    for (unsigned i = 0; i < FLOOD_FRAMES / 4; i++) { /* the port's buffers have all been used then */
        size_t bytes = make_frame(1);

        sent += send(fd, frame, bytes, 0) == (ssize_t)bytes;
        net_poll_live(net, UINT64_MAX);
    }
    while (dropped_arriving(net) < sent && clock_now_ns() < begin_ns + WAIT_NS)
        net_poll_live(net, UINT64_MAX);
    assert_int_equal(dropped_arriving(net), sent);
    before_kb = resident_kb();
    for (unsigned kind = 0; kind < 3; kind++) {
        uint64_t arrived = received(net), dropped = dropped_arriving(net), deadline_ns = clock_now_ns() + WAIT_NS,
                 count = 0;
        struct net_statistics statistics;

        for (unsigned i = 0; i < FLOOD_FRAMES; i++) {
            size_t bytes = make_frame(kind);

            count += send(fd, frame, bytes, 0) == (ssize_t)bytes;
            if (kind != 0 && i % 16 == 0) /* of the smallest ones nobody looks: the kernel's ring overflows */
                net_poll_live(net, UINT64_MAX);
        }
        assert_true(count > FLOOD_FRAMES / 2);
        sent += count;
        /* all is accounted for, in whatever way; what the kernel counts of the port's comes with a look at the port */
        if (kind == 2)
            count -= NOISE_LOST;
        while (received(net) - arrived + dropped_arriving(net) - dropped < count && clock_now_ns() < deadline_ns) {
            if (net_poll_live(net, UINT64_MAX) == 0)
                clock_sleep_ns(NS_PER_MS);
        }
        assert_true(received(net) - arrived + dropped_arriving(net) - dropped >= count);
        net_get_statistics(net, &statistics);
        assert_true(statistics.received <= RECEIVE_FRAMES); /* nobody has taken any */
        if (kind == 0)
            assert_true(statistics.dropped_port_missed > count / 2);
        if (kind == 1)
            assert_true(statistics.dropped_oversize >= count);
    }
    assert_true(resident_kb() - before_kb < MEMORY_SLACK_KB);
    assert_true(dropped_arriving(net) > sent / 2); /* nobody has taken any */
    (void)drain(net);
    { /* the guest is back: what comes now comes through */
        uint64_t deadline_ns = clock_now_ns() + WAIT_NS;
        bool seen = false;

        while (!seen && clock_now_ns() < deadline_ns) {
            const uint8_t *waiting;
            size_t bytes;

            frame_fill(frame, 200, guest_mac, other_mac, 0x5eed5eed);
            (void)!send(fd, frame, 200, 0);
            net_poll_live(net, UINT64_MAX);
            while ((waiting = net_receive_peek(net, &bytes, &checksum_right)) != NULL) {
                seen |= bytes == 200 && memcmp(waiting, frame, 200) == 0;
                net_receive_pop(net);
            }
        }
        assert_true(seen);
    }
    net_close(net);
    close(fd);
    assert_int_equal(system("ip link del ftport"), 0);
}

/* ---- from another host's port that keeps what is not taken: it is held back, and nothing is lost ---- */

static void flood_between_ports_is_held_back_and_nothing_is_lost(void **state)
{
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS, given = 0, taken = 0;
    static const uint8_t anybody[6];
    struct net_statistics statistics;
    char server[100], client[120];
    struct net *near, *far;
    long before_kb = 0;

    (void)state;
    snprintf(server, sizeof(server), "memif:/tmp/ftvmm-hostile-%d.sock", (int)getpid());
    snprintf(client, sizeof(client), "%s,client", server);
    near = open_net(server, guest_mac);
    far = open_net(client, anybody);
    for (int i = 0; i < 300; i++) {
        net_poll_live(near, UINT64_MAX);
        net_poll_live(far, UINT64_MAX);
        clock_sleep_ns(NS_PER_MS);
    }
    for (unsigned i = 0; i < FLOOD_FRAMES; i++) { /* the guest takes nothing */
        frame_fill(frame, 60, guest_mac, other_mac, i);
        given += net_hold(far, frame, 60, &finished, 0, clock_now_ns()) == 0;
        net_poll_live(far, UINT64_MAX);
        net_poll_live(near, UINT64_MAX);
        if (i == FLOOD_FRAMES / 2)
            before_kb = resident_kb(); /* the ports' buffers have all been used by now */
    }
    net_get_statistics(far, &statistics);
    assert_int_equal(given + statistics.dropped_hold_full, FLOOD_FRAMES);
    assert_true(statistics.dropped_hold_full > 0); /* it came to the far guest, who would be told to wait */
    assert_true(resident_kb() - before_kb < MEMORY_SLACK_KB);
    while (taken + statistics.dropped_transmit < given && clock_now_ns() < deadline_ns) {
        net_poll_live(far, UINT64_MAX);
        net_poll_live(near, UINT64_MAX);
        taken += drain(near);
        net_get_statistics(far, &statistics);
    }
    assert_int_equal(taken + statistics.dropped_transmit, given);
    net_get_statistics(near, &statistics);
    assert_int_equal(statistics.dropped_receive_full, 0);
    net_close(near);
    clock_sleep_ns(100 * NS_PER_MS); /* as in test_ports.c */
    net_close(far);
}

/* ---- from the guest ---- */

static void guest_that_floods_is_refused_and_counted(void **state)
{
    struct net *net = open_net("net_null0", guest_mac);
    uint64_t refused = 0, held = 0, malformed = 0;
    struct net_statistics statistics;
    long before_kb = resident_kb();

    (void)state;
    for (unsigned i = 0; i < FLOOD_FRAMES; i++) { /* no ack ever comes */
        static const size_t sizes[] = {0, 13, 14, 60, 1518, 1519, 9000, sizeof(frame) - 1, sizeof(frame)};
        size_t bytes = sizes[noise() % (sizeof(sizes) / sizeof(sizes[0]))];
        struct net_offload offload = {.segmentation = (uint8_t)(noise() % 3),
                                      .checksum_missing = (uint8_t)(noise() % 2),
                                      .checksum_start = (uint16_t)noise(),
                                      .checksum_offset = (uint16_t)noise(),
                                      .segment_bytes = (uint16_t)noise()};
        int result = net_hold(net, frame, bytes, &offload, 1, clock_now_ns());

        held += result == 0;
        refused += result == -ENOBUFS || result == -EMSGSIZE;
        if (i % 64 == 0)
            net_poll_live(net, 0);
    }
    assert_int_equal(held + refused, FLOOD_FRAMES);
    assert_true(held > 0 && held <= HOLD_FRAMES);
    net_get_statistics(net, &statistics);
    assert_int_equal(statistics.dropped_hold_full + statistics.dropped_hold_oversize, refused);
    assert_int_equal(statistics.transmitted, 0);
    assert_int_equal(net_held_count(net), FLOOD_FRAMES);
    assert_true(net_sent_count(net) < FLOOD_FRAMES); /* but for those at the front that were refused */
    assert_true(resident_kb() - before_kb < MEMORY_SLACK_KB);
    for (int i = 0; i < 1000 && net_sent_count(net) < FLOOD_FRAMES;
         i++) /* the ack: what can leave leaves, the rest is counted */
        net_poll_live(net, 1);
    net_get_statistics(net, &statistics);
    malformed = statistics.dropped_malformed;
    assert_int_equal(net_sent_count(net), FLOOD_FRAMES);
    assert_true(malformed <= held && statistics.transmitted + malformed >= held);
    net_close(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flood_of_the_wire_is_counted_and_costs_no_memory),
        cmocka_unit_test(flood_between_ports_is_held_back_and_nothing_is_lost),
        cmocka_unit_test(guest_that_floods_is_refused_and_counted),
    };
    const char *given = getenv("SEED");

    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)getpid();
    printf("seed %llu (SEED=... repeats it)\n", (unsigned long long)seed);
    signal(SIGPIPE, SIG_IGN);
    if (unshare(CLONE_NEWNET) != 0) {
        printf("skipped: needs root (or CAP_SYS_ADMIN) for a network namespace of its own\n");
        return SKIPPED;
    }
    (void)!system("echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/default/disable_ipv6");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
