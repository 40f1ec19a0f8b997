/*
 * The verbs link, per event: posts writes, reaps completions, looks at the ring. Allocates nothing, takes no
 * lock, logs nothing (but the link's end), makes no system call of its own.
 *
 * Threads on the sender: the committing thread posts writes of records, the polling thread too, and control
 * blocks; only the polling thread reaps. The send queue is used under the turn (post_turn.h), so never by two
 * threads at once: we do not lean on the lock inside ibv_post_send (which a provider may have left out), and
 * the one never waits for the other.
 * Threads on the receiver: both send control blocks, and reap for them, under the turn.
 */
#include "channel/link_verbs.h"

#include "base/report.h"

#include <stdio.h>
#include <string.h>

static void verbs_post_failed(struct verbs_link *link, const char *what, int error)
{
    char why[160];

    snprintf(why, sizeof(why), "the device does not take %s: %s", what, strerror(error));
    verbs_down(link, why, false);
}

void verbs_down(struct verbs_link *link, const char *why, bool for_good)
{
    if (!link_break(&link->channel, for_good))
        return;
    report_warning("%s: the link is down: %s", link->name, why);
    if (!link->channel.is_sender)
        keeper_wake(&link->keeper); /* it disconnects, so that the sender knows, too */
}

static void verbs_failed(struct verbs_link *link, const struct ibv_wc *completion)
{
    char why[160];
    const char *meaning = completion->status == IBV_WC_RETRY_EXC_ERR ? " (the peer's host does not answer)" :
                          completion->status == IBV_WC_REM_ACCESS_ERR ?
                              " (the peer's ring is gone: we are fenced off, or it has ended; or this is no key to "
                              "it)" :
                                                                        "";

    if (atomic_load_explicit(&link->channel.down, memory_order_relaxed)) /* A9 in link.h */
        return; /* the rest of the queue, flushed */
    snprintf(why, sizeof(why), "an RDMA write ended with '%s'%s, vendor error 0x%x",
             ibv_wc_status_str(completion->status), meaning, completion->vendor_err);
    verbs_down(link, why, false);
}

/* ---- control blocks ---- */

bool verbs_control_read(const struct verbs_link *link, uint64_t counter, struct control_block *block)
{
    const _Atomic uint64_t *from = (const _Atomic uint64_t *)link->in;
    uint64_t words[sizeof(*block) / sizeof(uint64_t)];

    /* Relaxed: the NIC is no thread. Whether the words belong together only the checksum tells. */
    words[0] = atomic_load_explicit(&from[0], memory_order_relaxed);
    if (words[0] <= counter) /* the one seen, or an older one that came again */
        return false;
    for (size_t i = 1; i < sizeof(words) / sizeof(words[0]); i++)
        words[i] = atomic_load_explicit(&from[i], memory_order_relaxed);
    memcpy(block, words, sizeof(*block));
    return control_fits(block, link->key);
}

static void reap(struct verbs_link *link);

void verbs_requests_init(struct verbs_link *link)
{
    for (unsigned i = 0; i < 2; i++) {
        link->ring_parts[i].lkey = link->now.ring_mr->lkey;
        link->ring_writes[i] = (struct ibv_send_wr){ .sg_list = &link->ring_parts[i], .num_sge = 1,
                                                     .opcode = IBV_WR_RDMA_WRITE,
                                                     .wr.rdma.rkey = link->now.peer.ring_rkey };
    }
    link->control_part = (struct ibv_sge){ .addr = (uintptr_t)link->out, .length = sizeof(struct control_block),
                                           .lkey = link->now.out_mr->lkey };
    link->control_write = (struct ibv_send_wr){
        .wr_id = VERBS_WR_CONTROL, .sg_list = &link->control_part, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
        .send_flags = IBV_SEND_SIGNALED |
                      (sizeof(struct control_block) <= link->now.inline_bytes ? IBV_SEND_INLINE : 0),
        .wr.rdma = { .remote_addr = link->now.peer.control_address, .rkey = link->now.peer.control_rkey }
    };
}

