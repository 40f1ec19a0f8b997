/*
 * ftbench counter: several connections count one redis key up, across a failure of its host, and at the end
 * nothing that was acknowledged may be missing. One thread, poll(2).
 */
#include "bench/counter.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/arguments.h"
#include "bench/counter_client.h"
#include "bench/stop.h"

#define EXIT_CONTRADICTION 1
#define EXIT_USAGE 2
#define EXIT_UNREACHABLE 3
#define TICK_MS 10 /* how late time-outs, marks and signals may be noticed */

static _Atomic uint64_t signal_mark_ns;

static void on_mark(int number)
{
    uint64_t none = 0;

    (void)number;
    atomic_compare_exchange_strong(&signal_mark_ns, &none, clock_now_ns());
}

static void install_signals(void)
{
    struct sigaction mark = { .sa_handler = on_mark, .sa_flags = SA_RESTART };

    stop_on_signals(0);
    sigaction(SIGUSR1, &mark, NULL);
}

/* ---- options ---- */

static const struct argument arguments[] = {
    ARGUMENT_SERVER(struct counter_options),
    { "connections", "N", "default 4",
      ARGUMENT_UNSIGNED(struct counter_options, connections, 1, COUNTER_CONNECTIONS_MAX) },
    { "pipeline", "N", "increments in flight on each connection, default 8",
      ARGUMENT_UNSIGNED(struct counter_options, pipeline, 1, COUNTER_PIPELINE_MAX) },
    { "key", "NAME", "default counter; nobody else may change it meanwhile",
      ARGUMENT_TEXT(struct counter_options, key) },
    { "mark-file", "FILE", "the failure's moment is when FILE appears or changes (or SIGUSR1 arrives)",
      ARGUMENT_TEXT(struct counter_options, mark_path) },
    { "progress", NULL, "a line each second", ARGUMENT_FLAG(struct counter_options, progress, true) },
    { 0 },
};

static const struct command_line command_line = {
    .workload = "counter",
    .usage = "usage: ftbench counter --host ADDRESS [OPTION...]\n\n"
             "Counts a redis key up over several connections and checks every acknowledged value.\n\n",
    .arguments = arguments,
    .exit_status = "0 nothing lost or duplicated, 1 something was, 2 usage, 3 service unreachable",
};

/* As arguments_read. */
static int parse_options(struct counter_options *options, int argc, char **argv)
{
    int result;

    *options = (struct counter_options){ .key = "counter", .port = 6379, .connections = 4, .pipeline = 8,
                                         .run_ns = 30 * NS_PER_S, .patience_ns = 60 * NS_PER_S };
    result = arguments_read(&command_line, argc, argv, options);
    return result == 0 && !argument_server(options->host, options->json_path, &options->json) ? -EINVAL : result;
}

/* ---- reading the value ---- */

/* Tries until the patience ends, or we are told to stop. Reports a failure. */
static int read_value(const struct counter_options *options, const char *when, int64_t *value)
{
    uint64_t deadline_ns = clock_now_ns() + options->patience_ns;
    bool stopped_before = stop_wanted != 0;
    char why[256] = "";
    int error;

    for (;;) {
        error = counter_read_value(options, value, why, sizeof(why));
        if (error != -EHOSTUNREACH || clock_now_ns() >= deadline_ns || (stop_wanted != 0 && !stopped_before))
            break;
        clock_sleep_ns(200 * NS_PER_MS);
    }
    if (error != 0)
        report_error("cannot read '%s' from %s:%u %s: %s", options->key, options->host, options->port, when, why);
    return error;
}

/* ---- the run ---- */

/* Changes when the mark file appears or is written. */
static struct timespec mark_file_time(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 ? status.st_mtim : (struct timespec){ 0 };
}

static void look_for_mark(struct counter_run *run, const struct timespec *before)
{
    uint64_t now_ns = clock_now_ns();

    if (run->mark_ns != 0)
        return;
    run->mark_ns = atomic_load(&signal_mark_ns);
    if (run->mark_ns == 0 && run->options->mark_path != NULL) {
        struct timespec now = mark_file_time(run->options->mark_path);

        if (now.tv_sec != 0 && (now.tv_sec != before->tv_sec || now.tv_nsec != before->tv_nsec))
            run->mark_ns = now_ns;
    }
    if (run->mark_ns != 0)
        report_info("mark at %.3f s", ((double)run->mark_ns - (double)run->begin_ns) / (double)NS_PER_S);
}

