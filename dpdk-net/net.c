/* The guest's network: ties the hold queue, the bounce queue and the announcements to a port; see net.h. */
#include "dpdk-net/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "dpdk-net/announce.h"
#include "dpdk-net/counter.h"
#include "dpdk-net/hold.h"
#include "dpdk-net/port.h"
#include "dpdk-net/receive.h"

#define HOLD_FRAMES_DEFAULT 1024u
#define RECEIVE_FRAMES_DEFAULT 256u
#define QUEUE_FRAMES_MAX (1u << 20)
/* A port that takes nothing for so long has lost its link or its peer. Older frames then make room for
 * newer ones: TCP has sent them again anyway. */
#define BLOCKED_MAX_NS NS_PER_S

struct net {
    struct hold hold;
    struct receive receive;
    struct port port;
    struct announce announce;  /* I/O thread */
    uint64_t blocked_since_ns; /* I/O thread: since when the port has taken no frame; 0: it does */
    _Atomic uint64_t transmitted, transmitted_bytes, dropped_transmit; /* I/O thread */
    struct histogram hold_ns, pass_ns, send_ns; /* I/O thread; net.h tells what each is */
};

static int check_capacity(const char *name, uint32_t *frames, uint32_t fallback)
{
    if (*frames == 0)
        *frames = fallback;
    if ((*frames & (*frames - 1)) == 0 && *frames <= QUEUE_FRAMES_MAX)
        return 0;
    report_error("%s is %u; it must be a power of two, at most %u", name, *frames, QUEUE_FRAMES_MAX);
    return -EINVAL;
}

int net_open(struct net **out, const struct net_options *options)
{
    uint32_t hold_frames = options->hold_frames, receive_frames = options->receive_frames;
    struct net *net = NULL;
    int error;

    *out = NULL;
    if (options->port == NULL) {
        report_error("no network port was named");
        return -EINVAL;
    }
    error = check_capacity("hold_frames", &hold_frames, HOLD_FRAMES_DEFAULT);
    if (error == 0)
        error = check_capacity("receive_frames", &receive_frames, RECEIVE_FRAMES_DEFAULT);
    if (error != 0)
        return error;
    net = aligned_alloc(alignof(struct net), sizeof(*net));
    if (net == NULL)
        return -ENOMEM;
    memset(net, 0, sizeof(*net));
    memcpy(net->announce.mac, options->mac, sizeof(net->announce.mac));
    error = hold_init(&net->hold, hold_frames);
    if (error == 0)
        error = receive_init(&net->receive, receive_frames, options->mac);
    if (error != 0) {
        report_error("no memory for queues of %u and %u frames", hold_frames, receive_frames);
        goto fail;
    }
    error = port_open(&net->port, options->port);
    if (error != 0)
        goto fail;
    *out = net;
    return 0;
fail:
    net_close(net);
    return error;
}

void net_close(struct net *net)
{
    if (net == NULL)
        return;
    port_close(&net->port);
    receive_fini(&net->receive);
    hold_fini(&net->hold);
    free(net);
}

/* ---- machine thread ---- */

int net_hold(struct net *net, const void *frame, size_t bytes, uint64_t lsn, uint64_t now_ns)
{
    return hold_put(&net->hold, frame, bytes, lsn, now_ns);
}

uint64_t net_held_count(const struct net *net)
{
    return atomic_load_explicit(&net->hold.next_number, memory_order_acquire);
}

const void *net_receive_peek(struct net *net, size_t *bytes)
{
    const struct frame_slot *slot = frame_ring_at(&net->receive.ring, 0);

    if (slot == NULL)
        return NULL;
    *bytes = slot->bytes;
    return slot->data;
}

void net_receive_pop(struct net *net)
{
    if (frame_ring_at(&net->receive.ring, 0) == NULL)
        report_bug("a frame was taken from an empty receive queue");
    frame_ring_release(&net->receive.ring, 1);
}

uint64_t net_receive_since_ns(struct net *net)
{
    const struct frame_slot *slot = frame_ring_at(&net->receive.ring, 0);

    if (slot == NULL)
        report_bug("an empty receive queue was asked how old its first frame is");
    return slot->queued_ns;
}

/* ---- I/O thread ---- */

static void learn_from(void *ctx, const struct frame_slot *slot)
{
    struct net *net = ctx;

    announce_learn(&net->announce, slot->data, slot->bytes);
}

