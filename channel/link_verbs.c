/*
 * verbs: one-sided RDMA WRITE into the receiver's ring; rdma_cm, reliable connection (IBTA 1.4, 9.7). The
 * product's link. This file sets it up and takes it down; link_verbs_path.c is what runs per event.
 *
 * Acked: the write has completed, so the receiver's NIC has answered for all its bytes. On devices that answer
 *     before the bytes are visible in memory (a PCIe matter), they become so without anybody's doing; the
 *     receiver's drain after a fence allows them 200 ms. It does not mean that the receiver's software has
 *     looked: that is channel_consumed_lsn.
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
 */
#include "channel/link_verbs.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/join.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERBS_MAGIC 0x56545446u /* "FTTV" */

/* Time to IBV_WC_RETRY_EXC_ERR is about (6 + 1) * 4.096 us * 2^14 = 0.47 s (IBTA 1.4, 9.7.6.1.3). Shorter ones
 * failed without cause on soft-RoCE, and its 7 means "for ever". */
#define VERBS_RETRY_COUNT 6
#define VERBS_ACK_TIMEOUT 14
/*
 * Soft-RoCE sends a long write again from its middle when an ACK is late, and its responder then refuses the
 * rest ("remote invalid request"): seen in hosts whose CPUs are busy, where an ACK easily takes 100 ms. Nothing is
 * lost there, so it is given 4.096 us x 2^19 = 2.1 s. The heartbeat finds a dead peer long before.
 */
#define VERBS_ACK_TIMEOUT_SOFT 19
#define VERBS_VENDOR_SOFT      0xFFFFFFu /* RXE_VENDOR_ID, drivers/infiniband/sw/rxe/rxe_param.h */

#define VERBS_EVENT_SLICE_MS     20 /* how late a cancellation may be noticed */
#define VERBS_RESOLVE_TIMEOUT_MS 2000
#define VERBS_ESTABLISH_NS       (5 * NS_PER_S)
#define VERBS_RETRY_PAUSE_NS     (100 * NS_PER_MS)
#define VERBS_CONTROL_PAGE_BYTES 4096u
#define VERBS_OUT_OFFSET         512u /* of `out` in the control page */

/* Beyond enum join_refusal: come back later. */
#define VERBS_BUSY 100

/* rdma_connect's private data. 56 bytes is all that rdma_cm leaves of the 92 in a REQ (IBTA 1.4, 12.6.5, less
 * the 36 of the CM's IP header), so the name goes as a hash. */
struct verbs_request {
    uint32_t magic;
    uint8_t version;
    uint8_t bytes; /* of this structure: what arrives is padded */
    uint8_t ring_log2;
    uint8_t zero;
    uint32_t features;
    uint32_t control_rkey;
    uint64_t control_address;
    uint64_t generation;
    uint8_t digest[16];
    uint64_t vm_hash;
};
_Static_assert(sizeof(struct verbs_request) == 56, "must fit into a REQ");

/* rdma_accept's and rdma_reject's private data. */
struct verbs_answer {
    uint32_t magic;
    uint8_t version;
    uint8_t bytes;
    uint8_t ring_log2;
    uint8_t refusal; /* enum join_refusal; VERBS_BUSY */
    uint32_t features;
    uint32_t ring_rkey;
    uint64_t ring_address;
    uint64_t control_address;
    uint64_t key;
    uint32_t control_rkey;
    uint32_t zero;
    struct channel_hello hello;
};
_Static_assert(sizeof(struct verbs_answer) == 104, "must fit into a REJ: 148 bytes (IBTA 1.4, 12.6.7)");

static void verbs_close(struct channel *channel);

/* ---- what is there ---- */

#define HOW_TO_GET_RDMA                                                                                                \
    "'modprobe rdma_rxe; rdma link add rxe0 type rxe netdev IFACE' gives any Ethernet interface soft-RoCE, or use "    \
    "shm: between processes of one machine"

/* -ENODEV with a sentence unless there is an RDMA device. `names` is for messages. */
static int verbs_devices(char *names, size_t names_bytes)
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

static int report_not_rdma(const char *what, const char *names)
{
    report_error("%s: the address is not on, or not reached through, an RDMA device (devices here: %s; 'rdma link' "
                 "shows their interfaces); " HOW_TO_GET_RDMA " (IFACE: the one that has the address)", what, names);
    return -ENODEV;
}

