/*
 * verbs: one-sided RDMA WRITE into the receiver's ring; rdma_cm, reliable connection (IBTA 1.4, 9.7). The
 * product's link. This file sets it up and takes it down; link_verbs_path.c is what runs per event.
 *
 * Placed: the write has completed, so the receiver's NIC has answered for all its bytes. On devices that answer
 *     before the bytes are visible in memory (a PCIe matter), they become so without anybody's doing; the
 *     receiver's drain after a fence allows them 200 ms. It does not mean that the receiver's software has
 *     looked: that is channel_consumed_lsn.
 * Seen: the receiver's polling thread has found the record whole, and its control block has said so.
 * Ordered: writes of one connection, by RC. Within one write nothing is promised, and nothing relied on: the
 *     sequence word and the checksum of each frame decide.
 * Torn: a frame whose end is missing is not there yet; after the fence it never was, and was never acked.
 * Damaged: begin and end are there, the checksum does not fit, and stays so for 200 ms; or the sender says it
 *     holds an ack for a record that is not there: -EBADMSG for ever. Never guessed around.
 * The peer's death: a killed process shows as DISCONNECTED in about 10 ms, a dead host as IBV_WC_RETRY_EXC_ERR
 *     in about half a second if something is being written, a stopped or silent one in its heartbeats only.
 *     All but the heartbeats are hints; none proves death.
 * Full: reserve says -EAGAIN until credits come: with each heartbeat, and with each quarter of the ring.
 * The fence: the QP goes to error and the ring's memory region is deregistered; both happen in the kernel
 *     before channel_fence returns, and either alone shuts the late sender out.
 * Resumed: when a write fails, or takes more than a second, or the peer has disconnected, each while both processes
 *     live. The receiver stops the old queue pair and frees it, so that nothing can land; then it says up to where
 *     whole records lie in its ring, and only then the new one may write. What had landed behind that, of a write cut
 *     off, is written again with the same bytes. PLACED, records that are there by that answer are acked by it. Not
 *     resumed: after the fence, or damage, or when a peer did not keep to the protocol.
 * Joining: the messages of handshake.h go as SENDs over the connection that is to carry the writes. Nothing is remotely
 *     writable before the peer has proven itself; then the ring (receiver) and one control block (each end) are.
 */
#include "channel/link_verbs.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/address.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void verbs_close(struct channel *channel);

/* With the turn: nothing that the peer sends to the present connection lands from now on. False: that failed. */
static bool shut_out(struct verbs_link *link)
{
    struct ibv_qp_attr attributes = { .qp_state = IBV_QPS_ERR };
    bool stopped, revoked;

    if (link->now.id == NULL)
        return true;
    /* The QP first: a write of several packets that is arriving holds the region, and deregistering waits for it
     * (rxe gives up waiting; real cards do not need to). */
    stopped = ibv_modify_qp(link->now.id->qp, &attributes, IBV_QP_STATE) == 0;
    if (!stopped)
        report_warning("%s: the queue pair cannot be stopped: %s", link->name, strerror(errno));
    revoked = link->now.ring_mr == NULL || ibv_dereg_mr(link->now.ring_mr) == 0;
    if (revoked)
        link->now.ring_mr = NULL;
    else
        report_warning("%s: the ring cannot be deregistered: %s", link->name, strerror(errno));
    return stopped || revoked;
}

/* ---- one connection in another's place ---- */

enum join_refusal verbs_release(struct verbs_link *link, struct verbs_connection *old)
{
    enum join_refusal refusal = JOIN_FENCED;

    *old = (struct verbs_connection){ 0 };
    post_turn_await(&link->turn);
    if (!link->fenced && !atomic_load_explicit(&link->channel.closed, memory_order_acquire)) { /* A9 in link.h */
        verbs_down(link, "its sender asks to resume it", false);
        if (shut_out(link)) {
            *old = link->now;
            link->now = (struct verbs_connection){ 0 };
            link->control_in_flight = false;
            refusal = JOIN_ACCEPTED;
        }
    }
    post_turn_give(&link->turn);
    return refusal;
}

bool verbs_attach(struct verbs_link *link, const struct verbs_connection *made)
{
    bool attached;

    post_turn_await(&link->turn);
    attached = !link->fenced;
    if (attached) {
        link->now = *made;
        verbs_requests_init(link);
    }
    post_turn_give(&link->turn);
    return attached;
}

bool verbs_up(struct verbs_link *link)
{
    bool up;

    post_turn_await(&link->turn);
    up = !link->fenced;
    if (up)
        link_mend(&link->channel);
    post_turn_give(&link->turn);
    atomic_store_explicit(&link->control_due, up, memory_order_relaxed); /* a sign of life; see verbs_control_send */
    return up;
}

