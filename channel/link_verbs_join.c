/*
 * How the two ends of the verbs link come together: device, connection (rdma_cm), the messages of handshake.h over it,
 * and only then the regions that the peer may write.
 */
#include "channel/link_verbs.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/verbs_events.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define VERBS_MESSAGE_PAUSE_NS   (100 * NS_PER_US)
#define VERBS_RETRY_PAUSE_NS     (100 * NS_PER_MS)

/* ---- what is there ---- */

#define HOW_TO_GET_RDMA                                                                                                \
    "'modprobe rdma_rxe; rdma link add rxe0 type rxe netdev IFACE' gives any Ethernet interface soft-RoCE, or use "    \
    "shm: between processes of one machine"

/* -ENODEV with a sentence unless there is an RDMA device. `names` is for messages. */
int verbs_devices(char *names, size_t names_bytes)
{
    int count = 0;
    struct ibv_device **devices = ibv_get_device_list(&count);

    if (devices == NULL) {
        report_error("verbs: this kernel has no RDMA: the InfiniBand modules are not loaded (%s); " HOW_TO_GET_RDMA,
                     strerror(errno));
        return -ENODEV;
    }
    names[0] = '\0';
    for (int i = 0; i < count; i++) {
        size_t used = strlen(names);

        snprintf(names + used, names_bytes - used, "%s%s", i > 0 ? " " : "", ibv_get_device_name(devices[i]));
    }
    ibv_free_device_list(devices);
    if (count == 0) {
        report_error("verbs: the RDMA modules are loaded, but there is no RDMA device; " HOW_TO_GET_RDMA);
        return -ENODEV;
    }
    return 0;
}

static int report_not_rdma(const struct verbs_link *link)
{
    report_error("%s: the address is not on, or not reached through, an RDMA device (devices here: %s; 'rdma link' "
                 "shows their interfaces); " HOW_TO_GET_RDMA " (IFACE: the one that has the address)", link->name,
                 link->device_names);
    return -ENODEV;
}

/* ---- events ---- */

int verbs_events_open(struct verbs_link *link)
{
    int result = verbs_events_create(&link->events);

    if (link->events == NULL) {
        report_error("verbs: there is an RDMA device, but no connection manager (/dev/infiniband/rdma_cm: %s); "
                     "'modprobe rdma_ucm' loads it, and its file must be readable and writable for us",
                     strerror(-result));
        return result == -EACCES ? result : -ENODEV;
    }
    return result;
}

/* ---- one connection's resources ---- */

void verbs_connection_close(struct verbs_link *link)
{
    if (link->ring_mr != NULL)
        ibv_dereg_mr(link->ring_mr);
    if (link->in_mr != NULL)
        ibv_dereg_mr(link->in_mr);
    if (link->out_mr != NULL)
        ibv_dereg_mr(link->out_mr);
    if (link->messages_mr != NULL)
        ibv_dereg_mr(link->messages_mr);
    if (link->id != NULL && link->id->qp != NULL)
        rdma_destroy_qp(link->id);
    if (link->cq != NULL)
        ibv_destroy_cq(link->cq);
    if (link->id != NULL)
        rdma_destroy_id(link->id);
    link->ring_mr = link->in_mr = link->out_mr = link->messages_mr = NULL;
    link->cq = NULL;
    link->id = NULL;
}

static struct ibv_mr *region_open(struct verbs_link *link, void *memory, size_t bytes, int access)
{
    /* Without IBV_ACCESS_RELAXED_ORDERING: PCIe must keep the order of writes. */
    struct ibv_mr *region = ibv_reg_mr(link->id->pd, memory, bytes, access);

    if (region == NULL)
        report_error("%s: cannot register %zu bytes with %s: %s%s", link->name, bytes,
                     ibv_get_device_name(link->id->verbs->device), strerror(errno),
                     errno == ENOMEM ? " (this is the limit of locked memory: 'ulimit -l unlimited', or "
                                       "LimitMEMLOCK=infinity in the unit)" : "");
    return region;
}