static void show_progress(const struct counter_run *run, uint64_t now_ns)
{
    static uint64_t shown, last_acked;
    uint64_t second = (now_ns - run->begin_ns) / NS_PER_S;

    if (second == shown)
        return;
    report_info("%4llu s: %8llu/s, %llu acknowledged, highest %lld, longest gap so far %.1f ms",
                (unsigned long long)second, (unsigned long long)((run->ledger.acked - last_acked) / (second - shown)),
                (unsigned long long)run->ledger.acked, (long long)run->ledger.max,
                (double)(run->gap.end_ns - run->gap.begin_ns) / (double)NS_PER_MS);
    shown = second;
    last_acked = run->ledger.acked;
}

static unsigned count_in_flight(const struct client *clients, unsigned count)
{
    unsigned in_flight = 0;

    for (unsigned i = 0; i < count; i++)
        in_flight += clients[i].in_flight;
    return in_flight;
}

static void run_clients(struct counter_run *run, struct client *clients)
{
    const struct counter_options *options = run->options;
    struct timespec mark_before = options->mark_path != NULL ? mark_file_time(options->mark_path)
                                                             : (struct timespec){ 0 };
    struct pollfd polls[COUNTER_CONNECTIONS_MAX];
    uint64_t drain_until_ns = 0;

    run->begin_ns = run->end_ns = clock_now_ns();
    for (;;) {
        uint64_t now_ns = clock_now_ns();

        if (drain_until_ns == 0 && (stop_wanted != 0 || now_ns - run->begin_ns >= options->run_ns))
            drain_until_ns = now_ns + options->patience_ns;
        if (drain_until_ns != 0 &&
            (now_ns >= drain_until_ns || count_in_flight(clients, options->connections) == 0))
            break;
        for (unsigned i = 0; i < options->connections; i++) {
            polls[i].events = client_prepare(&clients[i], now_ns, drain_until_ns != 0);
            polls[i].fd = clients[i].fd;
            polls[i].revents = 0;
        }
        if (poll(polls, options->connections, TICK_MS) < 0 && errno != EINTR)
            report_bug("poll: %s", strerror(errno));
        look_for_mark(run, &mark_before);
        for (unsigned i = 0; i < options->connections; i++)
            client_handle(&clients[i], polls[i].revents);
        if (options->progress)
            show_progress(run, clock_now_ns());
    }
    for (unsigned i = 0; i < options->connections; i++)
        client_finish(&clients[i], clock_now_ns());
}

static int count(const struct counter_options *options, const struct addrinfo *address, int64_t start)
{
    struct counter_run run = { .options = options };
    struct client *clients = calloc(options->connections, sizeof(*clients));
    struct verdict verdict;
    char *command = NULL;
    int bytes = redisFormatCommand(&command, "INCR %s", options->key);
    int status = EXIT_UNREACHABLE;
    int64_t final = 0;

    /* room for the run and a patient end */
    run.seconds = (unsigned)((options->run_ns + options->patience_ns) / NS_PER_S) + 2;
    run.acked_per_second = calloc(run.seconds, sizeof(*run.acked_per_second));
    if (clients == NULL || run.acked_per_second == NULL || bytes < 0 || ledger_init(&run.ledger, start) != 0) {
        report_error("no memory for %u connections", options->connections);
        goto done;
    }
    for (unsigned i = 0; i < options->connections; i++)
        if (client_init(&clients[i], i, &run, address, command, (size_t)bytes) != 0) {
            report_error("no memory for %u connections", options->connections);
            goto done;
        }
    run_clients(&run, clients);
    if (read_value(options, "at the end", &final) == 0) {
        verdict = ledger_judge(&run.ledger, final);
        counter_print(&run, &verdict);
        status = !verdict.clean ? EXIT_CONTRADICTION : run.ledger.acked > 0 ? 0 : EXIT_UNREACHABLE;
        if (status == EXIT_UNREACHABLE)
            report_error("the service acknowledged nothing");
    } else {
        counter_print(&run, NULL);
        if (run.ledger.duplicated > 0 || run.ledger.out_of_order > 0)
            status = EXIT_CONTRADICTION;
    }
done:
    for (unsigned i = 0; clients != NULL && i < options->connections; i++)
        client_fini(&clients[i]);
    ledger_fini(&run.ledger);
    free(run.acked_per_second);
    free(clients);
    free(command);
    return status;
}

int counter_main(int argc, char **argv)
{
    struct counter_options options;
    struct addrinfo *address = NULL;
    int64_t start = 0;
    int status = EXIT_UNREACHABLE;
    int parsed = parse_options(&options, argc, argv);

    if (parsed != 0)
        return parsed > 0 ? 0 : EXIT_USAGE;
    install_signals();
    if (counter_resolve(&options, &address) == 0 && read_value(&options, "at the start", &start) == 0)
        status = count(&options, address, start);
    if (address != NULL)
        freeaddrinfo(address);
    if (options.json != NULL)
        fclose(options.json);
    return status;
}