/* With the turn. */
static void control_post(struct verbs_link *link)
{
    uint64_t counter = ++link->control_counter;
    struct control_block block = link->channel.is_sender ?
                                     control_of_sender(counter, link->key, link->placed_lsn, link->completed) :
                                     control_of_receiver(&link->channel, counter, link->key);
    struct ibv_send_wr *bad;
    int result;

    *link->out = block;
    link->control_in_flight = true;
    /* relaxed: only to decide when the next one is worth sending */
    atomic_store_explicit(&link->credited, block.bytes, memory_order_relaxed);
    result = ibv_post_send(link->now.id->qp, &link->control_write, &bad);
    if (result != 0)
        verbs_post_failed(link, "a control block", result);
}

void verbs_control_send(struct verbs_link *link)
{
    /* relaxed: whoever sees it late sends a few ms later, with the next heartbeat */
    bool due = true;

    if (atomic_load_explicit(&link->channel.down, memory_order_relaxed))
        return;
    if (post_turn_take(&link->turn)) {
        /* Once more: without the turn the connection may have gone. Relaxed: with the turn. */
        bool up = !atomic_load_explicit(&link->channel.down, memory_order_relaxed);

        if (up && !link->channel.is_sender)
            reap(link);
        if (up && !link->control_in_flight) {
            control_post(link);
            due = false;
        }
        post_turn_give(&link->turn);
    }
    atomic_store_explicit(&link->control_due, due, memory_order_relaxed);
}

void verbs_look_at_peer(struct verbs_link *link)
{
    struct channel *channel = &link->channel;
    struct control_block block;
    uint64_t lsn;

    if (!channel->is_sender) {
        lsn = atomic_load_explicit(&channel->credit->lsn, memory_order_relaxed); /* sign of life only */
        if (lsn != link->peer_lsn) {
            link->peer_lsn = lsn;
            atomic_store_explicit(&channel->peer_seen_ns, clock_now_ns(), memory_order_release);
        }
    }
    /* relaxed: our own thread's; the receiving thread looks whether it has risen */
    if (!verbs_control_read(link, atomic_load_explicit(&link->peer_counter, memory_order_relaxed), &block))
        return;
    atomic_store_explicit(&link->peer_counter, block.counter, memory_order_relaxed);
    atomic_store_explicit(&channel->peer_seen_ns, clock_now_ns(), memory_order_release);
    if (!channel->is_sender) {
        /* Kept, because the block that lies there at the sender's death may be torn. relaxed: a number, and whoever
         * sees it late looks again. */
        if (block.lsn > atomic_load_explicit(&link->told_lsn, memory_order_relaxed))
            atomic_store_explicit(&link->told_lsn, block.lsn, memory_order_relaxed);
        return;
    }
    /* What our NIC might still have to send again must stay, even when the receiver has read it. */
    if (!control_take(channel, &block, link->completed))
        verbs_down(link, "the receiver reports to have what was never sent", true);
}

/* ---- sender ---- */

