/*
 * A ping and a TCP transfer, there and back, through each kind of port that can be opened here, between two network
 * stacks of Linux: the guest's, in a namespace of its own behind a tap whose frames go through dpdk-net as a guest's
 * do, and the one at the far end. What came is compared with what was sent, by count and digest, for the ordinary MTU
 * and, where the driver has it, the jumbo one.
 */
#include "support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_tun.h>

#include "base/clock.h"

#define WAIT_NS        (30 * NS_PER_S)
#define PINGS          3
#define TRANSFER_BYTES (1u << 20) /* each way */
#define PORT_NUMBER    7700
#define GUEST_ADDRESS  "10.77.0.2"
#define FAR_ADDRESS    "10.77.0.1"

/* The guest's stack behind `guest_tap`, its port `near`; the far stack has the interface below the port, or a tap
 * behind a port `far` of its own. */
struct wire {
    struct net *near, *far;
    int guest_tap, far_tap;
    int guest_namespace, far_namespace;
};

static bool run(const char *format, const char *name, uint32_t mtu)
{
    char command[256];

    snprintf(command, sizeof(command), format, name, mtu);
    return system(command) == 0;
}

static int open_tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    assert_true(fd >= 0);
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    assert_int_equal(ioctl(fd, TUNSETIFF, &request), 0);
    return fd;
}

static struct net *open_port(const char *port, uint32_t mtu, bool guest)
{
    struct net_options options = {.port = port, .mtu = mtu};
    struct net *net = NULL;

    if (guest)
        memcpy(options.mac, guest_mac, 6);
    (void)net_open(&net, &options);
    assert_non_null(net);
    return net;
}

/* ---- the two stacks ---- */

static void enter(int namespace)
{
    assert_int_equal(setns(namespace, CLONE_NEWNET), 0);
}

static void make_guest(struct wire *wire, uint32_t mtu)
{
    wire->far_namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    wire->guest_namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    wire->guest_tap = open_tap("guest0");
    assert_true(run("ip link set %s address 52:54:00:12:34:56 mtu %u", "guest0", mtu));
    assert_true(run("ip addr add " GUEST_ADDRESS "/24 dev %s && ip link set guest0 up", "guest0", 0));
    enter(wire->far_namespace);
}

/* The far stack lets go of frames as they fit the wire: what a card would cut up, a veth would hand over as it is. */
static void make_far(const char *interface, uint32_t mtu)
{
    assert_true(run("ip link set %s mtu %u up", interface, mtu));
    assert_true(run("ip addr add " FAR_ADDRESS "/24 dev %s", interface, 0));
    (void)!run("ip link set %s gso_max_segs 1", interface, 0);
}

static bool pump_one(struct net *net, int tap)
{
    static uint8_t frame[NET_SEGMENTED_MAX_BYTES];
    const void *waiting;
    bool moved = false;
    size_t size;

    while (!net_hold_crowded(net)) {
        ssize_t bytes = read(tap, frame, sizeof(frame));

        if (bytes <= 0)
            break;
        assert_int_equal(net_hold(net, frame, (size_t)bytes, &finished, 0, clock_now_ns()), 0);
        moved = true;
    }
    while ((waiting = net_receive_peek(net, &size, &checksum_right)) != NULL) {
        assert_int_equal(write(tap, waiting, size), size);
        net_receive_pop(net);
        moved = true;
    }
    return net_poll_live(net, UINT64_MAX) > 0 || moved;
}

/* Moves what is there; sleeps a little if nothing is. */
static void pump(struct wire *wire)
{
    bool moved = pump_one(wire->near, wire->guest_tap);

    if (wire->far != NULL && pump_one(wire->far, wire->far_tap))
        moved = true;
    if (!moved)
        clock_sleep_ns(50 * NS_PER_US);
}

static void wire_close(struct wire *wire)
{
    net_close(wire->near);
    if (wire->far != NULL)
        clock_sleep_ns(100 * NS_PER_MS); /* as in test_ports.c */
    net_close(wire->far);
    close(wire->guest_tap);
    if (wire->far != NULL)
        close(wire->far_tap);
    close(wire->guest_namespace);
    close(wire->far_namespace);
}

/* ---- what is carried ---- */

static int socket_in(int namespace, const struct wire *wire, int type, int protocol)
{
    int fd;

    enter(namespace);
    fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
    enter(wire->far_namespace);
    assert_true(fd >= 0);
    return fd;
}

