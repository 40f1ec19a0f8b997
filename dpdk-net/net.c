/* The guest's network: ties the hold queue, the bounce queue and the announcements to a port; see net.h. */
#include "dpdk-net/net.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "dpdk-net/announce.h"
#include "dpdk-net/counter.h"
#include "dpdk-net/eal.h"
#include "dpdk-net/hold.h"
#include "dpdk-net/port.h"
#include "dpdk-net/receive.h"
#include "dpdk-net/segment.h"

#define HOLD_FRAMES_DEFAULT 1024u
#define RECEIVE_FRAMES_DEFAULT 256u
#define QUEUE_FRAMES_MAX (1u << 20)
/* A port that takes nothing for so long has lost its link or its peer. Older frames then make room for
 * newer ones: TCP has sent them again anyway. */
#define BLOCKED_MAX_NS NS_PER_S
/* How often the port is asked for its link and its losses. */
#define LOOK_NS (100 * NS_PER_MS)

/* The guest's filter on its way to the I/O thread, which never waits for it. Once in a guest's while, so a turn that
 * only one can have does. */
struct filter_mail {
    _Atomic uint64_t number; /* of the filter that lies here */
    _Atomic bool taken;
    struct net_filter filter; /* who took the turn */
};

struct net {
    struct hold hold;
    struct receive receive;
    struct port port;
    struct announce announce;  /* I/O thread */
    uint64_t blocked_since_ns; /* I/O thread: since when the port has taken no frame; 0: it does */
    uint64_t cut_number;       /* I/O thread: the held frame of which some segments have gone ... */
    uint32_t cut_gone;         /* ... and how many */
    uint64_t looked_ns;        /* I/O thread: when the port was last asked */
    uint64_t filter_seen;      /* I/O thread: number of the filter in use */
    struct filter_mail filter_mail;
    _Atomic uint64_t transmitted, transmitted_bytes, segmented; /* I/O thread, as are those below */
    _Atomic uint64_t dropped_transmit, dropped_malformed, port_missed, port_lost;
    _Atomic bool link_down;
    struct histogram hold_ns, pass_ns, send_ns; /* I/O thread; net.h tells what each is */
};

/* Frames for one call of port_send, and which of them end a held frame. */
struct burst {
    struct port_frame frames[PORT_BURST];
    bool ends[PORT_BURST];
    struct segments segments[PORT_BURST]; /* of the held frames that are cut up */
    unsigned count;
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
    uint32_t mtu = options->mtu != 0 ? options->mtu : NET_MTU_DEFAULT;
    struct net *net = NULL;
    int error;

