/*
 * Records through our channel: the loops of the sender (leader) and of the receiver (peer). One thread at each end does
 * everything, committing, polling and heartbeats. LINK_RING uses the ring's own functions, without a channel around.
 */
#include "bench/channel_bench.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/report.h"

#define RECORDS_PER_LOOK 64 /* at the clock */
/* Where an ack comes with the commit a poll only dates the backlog, with another look at the clock. */
#define RECORDS_PER_POLL(end) (bench_shares_memory((end)->options) ? RECORDS_PER_LOOK : 8u)
#define WARM_UP_PAYLOAD_BYTES 4056u /* 4 KiB frames */

/* ---- one interface for a channel and a bare ring ---- */

static inline int end_reserve(struct bench_end *end, uint16_t kind, size_t bytes, void **payload)
{
    if (end->channel != NULL)
        return channel_reserve(end->channel, kind, 0, bytes, payload);
    return send_ring_open(&end->shared->send, kind, 0, bytes, payload) ?
               0 :
               send_ring_reserve(&end->shared->send, kind, 0, bytes, payload);
}

static inline uint64_t end_committed(const struct bench_end *end)
{
    return end->channel != NULL ? channel_committed_lsn(end->channel) : end->shared->send.next_lsn - 1;
}

static inline uint64_t end_commit(struct bench_end *end)
{
    if (end->channel != NULL)
        return channel_commit(end->channel);
    return send_ring_commit_short(&end->shared->send) ? end_committed(end) : send_ring_commit(&end->shared->send);
}

static inline int end_poll(struct bench_end *end)
{
    return end->channel != NULL ? channel_poll(end->channel) : 0;
}

static inline uint64_t end_acked(const struct bench_end *end)
{
    return end->channel != NULL ? channel_acked_lsn(end->channel) : end_committed(end);
}

static inline uint64_t end_consumed(const struct bench_end *end)
{
    /* acquire: as channel_consumed_lsn */
    return end->channel != NULL ? channel_consumed_lsn(end->channel) :
                                  atomic_load_explicit(&end->shared->credit.lsn, memory_order_acquire);
}

/* What throughput counts as done. */
static inline uint64_t end_settled(const struct bench_end *end)
{
    return bench_shares_memory(end->options) ? end_consumed(end) : end_acked(end);
}

/* With ORDER_STAMP: what the receiver has stamped, so that the next record finds it waiting. */
static inline uint64_t end_stamped(const struct bench_end *end)
{
    return bench_shares_memory(end->options) ? end_consumed(end) :
                                               atomic_load_explicit(&end->shared->back, memory_order_acquire);
}

static inline int end_next(struct bench_end *end, struct channel_record *record)
{
    if (end->channel != NULL)
        return channel_next(end->channel, record);
    /* What is not whole is not there yet. */
    return receive_ring_look(&end->receive, UINT64_MAX, record) == FRAME_COMPLETE ? 0 : -EAGAIN;
}

static inline void end_consume(struct bench_end *end)
{
    if (end->channel != NULL)
        channel_consume(end->channel);
    else
        receive_ring_consume(&end->receive);
}

/* ---- joining ---- */

#define SHM_ADDRESS_BYTES 300

/* "shm:" gets a name that nobody else has. */
static void shm_address(const struct bench_end *end, char address[SHM_ADDRESS_BYTES])
{
    const char *given = end->options->address;

    if (strcmp(given, "shm:") == 0)
        snprintf(address, SHM_ADDRESS_BYTES, "shm:ftbench-%ld", (long)(end->is_leader ? getpid() : getppid()));
    else
        snprintf(address, SHM_ADDRESS_BYTES, "%s", given);
}

int channel_end_join(struct bench_end *end)
{
    const struct bench_options *options = end->options;
    char address[SHM_ADDRESS_BYTES];
    struct channel_options channel = { .address = options->address, .ring_bytes = end->ring_bytes,
                                       .join_timeout_ns = options->join_ns,
                                       .hello = { .vm = "ftbench", .generation = 1 } };
    int result;

    if (options->link == LINK_RING) {
        struct bench_shared *shared = end->shared;
        const uint64_t key = options->seed | 1;

        if (end->is_leader)
            return 0; /* the peer does it: it answers before the first record */
        send_ring_init(&shared->send, shared->ring, end->ring_bytes, key, &shared->credit);
        receive_ring_init(&end->receive, shared->ring, end->ring_bytes, key, &shared->credit);
        return 0;
    }
    if (options->link == LINK_SHM) {
        shm_address(end, address);
        channel.address = address;
    }
    result = end->is_leader ? channel_open_sender(&end->channel, &channel) :
                              channel_open_receiver(&end->channel, &channel);
    end->wait.channel = end->channel;
    return result;
}

