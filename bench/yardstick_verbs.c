/*
 * Bare signalled RDMA writes, with nothing around them: what the device and the wire take, whatever we do. The peer
 * registers a buffer, says where it is, and stays away from it.
 */
#include "bench/channel_bench.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>

#include "base/report.h"

#define WRITE_BYTES_MAX (1u << 20)
#define WRITES_IN_FLIGHT 4   /* as the channel has */
#define INLINE_BYTES     192 /* likewise: VERBS_INLINE_BYTES */
#define WRITES_PER_LOOK  16  /* at the clock */
#define WARM_UP_WRITES   100

struct write_target {
    uint64_t address;
    uint32_t rkey;
    uint32_t bytes;
};

struct write_end {
    struct rdma_cm_id *id, *listener;
    struct ibv_mr *region;
    uint8_t *buffer;
    uint32_t inline_bytes;
};

static void write_end_close(struct write_end *end)
{
    if (end->id != NULL)
        rdma_disconnect(end->id);
    if (end->region != NULL)
        rdma_dereg_mr(end->region);
    if (end->id != NULL)
        rdma_destroy_ep(end->id);
    if (end->listener != NULL)
        rdma_destroy_ep(end->listener);
    free(end->buffer);
}

static int report_failed(const char *what)
{
    int result = errno != 0 ? -errno : -EIO;

    report_error("bare writes: %s: %s", what, strerror(-result));
    return result;
}

/* A synchronous id: connected to nobody yet, or listening. */
static int endpoint_open(const struct bench_options *options, bool listening, struct rdma_cm_id **id)
{
    struct ibv_qp_init_attr queue = { .qp_type = IBV_QPT_RC, .sq_sig_all = 0,
                                      .cap = { .max_send_wr = 2 * WRITES_IN_FLIGHT, .max_recv_wr = 1,
                                               .max_send_sge = 1, .max_recv_sge = 1,
                                               .max_inline_data = listening ? 0 : INLINE_BYTES } };
    struct rdma_addrinfo hints = { .ai_port_space = RDMA_PS_TCP, .ai_flags = listening ? RAI_PASSIVE : 0 }, *found;
    char port[8];
    int result;

    snprintf(port, sizeof(port), "%u", options->port + 2);
    errno = 0;
    if (rdma_getaddrinfo(options->host, port, &hints, &found) != 0)
        return report_failed("the address is not known to rdma_cm");
    errno = 0;
    result = rdma_create_ep(id, found, NULL, &queue);
    if (result != 0 && errno == EINVAL) { /* a device without inline */
        queue.cap.max_inline_data = 0;
        result = rdma_create_ep(id, found, NULL, &queue);
    }
    rdma_freeaddrinfo(found);
    return result != 0 ? report_failed("no queue pair") : 0;
}

static int buffer_open(struct write_end *end, bool remote)
{
    errno = 0;
    end->buffer = aligned_alloc(4096, WRITE_BYTES_MAX);
    if (end->buffer == NULL)
        return -ENOMEM;
    memset(end->buffer, 1, WRITE_BYTES_MAX);
    end->region = remote ? rdma_reg_write(end->id, end->buffer, WRITE_BYTES_MAX) :
                           rdma_reg_msgs(end->id, end->buffer, WRITE_BYTES_MAX);
    return end->region == NULL ? report_failed("cannot register memory") : 0;
}

/* ---- peer ---- */

static int wait_for_event(struct bench_end *end, struct rdma_event_channel *events)
{
    struct pollfd ready[2] = { { .fd = events->fd, .events = POLLIN },
                               { .fd = end->socket, .events = POLLIN | POLLRDHUP } }; /* a leader that gives up */

    if (poll(ready, 2, (int)(end->options->join_ns / NS_PER_MS)) <= 0)
        return -ETIMEDOUT;
    return ready[1].revents != 0 ? -ECONNABORTED : 0;
}

int yardstick_write_peer(struct bench_end *bench, struct answer *answer)
{
    struct write_end end = { 0 };
    struct write_target target = { .bytes = WRITE_BYTES_MAX };
    struct rdma_conn_param parameters = { .private_data = &target, .private_data_len = sizeof(target),
                                          .responder_resources = 1, .initiator_depth = 1, .retry_count = 6 };
    struct bench_wait *wait = &bench->wait;
    uint8_t done = 0;
    int result = endpoint_open(bench->options, true, &end.listener);

    (void)answer;
    if (result == 0 && rdma_listen(end.listener, 1) != 0)
        result = report_failed("cannot listen");
    /* The leader connects when it knows that we listen. */
    if (result == 0 && send(bench->socket, &done, 1, MSG_NOSIGNAL) != 1)
        result = -EPIPE;
    if (result == 0)
        result = wait_for_event(bench, end.listener->channel);
    if (result == 0 && rdma_get_request(end.listener, &end.id) != 0)
        result = report_failed("no request");
    if (result == 0)
        result = buffer_open(&end, true);
    if (result == 0) {
        target.address = (uintptr_t)end.buffer;
        target.rkey = end.region->rkey;
        if (rdma_accept(end.id, &parameters) != 0)
            result = report_failed("cannot accept");
    }
    /* The leader says when it is done. */
    while (result == 0 && recv(bench->socket, &done, 1, MSG_DONTWAIT) != 1) {
        clock_sleep_ns(NS_PER_MS);
        result = bench_wait_beat(wait, clock_now_ns());
    }
    write_end_close(&end);
    return result;
}

/* ---- leader ---- */

