/*
 * Frames that go round between two memif ports joined by a cable, forwarded by dpdk-net. One thread does what the I/O
 * thread of ftvmm does, and for FORWARD_NET also what the machine thread does with a frame of an idle guest. At the end
 * every frame must still be there, and be what it was.
 */
#include "bench/net_forward.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/report.h"
#include "dpdk-net/net.h"
#include "dpdk-net/port.h"

#define LINK_WAIT_NS   (10 * NS_PER_S)
#define TURNS_PER_LOOK 64 /* at the clock */
#define DRAIN_NS       (2 * NS_PER_S)
#define MTU            1500u
#define QUEUE_FRAMES   256u /* as ftvmm has it */

static const uint8_t everybody[6];
static const struct net_offload finished;

struct way {
    struct port port;
    struct receive receive;
    struct net *net;
};

static void fill(uint8_t *frame, uint32_t bytes)
{
    static const uint8_t head[14] = {0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 0x88, 0xb5};

    memcpy(frame, head, sizeof(head));
    for (uint32_t i = sizeof(head); i < bytes; i++)
        frame[i] = (uint8_t)(i * 31 + bytes);
}

/* ---- opening ---- */

static int way_open(struct way *way, enum forwarder forwarder, const char *text)
{
    const struct net_options options = {.port = text, .mtu = MTU, .receive_frames = 0};

    if (forwarder == FORWARD_NET)
        return net_open(&way->net, &options);
    if (receive_init(&way->receive, QUEUE_FRAMES, NET_LINK_BYTES + MTU, everybody) != 0)
        return -ENOMEM;
    return port_open(&way->port, text, MTU);
}

static bool way_is_up(struct way *way)
{
    struct port_look look;

    if (way->net != NULL) {
        net_poll_live(way->net, 0);
        return net_receive_waiting(way->net) || net_link_up(way->net);
    }
    port_look(&way->port, &look);
    (void)port_receive(&way->port, &way->receive); /* a memif's client offers its buffers when it is asked for frames */
    return look.link_up;
}

static int wait_for_link(struct way ways[2])
{
    uint64_t deadline_ns = clock_now_ns() + LINK_WAIT_NS;

    clock_sleep_ns(200 * NS_PER_MS); /* a net looks at its link ten times a second */
    while (!way_is_up(&ways[0]) || !way_is_up(&ways[1])) {
        if (clock_now_ns() > deadline_ns) {
            report_error("the two ends of the memif have found no link to each other");
            return -ENETDOWN;
        }
        clock_sleep_ns(NS_PER_MS);
    }
    return 0;
}

/* ---- a turn: what has arrived at the one port leaves by the other. Returns how many frames did. ---- */

static unsigned turn_port(struct way *from, struct way *to)
{
    struct port_frame frames[PORT_BURST];
    const struct frame_slot *slot;
    unsigned count = 0, sent;

    port_receive(&from->port, &from->receive);
    for (; count < PORT_BURST && (slot = frame_ring_at(&from->receive.ring, count)) != NULL; count++)
        frames[count] = (struct port_frame){.data = slot->data, .bytes = slot->bytes};
    sent = count > 0 ? port_send(&to->port, frames, count) : 0;
    frame_ring_release(&from->receive.ring, sent);
    return sent;
}

static unsigned turn_net(struct way *from, struct way *to)
{
    uint64_t now_ns, sent = net_sent_count(to->net);
    const void *frame;
    bool checksum_right;
    size_t bytes;

    net_poll_live(from->net, 1);
    now_ns = clock_now_ns();
    while (!net_hold_crowded(to->net) && (frame = net_receive_peek(from->net, &bytes, &checksum_right)) != NULL) {
        (void)net_hold(to->net, frame, bytes, &finished, 1, now_ns);
        net_receive_pop(from->net);
    }
    net_poll_live(to->net, 1);
    return (unsigned)(net_sent_count(to->net) - sent);
}

static unsigned turn(struct way ways[2])
{
    return ways[0].net != NULL ? turn_net(&ways[0], &ways[1]) + turn_net(&ways[1], &ways[0])
                               : turn_port(&ways[0], &ways[1]) + turn_port(&ways[1], &ways[0]);
}

/* ---- begin and end ---- */