/* "HOST:PORT" or "[HOST]:PORT". */
static int verbs_resolve(const char *text, bool is_sender, struct sockaddr_storage *address)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = is_sender ? 0 : AI_PASSIVE }, *found = NULL;
    const char *colon = strrchr(text, ':');
    char host[256];
    size_t length = colon == NULL ? 0 : (size_t)(colon - text);
    char *end;
    long port = colon == NULL ? 0 : strtol(colon + 1, &end, 10);
    int result;

    if (length == 0 || length >= sizeof(host) || *end != '\0' || port < 1 || port > 65535) {
        report_error("channel address 'verbs:%s': give verbs:HOST:PORT with a port from 1 to 65535", text);
        return -EINVAL;
    }
    if (text[0] == '[' && text[length - 1] == ']') {
        text++;
        length -= 2;
    }
    memcpy(host, text, length);
    host[length] = '\0';
    result = getaddrinfo(host, colon + 1, &hints, &found);
    if (result != 0) {
        report_error("verbs:%s: the host's name has no address: %s", host, gai_strerror(result));
        return -EHOSTUNREACH;
    }
    memcpy(address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return 0;
}

/* ---- events ---- */

/* Waits for the next event; at most one slice. -EAGAIN: none yet. */
static int event_wait(struct verbs_link *link, struct rdma_cm_event **event)
{
    struct pollfd ready = { .fd = link->events->fd, .events = POLLIN };

    if (poll(&ready, 1, VERBS_EVENT_SLICE_MS) <= 0)
        return -EAGAIN;
    return rdma_get_cm_event(link->events, event) != 0 ? -EAGAIN : 0;
}

static int events_open(struct verbs_link *link)
{
    link->events = rdma_create_event_channel();
    if (link->events == NULL) {
        int result = -errno;

        report_error("verbs: there is an RDMA device, but no connection manager (/dev/infiniband/rdma_cm: %s); "
                     "'modprobe rdma_ucm' loads it, and its file must be readable and writable for us",
                     strerror(-result));
        return result == -EACCES ? result : -ENODEV;
    }
    if (fcntl(link->events->fd, F_SETFL, fcntl(link->events->fd, F_GETFL) | O_NONBLOCK) != 0)
        return -errno;
    return 0;
}

/* ---- one connection's resources ---- */

static void connection_close(struct verbs_link *link)
{
    if (link->ring_mr != NULL)
        ibv_dereg_mr(link->ring_mr);
    if (link->in_mr != NULL)
        ibv_dereg_mr(link->in_mr);
    if (link->out_mr != NULL)
        ibv_dereg_mr(link->out_mr);
    if (link->id != NULL && link->id->qp != NULL)
        rdma_destroy_qp(link->id);
    if (link->cq != NULL)
        ibv_destroy_cq(link->cq);
    if (link->id != NULL)
        rdma_destroy_id(link->id);
    link->ring_mr = link->in_mr = link->out_mr = NULL;
    link->cq = NULL;
    link->id = NULL;
}

static struct ibv_mr *region_open(struct verbs_link *link, void *memory, size_t bytes, bool remote)
{
    /* Without IBV_ACCESS_RELAXED_ORDERING: PCIe must keep the order of writes. */
    struct ibv_mr *region = ibv_reg_mr(link->id->pd, memory, bytes,
                                       remote ? IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE : 0);

    if (region == NULL)
        report_error("%s: cannot register %zu bytes with %s: %s%s", link->name, bytes,
                     ibv_get_device_name(link->id->verbs->device), strerror(errno),
                     errno == ENOMEM ? " (this is the limit of locked memory: 'ulimit -l unlimited', or "
                                       "LimitMEMLOCK=infinity in the unit)" : "");
    return region;
}

