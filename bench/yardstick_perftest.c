/* The RDMA community's own yardsticks, ib_write_lat and ib_write_bw, run by us; perftest_text.c reads their words. */
#include "bench/channel_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/report.h"

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

static pid_t spawn(const struct bench_options *options, bool latency, uint32_t bytes, bool is_server, int output)
{
    pid_t child = fork();
    char port[8], size[16];
    const char *host = is_server ? NULL : options->host;

    if (child != 0)
        return child;
    snprintf(port, sizeof(port), "%u", options->port + 3);
    snprintf(size, sizeof(size), "%u", bytes);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    /* -R: through rdma_cm, so that the address chooses the device; -F: no complaints about CPU frequencies */
    execlp(program_of(latency), program_of(latency), "-R", "-F", "-p", port, "-s", size, "-n", ITERATIONS, host, NULL);
    _exit(errno == ENOENT ? 127 : 126);
}

/* Reads what it says until it ends; kills it when it takes too long, or the other end is gone or has ended its own.
 * Its exit status or -errno. */
static int collect(struct bench_end *end, pid_t child, int output, char *text)
{
    uint64_t until_ns = clock_now_ns() + RUN_LIMIT_NS;
    bool other_done = end->is_leader;
    size_t used = 0;
    int status = 0, result = 0;

    for (;;) {
        struct pollfd ready = { .fd = output, .events = POLLIN };
        char byte;
        ssize_t got;

        if (!other_done && recv(end->socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 1) {
            other_done = true;
            until_ns = clock_now_ns() + END_WAIT_NS;
        }
        if (clock_now_ns() >= until_ns)
            result = -ETIMEDOUT;
        if (result == 0)
            result = bench_wait_beat(&end->wait, clock_now_ns());
        if (result != 0)
            break;
        if (poll(&ready, 1, 20) <= 0)
            continue;
        got = read(output, text + used, TEXT_BYTES - 1 - used);
        if (got <= 0)
            break;
        used += (size_t)got;
        if (used == TEXT_BYTES - 1)
            result = -EMSGSIZE; /* they never say so much */
    }
    text[used] = '\0';
    if (result != 0)
        kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return result != 0 ? result : WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

static int run(struct bench_end *end, bool latency, uint32_t bytes, bool is_server, char *text)
{
    int pipes[2], result;
    pid_t child;

    if (pipe2(pipes, O_CLOEXEC) != 0)
        return -errno;
    child = spawn(end->options, latency, bytes, is_server, pipes[1]);
    close(pipes[1]);
    result = child < 0 ? -errno : collect(end, child, pipes[0], text);
    close(pipes[0]);
    if (result == 127) {
        report_warning("%s is not installed here; the package perftest has it", program_of(latency));
        return -ENOENT;
    }
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
    text[0] = '\0';
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