    *out = NULL;
    if (options->port == NULL) {
        report_error("no network port was named");
        return -EINVAL;
    }
    if (mtu < NET_MTU_MIN || mtu > NET_MTU_MAX) {
        report_error("an MTU of %u: give %u to %u", mtu, NET_MTU_MIN, NET_MTU_MAX);
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
    net->cut_number = UINT64_MAX;
    announce_set_mac(&net->announce, options->mac);
    error = hold_init(&net->hold, hold_frames, NET_LINK_BYTES + mtu);
    if (error == 0)
        error = receive_init(&net->receive, receive_frames, NET_LINK_BYTES + mtu, options->mac);
    if (error != 0) {
        report_error("no memory for queues of %u and %u frames", hold_frames, receive_frames);
        goto fail;
    }
    error = port_open(&net->port, options->port, mtu);
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

int net_hold(struct net *net, const void *frame, size_t bytes, const struct net_offload *offload, uint64_t lsn,
             uint64_t now_ns)
{
    return hold_put(&net->hold, frame, bytes, offload, lsn, now_ns);
}

bool net_hold_crowded(struct net *net)
{
    return hold_crowded(&net->hold);
}

uint64_t net_held_count(const struct net *net)
{
    return atomic_load_explicit(&net->hold.next_number, memory_order_acquire);
}

const void *net_receive_peek(struct net *net, size_t *bytes, bool *checksum_right)
{
    const struct frame_slot *slot = frame_ring_at(&net->receive.ring, 0);

    if (slot == NULL)
        return NULL;
    *bytes = slot->bytes;
    *checksum_right = slot->checksum_right;
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

void net_set_filter(struct net *net, const struct net_filter *filter)
{
    struct filter_mail *mail = &net->filter_mail;

    /* A5 pairs R5: the other side is done with the filter; it holds the turn for the time of a memcpy */
    while (atomic_exchange_explicit(&mail->taken, true, memory_order_acquire))
        ;
    mail->filter = *filter;
    /* relaxed: a number without its turn only makes the other side look */
    atomic_store_explicit(&mail->number, atomic_load_explicit(&mail->number, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    atomic_store_explicit(&mail->taken, false, memory_order_release); /* R5 pairs A5 */
}

/* ---- I/O thread ---- */

void net_thread_begin(void)
{
    eal_thread_begin();
}

void net_thread_end(void)
{
    eal_thread_end();
}

static void learn_from(void *ctx, const struct frame_slot *slot)
{
    struct net *net = ctx;

    announce_learn(&net->announce, slot->data, slot->bytes);
}

/* The port takes nothing: frames that have waited for long make room, a burst at a time. Returns how many. */
static unsigned drop_blocked(struct net *net, uint64_t acked_lsn, uint64_t now_ns)
{
    const struct frame_slot *slot;
    unsigned old = 0;

    if (net->blocked_since_ns == 0)
        net->blocked_since_ns = now_ns;
    if (now_ns - net->blocked_since_ns < BLOCKED_MAX_NS)
        return 0;
    while (old < PORT_BURST && (slot = hold_releasable(&net->hold, old, acked_lsn)) != NULL &&
           now_ns - slot->queued_ns >= BLOCKED_MAX_NS)
        old++;
    if (old > 0)
        hold_release(&net->hold, old);
    counter_add(&net->dropped_transmit, old);
    return old;
}

static bool burst_full(const struct burst *burst)
{
    return burst->count == PORT_BURST;
}

static void burst_add(struct burst *burst, const struct port_frame *frame, bool ends)
{
    burst->frames[burst->count] = *frame;
    burst->ends[burst->count++] = ends;
}

/* Adds a held frame, or what of it has not gone yet. False: nothing can be made of it. */
static bool add_frame(const struct net *net, struct burst *burst, const struct frame_slot *slot)
{
    struct port_frame frame = { .data = slot->data, .bytes = slot->bytes };
    struct segments *segments = &burst->segments[burst->count];

    if (slot->offload.segmentation == NET_WHOLE) {
        frame.offload = slot->offload.checksum_missing ? &slot->offload : NULL;
        burst_add(burst, &frame, true);
        return true;
    }
    if (segments_parse(segments, slot->data, slot->bytes, &slot->offload, net->hold.frame_max_bytes) != 0)
        return false;
    frame.segments = segments;
    if (net->port.segments && segments->count > 1) {
        frame.offload = &slot->offload;
        burst_add(burst, &frame, true);
        return true;
    }
    frame.segment = net->cut_number == slot->number ? net->cut_gone : 0;
    for (; frame.segment < segments->count && !burst_full(burst); frame.segment++)
        burst_add(burst, &frame, frame.segment + 1 == segments->count);
    return true;
}

/* The frames that may leave, as many as go in one burst. Returns how many at the front are good for nothing. */
static unsigned fill_burst(struct net *net, struct burst *burst, uint64_t acked_lsn)
{
    const struct frame_slot *slot;

    burst->count = 0;
    for (uint64_t i = 0; !burst_full(burst) && (slot = hold_releasable(&net->hold, i, acked_lsn)) != NULL; i++)
        if (!add_frame(net, burst, slot))
            return i == 0 ? 1 : 0; /* its turn comes when those before it have gone */
    return 0;
}

/* Segments of a frame that left in part; the next burst goes on behind them. */
static void remember_cut(struct net *net, const struct burst *burst, unsigned sent, unsigned whole)
{
    const struct frame_slot *slot = frame_ring_at(&net->hold.ring, whole);

    if (sent == 0 || burst->ends[sent - 1])
        return;
    net->cut_number = slot->number;
    net->cut_gone = burst->frames[sent - 1].segment + 1;
}

static void count_sent(struct net *net, const struct burst *burst, unsigned sent)
{
    uint64_t bytes = 0, frames = 0, cut = 0;

    for (unsigned i = 0; i < sent; i++) {
        const struct port_frame *frame = &burst->frames[i];
        const struct segments *segments = frame->segments;

        if (segments == NULL) {
            frames++;
            bytes += frame->bytes;
        } else if (frame->offload != NULL) { /* by the port */
            frames += segments->count;
            bytes += frame->bytes + (uint64_t)(segments->count - 1) * segments->payload_at;
        } else {
            frames++;
            bytes += segments_bytes(segments, frame->segment);
            cut += burst->ends[i];
        }
        if (burst->ends[i])
            announce_learn(&net->announce, frame->data, frame->bytes);
    }
    counter_add(&net->transmitted, frames);
    counter_add(&net->transmitted_bytes, bytes);
    counter_add(&net->segmented, cut);
}

/* One burst of the frames that may leave. Returns how many left the queue or went in part. */
static unsigned send_released(struct net *net, uint64_t acked_lsn)
{
    unsigned bad, sent, whole = 0;
    uint64_t release_ns, sent_ns;
    struct burst burst;

    bad = fill_burst(net, &burst, acked_lsn);
    if (bad > 0) {
        hold_release(&net->hold, bad);
        counter_add(&net->dropped_malformed, bad);
        return bad;
    }
    if (burst.count == 0)
        return 0;
    release_ns = clock_now_ns();
    sent = port_send(&net->port, burst.frames, burst.count);
    sent_ns = clock_now_ns();
    for (unsigned i = 0; i < burst.count; i++)
        whole += i < sent && burst.ends[i];
    if (sent == 0)
        return drop_blocked(net, acked_lsn, sent_ns);
    net->blocked_since_ns = 0;
    for (unsigned i = 0; i < whole; i++)
        histogram_record(&net->send_ns, sent_ns - release_ns);
    count_sent(net, &burst, sent);
    remember_cut(net, &burst, sent, whole);
    /* unprotected, no frame waits for anything but this thread's look */
    hold_measure(&net->hold, whole, release_ns, acked_lsn != UINT64_MAX ? &net->hold_ns : &net->pass_ns);
    hold_release(&net->hold, whole);
    return sent;
}

/* What the guest or the port has to say now and then. */
static void look_around(struct net *net)
{
    struct filter_mail *mail = &net->filter_mail;
    uint64_t now_ns = clock_now_ns();
    struct port_look look;

    if (atomic_load_explicit(&mail->number, memory_order_relaxed) != net->filter_seen &&
        !atomic_exchange_explicit(&mail->taken, true, memory_order_acquire)) { /* A5 pairs R5 */
        net->receive.filter = mail->filter;
        net->filter_seen = atomic_load_explicit(&mail->number, memory_order_relaxed);
        atomic_store_explicit(&mail->taken, false, memory_order_release); /* R5 pairs A5 */
        announce_set_mac(&net->announce, net->receive.filter.mac);
    }
    if (net->looked_ns != 0 && now_ns - net->looked_ns < LOOK_NS)
        return;
    net->looked_ns = now_ns;
    port_look(&net->port, &look);
    atomic_store_explicit(&net->link_down, !look.link_up, memory_order_relaxed);
    atomic_store_explicit(&net->port_missed, look.missed, memory_order_relaxed);
    atomic_store_explicit(&net->port_lost, look.lost_sending, memory_order_relaxed);
}

unsigned net_poll_live(struct net *net, uint64_t acked_lsn)
{
    unsigned moved;

    look_around(net);
    /* what the peer sent before we went live, and our guest has only now built again */
    moved = hold_forget(&net->hold, 0, learn_from, net);
    moved += send_released(net, acked_lsn);
    return moved + port_receive(&net->port, &net->receive);
}

unsigned net_poll_standby(struct net *net, uint64_t sent_count)
{
    unsigned moved;

    look_around(net);
    moved = hold_forget(&net->hold, sent_count, learn_from, net);
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

bool net_link_up(const struct net *net)
{
    return !atomic_load_explicit(&net->link_down, memory_order_relaxed); /* relaxed: a lone value */
}

void net_describe(const struct net *net, char *text, size_t size)
{
    const struct port *port = &net->port;

    snprintf(text, size, "%s, driver %s, link %s; checksums by %s, segmentation by %s", port->name, port->driver,
             net_link_up(net) ? "up" : "down", port->sums ? "the port" : "software",
             port->segments ? "the port" : "software");
}

void net_get_statistics(const struct net *net, struct net_statistics *out)
{
    *out = (struct net_statistics){
        .received = counter_read(&net->receive.received),
        .transmitted = counter_read(&net->transmitted),
        .received_bytes = counter_read(&net->receive.received_bytes),
        .transmitted_bytes = counter_read(&net->transmitted_bytes),
        .segmented = counter_read(&net->segmented),
        .dropped_receive_full = counter_read(&net->receive.dropped_full),
        .dropped_oversize = counter_read(&net->receive.dropped_oversize),
        .dropped_port_missed = counter_read(&net->port_missed),
        .dropped_hold_full = counter_read(&net->hold.refused_full),
        .dropped_hold_oversize = counter_read(&net->hold.refused_size),
        .dropped_malformed = counter_read(&net->dropped_malformed),
        .dropped_transmit = counter_read(&net->dropped_transmit),
        .dropped_port_transmit = counter_read(&net->port_lost),
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
