/* The wire over RDMA: rdma_cm, a reliable connection, SEND and RECV for messages, compare-and-swap for claims (IBTA 1.4,
 * 9.4.5; 10.8.3). */
#include "witness/wire.h"

#include "base/clock.h"
#include "channel/verbs_events.h"
#include "witness/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES 4096u
#define PAUSE_NS   (50 * NS_PER_US) /* between looks at the completion queue */

/* wr_id */
enum { SENT = 1, HEARD = 2, SWAPPED = 3 };

/* What the NIC reads and writes: one page, registered for nobody but us. */
struct messages {
    struct witness_request request;
    struct witness_answer answer;
    _Alignas(8) uint64_t found;
};
_Static_assert(sizeof(struct messages) <= PAGE_BYTES, "one page");

struct witness_wire {
    struct rdma_event_channel *events;
    struct rdma_cm_id *id;
    struct ibv_cq *cq;
    struct messages *messages;
    struct ibv_mr *mr;
};

static int failed(int error, const char *what, char *why)
{
    snprintf(why, WITNESS_WHY_BYTES, "%s: %s%s", what, strerror(error),
             error == ENOMEM ? " (the limit of locked memory? 'ulimit -l unlimited', or LimitMEMLOCK=infinity in the unit)"
                             : "");
    return -error;
}

static int not_rdma(char *why)
{
    snprintf(why, WITNESS_WHY_BYTES, "its address is not reached through an RDMA device of this host ('rdma link' shows "
             "them; 'rdma link add rxe0 type rxe netdev IFACE' makes one)");
    return -ENODEV;
}

/* Waits for an event of our connection, which the caller acks. */
static int event_await(struct witness_wire *wire, struct rdma_cm_event **event, const struct witness_limit *limit,
                       char *why)
{
    int rc;

    while ((rc = witness_limit_check(limit, why)) == 0)
        if (verbs_event_wait(wire->events, event) == 0)
            break;
    return rc;
}

static int event_unhoped(const struct rdma_cm_event *event, char *why)
{
    const char *text = "";

    if (verbs_event_failed(event, &text) == -ENODEV)
        return not_rdma(why);
    snprintf(why, WITNESS_WHY_BYTES, "%s", text);
    return -EHOSTUNREACH;
}

static int event_expect(struct witness_wire *wire, enum rdma_cm_event_type hoped, const struct witness_limit *limit,
                        char *why)
{
    struct rdma_cm_event *event;
    int rc = event_await(wire, &event, limit, why);

    if (rc != 0)
        return rc;
    if (event->event != hoped)
        rc = event_unhoped(event, why);
    rdma_ack_cm_event(event);
    return rc;
}

/* On wire->id, which has a device by now. */
static int resources_open(struct witness_wire *wire, char *why)
{
    struct ibv_qp_init_attr queue = { .qp_type = IBV_QPT_RC,
                                      .cap = { .max_send_wr = 4, .max_recv_wr = 2, .max_send_sge = 1,
                                               .max_recv_sge = 1 } };

    if (!witness_device_has_atomics(wire->id->verbs)) {
        snprintf(why, WITNESS_WHY_BYTES, "this host's RDMA device %s has no atomic operations, which a witness needs; "
                 "use another device, or --arbiter dir: or etcd:", ibv_get_device_name(wire->id->verbs->device));
        return -ENOTSUP;
    }
    wire->cq = ibv_create_cq(wire->id->verbs, 8, NULL, NULL, 0);
    if (wire->cq == NULL)
        return failed(errno, "no completion queue", why);
    queue.send_cq = queue.recv_cq = wire->cq;
    if (rdma_create_qp(wire->id, NULL, &queue) != 0)
        return failed(errno, "no queue pair", why);
    wire->mr = ibv_reg_mr(wire->id->pd, wire->messages, PAGE_BYTES, IBV_ACCESS_LOCAL_WRITE);
    if (wire->mr == NULL)
        return failed(errno, "memory cannot be registered", why);
    (void)verbs_ack_timeout_set(wire->id); /* every wait here has a limit of its own */
    return 0;
}

