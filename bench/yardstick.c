/* The smallest possible loops: a cache line, an rte_ring and a TCP socket between the same two ends. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define ALLOW_EXPERIMENTAL_API /* rte_ring_peek_zc.h; inline functions only */
#include <rte_ring.h>
#include <rte_ring_peek_zc.h>
#undef NS_PER_S /* DPDK's is ours, written another way */

#include "bench/channel_bench.h"

#define MOVES_PER_LOOK 64 /* at the clock */
#define WARM_UP_TRIPS 100
#define LINE_END UINT64_MAX
#define BURST_MAX 64

enum { MESSAGE_MORE = 0, MESSAGE_LAST = 1 }; /* the first byte of an element or a message */

/* ---- a cache line ---- */

int yardstick_line(struct bench_end *end, uint64_t samples, uint64_t limit_ns, struct histogram *one_way_ns)
{
    const struct order order = { .kind = ORDER_LINE_ECHO };
    struct bench_shared *shared = end->shared;
    uint64_t begin_ns, before_ns, now_ns;
    int result;

    atomic_store(&shared->there, 0);
    atomic_store(&shared->back, 0);
    result = bench_order(end, &order);
    if (result != 0)
        return result;
    begin_ns = before_ns = clock_now_ns();
    for (uint64_t i = 1; result == 0 && i <= WARM_UP_TRIPS + samples; i++) {
        /* release and acquire: as a message would need. Nothing else is in the line, and nothing is read. */
        atomic_store_explicit(&shared->there, i, memory_order_release);
        while (atomic_load_explicit(&shared->back, memory_order_acquire) != i && result == 0)
            result = bench_wait(&end->wait);
        bench_wait_end(&end->wait);
        now_ns = clock_now_ns();
        if (i > WARM_UP_TRIPS)
            histogram_record(one_way_ns, (now_ns - before_ns) / 2);
        else
            begin_ns = now_ns;
        before_ns = now_ns;
        if (now_ns - begin_ns > limit_ns)
            break;
    }
    atomic_store_explicit(&shared->there, LINE_END, memory_order_release);
    return bench_answer(end, result);
}

int yardstick_line_peer(struct bench_end *end, struct answer *answer)
{
    struct bench_shared *shared = end->shared;
    uint64_t last = 0;

    for (;;) {
        uint64_t value = atomic_load_explicit(&shared->there, memory_order_acquire);

        if (value == LINE_END)
            return 0;
        if (value == last) {
            int result = bench_wait(&end->wait);

            if (result != 0)
                return result;
            continue;
        }
        bench_wait_end(&end->wait);
        last = value;
        atomic_store_explicit(&shared->back, value, memory_order_release);
        answer->count++;
    }
}

/* ---- rte_ring ---- */

uint64_t yardstick_rte_ring_bytes(uint64_t ring_bytes)
{
    return ring_bytes + 4096; /* its head takes a few cache lines */
}

/* Room for n elements, 0 or n of them: copies each from or to a buffer of its own line, as ours does. */
static void copy_elements(const struct rte_ring_zc_data *place, unsigned n, uint32_t bytes, uint8_t *buffer, bool in)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t *element = i < place->n1 ? (uint8_t *)place->ptr1 + (size_t)i * bytes :
                                           (uint8_t *)place->ptr2 + (size_t)(i - place->n1) * bytes;

        if (in)
            memcpy(element, buffer, bytes);
        else
            memcpy(buffer, element, bytes);
    }
}

/* 0: n elements are in the ring; the first byte of the first tells what they are. */
static int enqueue(struct bench_end *end, struct rte_ring *ring, uint32_t bytes, unsigned n, uint8_t what)
{
    struct rte_ring_zc_data place;

    while (rte_ring_enqueue_zc_bulk_elem_start(ring, bytes, n, &place, NULL) == 0) {
        int result = bench_wait(&end->wait);

        if (result != 0)
            return result;
    }
    bench_wait_end(&end->wait);
    end->copy[0] = what;
    copy_elements(&place, n, bytes, end->copy, true);
    rte_ring_enqueue_zc_elem_finish(ring, n);
    return 0;
}

int yardstick_rte_ring(struct bench_end *end, uint32_t bytes, uint32_t burst, uint64_t run_ns, struct bench_rate *rate)
{
    const struct order order = { .kind = ORDER_RTE_RING, .bytes = bytes, .burst = burst };
    struct rte_ring *ring = end->shared->rte_ring;
    uint32_t count = 1;
    uint64_t begin_ns, now_ns, moved = 0, warm;
    int result;

    while ((uint64_t)count * 2 * bytes <= end->ring_bytes)
        count *= 2;
    warm = count;
    result = rte_ring_init(ring, "yardstick", count, RING_F_SP_ENQ | RING_F_SC_DEQ);
    if (result == 0)
        result = bench_order(end, &order);
    if (result != 0)
        return result;
    for (uint64_t i = 0; result == 0 && i < warm; i += burst)
        result = enqueue(end, ring, bytes, burst, MESSAGE_MORE);
    begin_ns = now_ns = clock_now_ns();
    while (result == 0 && now_ns - begin_ns < run_ns) {
        for (unsigned i = 0; result == 0 && i < MOVES_PER_LOOK; i += burst, moved += burst)
            result = enqueue(end, ring, bytes, burst, MESSAGE_MORE);
        now_ns = clock_now_ns();
    }
    while (result == 0 && rte_ring_count(ring) > 0)
        result = bench_wait(&end->wait);
    bench_wait_end(&end->wait);
    *rate = (struct bench_rate){ .records = moved, .bytes = moved * bytes, .elapsed_ns = clock_now_ns() - begin_ns };
    if (result == 0)
        result = enqueue(end, ring, bytes, 1, MESSAGE_LAST);
    return bench_answer(end, result);
}