/* On link->id, which has a device by now. */
static int connection_open(struct verbs_link *link)
{
    bool is_sender = link->channel.is_sender;
    struct ibv_qp_init_attr queue = { .qp_type = IBV_QPT_RC, .sq_sig_all = 0,
                                      .cap = { .max_send_wr = VERBS_QUEUE_DEPTH, .max_recv_wr = 1, .max_send_sge = 1,
                                               .max_recv_sge = 1, .max_inline_data = VERBS_INLINE_BYTES } };
    struct ibv_device_attr device;
    uint8_t timeout = VERBS_ACK_TIMEOUT;
    int result;

    if (ibv_query_device(link->id->verbs, &device) == 0 && device.vendor_id == VERBS_VENDOR_SOFT)
        timeout = VERBS_ACK_TIMEOUT_SOFT;
    link->cq = ibv_create_cq(link->id->verbs, VERBS_QUEUE_DEPTH, NULL, NULL, 0);
    if (link->cq == NULL) {
        result = -errno;
        report_error("%s: cannot create a completion queue: %s", link->name, strerror(-result));
        return result;
    }
    queue.send_cq = queue.recv_cq = link->cq;
    result = rdma_create_qp(link->id, NULL, &queue);
    if (result != 0 && errno == EINVAL) {
        queue.cap = (struct ibv_qp_cap){ .max_send_wr = VERBS_QUEUE_DEPTH, .max_recv_wr = 1, .max_send_sge = 1,
                                         .max_recv_sge = 1 }; /* a device without inline */
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
    if (rdma_set_option(link->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout)) != 0)
        report_info("%s: the ACK time-out cannot be set (%s); a dead host may take seconds to show", link->name,
                    strerror(errno));
    link->ring_mr = region_open(link, link->ring, link->ring_bytes, !is_sender);
    link->in_mr = region_open(link, link->in, sizeof(*link->in), true);
    link->out_mr = region_open(link, link->out, sizeof(*link->out), false);
    if (link->ring_mr == NULL || link->in_mr == NULL || link->out_mr == NULL)
        return -ENOMEM;
    memset(link->in, 0, sizeof(*link->in));
    return 0;
}

static uint8_t log2_of(uint64_t power)
{
    return (uint8_t)__builtin_ctzll(power);
}

/* ---- receiver ---- */

static struct verbs_answer answer_of(const struct verbs_link *link, const struct join_side *ours, unsigned refusal)
{
    struct verbs_answer answer = { .magic = VERBS_MAGIC, .version = (uint8_t)ours->version, .bytes = sizeof(answer),
                                   .ring_log2 = log2_of(ours->ring_bytes), .refusal = (uint8_t)refusal,
                                   .features = ours->features, .hello = ours->hello };

    if (refusal == JOIN_ACCEPTED) { /* nobody else learns the ring's key and address */
        answer.ring_rkey = link->ring_mr->rkey;
        answer.ring_address = (uintptr_t)link->ring;
        answer.control_rkey = link->in_mr->rkey;
        answer.control_address = (uintptr_t)link->in;
        answer.key = link->key;
    }
    return answer;
}

static void refuse(struct verbs_link *link, struct rdma_cm_id *id, const struct join_side *ours, unsigned refusal)
{
    struct verbs_answer answer = answer_of(link, ours, refusal);

    rdma_reject(id, &answer, sizeof(answer));
    rdma_destroy_id(id);
}

/* Reads a request as join_side. */
static enum join_refusal request_read(const void *data, size_t bytes, struct verbs_request *request,
                                      struct join_side *theirs)
{
    memset(request, 0, sizeof(*request));
    memset(theirs, 0, sizeof(*theirs));
    if (data == NULL || bytes < offsetof(struct verbs_request, zero))
        return JOIN_NOT_FTVMM;
    memcpy(request, data, bytes < sizeof(*request) ? bytes : sizeof(*request));
    if (request->magic != VERBS_MAGIC)
        return JOIN_NOT_FTVMM;
    theirs->version = request->version;
    if (request->version != WIRE_VERSION)
        return JOIN_VERSION;
    if (bytes < sizeof(*request) || request->bytes != sizeof(*request) || request->ring_log2 > 62)
        return JOIN_NOT_FTVMM;
    theirs->features = request->features;
    theirs->ring_bytes = UINT64_C(1) << request->ring_log2;
    theirs->vm_hash = request->vm_hash;
    theirs->hello.generation = request->generation;
    memcpy(theirs->hello.digest, request->digest, sizeof(theirs->hello.digest));
    return JOIN_ACCEPTED;
}

static void peer_name(const struct rdma_cm_id *id, char *text, size_t bytes)
{
    const struct sockaddr *address = rdma_get_peer_addr((struct rdma_cm_id *)(uintptr_t)id);
    char host[64] = "?", port[16] = "?";

    getnameinfo(address, address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in),
                host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(text, bytes, "verbs:%s:%s", host, port);
}

