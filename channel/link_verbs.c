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

void verbs_events_look(struct verbs_link *link)
{
    struct rdma_cm_event *event;

    /* The descriptor does not block; a few rounds at most, so that a peer cannot keep us here. */
    for (int i = 0; i < 4 && rdma_get_cm_event(link->events, &event) == 0; i++) {
        struct rdma_cm_id *id = event->id;
        enum rdma_cm_event_type kind = event->event;

        rdma_ack_cm_event(event);
        if (kind == RDMA_CM_EVENT_CONNECT_REQUEST) {
            rdma_reject(id, NULL, 0); /* came in before the listener was closed */
            rdma_destroy_id(id);
        } else if (id == link->id && (kind == RDMA_CM_EVENT_DISCONNECTED || kind == RDMA_CM_EVENT_DEVICE_REMOVAL)) {
            verbs_down(link, kind == RDMA_CM_EVENT_DISCONNECTED ? "the peer has disconnected, or its process died" :
                                                                  "the RDMA device was removed");
        }
    }
}

static void verbs_heartbeat(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;

    verbs_events_look(link);
    verbs_look_at_peer(link);
    verbs_control_send(link);
    if (channel->is_sender)
        verbs_post(link); /* what found the turn taken meanwhile */
}

static int verbs_fence(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;
    struct ibv_qp_attr attributes = { .qp_state = IBV_QPS_ERR };
    bool stopped, revoked;

    if (link->fenced)
        return 0;
    /* The QP first: a write of several packets that is arriving holds the region, and deregistering waits for it
     * (rxe gives up waiting; real cards do not need to). */
    stopped = ibv_modify_qp(link->id->qp, &attributes, IBV_QP_STATE) == 0;
    if (!stopped)
        report_warning("%s: fence: the queue pair cannot be stopped: %s", link->name, strerror(errno));
    revoked = link->ring_mr == NULL || ibv_dereg_mr(link->ring_mr) == 0;
    if (revoked)
        link->ring_mr = NULL;
    else
        report_warning("%s: fence: the ring cannot be deregistered: %s", link->name, strerror(errno));
    if (!stopped && !revoked) {
        report_error("%s: the fence failed: the peer may still write into the ring; do not go live", link->name);
        return -EIO;
    }
    link->fenced = true;
    atomic_store_explicit(&channel->down, true, memory_order_release);
    rdma_disconnect(link->id); /* tells the late sender, if it can hear; nothing depends on it */
    return 0;
}

const struct link_operations verbs_operations = {
    .commit = verbs_commit,
    .next = verbs_next,
    .consume = verbs_consume,
    .fence = verbs_fence,
    .poll = verbs_poll,
    .heartbeat = verbs_heartbeat,
    .close = verbs_close,
};

int link_verbs_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender)
{
    struct join_deadline deadline = join_deadline_of(options);
    struct join_side ours = join_side_of(options);
    struct sockaddr_storage address;
    socklen_t address_bytes;
    char device_names[128];
    struct verbs_link *link;
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
    result = verbs_events_open(link);
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
    link->said = link->control_page + VERBS_SAID_OFFSET;
    link->heard = link->control_page + VERBS_HEARD_OFFSET;
    link->ours = &ours;
    link->secret = options->secret;
    link->deadline = &deadline;
    link->device_names = device_names;
    result = is_sender ? verbs_join_sender(link, &address) : verbs_join_receiver(link, &address);
    if (result != 0)
        goto fail;
    if (is_sender) {
        channel->ack = options->ack;
        send_ring_init(&channel->send, link->ring, link->ring_bytes, link->key, channel->credit);
    }
    *out = channel;
    return 0;

fail:
    verbs_close(channel);
    return result;
}

static void verbs_close(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;

    if (link->id != NULL && link->id->qp != NULL)
        rdma_disconnect(link->id);
    verbs_connection_close(link);
    if (link->listener != NULL)
        rdma_destroy_id(link->listener);
    if (link->events != NULL)
        rdma_destroy_event_channel(link->events);
    ring_memory_close(link->ring, link->ring_bytes);
    free(link->control_page);
    free(link);
}
