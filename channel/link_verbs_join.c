/*
 * How the two ends of the verbs link come together, at first and again: device, connection (rdma_cm), the messages of
 * handshake.h over it, and only then the regions that the peer may write. Once joined, all here is the keeper's
 * (keeper.h): it alone hears what rdma_cm has to say.
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
#define VERBS_REFUSED_PAUSE_NS   (20 * NS_PER_MS)

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
                 link->join.device_names);
    return -ENODEV;
}

/* ---- events ---- */

int verbs_events_open(struct verbs_join *join)
{
    int result = verbs_events_create(&join->events);

    if (join->events == NULL) {
        report_error("verbs: there is an RDMA device, but no connection manager (/dev/infiniband/rdma_cm: %s); "
                     "'modprobe rdma_ucm' loads it, and its file must be readable and writable for us",
                     strerror(-result));
        return result == -EACCES ? result : -ENODEV;
    }
    return result;
}

/* ---- one connection's resources ---- */

void verbs_connection_close(struct verbs_connection *connection)
{
    if (connection->ring_mr != NULL)
        ibv_dereg_mr(connection->ring_mr);
    if (connection->in_mr != NULL)
        ibv_dereg_mr(connection->in_mr);
    if (connection->out_mr != NULL)
        ibv_dereg_mr(connection->out_mr);
    if (connection->id != NULL && connection->id->qp != NULL)
        rdma_destroy_qp(connection->id);
    if (connection->cq != NULL)
        ibv_destroy_cq(connection->cq);
    if (connection->id != NULL)
        rdma_destroy_id(connection->id);
    *connection = (struct verbs_connection){ 0 };
}

/* No message is to come any more, nor to go. */
static void messages_close(struct verbs_join *join)
{
    if (join->messages_mr != NULL)
        ibv_dereg_mr(join->messages_mr);
    join->messages_mr = NULL;
}

static struct ibv_mr *region_open(struct verbs_link *link, void *memory, size_t bytes, int access)
{
    struct verbs_join *join = &link->join;
    /* Without IBV_ACCESS_RELAXED_ORDERING: PCIe must keep the order of writes. */
    struct ibv_mr *region = ibv_reg_mr(join->made.id->pd, memory, bytes, access);

    if (region == NULL)
        report_error("%s: cannot register %zu bytes with %s: %s%s", link->name, bytes,
                     ibv_get_device_name(join->made.id->verbs->device), strerror(errno),
                     errno == ENOMEM ? " (this is the limit of locked memory: 'ulimit -l unlimited', or "
                                       "LimitMEMLOCK=infinity in the unit)" : "");
    return region;
}

/* ---- the messages of joining ---- */