/* A good sender has asked on link->id: accept it. 0: joined; -EAGAIN: it did not come about. */
static int verbs_accept(struct verbs_link *link, const struct join_side *ours, const struct verbs_request *request,
                        const struct join_deadline *deadline)
{
    struct rdma_conn_param parameters = { .retry_count = VERBS_RETRY_COUNT, .rnr_retry_count = 7 };
    uint64_t give_up_ns = clock_now_ns() + VERBS_ESTABLISH_NS;
    struct verbs_answer answer;
    int result;

    link->key = link_random_key();
    result = connection_open(link);
    if (result != 0)
        return result;
    link->peer_control_address = request->control_address;
    link->peer_control_rkey = request->control_rkey;
    answer = answer_of(link, ours, JOIN_ACCEPTED);
    parameters.private_data = &answer;
    parameters.private_data_len = sizeof(answer);
    if (rdma_accept(link->id, &parameters) != 0) {
        report_warning("%s: cannot accept the sender: %s", link->name, strerror(errno));
        return -EAGAIN;
    }
    while ((result = join_deadline_check(deadline)) == 0 && clock_now_ns() < give_up_ns) {
        struct rdma_cm_event *event;
        struct rdma_cm_id *id;
        enum rdma_cm_event_type kind;

        if (event_wait(link, &event) != 0)
            continue;
        id = event->id;
        kind = event->event;
        rdma_ack_cm_event(event);
        if (kind == RDMA_CM_EVENT_CONNECT_REQUEST)
            refuse(link, id, ours, VERBS_BUSY);
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

static int verbs_listen(struct verbs_link *link, struct sockaddr_storage *address, struct join_side *ours,
                        const struct join_deadline *deadline, const char *device_names)
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
            return report_not_rdma(link->name, device_names);
        report_error("%s: cannot bind: %s%s", link->name, strerror(-result),
                     result == -EADDRINUSE ? "; another receiver listens there" : "");
        return result;
    }
    if (link->listener->verbs == NULL) /* 127.0.0.1 and wildcards bind, and prove nothing */
        return report_not_rdma(link->name, device_names);
    if (rdma_listen(link->listener, 4) != 0) {
        result = -errno;
        report_error("%s: cannot listen: %s%s", link->name, strerror(-result),
                     result == -EADDRINUSE ? "; another receiver listens there" : "");
        return result;
    }
    while ((result = join_deadline_check(deadline)) == 0) {
        struct rdma_cm_event *event;
        struct verbs_request request;
        struct join_side theirs;
        enum join_refusal refusal;
        struct rdma_cm_id *id;
        char from[96];

        if (event_wait(link, &event) != 0)
            continue;
        if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST) {
            rdma_ack_cm_event(event); /* of a connection that did not come about */
            continue;
        }
        id = event->id;
        peer_name(id, from, sizeof(from));
        refusal = request_read(event->param.conn.private_data, event->param.conn.private_data_len, &request, &theirs);
        rdma_ack_cm_event(event);
        if (refusal == JOIN_ACCEPTED)
            refusal = join_compare(&theirs, ours);
        if (refusal != JOIN_ACCEPTED) {
            join_report_refusal(last = refusal, from, ours, &theirs, true);
            refuse(link, id, ours, refusal);
            continue;
        }
        link->id = id;
        result = verbs_accept(link, ours, &request, deadline);
        if (result == 0) {
            /* The names' hashes are equal, and the sender has compared the names themselves. */
            link->channel.peer = theirs.hello;
            memcpy(link->channel.peer.vm, ours->hello.vm, sizeof(ours->hello.vm));
            snprintf(link->name, sizeof(link->name), "%s", from);
            rdma_destroy_id(link->listener);
            link->listener = NULL;
            return 0;
        }
        connection_close(link);
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
static int event_await(struct verbs_link *link, const struct join_deadline *deadline, struct rdma_cm_event **event)
{
    int result;

    while ((result = join_deadline_check(deadline)) == 0) {
        if (event_wait(link, event) != 0)
            continue;
        if ((*event)->id == link->id)
            return 0;
        rdma_ack_cm_event(*event);
    }
    return result;
}

/* Takes the receiver's answer, in an ESTABLISHED or a REJECTED event. */
static int answer_read(struct verbs_link *link, const struct rdma_cm_event *event, const struct join_side *ours,
                       const char **why)
{
    bool accepted = event->event == RDMA_CM_EVENT_ESTABLISHED;
    struct join_side theirs = { 0 };
    struct verbs_answer answer = { 0 };
    size_t bytes = event->param.conn.private_data_len;
    enum join_refusal refusal = JOIN_NOT_FTVMM;

    if (event->param.conn.private_data != NULL)
        memcpy(&answer, event->param.conn.private_data, bytes < sizeof(answer) ? bytes : sizeof(answer));
    if (answer.magic == VERBS_MAGIC) {
        theirs.version = answer.version;
        refusal = answer.version != WIRE_VERSION ? JOIN_VERSION : (enum join_refusal)answer.refusal;
        if (refusal != JOIN_VERSION && (answer.bytes != sizeof(answer) || answer.ring_log2 > 62))
            refusal = JOIN_NOT_FTVMM;
    }
    if (refusal != JOIN_NOT_FTVMM && refusal != JOIN_VERSION) {
        theirs.features = answer.features;
        theirs.ring_bytes = UINT64_C(1) << answer.ring_log2;
        theirs.hello = answer.hello;
        theirs.vm_hash = join_vm_hash(answer.hello.vm);
        if (answer.refusal == VERBS_BUSY) {
            *why = "its receiver is joining with another sender";
            return -EAGAIN;
        }
        if (accepted) {
            refusal = join_compare(ours, &theirs);
            if (refusal == JOIN_ACCEPTED &&
                memcmp(ours->hello.vm, theirs.hello.vm, sizeof(ours->hello.vm)) != 0)
                refusal = JOIN_VM; /* the hashes are the same, the names are not */
        } else if (refusal == JOIN_ACCEPTED) {
            refusal = JOIN_NOT_FTVMM;
        }
    }
    if (refusal != JOIN_ACCEPTED) {
        join_report_refusal(refusal, link->name, ours, &theirs, false);
        return -EPROTO;
    }
    link->key = answer.key;
    link->peer_ring_address = answer.ring_address;
    link->peer_ring_rkey = answer.ring_rkey;
    link->peer_control_address = answer.control_address;
    link->peer_control_rkey = answer.control_rkey;
    link->channel.peer = theirs.hello;
    if (theirs.hello.generation == 0)
        link->channel.peer.generation = ours->hello.generation;
    return 0;
}

/* Translates an event that is not the one hoped for. -EAGAIN: try again, *why says for what reason. */
static int event_failed(const struct rdma_cm_event *event, const char **why)
{
    if (event->event == RDMA_CM_EVENT_ADDR_ERROR && event->status == -ENODEV)
        return -ENODEV;
    if (event->event == RDMA_CM_EVENT_ADDR_ERROR)
        *why = "the host does not answer on that network (no such address, or it is down)";
    else if (event->event == RDMA_CM_EVENT_REJECTED && event->status == 8)
        *why = "the host is there, but no receiver listens on that port; start it";
    else if (event->event == RDMA_CM_EVENT_REJECTED)
        *why = "the host refuses the connection without saying why";
    else if (event->event == RDMA_CM_EVENT_UNREACHABLE)
        *why = "the host does not answer to RDMA (is the interface's RDMA link up on both sides? 'rdma link')";
    else
        *why = rdma_event_str(event->event);
    return -EAGAIN;
}

/* One try. 0; -EAGAIN: not yet; else final, said in words. */
static int verbs_connect(struct verbs_link *link, struct sockaddr_storage *address, const struct join_side *ours,
                         const struct join_deadline *deadline, const char **why, const char *device_names)
{
    struct rdma_conn_param parameters = { .retry_count = VERBS_RETRY_COUNT, .rnr_retry_count = 7 };
    struct verbs_request request = { .magic = VERBS_MAGIC, .version = WIRE_VERSION, .bytes = sizeof(request),
                                     .ring_log2 = log2_of(ours->ring_bytes), .features = ours->features,
                                     .generation = ours->hello.generation, .vm_hash = ours->vm_hash };
    struct rdma_cm_event *event;
    int result;

    memcpy(request.digest, ours->hello.digest, sizeof(request.digest));
    if (rdma_create_id(link->events, &link->id, NULL, RDMA_PS_TCP) != 0) {
        result = -errno;
        report_error("%s: rdma_create_id: %s", link->name, strerror(-result));
        return result;
    }
    if (rdma_resolve_addr(link->id, NULL, (struct sockaddr *)address, VERBS_RESOLVE_TIMEOUT_MS) != 0) {
        result = -errno;
        *why = result == -EADDRNOTAVAIL ? "the address leads back to this host, but not to an RDMA device" :
                                          "there is no route to the host";
        return result == -ENODEV ? report_not_rdma(link->name, device_names) : -EAGAIN;
    }
    result = event_await(link, deadline, &event);
    if (result != 0)
        return result;
    result = event->event == RDMA_CM_EVENT_ADDR_RESOLVED ? 0 : event_failed(event, why);
    rdma_ack_cm_event(event);
    if (result == -ENODEV || (result == 0 && link->id->verbs == NULL))
        return report_not_rdma(link->name, device_names);
    if (result != 0)
        return result;
    result = connection_open(link);
    if (result != 0)
        return result;
    if (rdma_resolve_route(link->id, VERBS_RESOLVE_TIMEOUT_MS) != 0) {
        *why = "there is no route to the host";
        return -EAGAIN;
    }
    result = event_await(link, deadline, &event);
    if (result != 0)
        return result;
    result = event->event == RDMA_CM_EVENT_ROUTE_RESOLVED ? 0 : event_failed(event, why);
    rdma_ack_cm_event(event);
    if (result != 0)
        return result;
    request.control_address = (uintptr_t)link->in;
    request.control_rkey = link->in_mr->rkey;
    parameters.private_data = &request;
    parameters.private_data_len = sizeof(request);
    if (rdma_connect(link->id, &parameters) != 0) {
        result = -errno;
        report_error("%s: cannot connect: %s", link->name, strerror(-result));
        return result;
    }
    if (**why == '\0') /* else the last try had a better reason */
        *why = "its receiver does not answer";
    result = event_await(link, deadline, &event);
    if (result != 0)
        return result;
    /* 28: rejected by the program there (IBTA 1.4, table 111), so there is an answer to read. */
    if (event->event == RDMA_CM_EVENT_ESTABLISHED || (event->event == RDMA_CM_EVENT_REJECTED && event->status == 28))
        result = answer_read(link, event, ours, why);
    else
        result = event_failed(event, why);
    if (event->event == RDMA_CM_EVENT_ESTABLISHED && result != 0)
        rdma_disconnect(link->id);
    rdma_ack_cm_event(event);
    return result;
}

static int verbs_join(struct verbs_link *link, struct sockaddr_storage *address, const struct join_side *ours,
                      const struct join_deadline *deadline, const char *device_names)
{
    const char *why = "";
    int result;

    for (;;) {
        result = verbs_connect(link, address, ours, deadline, &why, device_names);
        if (result == 0)
            return 0;
        connection_close(link);
        if (result == -EAGAIN)
            result = join_deadline_check(deadline);
        if (result == -ETIMEDOUT)
            report_error("%s: could not join in time: %s", link->name, why);
        if (result != 0)
            return result;
        clock_sleep_ns(VERBS_RETRY_PAUSE_NS);
    }
}

/* ---- joined ---- */

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
        verbs_commit(channel); /* what found the turn taken meanwhile */
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
    char device_names[128];
    struct verbs_link *link;
    struct channel *channel;
    int result;

    memset(&address, 0, sizeof(address));
    result = verbs_resolve(rest, is_sender, &address);
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
    result = events_open(link);
    if (result != 0)
        goto fail;
    result = -ENOMEM;
    link->ring = ring_memory_open(link->ring_bytes, is_sender ? "send ring" : "receive ring");
    link->control_page = aligned_alloc(VERBS_CONTROL_PAGE_BYTES, VERBS_CONTROL_PAGE_BYTES);
    if (link->ring == NULL || link->control_page == NULL)
        goto fail;
    memset(link->control_page, 0, VERBS_CONTROL_PAGE_BYTES);
    link->in = (struct verbs_control *)link->control_page;
    link->out = (struct verbs_control *)(link->control_page + VERBS_OUT_OFFSET);
    result = is_sender ? verbs_join(link, &address, &ours, &deadline, device_names) :
                         verbs_listen(link, &address, &ours, &deadline, device_names);
    if (result != 0)
        goto fail;
    if (is_sender)
        send_ring_init(&channel->send, link->ring, link->ring_bytes, link->key, channel->credit);
    else
        receive_ring_init(&channel->receive, link->ring, link->ring_bytes, link->key, channel->credit);
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
    connection_close(link);
    if (link->listener != NULL)
        rdma_destroy_id(link->listener);
    if (link->events != NULL)
        rdma_destroy_event_channel(link->events);
    ring_memory_close(link->ring, link->ring_bytes);
    free(link->control_page);
    free(link);
}