/* ---- the messages of joining ---- */

/* Receives for all that the peer will say, so that nothing of it comes too early. */
static int messages_post(struct verbs_link *link)
{
    link->heard_count = link->taken_count = 0;
    link->left = false;
    for (unsigned i = 0; i < VERBS_HEARD; i++) {
        struct ibv_sge part = { .addr = (uintptr_t)(link->heard + i * HANDSHAKE_MAX_BYTES),
                                .length = HANDSHAKE_MAX_BYTES, .lkey = link->messages_mr->lkey };
        struct ibv_recv_wr receive = { .wr_id = VERBS_WR_HEARD(i), .sg_list = &part, .num_sge = 1 }, *bad;
        int result = ibv_post_recv(link->id->qp, &receive, &bad);

        if (result != 0) {
            report_error("%s: the device takes no receive: %s", link->name, strerror(result));
            return -result;
        }
    }
    return 0;
}

/* Busy, or not for us: the first word tells the other our version. */
static void refuse(struct rdma_cm_id *id)
{
    struct handshake_head head = handshake_head_of(HANDSHAKE_CONNECT, sizeof(head));

    rdma_reject(id, &head, sizeof(head));
    rdma_destroy_id(id);
}

/* Reaps; sleeps a little if there was nothing. 0: go on waiting. */
static int messages_wait(struct verbs_link *link)
{
    struct ibv_wc completion;
    int count = ibv_poll_cq(link->cq, 1, &completion), result;
    struct rdma_cm_event *event;

    if (count > 0 && completion.status != IBV_WC_SUCCESS)
        return -ECONNRESET;
    if (count > 0 && completion.wr_id == VERBS_WR_SAID)
        link->said_done = true;
    else if (count > 0 && link->heard_count < VERBS_HEARD)
        link->heard_bytes[link->heard_count++] = completion.byte_len;
    if (count != 0 || link->left)
        return count <= 0 ? -ECONNRESET : 0;
    result = join_deadline_check(link->deadline);
    if (result != 0)
        return result;
    if (clock_now_ns() >= link->give_up_ns)
        return -ECONNRESET;
    clock_sleep_ns(VERBS_MESSAGE_PAUSE_NS);
    if (rdma_get_cm_event(link->events, &event) == 0) { /* does not block */
        struct rdma_cm_id *id = event->id;
        enum rdma_cm_event_type kind = event->event;

        rdma_ack_cm_event(event);
        if (kind == RDMA_CM_EVENT_CONNECT_REQUEST)
            refuse(id);
        else if (id == link->id && kind == RDMA_CM_EVENT_DISCONNECTED)
            link->left = true; /* but what it said before may still come */
    }
    return 0;
}

static int message_send(void *context, const void *message, size_t bytes)
{
    struct verbs_link *link = context;
    struct ibv_sge part = { .addr = (uintptr_t)link->said, .length = (uint32_t)bytes, .lkey = link->messages_mr->lkey };
    struct ibv_send_wr send = { .wr_id = VERBS_WR_SAID, .sg_list = &part, .num_sge = 1, .opcode = IBV_WR_SEND,
                                .send_flags = IBV_SEND_SIGNALED }, *bad;
    int result = 0;

    memcpy(link->said, message, bytes);
    link->said_done = false;
    if (ibv_post_send(link->id->qp, &send, &bad) != 0)
        return -ECONNRESET;
    while (!link->said_done && result == 0)
        result = messages_wait(link);
    return result;
}

static int message_receive(void *context, void *message, size_t *bytes)
{
    struct verbs_link *link = context;
    int result = 0;

    while (link->taken_count == link->heard_count && result == 0)
        result = messages_wait(link);
    if (result != 0)
        return result;
    *bytes = link->heard_bytes[link->taken_count];
    memcpy(message, link->heard + link->taken_count * HANDSHAKE_MAX_BYTES, *bytes);
    link->taken_count++;
    return 0;
}