/* The answer to rdma_connect, with what the witness said. */
static int welcome_await(struct witness_wire *wire, struct witness_welcome *welcome, const struct witness_limit *limit,
                         char *why)
{
    struct rdma_cm_event *event;
    bool rejected;
    int rc = event_await(wire, &event, limit, why);

    if (rc != 0)
        return rc;
    /* 28: rejected by the program there (IBTA 1.4, table 111), so there is a word to read. */
    rejected = event->event == RDMA_CM_EVENT_REJECTED && event->status == 28;
    if (rejected || event->event == RDMA_CM_EVENT_ESTABLISHED) {
        if (event->param.conn.private_data != NULL && event->param.conn.private_data_len >= sizeof(*welcome))
            memcpy(welcome, event->param.conn.private_data, sizeof(*welcome));
        rc = rejected ? -ECONNREFUSED : 0;
    } else {
        rc = event_unhoped(event, why);
    }
    rdma_ack_cm_event(event);
    return rc;
}

static int wire_connect(struct witness_wire *wire, const struct sockaddr *address, const struct witness_hello *hello,
                        struct witness_welcome *welcome, const struct witness_limit *limit, char *why)
{
    struct rdma_conn_param parameters = { .private_data = hello, .private_data_len = sizeof(*hello),
                                          .initiator_depth = 1, .retry_count = VERBS_RETRY_COUNT,
                                          .rnr_retry_count = 7 };
    int rc;

    wire->messages = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
    if (wire->messages == NULL)
        return failed(ENOMEM, "no memory", why);
    memset(wire->messages, 0, PAGE_BYTES);
    rc = verbs_events_create(&wire->events);
    if (rc == -ENODEV)
        return not_rdma(why);
    if (rc != 0)
        return failed(-rc, "/dev/infiniband/rdma_cm does not open ('modprobe rdma_ucm')", why);
    if (rdma_create_id(wire->events, &wire->id, NULL, RDMA_PS_TCP) != 0)
        return failed(errno, "rdma_create_id", why);
    if (rdma_resolve_addr(wire->id, NULL, (struct sockaddr *)(uintptr_t)address, VERBS_RESOLVE_TIMEOUT_MS) != 0)
        return errno == ENODEV ? not_rdma(why) : failed(errno, "there is no way to its address", why);
    rc = event_expect(wire, RDMA_CM_EVENT_ADDR_RESOLVED, limit, why);
    if (rc == 0 && wire->id->verbs == NULL)
        rc = not_rdma(why);
    if (rc == 0)
        rc = resources_open(wire, why);
    if (rc != 0)
        return rc;
    if (rdma_resolve_route(wire->id, VERBS_RESOLVE_TIMEOUT_MS) != 0) /* ENODEV: 127.0.0.1 */
        return errno == ENODEV ? not_rdma(why) : failed(errno, "there is no way to its address", why);
    rc = event_expect(wire, RDMA_CM_EVENT_ROUTE_RESOLVED, limit, why);
    if (rc != 0)
        return rc;
    if (rdma_connect(wire->id, &parameters) != 0)
        return failed(errno, "rdma_connect", why);
    return welcome_await(wire, welcome, limit, why);
}

int witness_wire_open(struct witness_wire **out, const struct sockaddr *address, const struct witness_hello *hello,
                      struct witness_welcome *welcome, const struct witness_limit *limit, char *why)
{
    struct witness_wire *wire = calloc(1, sizeof(*wire));
    int rc;

    *out = NULL;
    if (wire == NULL)
        return failed(ENOMEM, "no memory", why);
    rc = wire_connect(wire, address, hello, welcome, limit, why);
    if (rc != 0)
        witness_wire_close(wire);
    else
        *out = wire;
    return rc;
}

void witness_wire_close(struct witness_wire *wire)
{
    if (wire == NULL)
        return;
    if (wire->id != NULL && wire->id->qp != NULL) {
        rdma_disconnect(wire->id);
        rdma_destroy_qp(wire->id);
    }
    if (wire->mr != NULL)
        ibv_dereg_mr(wire->mr);
    if (wire->cq != NULL)
        ibv_destroy_cq(wire->cq);
    if (wire->id != NULL)
        rdma_destroy_id(wire->id);
    if (wire->events != NULL)
        rdma_destroy_event_channel(wire->events);
    free(wire->messages);
    free(wire);
}