static struct sockaddr_in address_of(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT_NUMBER)};

    assert_int_equal(inet_pton(AF_INET, text, &address.sin_addr), 1);
    return address;
}

static uint16_t internet_sum(const void *data, size_t bytes)
{
    const uint16_t *words = data;
    uint32_t sum = 0;

    for (size_t i = 0; i < bytes / 2; i++)
        sum += words[i];
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t) ~(sum + (sum >> 16));
}

/* Requests of `payload` bytes; every one is answered with the same bytes. */
static void carries_a_ping(struct wire *wire, size_t payload)
{
    static uint8_t request[9000], answer[9100];
    struct icmphdr *header = (struct icmphdr *)request;
    struct sockaddr_in to = address_of(FAR_ADDRESS);
    int fd = socket_in(wire->guest_namespace, wire, SOCK_RAW, IPPROTO_ICMP);

    to.sin_port = 0;
    for (uint16_t number = 0; number < PINGS; number++) {
        uint64_t deadline_ns = clock_now_ns() + WAIT_NS, again_ns = 0;
        bool answered = false;

        for (size_t i = sizeof(*header); i < sizeof(*header) + payload; i++)
            request[i] = (uint8_t)(i * 7 + number);
        *header = (struct icmphdr){.type = ICMP_ECHO, .un.echo = {.id = htons(77), .sequence = htons(number)}};
        header->checksum = internet_sum(request, sizeof(*header) + payload);
        while (!answered && clock_now_ns() < deadline_ns) {
            ssize_t bytes;

            if (clock_now_ns() >= again_ns) { /* the first may go while the other end still starts */
                (void)sendto(fd, request, sizeof(*header) + payload, 0, (struct sockaddr *)&to, sizeof(to));
                again_ns = clock_now_ns() + NS_PER_S;
            }
            pump(wire);
            bytes = recv(fd, answer, sizeof(answer), 0);
            answered = bytes == (ssize_t)(20 + sizeof(*header) + payload) && answer[20] == ICMP_ECHOREPLY &&
                       memcmp(answer + 20 + 4, request + 4, 4 + payload) == 0;
        }
        assert_true(answered);
    }
    close(fd);
}

static uint64_t digest_add(uint64_t digest, const uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        digest = (digest ^ data[i]) * UINT64_C(0x100000001b3); /* FNV-1a */
    return digest;
}