void verbs_resume(struct verbs_link *link)
{
    struct channel *channel = &link->channel;
    const struct handshake_log *log = &link->join.log;
    /* relaxed: a hint */
    bool ready = keeper_ask(&link->keeper, atomic_load_explicit(&channel->closed, memory_order_relaxed));
    struct verbs_connection old = link->now;

    if (!ready || !post_turn_take(&link->turn)) /* taken: by the committing thread, for a moment */
        return;
    link->now = link->join.made;
    link->join.made = old;
    if (link_resume_fits(channel, log->index, log->lsn)) {
        verbs_requests_init(link);
        link->control_in_flight = false;
        link->stall_since_ns = 0;
        link->completed = log->index;
        link->placed_lsn = log->lsn;
        if (channel->ack == CHANNEL_ACK_PLACED && log->lsn > channel_acked_lsn(channel))
            /* release: pairs with channel_acked_lsn */
            atomic_store_explicit(&channel->acked_lsn, log->lsn, memory_order_release);
        /* relaxed: with the turn; published by G. seq_cst: as all that post_turn.h does with it */
        atomic_store_explicit(&link->turn.posted, log->index, memory_order_relaxed);
        atomic_store_explicit(&link->turn.in_flight, 0, memory_order_seq_cst);
        link_mend(channel);
    } else {
        verbs_down(link, "it is not resumed", true);
        report_error("%s: the receiver reports to hold what was never sent, or not to hold what it has acknowledged",
                     link->name);
    }
    post_turn_give(&link->turn);
    keeper_taken(&link->keeper);
    atomic_store_explicit(&link->control_due, true, memory_order_relaxed); /* a sign of life; see verbs_control_send */
}

/* ---- operations ---- */

static void verbs_heartbeat(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;

    if (channel->is_sender && !atomic_load_explicit(&channel->down, memory_order_relaxed) && verbs_stalled(link))
        verbs_down(link, "nothing that was written is answered (the peer's host does not answer)", false);
    verbs_look_at_peer(link);
    verbs_control_send(link);
    if (channel->is_sender)
        verbs_post(link); /* what found the turn taken meanwhile */
}

static int verbs_fence(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;
    bool shut;

    if (link->fenced)
        return 0;
    post_turn_await(&link->turn);
    shut = shut_out(link);
    if (shut) {
        link->fenced = true;
        link_break(channel, true);
        if (link->now.id != NULL)
            rdma_disconnect(link->now.id); /* tells the late sender, if it can hear; nothing depends on it */
    }
    post_turn_give(&link->turn);
    if (!shut)
        report_error("%s: the fence failed: the peer may still write into the ring; do not go live", link->name);
    return shut ? 0 : -EIO;
}

const struct link_operations verbs_operations = {
    .commit = verbs_commit,
    .posts = true,
    .next = verbs_next,
    .consume = verbs_consume,
    .fence = verbs_fence,
    .poll = verbs_poll,
    .heartbeat = verbs_heartbeat,
    .close = verbs_close,
};

int link_verbs_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender)
{
    struct join_side ours = join_side_of(options);
    struct sockaddr_storage address;
    socklen_t address_bytes;
    char device_names[128];
    struct verbs_link *link;
    struct verbs_join *join;
    struct channel *channel;
    int result;

    result = address_resolve("verbs", rest, !is_sender, &address, &address_bytes);
    if (result == 0)
        result = verbs_devices(device_names, sizeof(device_names));
    if (result != 0)
        return result;
    link = link_allocate(sizeof(*link));
    if (link == NULL)
        return -ENOMEM;
    channel = &link->channel;
    channel->operations = &verbs_operations;
    channel->is_sender = is_sender;
    channel->credit = &channel->own_credit;
    snprintf(link->name, sizeof(link->name), "verbs:%s", rest);
    link->ring_bytes = options->ring_bytes;
    link->turn.in_flight_limit = VERBS_WRITES_IN_FLIGHT;
    result = verbs_events_open(&link->join);
    if (result != 0)
        goto fail;
    result = -ENOMEM;
    link->ring = ring_memory_open(link->ring_bytes, is_sender ? "send ring" : "receive ring");
    link->control_page = aligned_alloc(VERBS_CONTROL_PAGE_BYTES, VERBS_CONTROL_PAGE_BYTES);
    if (link->ring == NULL || link->control_page == NULL)
        goto fail;
    memset(link->control_page, 0, VERBS_CONTROL_PAGE_BYTES);
    link->in = (struct control_block *)link->control_page;
    link->out = (struct control_block *)(link->control_page + VERBS_OUT_OFFSET);
    join = &link->join;
    join->said = link->control_page + VERBS_SAID_OFFSET;
    join->heard = link->control_page + VERBS_HEARD_OFFSET;
    join->address = address;
    join->ours = &ours;
    join->secret = options->secret;
    join->deadline = join_deadline_of(options);
    join->patience_ns = HANDSHAKE_PATIENCE_NS;
    memcpy(join->device_names, device_names, sizeof(join->device_names));
    result = is_sender ? verbs_join_sender(link) : verbs_join_receiver(link);
    if (result != 0)
        goto fail;
    if (is_sender) {
        channel->ack = options->ack;
        send_ring_init(&channel->send, link->ring, link->ring_bytes, link->key, channel->credit);
    }
    ours.ack = (uint8_t)channel->ack;
    ours.hello.generation = channel->peer.generation;
    join->session = link->key;
    join->patience_ns = VERBS_AGAIN_NS;
    join->ours = &link->keeper.ours;
    join->secret = NULL; /* the caller's */
    result = keeper_start(&link->keeper, &ours, options->secret, verbs_keep, link, link->name);
    if (result != 0)
        goto fail;
    *out = channel;
    return 0;

fail:
    verbs_close(channel);
    return result;
}

static void verbs_close(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;

    keeper_stop(&link->keeper);
    if (link->now.id != NULL && link->now.id->qp != NULL)
        rdma_disconnect(link->now.id);
    verbs_connection_close(&link->now);
    verbs_connection_close(&link->join.made);
    if (link->join.listener != NULL)
        rdma_destroy_id(link->join.listener);
    if (link->join.events != NULL)
        rdma_destroy_event_channel(link->join.events);
    ring_memory_close(link->ring, link->ring_bytes);
    free(link->control_page);
    free(link);
}