/* post_function: with the turn. */
static uint64_t write_records(void *argument, uint64_t from, uint64_t to)
{
    struct verbs_link *link = argument;
    struct send_ring *ring = &link->channel.send;
    uint64_t at = from & (ring->ring_bytes - 1), first_bytes = ring->ring_bytes - at, bytes;
    struct ibv_send_wr *writes = link->ring_writes, *bad;
    struct ibv_sge *parts = link->ring_parts;
    unsigned count = 1;
    int result;

    to = send_ring_cut(ring, from, to, VERBS_WRITE_BYTES);
    bytes = to - from;
    parts[0].addr = (uintptr_t)(ring->base + at);
    parts[0].length = (uint32_t)bytes;
    writes[0].wr.rdma.remote_addr = link->now.peer.ring_address + at;
    writes[0].next = NULL;
    if (bytes > first_bytes) {
        parts[0].length = (uint32_t)first_bytes;
        parts[1].addr = (uintptr_t)ring->base;
        parts[1].length = (uint32_t)(bytes - first_bytes);
        writes[1].wr.rdma.remote_addr = link->now.peer.ring_address;
        writes[0].next = &writes[1];
        count = 2;
    }
    for (unsigned i = 0; i < count; i++) {
        writes[i].wr_id = to;
        writes[i].send_flags = parts[i].length <= link->now.inline_bytes ? IBV_SEND_INLINE : 0;
    }
    writes[count - 1].send_flags |= IBV_SEND_SIGNALED; /* completes in order, so it speaks for both */
    link_count(&link->channel.writes, count);
    result = ibv_post_send(link->now.id->qp, writes, &bad);
    if (result != 0) {
        verbs_post_failed(link, "a write", result);
        return from;
    }
    return to;
}

void verbs_post(struct verbs_link *link)
{
    if (!atomic_load_explicit(&link->channel.down, memory_order_relaxed)) /* relaxed: a hint */
        post_turn_run(&link->turn, &link->channel.send.committed, write_records, link);
}

uint64_t verbs_commit(struct channel *channel)
{
    send_ring_publish(&channel->send);
    verbs_post((struct verbs_link *)channel);
    return channel->send.next_lsn - 1;
}

/* Sender: polling thread. Receiver: with the turn. */
static void reap(struct verbs_link *link)
{
    struct channel *channel = &link->channel;
    struct ibv_wc completions[VERBS_COMPLETIONS];
    int count = ibv_poll_cq(link->now.cq, VERBS_COMPLETIONS, completions);

    if (count < 0) {
        verbs_down(link, "the completion queue cannot be read", false);
        return;
    }
    for (int i = 0; i < count; i++) {
        const struct ibv_wc *completion = &completions[i];

        link->reaped++;
        if (completion->wr_id == VERBS_WR_CONTROL)
            link->control_in_flight = false;
        else
            post_turn_complete(&link->turn);
        if (completion->status != IBV_WC_SUCCESS) {
            verbs_failed(link, completion);
            continue;
        }
        /* Behind a write that failed nothing counts as acked, whatever the device says of it. */
        if (completion->wr_id == VERBS_WR_CONTROL || atomic_load_explicit(&channel->down, memory_order_relaxed))
            continue;
        link->completed = completion->wr_id;
        /* The bytes are ours still: credit is never given beyond `completed`, and was not yet for these. */
        link->placed_lsn = send_ring_lsn_before(&channel->send, link->completed);
        if (channel->ack == CHANNEL_ACK_PLACED)
            /* release: pairs with channel_acked_lsn */
            atomic_store_explicit(&channel->acked_lsn, link->placed_lsn, memory_order_release);
    }
}

bool verbs_stalled(struct verbs_link *link)
{
    bool busy = link->control_in_flight ||
                atomic_load_explicit(&link->turn.in_flight, memory_order_relaxed) > 0; /* relaxed: a count */
    uint64_t now_ns = clock_now_ns();

    if (!busy || link->stall_since_ns == 0 || link->reaped != link->stall_reaped) {
        link->stall_since_ns = busy ? now_ns : 0;
        link->stall_reaped = link->reaped;
    }
    return busy && now_ns - link->stall_since_ns > VERBS_STALL_NS;
}

int verbs_poll(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;

    if (channel->is_sender && atomic_load_explicit(&channel->down, memory_order_relaxed)) /* A9, as below */
        verbs_resume(link);
    if (channel->is_sender && !atomic_load_explicit(&channel->down, memory_order_relaxed)) {
        reap(link);
        verbs_look_at_peer(link);
        if (atomic_load_explicit(&link->control_due, memory_order_relaxed))
            verbs_control_send(link);
        /* After every completion, and after the turn was taken for a control block. */
        verbs_post(link);
    } else if (!channel->is_sender && channel->ack == CHANNEL_ACK_SEEN) {
        if (link_look_ahead(channel, UINT64_MAX) == FRAME_COMPLETE ||
            atomic_load_explicit(&link->control_due, memory_order_relaxed)) /* relaxed: see verbs_control_send */
            verbs_control_send(link);
    }
    return atomic_load_explicit(&channel->down, memory_order_relaxed) ? -EPIPE : 0;
}