/* On link->id, which has a device by now: all but what the peer may write. */
static int connection_open(struct verbs_link *link)
{
    struct ibv_qp_init_attr queue = { .qp_type = IBV_QPT_RC, .sq_sig_all = 0,
                                      .cap = { .max_send_wr = VERBS_QUEUE_DEPTH, .max_recv_wr = VERBS_HEARD,
                                               .max_send_sge = 1, .max_recv_sge = 1,
                                               .max_inline_data = VERBS_INLINE_BYTES } };
    int result;

    link->cq = ibv_create_cq(link->id->verbs, VERBS_QUEUE_DEPTH + VERBS_HEARD, NULL, NULL, 0);
    if (link->cq == NULL) {
        result = -errno;
        report_error("%s: cannot create a completion queue: %s", link->name, strerror(-result));
        return result;
    }
    queue.send_cq = queue.recv_cq = link->cq;
    result = rdma_create_qp(link->id, NULL, &queue);
    if (result != 0 && errno == EINVAL) {
        queue.cap = (struct ibv_qp_cap){ .max_send_wr = VERBS_QUEUE_DEPTH, .max_recv_wr = VERBS_HEARD,
                                         .max_send_sge = 1, .max_recv_sge = 1 }; /* a device without inline */
        result = rdma_create_qp(link->id, NULL, &queue);
    }
    if (result != 0) {
        result = -errno;
        report_error("%s: cannot create a queue pair: %s%s", link->name, strerror(-result),
                     result == -ENOMEM ? " (this is the limit of locked memory: 'ulimit -l unlimited')" : "");
        return result;
    }
    link->inline_bytes = queue.cap.max_inline_data < VERBS_INLINE_BYTES ? queue.cap.max_inline_data :
                                                                          VERBS_INLINE_BYTES;
    result = verbs_ack_timeout_set(link->id);
    if (result != 0)
        report_info("%s: the ACK time-out cannot be set (%s); a dead host may take seconds to show", link->name,
                    strerror(-result));
    link->messages_mr = region_open(link, link->control_page, VERBS_CONTROL_PAGE_BYTES, IBV_ACCESS_LOCAL_WRITE);
    link->out_mr = region_open(link, link->out, sizeof(*link->out), 0);
    return link->messages_mr == NULL || link->out_mr == NULL ? -ENOMEM : messages_post(link);
}

/* The peer has proven itself: from now on it may write. */
static int connection_open_to_peer(struct verbs_link *link, struct handshake_place *place)
{
    const int writable = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    bool is_sender = link->channel.is_sender;

    memset(link->in, 0, sizeof(*link->in));
    link->ring_mr = region_open(link, link->ring, link->ring_bytes, is_sender ? 0 : writable);
    link->in_mr = region_open(link, link->in, sizeof(*link->in), writable);
    if (link->ring_mr == NULL || link->in_mr == NULL)
        return -ENOMEM;
    *place = (struct handshake_place){ .control_address = (uintptr_t)link->in, .control_rkey = link->in_mr->rkey };
    if (!is_sender) {
        place->ring_address = (uintptr_t)link->ring;
        place->ring_rkey = link->ring_mr->rkey;
    }
    return 0;
}

/* Both: joined. */
static void connection_take(struct verbs_link *link, const struct handshake *h, const struct handshake_place *theirs)
{
    link->peer_ring_address = theirs->ring_address;
    link->peer_ring_rkey = theirs->ring_rkey;
    link->peer_control_address = theirs->control_address;
    link->peer_control_rkey = theirs->control_rkey;
    link->channel.peer = h->theirs.hello;
    verbs_requests_init(link);
    ibv_dereg_mr(link->messages_mr); /* no receive is posted any more */
    link->messages_mr = NULL;
}