void channel_end_leave(struct bench_end *end)
{
    channel_close(end->channel);
    end->channel = end->wait.channel = NULL;
}

/* ---- sender ---- */

static int reserve_patiently(struct bench_end *end, uint16_t kind, size_t bytes, void **payload)
{
    int result;

    while ((result = end_reserve(end, kind, bytes, payload)) == -EAGAIN) {
        result = end_poll(end);
        if (result == 0)
            result = bench_wait(&end->wait);
        if (result != 0)
            return result;
    }
    bench_wait_end(&end->wait);
    return result;
}

static int wait_until(struct bench_end *end, uint64_t (*reached)(const struct bench_end *), uint64_t lsn)
{
    int result = 0;

    while (reached(end) < lsn && result == 0) {
        result = end_poll(end);
        if (result == 0)
            result = bench_wait(&end->wait);
    }
    bench_wait_end(&end->wait);
    return result;
}

/* The record at which the receiver stops; then all of them are over there. */
static int commit_end(struct bench_end *end)
{
    void *payload;
    int result = reserve_patiently(end, RECORD_END, sizeof(uint64_t), &payload);

    if (result != 0)
        return result;
    memset(payload, 0, sizeof(uint64_t));
    return wait_until(end, end_acked, end_commit(end));
}

/* One lap with long records, so that both ends have touched every page of the ring. */
static int warm_up(struct bench_end *end)
{
    int result = 0;

    for (uint64_t bytes = 0; result == 0 && bytes < end->ring_bytes; bytes += WARM_UP_PAYLOAD_BYTES) {
        void *payload;

        result = reserve_patiently(end, RECORD_DATA, WARM_UP_PAYLOAD_BYTES, &payload);
        if (result == 0) {
            /* A stamp far in the future is none: see stamp(). */
            memset(payload, 0xff, WARM_UP_PAYLOAD_BYTES);
            end_commit(end);
        }
    }
    return result != 0 ? result : wait_until(end, end_settled, end_committed(end));
}

int channel_end_latency(struct bench_end *end, uint32_t bytes, uint32_t flags, uint64_t samples, uint64_t limit_ns,
                        struct histogram *acked_ns, struct histogram *told_ns)
{
    const struct order order = { .kind = ORDER_CHANNEL_RECEIVE, .flags = flags, .bytes = bytes };
    uint32_t payload_bytes = bench_payload_bytes(bytes);
    bool told = (flags & ORDER_TELL) != 0, stamped = (flags & ORDER_STAMP) != 0;
    uint64_t begin_ns;
    int result;

    if (end->shared != NULL)
        atomic_store(&end->shared->back, 0);
    result = bench_order(end, &order);
    if (result != 0)
        return result;
    result = warm_up(end);
    begin_ns = clock_now_ns();
    for (uint64_t i = 0; result == 0 && i < samples; i++) {
        uint64_t committed_ns, lsn, now_ns;
        void *payload;

        result = reserve_patiently(end, RECORD_DATA, payload_bytes, &payload);
        if (result != 0)
            break;
        memcpy(payload, end->copy, payload_bytes);
        committed_ns = clock_now_ns();
        memcpy(payload, &committed_ns, sizeof(committed_ns));
        lsn = end_commit(end);
        result = wait_until(end, end_acked, lsn);
        now_ns = clock_now_ns();
        if (result == 0)
            histogram_record(acked_ns, now_ns - committed_ns);
        if (result == 0 && told) {
            result = wait_until(end, end_consumed, lsn);
            now_ns = clock_now_ns();
            if (result == 0)
                histogram_record(told_ns, now_ns - committed_ns);
        }
        if (result == 0 && stamped)
            result = wait_until(end, end_stamped, lsn);
        if (result == 0)
            result = bench_wait_beat(&end->wait, now_ns);
        if (now_ns - begin_ns > limit_ns)
            break;
    }
    if (result == 0)
        result = commit_end(end);
    return bench_answer(end, result);
}