/* One way over a connection. */
static void transfer(struct wire *wire, int from, int to, uint32_t seed)
{
    static uint8_t out[65536], in[65536];
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS, sent_digest = 1, received_digest = 1;
    size_t sent = 0, received = 0, filled = 0, used = 0;

    while (received < TRANSFER_BYTES && clock_now_ns() < deadline_ns) {
        ssize_t bytes;

        if (used == filled && sent < TRANSFER_BYTES) {
            filled = TRANSFER_BYTES - sent < sizeof(out) ? TRANSFER_BYTES - sent : sizeof(out);
            for (size_t i = 0; i < filled; i++)
                out[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
            used = 0;
        }
        if (used < filled && (bytes = send(from, out + used, filled - used, MSG_NOSIGNAL)) > 0) {
            sent_digest = digest_add(sent_digest, out + used, (size_t)bytes);
            used += (size_t)bytes;
            sent += (size_t)bytes;
        }
        pump(wire);
        while ((bytes = recv(to, in, sizeof(in), 0)) > 0) {
            received_digest = digest_add(received_digest, in, (size_t)bytes);
            received += (size_t)bytes;
        }
    }
    assert_int_equal(received, TRANSFER_BYTES);
    assert_int_equal(received_digest, sent_digest);
}

static void carries_a_tcp_transfer(struct wire *wire)
{
    int listener = socket_in(wire->far_namespace, wire, SOCK_STREAM, 0), accepted = -1, one = 1;
    int client = socket_in(wire->guest_namespace, wire, SOCK_STREAM, 0);
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;
    struct sockaddr_in to = address_of(FAR_ADDRESS);

    (void)setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    assert_int_equal(bind(listener, (struct sockaddr *)&to, sizeof(to)), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_true(connect(client, (struct sockaddr *)&to, sizeof(to)) == 0 || errno == EINPROGRESS);
    while (accepted < 0 && clock_now_ns() < deadline_ns) {
        pump(wire);
        accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    }
    assert_true(accepted >= 0);
    transfer(wire, client, accepted, 1);
    transfer(wire, accepted, client, 2);
    close(client);
    close(accepted);
    close(listener);
}

static void carries_all(struct wire *wire, uint32_t mtu)
{
    struct net_statistics statistics;

    carries_a_ping(wire, 56);
    carries_a_ping(wire, mtu - 28); /* the largest that goes in one packet */
    carries_a_tcp_transfer(wire);
    net_get_statistics(wire->near, &statistics);
    assert_true(statistics.received_bytes > TRANSFER_BYTES && statistics.transmitted_bytes > TRANSFER_BYTES);
    assert_int_equal(statistics.dropped_oversize, 0);
    assert_int_equal(statistics.dropped_hold_full, 0);
    wire_close(wire);
}

/* ---- kinds ---- */

static void over_veth(const char *port, uint32_t mtu)
{
    struct wire wire = {0};

    (void)!run("ip link del %s 2>/dev/null", "ftport", 0);
    assert_true(run("ip link add %s mtu %u type veth peer name ftpeer", "ftport", mtu));
    assert_true(run("ip link set %s up", "ftport", 0));
    make_far("ftpeer", mtu);
    make_guest(&wire, mtu);
    wire.near = open_port(port, mtu, true);
    carries_all(&wire, mtu);
    assert_true(run("ip link del %s", "ftport", 0)); /* and with it the far stack's address */
}

static void between_ports(const char *far, const char *near, uint32_t mtu)
{
    struct wire wire = {0};

    wire.far = open_port(far, mtu, false);
    wire.far_tap = open_tap("fartap");
    make_far("fartap", mtu);
    make_guest(&wire, mtu);
    wire.near = open_port(near, mtu, true);
    carries_all(&wire, mtu);
}

static void af_packet_carries_ping_and_tcp(void **state)
{
    (void)state;
    over_veth("af_packet:ftport", 1500);
    over_veth("af_packet:ftport", 9000);
}

/* No jumbo frames: the driver's buffers are a page. */
static void af_xdp_carries_ping_and_tcp(void **state)
{
    int fd = socket(AF_XDP, SOCK_RAW, 0);

    (void)state;
    if (fd < 0 || unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL) != 0) {
        print_message("no AF_XDP here: %s\n", strerror(errno));
        close(fd);
        skip();
    }
    close(fd);
    over_veth("af_xdp:ftport", 1500);
}

/* No jumbo frames: DPDK 22.11's driver takes none. */
static void tap_carries_ping_and_tcp(void **state)
{
    struct wire wire = {0};

    (void)state;
    wire.near = open_port("tap:fttap", 1500, true);
    make_far("fttap", 1500);
    make_guest(&wire, 1500);
    carries_all(&wire, 1500);
}

static void memif_carries_ping_and_tcp(void **state)
{
    char server[100], client[120];

    (void)state;
    snprintf(server, sizeof(server), "memif:/tmp/ftvmm-transfer-%d.sock", (int)getpid());
    snprintf(client, sizeof(client), "%s,client", server);
    between_ports(server, client, 1500);
    between_ports(server, client, 9000);
}

static void virtio_user_carries_ping_and_tcp(void **state)
{
    (void)state;
    for (unsigned number = 0; number < 2; number++) {
        char server[120], client[120];

        snprintf(server, sizeof(server), "net_vhost%u,iface=/tmp/ftvmm-transfer-%d-%u.vhost", number, (int)getpid(),
                 number);
        snprintf(client, sizeof(client), "net_virtio_user%u,path=/tmp/ftvmm-transfer-%d-%u.vhost", number,
                 (int)getpid(), number);
        between_ports(server, client, number == 0 ? 1500 : 9000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(af_packet_carries_ping_and_tcp),   cmocka_unit_test(af_xdp_carries_ping_and_tcp),
        cmocka_unit_test(tap_carries_ping_and_tcp),         cmocka_unit_test(memif_carries_ping_and_tcp),
        cmocka_unit_test(virtio_user_carries_ping_and_tcp),
    };

    signal(SIGPIPE, SIG_IGN);
    if (unshare(CLONE_NEWNET) != 0) {
        printf("skipped: needs root (or CAP_SYS_ADMIN) for a network namespace of its own\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