static struct handshake handshake_over(struct verbs_link *link, const char *peer)
{
    return (struct handshake){ .pipe = { .context = link, .send = message_send, .receive = message_receive },
                               .ours = link->ours, .secret = link->secret, .peer = peer };
}

/* ---- receiver ---- */

/* Is the first word of a connection, its private data, ours? It may arrive padded. */
static enum join_refusal first_word_read(const void *data, size_t bytes, struct handshake_head *head)
{
    memset(head, 0, sizeof(*head));
    if (data == NULL || bytes < sizeof(*head))
        return JOIN_NOT_FTVMM;
    memcpy(head, data, sizeof(*head));
    return head->magic != HANDSHAKE_MAGIC     ? JOIN_NOT_FTVMM :
           head->version != WIRE_VERSION      ? JOIN_VERSION :
                                                JOIN_ACCEPTED;
}

/* A sender has asked for a connection on link->id. 0: it stands; -EAGAIN: it did not come about. */
static int verbs_accept(struct verbs_link *link)
{
    struct rdma_conn_param parameters = { .retry_count = VERBS_RETRY_COUNT, .rnr_retry_count = 7 };
    struct handshake_head head = handshake_head_of(HANDSHAKE_CONNECT, sizeof(head));
    int result = connection_open(link);

    if (result != 0)
        return result;
    parameters.private_data = &head;
    parameters.private_data_len = sizeof(head);
    if (rdma_accept(link->id, &parameters) != 0) {
        report_warning("%s: cannot accept the sender: %s", link->name, strerror(errno));
        return -EAGAIN;
    }
    while ((result = join_deadline_check(link->deadline)) == 0 && clock_now_ns() < link->give_up_ns) {
        struct rdma_cm_event *event;
        struct rdma_cm_id *id;
        enum rdma_cm_event_type kind;

        if (verbs_event_wait(link->events, &event) != 0)
            continue;
        id = event->id;
        kind = event->event;
        rdma_ack_cm_event(event);
        if (kind == RDMA_CM_EVENT_CONNECT_REQUEST)
            refuse(id);
        else if (id == link->id && kind == RDMA_CM_EVENT_ESTABLISHED)
            return 0;
        else if (id == link->id) {
            report_warning("%s: a sender began to join and left (%s)", link->name, rdma_event_str(kind));
            return -EAGAIN;
        }
    }
    if (result == 0)
        report_warning("%s: a sender began to join and fell silent", link->name);
    return result == 0 ? -EAGAIN : result;
}

/* Speaks with the sender behind link->id. 0: joined. -EAGAIN: not this one, *last may say why. */
static int verbs_meet(struct verbs_link *link, const char *from, enum join_refusal *last)
{
    struct handshake h = handshake_over(link, from);
    struct handshake_place place, theirs;
    int result;

    link->give_up_ns = clock_now_ns() + HANDSHAKE_PATIENCE_NS;
    link->key = link_random_key();
    result = verbs_accept(link);
    if (result != 0)
        return result;
    result = handshake_receiver_meet(&h, &theirs);
    if (result == 0)
        result = connection_open_to_peer(link, &place);
    if (result == 0) {
        link_receive_init(&link->channel, link->ring, link->ring_bytes, link->key, h.theirs.ack);
        result = handshake_receiver_finish(&h, &place, link->key);
    }
    if (result == 0)
        connection_take(link, &h, &theirs);
    if (result == -EPROTO)
        *last = h.refusal;
    else if (result == -ECONNRESET)
        report_warning("%s: a sender began to join and left, or fell silent", from);
    return result == -EPROTO || result == -ECONNRESET ? -EAGAIN : result;
}