int channel_end_rate(struct bench_end *end, uint32_t bytes, uint32_t window, uint64_t run_ns, struct bench_rate *rate)
{
    const struct order order = { .kind = ORDER_CHANNEL_RECEIVE, .flags = ORDER_COPY, .bytes = bytes };
    uint32_t payload_bytes = bench_payload_bytes(bytes), poll_each = RECORDS_PER_POLL(end);
    struct channel_statistics before = { 0 }, after = { 0 };
    uint64_t begin_ns, now_ns, committed, settled, first;
    int result = bench_order(end, &order);

    if (result != 0)
        return result;
    result = warm_up(end);
    if (end->channel != NULL)
        channel_get_statistics(end->channel, &before);
    committed = settled = first = end_committed(end);
    begin_ns = now_ns = clock_now_ns();
    while (result == 0 && now_ns - begin_ns < run_ns) {
        for (unsigned i = 0; result == 0 && i < RECORDS_PER_LOOK; i++) {
            void *payload;

            while (window != 0 && committed - settled >= window && result == 0) {
                result = end_poll(end);
                settled = end_settled(end);
                if (committed - settled >= window && result == 0)
                    result = bench_wait(&end->wait);
                else
                    bench_wait_end(&end->wait);
            }
            if (result == 0)
                result = reserve_patiently(end, RECORD_DATA, payload_bytes, &payload);
            if (result != 0)
                break;
            memcpy(payload, end->copy, payload_bytes);
            committed = end_commit(end);
            if (committed % poll_each == 0)
                result = end_poll(end);
        }
        now_ns = clock_now_ns();
        if (result == 0)
            result = bench_wait_beat(&end->wait, now_ns);
    }
    if (result == 0)
        result = wait_until(end, end_settled, committed);
    rate->elapsed_ns = clock_now_ns() - begin_ns;
    rate->records = committed - first;
    if (end->channel != NULL) {
        channel_get_statistics(end->channel, &after);
        rate->writes = after.writes - before.writes;
    }
    rate->bytes = rate->records * bytes;
    if (result == 0)
        result = commit_end(end);
    return bench_answer(end, result);
}

/* ---- receiver ---- */

static inline void stamp(const struct channel_record *record, struct histogram *seen_ns)
{
    uint64_t now_ns = clock_now_ns(), committed_ns;

    memcpy(&committed_ns, record->payload, sizeof(committed_ns));
    if (committed_ns <= now_ns)
        histogram_record(seen_ns, now_ns - committed_ns);
}

int channel_end_receive(struct bench_end *end, const struct order *order, struct answer *answer)
{
    struct channel_record record;

    for (;;) {
        int result = end_next(end, &record);

        if (result == -EAGAIN) {
            result = bench_shares_memory(end->options) ? 0 : end_poll(end); /* some links take in what came there */
            if (result == 0)
                result = bench_wait(&end->wait);
            if (result != 0)
                return result;
            continue;
        }
        if (result != 0)
            return result;
        bench_wait_end(&end->wait);
        if (record.kind == RECORD_END)
            break;
        if (record.bytes < sizeof(uint64_t)) /* room for a stamp */
            return -EPROTO;
        if ((order->flags & ORDER_STAMP) != 0) {
            stamp(&record, &answer->seen_ns);
            atomic_store_explicit(&end->shared->back, record.lsn, memory_order_release);
        }
        if ((order->flags & ORDER_COPY) != 0) {
            memcpy(end->copy, record.payload, record.bytes);
            answer->sum += end->copy[record.lsn % record.bytes];
        }
        end_consume(end);
        if ((order->flags & ORDER_TELL) != 0)
            channel_heartbeat(end->channel);
        if (++answer->count % RECORDS_PER_LOOK == 0 &&
            (result = bench_wait_beat(&end->wait, clock_now_ns())) != 0)
            return result;
    }
    end_consume(end);
    if (end->channel != NULL)
        channel_heartbeat(end->channel); /* so that the sender has all its credits */
    return 0;
}