static int inject(struct way ways[2], uint32_t bytes)
{
    uint8_t data[NET_LINK_BYTES + MTU];
    struct port_frame frames[PORT_BURST];

    fill(data, bytes);
    for (unsigned i = 0; i < PORT_BURST; i++)
        frames[i] = (struct port_frame){.data = data, .bytes = bytes};
    for (unsigned i = 0; i < 2 * FORWARD_BURSTS; i++) {
        struct way *way = &ways[i & 1];
        unsigned taken = 0;

        if (way->net == NULL) {
            taken = port_send(&way->port, frames, PORT_BURST);
        } else {
            while (taken < PORT_BURST && net_hold(way->net, data, bytes, &finished, 1, clock_now_ns()) == 0)
                taken++;
        }
        if (taken < PORT_BURST) {
            report_error("a port with nothing in it has taken %u frames of a burst of %u", taken, PORT_BURST);
            return -ENOBUFS;
        }
    }
    return 0;
}

/* Takes everything out again. */
static int check_frames(struct way ways[2], uint32_t bytes)
{
    uint64_t deadline_ns = clock_now_ns() + DRAIN_NS, seen = 0, damaged = 0;
    uint8_t expected[NET_LINK_BYTES + MTU];

    fill(expected, bytes);
    while (seen < FORWARD_FRAMES && clock_now_ns() < deadline_ns)
        for (unsigned i = 0; i < 2; i++) {
            struct way *way = &ways[i];
            const struct frame_slot *slot;
            const void *frame;
            bool checksum_right;
            size_t length;

            if (way->net == NULL) {
                port_receive(&way->port, &way->receive);
                for (; (slot = frame_ring_at(&way->receive.ring, 0)) != NULL; seen++) {
                    damaged += slot->bytes != bytes || memcmp(slot->data, expected, bytes) != 0;
                    frame_ring_release(&way->receive.ring, 1);
                }
                continue;
            }
            net_poll_live(way->net, 1);
            for (; (frame = net_receive_peek(way->net, &length, &checksum_right)) != NULL; seen++) {
                damaged += length != bytes || memcmp(frame, expected, bytes) != 0;
                net_receive_pop(way->net);
            }
        }
    if (seen == FORWARD_FRAMES && damaged == 0)
        return 0;
    report_error("of %u frames that went round %llu have come back, %llu of them damaged", FORWARD_FRAMES,
                 (unsigned long long)seen, (unsigned long long)damaged);
    return -EPROTO;
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

static uint64_t turn_for(struct way ways[2], uint64_t for_ns)
{
    uint64_t until_ns = clock_now_ns() + for_ns, frames = 0;

    do {
        for (unsigned i = 0; i < TURNS_PER_LOOK; i++)
            frames += turn(ways);
    } while (clock_now_ns() < until_ns);
    return frames;
}

int forward_by_us(enum forwarder forwarder, const struct forward_order *order, struct forward_count *count)
{
    static struct way ways[2]; /* the process ends with them: DPDK 22.11 does not close both ends of a memif well */
    char server[160], client[160];
    cpu_set_t cpus;
    int result;

    CPU_ZERO(&cpus);
    CPU_SET(order->cpu, &cpus);
    if (sched_setaffinity(0, sizeof(cpus), &cpus) != 0) {
        report_error("CPU %u is not for this process: %s", order->cpu, strerror(errno));
        return -errno;
    }
    snprintf(server, sizeof(server), "memif:%s", order->socket);
    snprintf(client, sizeof(client), "memif:%s,client", order->socket);
    result = way_open(&ways[0], forwarder, server);
    if (result == 0)
        result = way_open(&ways[1], forwarder, client);
    if (result == 0)
        result = wait_for_link(ways);
    if (result == 0)
        result = inject(ways, order->frame_bytes);
    if (result != 0)
        return result;
    turn_for(ways, order->warmup_ns);
    count->wall_ns = clock_now_ns();
    count->cpu_ns = thread_cpu_ns();
    count->frames = turn_for(ways, order->run_ns);
    count->cpu_ns = thread_cpu_ns() - count->cpu_ns;
    count->wall_ns = clock_now_ns() - count->wall_ns;
    return check_frames(ways, order->frame_bytes);
}