int verbs_join_receiver(struct verbs_link *link, struct sockaddr_storage *address)
{
    enum join_refusal last = JOIN_ACCEPTED;
    int result;

    if (rdma_create_id(link->events, &link->listener, NULL, RDMA_PS_TCP) != 0) {
        result = -errno;
        report_error("%s: rdma_create_id: %s", link->name, strerror(-result));
        return result;
    }
    if (rdma_bind_addr(link->listener, (struct sockaddr *)address) != 0) {
        result = -errno;
        if (result == -ENODEV || result == -EADDRNOTAVAIL)
            return report_not_rdma(link);
        report_error("%s: cannot bind: %s%s", link->name, strerror(-result),
                     result == -EADDRINUSE ? "; another receiver listens there" : "");
        return result;
    }
    if (link->listener->verbs == NULL) /* 127.0.0.1 and wildcards bind, and prove nothing */
        return report_not_rdma(link);
    if (rdma_listen(link->listener, 4) != 0) {
        result = -errno;
        report_error("%s: cannot listen: %s%s", link->name, strerror(-result),
                     result == -EADDRINUSE ? "; another receiver listens there" : "");
        return result;
    }
    while ((result = join_deadline_check(link->deadline)) == 0) {
        struct join_side theirs = { 0 };
        struct handshake_head head;
        struct rdma_cm_event *event;
        enum join_refusal refusal;
        struct rdma_cm_id *id;
        char from[96];

        if (verbs_event_wait(link->events, &event) != 0)
            continue;
        if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST) {
            rdma_ack_cm_event(event); /* of a connection that did not come about */
            continue;
        }
        id = event->id;
        verbs_peer_name(id, "verbs", from, sizeof(from));
        refusal = first_word_read(event->param.conn.private_data, event->param.conn.private_data_len, &head);
        rdma_ack_cm_event(event);
        if (refusal != JOIN_ACCEPTED) {
            theirs.version = head.version;
            join_report_refusal(last = refusal, from, link->ours, &theirs, true);
            refuse(id);
            continue;
        }
        link->id = id;
        result = verbs_meet(link, from, &last);
        if (result == 0) {
            snprintf(link->name, sizeof(link->name), "%s", from);
            rdma_destroy_id(link->listener);
            link->listener = NULL;
            return 0;
        }
        verbs_connection_close(link);
        if (result != -EAGAIN)
            return result;
    }
    if (result == -ETIMEDOUT)
        report_error("%s: no sender joined in time%s", link->name,
                     last != JOIN_ACCEPTED ? "; the last one was refused, see above" :
                                             "; start it with this address");
    return result;
}

/* ---- sender ---- */

/* Waits for an event of link->id. 0 with *event, which the caller acks; -ETIMEDOUT; -ECANCELED. */
static int event_await(struct verbs_link *link, struct rdma_cm_event **event)
{
    int result;

    while ((result = join_deadline_check(link->deadline)) == 0) {
        if (verbs_event_wait(link->events, event) != 0)
            continue;
        if ((*event)->id == link->id)
            return 0;
        rdma_ack_cm_event(*event);
    }
    return result;
}

/* Waits for the next event, which should be `hoped`. */
static int event_expect(struct verbs_link *link, enum rdma_cm_event_type hoped, const char **why)
{
    struct rdma_cm_event *event;
    int result = event_await(link, &event);

    if (result != 0)
        return result;
    if (event->event != hoped)
        result = verbs_event_failed(event, why);
    rdma_ack_cm_event(event);
    return result;
}

/* The answer to rdma_connect. */
static int connected_or_why(struct verbs_link *link, const char **why)
{
    struct join_side theirs = { 0 };
    struct handshake_head head;
    struct rdma_cm_event *event;
    enum join_refusal refusal;
    bool rejected;
    int result = event_await(link, &event);

    if (result != 0)
        return result;
    /* 28: rejected by the program there (IBTA 1.4, table 111), so there is a word to read. */
    rejected = event->event == RDMA_CM_EVENT_REJECTED && event->status == 28;
    if (rejected || event->event == RDMA_CM_EVENT_ESTABLISHED) {
        refusal = first_word_read(event->param.conn.private_data, event->param.conn.private_data_len, &head);
        theirs.version = head.version;
        if (refusal != JOIN_ACCEPTED) {
            join_report_refusal(refusal, link->name, link->ours, &theirs, false);
            result = -EPROTO;
        } else if (rejected) {
            *why = "its receiver is joining with another sender";
            result = -EAGAIN;
        }
    } else {
        result = verbs_event_failed(event, why);
    }
    rdma_ack_cm_event(event);
    return result;
}