/* The port takes nothing: frames that have waited for long make room. Returns how many. */
static unsigned drop_blocked(struct net *net, unsigned ready, uint64_t now_ns)
{
    unsigned old = 0;

    if (net->blocked_since_ns == 0)
        net->blocked_since_ns = now_ns;
    if (now_ns - net->blocked_since_ns < BLOCKED_MAX_NS)
        return 0;
    while (old < ready && now_ns - frame_ring_at(&net->hold.ring, old)->queued_ns >= BLOCKED_MAX_NS)
        old++;
    if (old > 0)
        hold_release(&net->hold, old);
    counter_add(&net->dropped_transmit, old);
    return old;
}

/* One burst of the frames that may leave. Returns how many left the queue. */
static unsigned send_released(struct net *net, uint64_t acked_lsn)
{
    struct port_frame frames[PORT_BURST];
    const struct frame_slot *slot;
    uint64_t bytes = 0, release_ns, sent_ns;
    unsigned ready = 0, sent;

    while (ready < PORT_BURST && (slot = hold_releasable(&net->hold, ready, acked_lsn)) != NULL)
        frames[ready++] = (struct port_frame){ .data = slot->data, .bytes = slot->bytes };
    if (ready == 0)
        return 0;
    release_ns = clock_now_ns();
    sent = port_send(&net->port, frames, ready);
    sent_ns = clock_now_ns();
    if (sent == 0)
        return drop_blocked(net, ready, sent_ns);
    net->blocked_since_ns = 0;
    for (unsigned i = 0; i < sent; i++) {
        announce_learn(&net->announce, frames[i].data, frames[i].bytes);
        bytes += frames[i].bytes;
        histogram_record(&net->send_ns, sent_ns - release_ns);
    }
    /* unprotected, no frame waits for anything but this thread's look */
    hold_measure(&net->hold, sent, release_ns, acked_lsn != UINT64_MAX ? &net->hold_ns : &net->pass_ns);
    hold_release(&net->hold, sent);
    counter_add(&net->transmitted, sent);
    counter_add(&net->transmitted_bytes, bytes);
    return sent;
}

unsigned net_poll_live(struct net *net, uint64_t acked_lsn)
{
    /* what the peer sent before we went live, and our guest has only now built again */
    unsigned moved = hold_forget(&net->hold, 0, learn_from, net);

    moved += send_released(net, acked_lsn);
    return moved + port_receive(&net->port, &net->receive);
}

unsigned net_poll_standby(struct net *net, uint64_t sent_count)
{
    unsigned moved = hold_forget(&net->hold, sent_count, learn_from, net);

    return moved + port_receive(&net->port, NULL);
}

void net_announce(struct net *net)
{
    uint8_t bytes_of[ANNOUNCE_FRAME_MAX_BYTES];
    const struct frame_slot *slot;
    size_t bytes;

    for (uint64_t i = 0; (slot = frame_ring_at(&net->hold.ring, i)) != NULL; i++)
        learn_from(net, slot);
    for (unsigned i = 0; (bytes = announce_build(&net->announce, i, bytes_of)) > 0; i++) {
        struct port_frame frame = { .data = bytes_of, .bytes = (uint32_t)bytes };

        if (port_send(&net->port, &frame, 1) == 1) {
            counter_add(&net->transmitted, 1);
            counter_add(&net->transmitted_bytes, bytes);
        } else {
            counter_add(&net->dropped_transmit, 1);
        }
    }
}

/* ---- any thread ---- */

uint64_t net_sent_count(const struct net *net)
{
    /* A4 pairs R4 in hold.c */
    return atomic_load_explicit(&net->hold.gone_number, memory_order_acquire);
}

bool net_receive_waiting(const struct net *net)
{
    return frame_ring_waiting(&net->receive.ring);
}

void net_get_statistics(const struct net *net, struct net_statistics *out)
{
    *out = (struct net_statistics){
        .received = counter_read(&net->receive.received),
        .transmitted = counter_read(&net->transmitted),
        .received_bytes = counter_read(&net->receive.received_bytes),
        .transmitted_bytes = counter_read(&net->transmitted_bytes),
        .dropped_receive_full = counter_read(&net->receive.dropped_full),
        .dropped_oversize = counter_read(&net->receive.dropped_oversize),
        .dropped_hold_full = counter_read(&net->hold.refused_full),
        .dropped_transmit = counter_read(&net->dropped_transmit),
        .received_for_others = counter_read(&net->receive.other_station),
    };
}

const struct histogram *net_hold_histogram(const struct net *net)
{
    return &net->hold_ns;
}

const struct histogram *net_pass_histogram(const struct net *net)
{
    return &net->pass_ns;
}

const struct histogram *net_send_histogram(const struct net *net)
{
    return &net->send_ns;
}