int yardstick_rte_ring_peer(struct bench_end *end, const struct order *order, struct answer *answer)
{
    struct rte_ring *ring = end->shared->rte_ring;
    uint8_t *buffer = end->copy;

    if (order->burst == 0 || order->burst > BURST_MAX || order->bytes == 0 || order->bytes > BENCH_CHUNK_BYTES)
        return -EPROTO;
    for (;;) {
        struct rte_ring_zc_data place;
        unsigned n = rte_ring_dequeue_zc_burst_elem_start(ring, order->bytes, order->burst, &place, NULL);

        if (n == 0) {
            int result = bench_wait(&end->wait);

            if (result != 0)
                return result;
            continue;
        }
        bench_wait_end(&end->wait);
        copy_elements(&place, n, order->bytes, buffer, false);
        rte_ring_dequeue_zc_elem_finish(ring, n);
        if (buffer[0] == MESSAGE_LAST)
            return 0;
        answer->count += n;
        answer->sum += buffer[answer->count % order->bytes];
    }
}

/* ---- a TCP socket ---- */

/* All of it, without sleeping in the kernel: as the channel's ends look at their rings. */
static int move_all(struct bench_end *end, bool out, uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t moved = out ? send(end->socket, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) :
                              recv(end->socket, data, bytes, MSG_DONTWAIT);

        if (moved < 0 && (errno == EAGAIN || errno == EINTR)) {
            int result = bench_wait(&end->wait);

            if (result != 0)
                return result;
            continue;
        }
        if (moved <= 0)
            return -EPIPE;
        bench_wait_end(&end->wait);
        data += moved;
        bytes -= (size_t)moved;
    }
    return 0;
}

int yardstick_socket(struct bench_end *end, uint32_t bytes, uint64_t samples, uint64_t limit_ns,
                     struct histogram *one_way_ns)
{
    const struct order order = { .kind = ORDER_SOCKET_ECHO, .bytes = bytes };
    uint64_t begin_ns = clock_now_ns(), before_ns = begin_ns;
    bool last = false;
    int result = bench_order(end, &order);

    if (result != 0)
        return result;
    for (uint64_t i = 0; result == 0 && !last; i++) {
        uint64_t now_ns;

        last = i + 1 >= WARM_UP_TRIPS + samples || before_ns - begin_ns > limit_ns;
        end->copy[0] = last ? MESSAGE_LAST : MESSAGE_MORE;
        result = move_all(end, true, end->copy, bytes);
        if (result == 0)
            result = move_all(end, false, end->copy, bytes);
        now_ns = clock_now_ns();
        if (result == 0 && i >= WARM_UP_TRIPS)
            histogram_record(one_way_ns, (now_ns - before_ns) / 2);
        else
            begin_ns = now_ns;
        before_ns = now_ns;
    }
    return bench_answer(end, result);
}

int yardstick_socket_peer(struct bench_end *end, const struct order *order, struct answer *answer)
{
    int result = order->bytes > 0 && order->bytes <= BENCH_CHUNK_BYTES ? 0 : -EPROTO;
    bool last = false;

    while (result == 0 && !last) {
        result = move_all(end, false, end->copy, order->bytes);
        last = end->copy[0] == MESSAGE_LAST;
        if (result == 0)
            result = move_all(end, true, end->copy, order->bytes);
        answer->count++;
    }
    return result;
}

int yardstick_stream(struct bench_end *end, uint32_t bytes, uint64_t run_ns, struct bench_rate *rate)
{
    const struct order order = { .kind = ORDER_SOCKET_DRAIN };
    uint64_t begin_ns, chunks = 0;
    bool last = false;
    int result = bench_order(end, &order);

    if (result != 0)
        return result;
    begin_ns = clock_now_ns();
    for (; result == 0 && !last; chunks++) {
        last = clock_now_ns() - begin_ns >= run_ns;
        end->copy[0] = last ? MESSAGE_LAST : MESSAGE_MORE;
        result = move_all(end, true, end->copy, BENCH_CHUNK_BYTES);
    }
    result = bench_answer(end, result); /* which comes when all has arrived */
    *rate = (struct bench_rate){ .records = chunks * BENCH_CHUNK_BYTES / bytes, .bytes = chunks * BENCH_CHUNK_BYTES,
                                 .writes = chunks, .elapsed_ns = clock_now_ns() - begin_ns };
    return result;
}

int yardstick_stream_peer(struct bench_end *end, struct answer *answer)
{
    int result = 0;
    bool last = false;

    while (result == 0 && !last) {
        result = move_all(end, false, end->copy, BENCH_CHUNK_BYTES);
        last = end->copy[0] == MESSAGE_LAST;
        answer->count += BENCH_CHUNK_BYTES;
    }
    return result;
}
