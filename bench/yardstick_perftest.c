/* The RDMA community's own yardsticks, ib_write_lat and ib_write_bw, run by us; perftest_text.c reads their words. */
#include "bench/channel_bench.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "base/report.h"
#include "bench/child.h"

#define ITERATIONS "1000"
#define LISTEN_WAIT_NS (500 * NS_PER_MS) /* they say nowhere that they listen; twice as long before each further try */
#define TRIES 4
#define RUN_LIMIT_NS (30 * NS_PER_S)
#define END_WAIT_NS (2 * NS_PER_S) /* of ours, when the other end's has ended */
#define TEXT_BYTES 8192

static const char *program_of(bool latency)
{
    return latency ? "ib_write_lat" : "ib_write_bw";
}

/* Until it ends; killed when it takes too long, or the other end is gone or has ended its own. As child_end. */
static int collect(struct bench_end *end, struct child *child)
{
    uint64_t until_ns = clock_now_ns() + RUN_LIMIT_NS;
    bool other_done = end->is_leader;
    int result = 0;

    while (result == 0 && child_listen(child)) {
        char byte;

        if (!other_done && recv(end->socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 1) {
            other_done = true;
            until_ns = clock_now_ns() + END_WAIT_NS;
        }
        result = clock_now_ns() >= until_ns ? -ETIMEDOUT : bench_wait_beat(&end->wait, clock_now_ns());
    }
    return child_end(child, result);
}

static int run(struct bench_end *end, bool latency, uint32_t bytes, bool is_server, char *text)
{
    char port[8], size[16];
    /* -R: through rdma_cm, so that the address chooses the device; -F: no complaints about CPU frequencies */
    char *const argv[] = { (char *)program_of(latency), "-R", "-F", "-p", port, "-s", size, "-n", ITERATIONS,
                           is_server ? NULL : (char *)end->options->host, NULL };
    struct child child;
    int result;

    snprintf(port, sizeof(port), "%u", end->options->port + 3);
    snprintf(size, sizeof(size), "%u", bytes);
    result = child_start(&child, argv, true, text, TEXT_BYTES);
    if (result == 0)
        result = collect(end, &child);
    if (result == -ENOENT)
        report_warning("%s is not installed here; the package perftest has it", program_of(latency));
    if (result > 0) {
        report_warning("%s ended with status %d: %s", program_of(latency), result, text);
        return -EAGAIN;
    }
    return result;
}

/* The server may not listen yet. */
static int run_client(struct bench_end *end, bool latency, uint32_t bytes, char *text)
{
    int result = -EAGAIN;

    for (unsigned i = 0; result == -EAGAIN && i < TRIES; i++) {
        clock_sleep_ns(LISTEN_WAIT_NS << i);
        result = run(end, latency, bytes, false, text);
    }
    return result == -EAGAIN ? -ENOENT : result;
}

int yardstick_perftest(struct bench_end *end, bool latency, uint32_t bytes, double *value)
{
    const struct order order = { .kind = ORDER_PERFTEST, .flags = latency ? ORDER_LATENCY : 0, .bytes = bytes };
    char text[TEXT_BYTES];
    int result = bench_order(end, &order), ours;

    if (result != 0)
        return result;
    ours = run_client(end, latency, bytes, text);
    if (send(end->socket, "", 1, MSG_NOSIGNAL) != 1 && (ours == 0 || ours == -ENOENT)) /* ours has ended */
        ours = -EPIPE;
    result = bench_answer(end, ours == -ENOENT ? 0 : ours);
    if (result == 0 && ours == 0 && perftest_parse(text, latency, bytes, value) != 0) {
        report_warning("%s says nothing that can be read: %s", program_of(latency), text);
        ours = -ENOENT;
    }
    return result != 0 ? result : ours;
}

int yardstick_perftest_peer(struct bench_end *end, const struct order *order, struct answer *answer)
{
    char text[TEXT_BYTES], byte;
    int result = run(end, (order->flags & ORDER_LATENCY) != 0, order->bytes, true, text);

    (void)answer;
    if (recv(end->socket, &byte, 1, MSG_WAITALL) != 1)
        return -EPIPE;
    return result == -ETIMEDOUT || result == -EAGAIN ? -ENOENT : result;
}