/* ---- receiver ---- */

/* No whole record is there. Is one missing that should be? */
static int judge(struct verbs_link *link, enum frame_state state)
{
    struct receive_ring *ring = &link->channel.receive;
    struct control_block block;
    uint64_t counter;
    bool placed;

    /* The sender knows it to be placed, and told us after its write: it must be here. The first looks are one load
     * each. */
    placed = atomic_load_explicit(&link->told_lsn, memory_order_relaxed) >= ring->next_lsn ||
            /* or our polling thread has seen it, and perhaps said so */
            atomic_load_explicit(&link->channel.ahead_credit.lsn, memory_order_acquire) >= ring->next_lsn ||
            (atomic_load_explicit((const _Atomic uint64_t *)&link->in->lsn, memory_order_relaxed) >= ring->next_lsn &&
             verbs_control_read(link, 0, &block) && block.lsn >= ring->next_lsn);
    if (state != FRAME_DAMAGED && !placed) {
        link->doubtful_since_ns = 0;
        /* After the fence nothing more comes; what is torn was never acked. */
        return link->fenced ? link->final = -ENODATA : -EAGAIN;
    }
    /* The first look proves little: frame and block may both have landed between looking at the one and the other. */
    counter = atomic_load_explicit(&link->peer_counter, memory_order_relaxed); /* see verbs_look_at_peer */
    if (link->doubtful_since_ns == 0) {
        link->doubtful_since_ns = clock_now_ns();
        link->doubtful_counter = counter;
    } else {
        link_count(&link->channel.damaged, 1);
    }
    /* A write that a broken connection has cut off looks like damage, until it comes again when that is resumed. If it
     * was not cut off the sender says something after it; then the time counts, and after the fence. */
    if (!placed && !link->fenced && counter == link->doubtful_counter)
        link->doubtful_since_ns = clock_now_ns();
    if (clock_now_ns() - link->doubtful_since_ns < VERBS_DAMAGE_NS)
        return -EAGAIN;
    report_error("%s: record %llu at ring index %llu is damaged: %s; it cannot be replayed, and nothing behind it",
                 link->name, (unsigned long long)ring->next_lsn, (unsigned long long)ring->index,
                 state == FRAME_DAMAGED ? "begin and end have arrived, but the checksum does not fit" :
                 state == FRAME_TORN    ? "it was placed, but its end is missing" :
                                          "it was placed, but it is not there");
    /* Nothing is resumed behind damage. release: as in link_break */
    atomic_store_explicit(&link->channel.closed, true, memory_order_release);
    return link->final = -EBADMSG;
}

int verbs_next(struct channel *channel, struct channel_record *record)
{
    struct verbs_link *link = (struct verbs_link *)channel;
    enum frame_state state;

    if (link->final != 0)
        return link->final;
    state = receive_ring_look(&channel->receive, UINT64_MAX, record);
    if (state == FRAME_COMPLETE) {
        link->doubtful_since_ns = 0;
        return 0;
    }
    if (state == FRAME_TORN)
        link_count(&channel->torn, 1);
    if (atomic_load_explicit(&link->control_due, memory_order_relaxed)) /* relaxed: see verbs_control_send */
        verbs_control_send(link);
    return judge(link, state);
}

void verbs_consume(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;

    receive_ring_consume(&channel->receive);
    /* relaxed: only to decide whether a credit is worth sending now */
    if (channel->receive.index - atomic_load_explicit(&link->credited, memory_order_relaxed) >=
        channel->receive.ring_bytes / 4)
        verbs_control_send(link);
}