/* One try. 0; -EAGAIN: not yet; else final, said in words. */
static int verbs_connect(struct verbs_link *link, struct sockaddr_storage *address, const char **why)
{
    struct rdma_conn_param parameters = { .retry_count = VERBS_RETRY_COUNT, .rnr_retry_count = 7 };
    struct handshake_head head = handshake_head_of(HANDSHAKE_CONNECT, sizeof(head));
    struct handshake h = handshake_over(link, link->name);
    struct handshake_place place, theirs;
    int result;

    if (rdma_create_id(link->events, &link->id, NULL, RDMA_PS_TCP) != 0) {
        result = -errno;
        report_error("%s: rdma_create_id: %s", link->name, strerror(-result));
        return result;
    }
    if (rdma_resolve_addr(link->id, NULL, (struct sockaddr *)address, VERBS_RESOLVE_TIMEOUT_MS) != 0) {
        result = -errno;
        *why = result == -EADDRNOTAVAIL ? "the address leads back to this host, but not to an RDMA device" :
                                          "there is no route to the host";
        return result == -ENODEV ? report_not_rdma(link) : -EAGAIN;
    }
    result = event_expect(link, RDMA_CM_EVENT_ADDR_RESOLVED, why);
    if (result == -ENODEV || (result == 0 && link->id->verbs == NULL))
        return report_not_rdma(link);
    if (result == 0)
        result = connection_open(link);
    if (result != 0)
        return result;
    if (rdma_resolve_route(link->id, VERBS_RESOLVE_TIMEOUT_MS) != 0) {
        *why = "there is no route to the host";
        return -EAGAIN;
    }
    result = event_expect(link, RDMA_CM_EVENT_ROUTE_RESOLVED, why);
    if (result != 0)
        return result;
    parameters.private_data = &head;
    parameters.private_data_len = sizeof(head);
    if (rdma_connect(link->id, &parameters) != 0) {
        result = -errno;
        report_error("%s: cannot connect: %s", link->name, strerror(-result));
        return result;
    }
    if (**why == '\0') /* else the last try had a better reason */
        *why = "its receiver does not answer";
    result = connected_or_why(link, why);
    if (result != 0)
        return result;
    link->give_up_ns = clock_now_ns() + HANDSHAKE_PATIENCE_NS;
    result = handshake_sender_meet(&h);
    if (result == 0)
        result = connection_open_to_peer(link, &place);
    if (result == 0)
        result = handshake_sender_finish(&h, &place, &theirs, &link->key);
    if (result == 0)
        connection_take(link, &h, &theirs);
    else
        rdma_disconnect(link->id);
    if (result == -ECONNRESET)
        *why = "its receiver left while joining";
    return result == -ECONNRESET ? -EAGAIN : result;
}

int verbs_join_sender(struct verbs_link *link, struct sockaddr_storage *address)
{
    const char *why = "";
    int result;

    for (;;) {
        result = verbs_connect(link, address, &why);
        if (result == 0)
            return 0;
        verbs_connection_close(link);
        if (result == -EAGAIN)
            result = join_deadline_check(link->deadline);
        if (result == -ETIMEDOUT)
            report_error("%s: could not join in time: %s", link->name, why);
        if (result != 0)
            return result;
        clock_sleep_ns(VERBS_RETRY_PAUSE_NS);
    }
}