/* Receives for all that the peer will say, so that nothing of it comes too early. */
static int messages_post(struct verbs_link *link)
{
    struct verbs_join *join = &link->join;
    join->heard_count = join->taken_count = 0;
    join->left = false;
    for (unsigned i = 0; i < VERBS_HEARD; i++) {
        struct ibv_sge part = { .addr = (uintptr_t)(join->heard + i * HANDSHAKE_MAX_BYTES),
                                .length = HANDSHAKE_MAX_BYTES, .lkey = join->messages_mr->lkey };
        struct ibv_recv_wr receive = { .wr_id = VERBS_WR_HEARD(i), .sg_list = &part, .num_sge = 1 }, *bad;
        int result = ibv_post_recv(join->made.id->qp, &receive, &bad);

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

/* What rdma_cm says meanwhile, or with nobody joining, of any but the one that joins; acked. */
static void event_of_another(struct verbs_link *link, struct rdma_cm_id *id, enum rdma_cm_event_type kind)
{
    struct verbs_join *join = &link->join;
    if (kind == RDMA_CM_EVENT_CONNECT_REQUEST)
        refuse(id);
    else if (id == join->current && kind == RDMA_CM_EVENT_DISCONNECTED)
        verbs_down(link, "the peer has disconnected, or its process died", false);
    else if (id == join->current && kind == RDMA_CM_EVENT_DEVICE_REMOVAL)
        verbs_down(link, "the RDMA device was removed", false);
}

/* Reaps; sleeps a little if there was nothing. 0: go on waiting. */
static int messages_wait(struct verbs_link *link)
{
    struct verbs_join *join = &link->join;
    struct ibv_wc completion;
    int count = ibv_poll_cq(join->made.cq, 1, &completion), result;
    struct rdma_cm_event *event;

    if (count > 0 && completion.status != IBV_WC_SUCCESS)
        return -ECONNRESET;
    if (count > 0 && completion.wr_id == VERBS_WR_SAID)
        join->said_done = true;
    else if (count > 0 && join->heard_count < VERBS_HEARD)
        join->heard_bytes[join->heard_count++] = completion.byte_len;
    if (count != 0 || join->left)
        return count <= 0 ? -ECONNRESET : 0;
    result = join_deadline_check(&join->deadline);
    if (result != 0)
        return result;
    if (clock_now_ns() >= join->give_up_ns)
        return -ECONNRESET;
    clock_sleep_ns(VERBS_MESSAGE_PAUSE_NS);
    if (rdma_get_cm_event(join->events, &event) == 0) { /* does not block */
        struct rdma_cm_id *id = event->id;
        enum rdma_cm_event_type kind = event->event;

        rdma_ack_cm_event(event);
        if (id == join->made.id && kind == RDMA_CM_EVENT_DISCONNECTED)
            join->left = true; /* but what it said before may still come */
        else if (id != join->made.id)
            event_of_another(link, id, kind);
    }
    return 0;
}

static int message_send(void *context, const void *message, size_t bytes)
{
    struct verbs_link *link = context;
    struct verbs_join *join = &link->join;
    struct ibv_sge part = { .addr = (uintptr_t)join->said, .length = (uint32_t)bytes, .lkey = join->messages_mr->lkey };
    struct ibv_send_wr send = { .wr_id = VERBS_WR_SAID, .sg_list = &part, .num_sge = 1, .opcode = IBV_WR_SEND,
                                .send_flags = IBV_SEND_SIGNALED }, *bad;
    int result = 0;

    memcpy(join->said, message, bytes);
    join->said_done = false;
    if (ibv_post_send(join->made.id->qp, &send, &bad) != 0)
        return -ECONNRESET;
    while (!join->said_done && result == 0)
        result = messages_wait(link);
    return result;
}

static int message_receive(void *context, void *message, size_t *bytes)
{
    struct verbs_link *link = context;
    struct verbs_join *join = &link->join;
    int result = 0;

    while (join->taken_count == join->heard_count && result == 0)
        result = messages_wait(link);
    if (result != 0)
        return result;
    *bytes = join->heard_bytes[join->taken_count];
    memcpy(message, join->heard + join->taken_count * HANDSHAKE_MAX_BYTES, *bytes);
    join->taken_count++;
    return 0;
}

/* On link->join.made.id, which has a device by now: all but what the peer may write. */
static int connection_open(struct verbs_link *link)
{
    struct verbs_join *join = &link->join;
    struct ibv_qp_init_attr queue = { .qp_type = IBV_QPT_RC, .sq_sig_all = 0,
                                      .cap = { .max_send_wr = VERBS_QUEUE_DEPTH, .max_recv_wr = VERBS_HEARD,
                                               .max_send_sge = 1, .max_recv_sge = 1,
                                               .max_inline_data = VERBS_INLINE_BYTES } };
    int result;

    join->made.cq = ibv_create_cq(join->made.id->verbs, VERBS_QUEUE_DEPTH + VERBS_HEARD, NULL, NULL, 0);
    if (join->made.cq == NULL) {
        result = -errno;
        report_error("%s: cannot create a completion queue: %s", link->name, strerror(-result));
        return result;
    }
    queue.send_cq = queue.recv_cq = join->made.cq;
    result = rdma_create_qp(join->made.id, NULL, &queue);
    if (result != 0 && errno == EINVAL) {
        queue.cap = (struct ibv_qp_cap){ .max_send_wr = VERBS_QUEUE_DEPTH, .max_recv_wr = VERBS_HEARD,
                                         .max_send_sge = 1, .max_recv_sge = 1 }; /* a device without inline */
        result = rdma_create_qp(join->made.id, NULL, &queue);
    }
    if (result != 0) {
        result = -errno;
        report_error("%s: cannot create a queue pair: %s%s", link->name, strerror(-result),
                     result == -ENOMEM ? " (this is the limit of locked memory: 'ulimit -l unlimited')" : "");
        return result;
    }
    join->made.inline_bytes = queue.cap.max_inline_data < VERBS_INLINE_BYTES ? queue.cap.max_inline_data :
                                                                          VERBS_INLINE_BYTES;
    result = verbs_ack_timeout_set(join->made.id);
    if (result != 0)
        report_info("%s: the ACK time-out cannot be set (%s); a dead host may take seconds to show", link->name,
                    strerror(-result));
    join->messages_mr = region_open(link, link->control_page, VERBS_CONTROL_PAGE_BYTES, IBV_ACCESS_LOCAL_WRITE);
    join->made.out_mr = region_open(link, link->out, sizeof(*link->out), 0);
    return join->messages_mr == NULL || join->made.out_mr == NULL ? -ENOMEM : messages_post(link);
}

/* The peer has proven itself: from now on it may write. */
static int connection_open_to_peer(struct verbs_link *link, struct handshake_place *place)
{
    struct verbs_join *join = &link->join;
    const int writable = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    bool is_sender = link->channel.is_sender;

    if (join->session == 0) /* else the last block is there: the counters go on */
        memset(link->in, 0, sizeof(*link->in));
    join->made.ring_mr = region_open(link, link->ring, link->ring_bytes, is_sender ? 0 : writable);
    join->made.in_mr = region_open(link, link->in, sizeof(*link->in), writable);
    if (join->made.ring_mr == NULL || join->made.in_mr == NULL)
        return -ENOMEM;
    *place = (struct handshake_place){ .control_address = (uintptr_t)link->in, .control_rkey = join->made.in_mr->rkey };
    if (!is_sender) {
        place->ring_address = (uintptr_t)link->ring;
        place->ring_rkey = join->made.ring_mr->rkey;
    }
    return 0;
}

/* Both: they have first joined. */
static void connection_take(struct verbs_link *link, const struct handshake *h)
{
    struct verbs_join *join = &link->join;
    link->key = join->log.key;
    link->channel.peer = h->theirs.hello;
    link->now = join->made;
    join->current = link->now.id;
    join->made = (struct verbs_connection){ 0 };
    verbs_requests_init(link);
    messages_close(&link->join); /* no receive is posted any more */
}

/* What was in the making came to nothing. */
static void connection_give_up(struct verbs_link *link)
{
    messages_close(&link->join);
    verbs_connection_close(&link->join.made);
}

static struct handshake handshake_over(struct verbs_link *link, const char *peer)
{
    struct verbs_join *join = &link->join;
    return (struct handshake){ .pipe = { .context = link, .send = message_send, .receive = message_receive },
                               .ours = join->ours, .secret = join->secret, .peer = peer, .session = join->session };
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

/* A sender has asked for a connection on link->join.made.id. 0: it stands; -EAGAIN: it did not come about. */
static int verbs_accept(struct verbs_link *link)
{
    struct verbs_join *join = &link->join;
    struct rdma_conn_param parameters = { .retry_count = VERBS_RETRY_COUNT, .rnr_retry_count = 7 };
    struct handshake_head head = handshake_head_of(HANDSHAKE_CONNECT, sizeof(head));
    int result = connection_open(link);

    if (result != 0)
        return result;
    parameters.private_data = &head;
    parameters.private_data_len = sizeof(head);
    if (rdma_accept(join->made.id, &parameters) != 0) {
        report_warning("%s: cannot accept the sender: %s", link->name, strerror(errno));
        return -EAGAIN;
    }
    while ((result = join_deadline_check(&join->deadline)) == 0 && clock_now_ns() < join->give_up_ns) {
        struct rdma_cm_event *event;
        struct rdma_cm_id *id;
        enum rdma_cm_event_type kind;

        if (verbs_event_wait(join->events, &event) != 0)
            continue;
        id = event->id;
        kind = event->event;
        rdma_ack_cm_event(event);
        if (id == join->made.id && kind == RDMA_CM_EVENT_ESTABLISHED)
            return 0;
        if (id != join->made.id) {
            event_of_another(link, id, kind);
        } else {
            report_warning("%s: a sender began to join and left (%s)", link->name, rdma_event_str(kind));
            return -EAGAIN;
        }
    }
    if (result == 0)
        report_warning("%s: a sender began to join and fell silent", link->name);
    return result == 0 ? -EAGAIN : result;
}

/* The sender has proven itself. 0: nothing can land that it sent before, join.log tells what has. Else refused. */
static int old_connection_end(struct verbs_link *link, struct handshake *h)
{
    struct verbs_join *join = &link->join;
    struct handshake_log *log = &join->log;
    struct verbs_connection old;
    enum join_refusal refusal = verbs_release(link, &old);

    if (refusal != JOIN_ACCEPTED)
        return handshake_receiver_refuse(h, refusal);
    join->current = NULL;
    verbs_connection_close(&old);
    log->key = link->key;
    link_held(&link->channel, &log->index, &log->lsn);
    return 0;
}

/* Speaks with the sender behind link->join.made.id. 0: joined. -EAGAIN: not this one, *last may say why. */
static int verbs_meet(struct verbs_link *link, const char *from, enum join_refusal *last)
{
    struct verbs_join *join = &link->join;
    struct handshake h = handshake_over(link, from);
    bool again = join->session != 0;
    struct handshake_place place;
    int result;

    join->give_up_ns = clock_now_ns() + join->patience_ns;
    result = verbs_accept(link);
    if (result != 0)
        return result;
    result = handshake_receiver_meet(&h, &join->made.peer);
    if (result == 0 && again)
        result = old_connection_end(link, &h);
    else if (result == 0)
        join->log = (struct handshake_log){ .key = link_random_key() };
    if (result == 0)
        result = connection_open_to_peer(link, &place);
    if (result == 0 && !again)
        link_receive_init(&link->channel, link->ring, link->ring_bytes, join->log.key, h.theirs.ack);
    if (result == 0 && again && !verbs_attach(link, &join->made))
        result = handshake_receiver_refuse(&h, JOIN_FENCED);
    if (result == 0)
        result = handshake_receiver_finish(&h, &place, &join->log);
    if (result == 0 && !again)
        connection_take(link, &h);
    if (result == -EPROTO)
        *last = h.refusal;
    else if (result == -ECONNRESET)
        report_warning("%s: a sender began to join and left, or fell silent", from);
    return result == -EPROTO || result == -ECONNRESET || result == -EBUSY ? -EAGAIN : result;
}

/* Somebody asks for a connection: meets it, if its first word, and it, are to be trusted. Acks the event. As
 * verbs_meet. */
static int connect_request_take(struct verbs_link *link, struct rdma_cm_event *event, enum join_refusal *last,
                                char from[96])
{
    struct verbs_join *join = &link->join;
    struct join_side theirs = { 0 };
    struct handshake_head head;
    struct rdma_cm_id *id = event->id;
    enum join_refusal refusal;

    verbs_peer_name(id, "verbs", from, 96);
    refusal = first_word_read(event->param.conn.private_data, event->param.conn.private_data_len, &head);
    rdma_ack_cm_event(event);
    if (refusal != JOIN_ACCEPTED) {
        theirs.version = head.version;
        join_report_refusal(*last = refusal, from, join->ours, &theirs, true);
        refuse(id);
        return -EAGAIN;
    }
    join->made.id = id;
    return verbs_meet(link, from, last);
}

int verbs_join_receiver(struct verbs_link *link)
{
    struct verbs_join *join = &link->join;
    enum join_refusal last = JOIN_ACCEPTED;
    int result;

    if (rdma_create_id(join->events, &join->listener, NULL, RDMA_PS_TCP) != 0) {
        result = -errno;
        report_error("%s: rdma_create_id: %s", link->name, strerror(-result));
        return result;
    }
    if (rdma_bind_addr(join->listener, (struct sockaddr *)&join->address) != 0) {
        result = -errno;
        if (result == -ENODEV || result == -EADDRNOTAVAIL)
            return report_not_rdma(link);
        report_error("%s: cannot bind: %s%s", link->name, strerror(-result),
                     result == -EADDRINUSE ? "; another receiver listens there" : "");
        return result;
    }
    if (join->listener->verbs == NULL) /* 127.0.0.1 and wildcards bind, and prove nothing */
        return report_not_rdma(link);
    if (rdma_listen(join->listener, 4) != 0) {
        result = -errno;
        report_error("%s: cannot listen: %s%s", link->name, strerror(-result),
                     result == -EADDRINUSE ? "; another receiver listens there" : "");
        return result;
    }
    while ((result = join_deadline_check(&join->deadline)) == 0) {
        struct rdma_cm_event *event;
        char from[96];

        if (verbs_event_wait(join->events, &event) != 0)
            continue;
        if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST) {
            rdma_ack_cm_event(event); /* of a connection that did not come about */
            continue;
        }
        result = connect_request_take(link, event, &last, from);
        if (result == 0) {
            snprintf(link->name, sizeof(link->name), "%s", from);
            return 0;
        }
        connection_give_up(link);
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

/* Waits for an event of link->join.made.id. 0 with *event, which the caller acks; -ETIMEDOUT; -ECANCELED. */
static int event_await(struct verbs_link *link, struct rdma_cm_event **event)
{
    struct verbs_join *join = &link->join;
    enum rdma_cm_event_type kind;
    struct rdma_cm_id *id;
    int result;

    while ((result = join_deadline_check(&join->deadline)) == 0) {
        if (verbs_event_wait(join->events, event) != 0)
            continue;
        id = (*event)->id;
        if (id == join->made.id)
            return 0;
        kind = (*event)->event;
        rdma_ack_cm_event(*event);
        event_of_another(link, id, kind);
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
            join_report_refusal(refusal, link->name, link->join.ours, &theirs, false);
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
static int verbs_connect(struct verbs_link *link, const char **why)
{
    struct verbs_join *join = &link->join;
    struct rdma_conn_param parameters = { .retry_count = VERBS_RETRY_COUNT, .rnr_retry_count = 7 };
    struct handshake_head head = handshake_head_of(HANDSHAKE_CONNECT, sizeof(head));
    struct handshake h = handshake_over(link, link->name);
    struct handshake_place place;
    int result;

    if (rdma_create_id(join->events, &join->made.id, NULL, RDMA_PS_TCP) != 0) {
        result = -errno;
        report_error("%s: rdma_create_id: %s", link->name, strerror(-result));
        return result;
    }
    if (rdma_resolve_addr(join->made.id, NULL, (struct sockaddr *)&join->address, VERBS_RESOLVE_TIMEOUT_MS) != 0) {
        result = -errno;
        *why = result == -EADDRNOTAVAIL ? "the address leads back to this host, but not to an RDMA device" :
                                          "there is no route to the host";
        return result == -ENODEV ? report_not_rdma(link) : -EAGAIN;
    }
    result = event_expect(link, RDMA_CM_EVENT_ADDR_RESOLVED, why);
    if (result == -ENODEV || (result == 0 && join->made.id->verbs == NULL))
        return report_not_rdma(link);
    if (result == 0)
        result = connection_open(link);
    if (result != 0)
        return result;
    if (rdma_resolve_route(join->made.id, VERBS_RESOLVE_TIMEOUT_MS) != 0) {
        *why = "there is no route to the host";
        return -EAGAIN;
    }
    result = event_expect(link, RDMA_CM_EVENT_ROUTE_RESOLVED, why);
    if (result != 0)
        return result;
    parameters.private_data = &head;
    parameters.private_data_len = sizeof(head);
    if (rdma_connect(join->made.id, &parameters) != 0) {
        result = -errno;
        report_error("%s: cannot connect: %s", link->name, strerror(-result));
        return result;
    }
    if (**why == '\0') /* else the last try had a better reason */
        *why = "its receiver does not answer";
    result = connected_or_why(link, why);
    if (result != 0)
        return result;
    join->give_up_ns = clock_now_ns() + join->patience_ns;
    if (join->session != 0)
        join->deadline.at_ns = join->give_up_ns; /* it was for the connection; now for what is said */
    result = handshake_sender_meet(&h);
    if (result == 0)
        result = connection_open_to_peer(link, &place);
    if (result == 0)
        result = handshake_sender_finish(&h, &place, &join->made.peer, &join->log);
    if (result == 0 && join->session == 0)
        connection_take(link, &h);
    else if (result != 0)
        rdma_disconnect(join->made.id);
    if (result == -ECONNRESET)
        *why = "its receiver left while joining";
    else if (result == -EBUSY)
        *why = "its receiver has another sender";
    return result == -ECONNRESET || result == -EBUSY ? -EAGAIN : result;
}

int verbs_join_sender(struct verbs_link *link)
{
    const char *why = "";
    int result;

    for (;;) {
        result = verbs_connect(link, &why);
        if (result == 0)
            return 0;
        connection_give_up(link);
        if (result == -EAGAIN)
            result = join_deadline_check(&link->join.deadline);
        if (result == -ETIMEDOUT)
            report_error("%s: could not join in time: %s", link->name, why);
        if (result != 0)
            return result;
        clock_sleep_ns(VERBS_RETRY_PAUSE_NS);
    }
}

/* ---- keeper ---- */

/* Sender: one try for a new connection. */
static int spare_join(void *argument)
{
    struct verbs_link *link = argument;
    struct verbs_join *join = &link->join;
    const char *why = ""; /* whoever asks again and again does not say it each time */
    int result;

    rdma_disconnect(link->now.id); /* so that the receiver knows, too; the second time in vain */
    join->secret = keeper_secret(&link->keeper);
    join->deadline = (struct join_deadline){ .at_ns = clock_now_ns() + VERBS_AGAIN_NS,
                                                  .cancel = &link->keeper.stop };
    result = verbs_connect(link, &why);
    messages_close(&link->join);
    if (result != 0)
        verbs_connection_close(&join->made);
    return result == -ETIMEDOUT ? -EAGAIN : result;
}

static void spare_drop(void *argument)
{
    struct verbs_link *link = argument;
    struct verbs_join *join = &link->join;

    verbs_connection_close(&join->made);
    join->current = link->now.id;
}

/* Receiver: somebody asks for a connection. */
static void resume_take(struct verbs_link *link, struct rdma_cm_event *event)
{
    struct verbs_join *join = &link->join;
    enum join_refusal last;
    struct verbs_connection dead;
    bool attached;
    char from[96];
    int result;

    join->secret = keeper_secret(&link->keeper);
    join->deadline = (struct join_deadline){ .at_ns = UINT64_MAX, .cancel = &link->keeper.stop };
    result = connect_request_take(link, event, &last, from);
    messages_close(&link->join);
    /* The keeper alone replaces connections. */
    attached = join->made.id != NULL && link->now.id == join->made.id;
    if (attached)
        join->made = (struct verbs_connection){ 0 }; /* it is `now` */
    else
        verbs_connection_close(&join->made);
    if (result == 0 && verbs_up(link)) {
        join->current = link->now.id;
        report_info("%s: the link is up again; the log goes on behind record %llu", link->name,
                    (unsigned long long)join->log.lsn);
    } else if (attached && verbs_release(link, &dead) == JOIN_ACCEPTED) { /* fenced: it stays until we close */
        verbs_connection_close(&dead);
    }
    if (result != 0)
        keeper_pause(&link->keeper, VERBS_REFUSED_PAUSE_NS); /* so that nobody keeps us, or the log, busy */
}

void *verbs_keep(void *argument)
{
    struct verbs_link *link = argument;
    struct verbs_join *join = &link->join;
    const struct keeper_work work = { .channel = &link->channel, .name = link->name, .log = &join->log,
                                      .join = spare_join, .drop = spare_drop };
    bool is_sender = link->channel.is_sender;
    struct rdma_cm_event *event;

    for (;;) {
        /* While a new connection waits to be taken, what rdma_cm has to say of it must wait, too. */
        bool ready = is_sender && keeper_state(&link->keeper) == KEEPER_READY;

        if (!keeper_wait(&link->keeper, ready ? -1 : join->events->fd))
            return NULL;
        if (is_sender)
            keeper_step(&link->keeper, &work);
        else if (join->current != NULL && atomic_load_explicit(&link->channel.down, memory_order_acquire))
            rdma_disconnect(join->current); /* see verbs_down */
        while ((!is_sender || keeper_state(&link->keeper) != KEEPER_READY) &&
               rdma_get_cm_event(join->events, &event) == 0) { /* does not block */
            struct rdma_cm_id *id = event->id;
            enum rdma_cm_event_type kind = event->event;

            if (kind == RDMA_CM_EVENT_CONNECT_REQUEST && !is_sender) {
                resume_take(link, event);
                continue;
            }
            rdma_ack_cm_event(event);
            event_of_another(link, id, kind);
        }
    }
}