static int post(struct write_end *end, const struct write_target *target, uint32_t bytes)
{
    struct ibv_sge part = { .addr = (uintptr_t)end->buffer, .length = bytes, .lkey = end->region->lkey };
    struct ibv_send_wr write = { .sg_list = &part, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                 .send_flags = IBV_SEND_SIGNALED, .wr.rdma = { target->address, target->rkey } };
    struct ibv_send_wr *bad;

    if (bytes <= end->inline_bytes)
        write.send_flags |= IBV_SEND_INLINE;
    return ibv_post_send(end->id->qp, &write, &bad) != 0 ? -EIO : 0;
}

/* Reaps at least one completion. How many, or -errno. */
static int reap(struct bench_end *bench, struct write_end *end)
{
    struct ibv_wc completions[WRITES_IN_FLIGHT];

    for (;;) {
        int count = ibv_poll_cq(end->id->send_cq, WRITES_IN_FLIGHT, completions), result;

        for (int i = 0; i < count; i++)
            if (completions[i].status != IBV_WC_SUCCESS) {
                report_error("bare writes: one ended with '%s'", ibv_wc_status_str(completions[i].status));
                return -EIO;
            }
        if (count != 0) {
            bench_wait_end(&bench->wait);
            return count > 0 ? count : -EIO;
        }
        result = bench_wait(&bench->wait);
        if (result != 0)
            return result;
    }
}

static int write_connect(struct bench_end *bench, struct write_end *end, struct write_target *target)
{
    struct rdma_conn_param parameters = { .responder_resources = 1, .initiator_depth = 1, .retry_count = 6 };
    struct ibv_qp_attr attributes;
    struct ibv_qp_init_attr queue;
    uint8_t ready;
    int result;

    if (recv(bench->socket, &ready, 1, MSG_WAITALL) != 1 || ready != 0) /* anything else is an answer: it has failed */
        return -EPIPE;
    result = endpoint_open(bench->options, false, &end->id);
    if (result == 0)
        result = buffer_open(end, false);
    if (result != 0)
        return result;
    errno = 0;
    if (rdma_connect(end->id, &parameters) != 0)
        return report_failed("cannot connect");
    if (end->id->event == NULL || end->id->event->param.conn.private_data_len < sizeof(*target)) {
        report_error("bare writes: the other end did not say where to write");
        return -EPROTO;
    }
    memcpy(target, end->id->event->param.conn.private_data, sizeof(*target));
    if (ibv_query_qp(end->id->qp, &attributes, IBV_QP_CAP, &queue) == 0)
        end->inline_bytes = queue.cap.max_inline_data < INLINE_BYTES ? queue.cap.max_inline_data : INLINE_BYTES;
    return 0;
}

static int measure_latency(struct bench_end *bench, struct write_end *end, const struct write_target *target,
                           uint32_t bytes, uint64_t samples, uint64_t limit_ns, struct histogram *acked_ns)
{
    uint64_t begin_ns = clock_now_ns(), now_ns = begin_ns;
    int result = 0;

    for (uint64_t i = 0; result == 0 && i < WARM_UP_WRITES + samples; i++) {
        uint64_t posted_ns = clock_now_ns();

        result = post(end, target, bytes);
        if (result == 0)
            result = reap(bench, end);
        now_ns = clock_now_ns();
        if (i < WARM_UP_WRITES)
            begin_ns = now_ns;
        else if (result > 0)
            histogram_record(acked_ns, now_ns - posted_ns);
        if (now_ns - begin_ns > limit_ns)
            break;
        result = result > 0 ? bench_wait_beat(&bench->wait, now_ns) : result;
    }
    return result < 0 ? result : 0;
}

static int measure_rate(struct bench_end *bench, struct write_end *end, const struct write_target *target,
                        uint32_t bytes, uint64_t run_ns, struct bench_rate *rate)
{
    uint64_t begin_ns = clock_now_ns(), now_ns = begin_ns, posted = 0, completed = 0;
    int result = 0;

    while (result >= 0 && now_ns - begin_ns < run_ns) {
        for (unsigned i = 0; result >= 0 && i < WRITES_PER_LOOK; i++) {
            result = post(end, target, bytes);
            posted += result == 0;
            if (result == 0 && posted - completed == WRITES_IN_FLIGHT) {
                result = reap(bench, end);
                completed += result > 0 ? (uint64_t)result : 0;
            }
        }
        now_ns = clock_now_ns();
        if (result >= 0)
            result = bench_wait_beat(&bench->wait, now_ns);
    }
    while (result >= 0 && completed < posted) {
        result = reap(bench, end);
        completed += result > 0 ? (uint64_t)result : 0;
    }
    *rate = (struct bench_rate){ .records = completed, .bytes = completed * bytes, .writes = completed,
                                 .elapsed_ns = clock_now_ns() - begin_ns };
    return result < 0 ? result : 0;
}

int yardstick_write(struct bench_end *bench, uint32_t bytes, uint64_t samples, uint64_t limit_ns,
                    struct histogram *acked_ns, uint64_t run_ns, struct bench_rate *rate)
{
    const struct order order = { .kind = ORDER_BARE_WRITE, .bytes = bytes };
    struct write_end end = { 0 };
    struct write_target target = { 0 };
    uint8_t done = 1;
    int result = bytes <= WRITE_BYTES_MAX ? bench_order(bench, &order) : -EMSGSIZE;

    if (result != 0)
        return result;
    result = write_connect(bench, &end, &target);
    if (result == 0 && acked_ns != NULL)
        result = measure_latency(bench, &end, &target, bytes, samples, limit_ns, acked_ns);
    if (result == 0 && rate != NULL)
        result = measure_rate(bench, &end, &target, bytes, run_ns, rate);
    if (send(bench->socket, &done, 1, MSG_NOSIGNAL) != 1 && result == 0)
        result = -EPIPE;
    write_end_close(&end);
    return bench_answer(bench, result);
}