/* True: the other end has left. */
static bool has_left(struct witness_wire *wire)
{
    struct rdma_cm_event *event;
    bool left = false;

    while (rdma_get_cm_event(wire->events, &event) == 0) { /* does not block */
        left = left || event->event == RDMA_CM_EVENT_DISCONNECTED || event->event == RDMA_CM_EVENT_DEVICE_REMOVAL;
        rdma_ack_cm_event(event);
    }
    return left;
}

/* Waits until the request `wr_id` is complete; those posted before it in its queue are then, too. */
static int complete(struct witness_wire *wire, uint64_t wr_id, uint32_t *bytes, const struct witness_limit *limit,
                    char *why)
{
    struct ibv_wc completion;

    for (;;) {
        int count = ibv_poll_cq(wire->cq, 1, &completion), rc;

        if (count < 0 || (count > 0 && completion.status != IBV_WC_SUCCESS)) {
            snprintf(why, WITNESS_WHY_BYTES, "the connection broke: %s",
                     count < 0 ? "its completions cannot be read" : ibv_wc_status_str(completion.status));
            return -ECONNRESET;
        }
        if (count > 0 && completion.wr_id == wr_id) {
            *bytes = completion.byte_len;
            return 0;
        }
        if (count > 0)
            continue;
        if (has_left(wire)) {
            snprintf(why, WITNESS_WHY_BYTES, "it has left");
            return -ECONNRESET;
        }
        rc = witness_limit_check(limit, why);
        if (rc != 0)
            return rc;
        clock_sleep_ns(PAUSE_NS);
    }
}

static struct ibv_sge part_of(const struct witness_wire *wire, const void *at, size_t bytes)
{
    return (struct ibv_sge){ .addr = (uintptr_t)at, .length = (uint32_t)bytes, .lkey = wire->mr->lkey };
}

static int posted(int error, char *why)
{
    return error == 0 ? 0 : failed(error, "the device takes no request", why);
}

int witness_wire_exchange(struct witness_wire *wire, const struct witness_request *request,
                          struct witness_answer *answer, size_t *answer_bytes, const struct witness_limit *limit,
                          char *why)
{
    struct messages *messages = wire->messages;
    struct ibv_sge out = part_of(wire, &messages->request, sizeof(messages->request));
    struct ibv_sge in = part_of(wire, &messages->answer, sizeof(messages->answer));
    struct ibv_recv_wr receive = { .wr_id = HEARD, .sg_list = &in, .num_sge = 1 }, *bad_receive;
    struct ibv_send_wr send = { .wr_id = SENT, .sg_list = &out, .num_sge = 1, .opcode = IBV_WR_SEND,
                                .send_flags = IBV_SEND_SIGNALED }, *bad_send;
    uint32_t bytes = 0;
    int rc;

    messages->request = *request;
    rc = posted(ibv_post_recv(wire->id->qp, &receive, &bad_receive), why);
    if (rc == 0)
        rc = posted(ibv_post_send(wire->id->qp, &send, &bad_send), why);
    if (rc == 0)
        rc = complete(wire, HEARD, &bytes, limit, why);
    if (rc != 0)
        return rc;
    *answer = messages->answer;
    *answer_bytes = bytes;
    return 0;
}

int witness_wire_compare_swap(struct witness_wire *wire, uint64_t address, uint32_t rkey, uint64_t compare,
                              uint64_t swap, uint64_t *found, const struct witness_limit *limit, char *why)
{
    struct ibv_sge part = part_of(wire, &wire->messages->found, sizeof(wire->messages->found));
    struct ibv_send_wr work = { .wr_id = SWAPPED, .sg_list = &part, .num_sge = 1, .opcode = IBV_WR_ATOMIC_CMP_AND_SWP,
                                .send_flags = IBV_SEND_SIGNALED,
                                .wr.atomic = { .remote_addr = address, .compare_add = compare, .swap = swap,
                                               .rkey = rkey } }, *bad;
    uint32_t bytes;
    int rc = posted(ibv_post_send(wire->id->qp, &work, &bad), why);

    if (rc == 0)
        rc = complete(wire, SWAPPED, &bytes, limit, why);
    if (rc == 0)
        *found = wire->messages->found;
    return rc;
}
