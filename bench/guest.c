/*
 * ftbench guest: requests to a protected guest and to the same guest unprotected, in alternating rounds, so that what
 * drifts hits all alike; and where each request's time goes, by the counters of the two ftvmm. One thread, poll(2).
 */
#include "bench/guest.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/counter_client.h"
#include "bench/shuffle.h"
#include "bench/workloads.h"

#define EXIT_NOT_MEASURED 1
#define EXIT_USAGE 2
#define TICK_MS 10 /* how late a time-out may be noticed */
#define REDIS_PORT 6379
#define HOLD_GOAL 1.3        /* of the way from commit to ack */
#define ROUND_TRIP_GOAL 1.25 /* of the unprotected one, besides an ack */

const struct guest_step_name guest_steps[GUEST_STEPS] = {
    [STEP_INPUT_WAIT] = { "input_wait", "a frame waits for the guest to stop", "input_wait_seconds",
                          "input_wait_seconds" },
    [STEP_GUEST] = { "guest", "the guest works, its exits are served", "request_guest_seconds",
                     "request_guest_seconds" },
    [STEP_EXIT] = { "exit", "the exit that sends is served", "request_exit_seconds", "request_exit_seconds" },
    [STEP_APPEND] = { "append", "record appended, write posted", "request_append_seconds", NULL },
    [STEP_RELEASE] = { "release", "ack awaited, frame released", "output_hold_seconds", "output_pass_seconds" },
    [STEP_SEND] = { "send", "handed to the port", "output_send_seconds", "output_send_seconds" },
    [STEP_OUTSIDE] = { "outside", "wire, stacks and client: the rest", NULL, NULL },
};

/* One of the guests, as it is driven. */
struct side {
    struct guest_target *target;
    struct counter_options counter;
    struct counter_run run;
    struct addrinfo *address;
    struct client *clients;
    unsigned client_count;
};

struct guest_run {
    const struct guest_options *options;
    struct side sides[GUEST_SIDES];
    unsigned side_count;
    char *command;
    size_t command_bytes;
    struct bench_result result;
};

/* ---- options ---- */

static const struct argument arguments[] = {
    GUEST_TARGET_ARGUMENTS(struct guest_options),
    { "connections", "N", "default 1",
      ARGUMENT_UNSIGNED(struct guest_options, connections, 1, COUNTER_CONNECTIONS_MAX) },
    { "pipeline", "N", "requests in flight on each, default 1: the steps of a request are then its time",
      ARGUMENT_UNSIGNED(struct guest_options, pipeline, 1, COUNTER_PIPELINE_MAX) },
    { "requests", "N", "of each round, default 2000", ARGUMENT_NUMBER(struct guest_options, requests, 10, 100000000) },
    { "warmup", "N", "requests before each round that are not counted, default 200",
      ARGUMENT_NUMBER(struct guest_options, warmup, 0, 100000000) },
    ARGUMENT_ROUNDS(struct guest_options, "default 7"),
    { "round-limit", "S", "a round ends after so long, default 30", ARGUMENT_SECONDS(struct guest_options, limit_ns) },
    { "idle-ms", "N", "watch the guest idle before each round, default 500; 0: do not",
      ARGUMENT_TIME(struct guest_options, idle_ns, 0, 60000, NS_PER_MS) },
    { "spin-us", "N", "look again at once for so long before sleeping, default 1000",
      ARGUMENT_TIME(struct guest_options, spin_ns, 0, 1000000, NS_PER_US) },
    { "patience", "S", "silence that ends the run, default 30", ARGUMENT_SECONDS(struct guest_options, patience_ns) },
    { "key", "NAME", "default ftbench.guest; nobody else may change it meanwhile",
      ARGUMENT_TEXT(struct guest_options, key) },
    ARGUMENT_SEED(struct guest_options, "of the order within a round, default 1"),
    ARGUMENT_NOTE(struct guest_options, "about the hosts"),
    ARGUMENT_FILES(struct guest_options),
    { 0 },
};

static const struct command_line command_line = {
    .workload = "guest",
    .usage = "usage: ftbench guest --protected TARGET --unprotected TARGET [OPTION...]\n\n"
             "Latency of requests to a protected guest and to the same guest unprotected, in alternating rounds, and\n"
             "the share of each step. TARGET is HOST[:PORT][,metrics=HOST:PORT]: the guest's redis (port 6379), and\n"
             "where its ftvmm's --metrics can be reached from here.\n\n",
    .arguments = arguments,
    .exit_status = "0 measured, 1 not measured, 2 usage",
};

static int parse_options(struct guest_options *options, int argc, char **argv)
{
    int result;

    *options = (struct guest_options){
        .key = "ftbench.guest", .connections = 1, .pipeline = 1, .requests = 2000, .warmup = 200, .rounds = 7,
        .limit_ns = 30 * NS_PER_S, .idle_ns = 500 * NS_PER_MS, .spin_ns = NS_PER_MS, .patience_ns = 30 * NS_PER_S,
        .seed = 1,
    };
    guest_targets_init(options->targets, REDIS_PORT);
    result = arguments_read(&command_line, argc, argv, options);
    return result == 0 && !guest_targets_given(options->targets) ? -EINVAL : result;
}

/* ---- one side ---- */

static int side_open(struct guest_run *run, struct side *side, struct guest_target *target)
{
    const struct guest_options *options = run->options;
    int64_t start = 0;
    char why[256];
    int result;

    side->target = target;
    side->counter = (struct counter_options){
        .host = target->host, .key = options->key, .port = target->port, .connections = options->connections,
        .pipeline = options->pipeline, .patience_ns = options->patience_ns,
    };
    side->run.options = &side->counter;
    result = counter_resolve(&side->counter, &side->address);
    if (result == 0 && (result = counter_read_value(&side->counter, &start, why, sizeof(why))) != 0)
        report_error("the %s guest's redis at %s:%u cannot be asked: %s", target->side, target->host, target->port,
                     why);
    if (result != 0)
        return result;
    side->clients = calloc(options->connections, sizeof(*side->clients));
    if (side->clients == NULL || ledger_init(&side->run.ledger, start) != 0)
        return -ENOMEM;
    for (; side->client_count < options->connections; side->client_count++)
        if (client_init(&side->clients[side->client_count], side->client_count, &side->run, side->address, run->command,
                        run->command_bytes) != 0)
            return -ENOMEM;
    return 0;
}

static void side_close(struct side *side)
{
    for (unsigned i = 0; i < side->client_count; i++)
        client_fini(&side->clients[i]);
    free(side->clients);
    ledger_fini(&side->run.ledger);
    if (side->address != NULL)
        freeaddrinfo(side->address);
}

static unsigned in_flight_of(const struct side *side)
{
    unsigned in_flight = 0;

    for (unsigned i = 0; i < side->counter.connections; i++)
        in_flight += side->clients[i].in_flight;
    return in_flight;
}

/* What makes figures worthless: an answer that contradicts others, or a connection that did not last. */
static int check_answers(const struct side *side)
{
    const struct ledger *ledger = &side->run.ledger;

    if (ledger->duplicated == 0 && ledger->out_of_order == 0 && ledger->errors == 0 && ledger->unknown == 0 &&
        side->run.reconnects == 0)
        return 0;
    report_error("the %s guest's answers cannot be used: %llu values twice, %llu out of order, %llu errors, %llu of "
                 "unknown fate, %llu connections lost; does somebody else use the key '%s'?", side->target->side,
                 (unsigned long long)ledger->duplicated, (unsigned long long)ledger->out_of_order,
                 (unsigned long long)ledger->errors, (unsigned long long)ledger->unknown,
                 (unsigned long long)side->run.reconnects, side->counter.key);
    return -EPROTO;
}

/* So many requests answered, or as many as the limit allows; none is in flight at the end. */
static int drive(const struct guest_run *run, struct side *side, uint64_t requests)
{
    struct pollfd polls[COUNTER_CONNECTIONS_MAX];
    uint64_t goal = side->run.ledger.acked + requests, seen = side->run.ledger.acked;
    uint64_t begin_ns = clock_now_ns(), moved_ns = begin_ns;

    for (;;) {
        uint64_t now_ns = clock_now_ns();
        bool over = side->run.ledger.acked + in_flight_of(side) >= goal || now_ns - begin_ns > run->options->limit_ns;

        if (over && in_flight_of(side) == 0)
            return check_answers(side);
        if (side->run.ledger.acked != seen) {
            seen = side->run.ledger.acked;
            moved_ns = now_ns;
        }
        if (now_ns - moved_ns > run->options->patience_ns) {
            report_error("the %s guest at %s has answered nothing for %llu s", side->target->side, side->target->host,
                         (unsigned long long)(run->options->patience_ns / NS_PER_S));
            return -ETIMEDOUT;
        }
        for (unsigned i = 0; i < side->counter.connections; i++) {
            polls[i].events = client_prepare(&side->clients[i], now_ns, over);
            polls[i].fd = side->clients[i].fd;
            polls[i].revents = 0;
        }
        if (poll(polls, side->counter.connections, now_ns - moved_ns < run->options->spin_ns ? 0 : TICK_MS) < 0 &&
            errno != EINTR)
            report_bug("poll: %s", strerror(errno));
        for (unsigned i = 0; i < side->counter.connections; i++)
            client_handle(&side->clients[i], polls[i].revents);
    }
}

/* ---- a round ---- */

static double mean_us(const struct guest_target *target, const char *summary)
{
    char sum[80], count[80];
    double samples;

    snprintf(sum, sizeof(sum), "%s_sum", summary);
    snprintf(count, sizeof(count), "%s_count", summary);
    samples = guest_target_growth(target, count);
    return samples > 0 ? guest_target_growth(target, sum) / samples * 1e6 : 0;
}

/*
 * Beside the log's own way, which is a round trip of the rail: how long output is held, and what a request may take. The
 * goals are of medians; the counters give the means of this round, for both alike.
 */
static void add_hold(struct bench_result *result, const struct guest_target *target)
{
    double ack_us = mean_us(target, "ack_latency_seconds"), hold_us = mean_us(target, "output_hold_seconds");

    if (target->metrics[0] == '\0' || !target->is_protected || ack_us <= 0)
        return;
    result_add(result, "ack_us", METRIC_FACT, true, ack_us);
    result_add(result, "hold_us", METRIC_FACT, true, hold_us);
    result_add(result, "hold_to_ack", METRIC_RATIO, true, hold_us / ack_us);
}

/* The mean of each step in this round, and what the client waited beyond them. */
static void add_steps(struct bench_result *result, const struct guest_target *target, const struct histogram *ns)
{
    enum metric_role role = target->is_protected ? METRIC_OURS : METRIC_YARDSTICK;
    double rest_us = (double)ns->sum / (double)ns->samples / 1e3, append_us = 0;
    char name[64];

    if (target->metrics[0] == '\0')
        return;
    for (unsigned i = 0; i < GUEST_STEPS; i++) {
        const char *summary = target->is_protected ? guest_steps[i].protected_summary
                                                   : guest_steps[i].unprotected_summary;
        double us = i == STEP_OUTSIDE ? rest_us : summary != NULL ? mean_us(target, summary) : 0;

        if (summary == NULL && i != STEP_OUTSIDE)
            continue;
        if (i == STEP_APPEND)
            append_us = us;
        if (i == STEP_RELEASE) /* counted from the frame held, as append is */
            us = us > append_us ? us - append_us : 0;
        rest_us -= us;
        snprintf(name, sizeof(name), "step_us.%s.%s", target->side, guest_steps[i].name);
        result_add(result, name, role, true, us);
    }
}

static void add_idle(struct bench_result *result, const struct guest_target *target)
{
    char name[64];

    snprintf(name, sizeof(name), "idle_exits_per_second.%s", target->side);
    result_add(result, name, METRIC_FACT, true,
               guest_target_growth(target, "positions_total") / guest_target_seconds(target));
    if (!target->is_protected)
        return;
    snprintf(name, sizeof(name), "idle_log_bytes_per_second.%s", target->side);
    result_add(result, name, METRIC_FACT, true,
               guest_target_growth(target, "log_bytes_total") / guest_target_seconds(target));
}

static int measure_side(struct guest_run *run, struct side *side)
{
    const struct guest_options *options = run->options;
    struct guest_target *target = side->target;
    struct bench_result *found = &run->result;
    uint64_t before = side->run.ledger.acked, begin_ns;
    char name[64];
    double count;
    int result = 0;

    if (options->idle_ns > 0 && target->metrics[0] != '\0') {
        result = guest_target_begin(target);
        if (result == 0) {
            clock_sleep_ns(options->idle_ns);
            result = guest_target_end(target);
        }
        if (result == 0)
            add_idle(found, target);
    }
    if (result == 0)
        result = drive(run, side, options->warmup);
    if (result == 0)
        result = guest_target_begin(target);
    if (result != 0)
        return result;
    before = side->run.ledger.acked;
    memset(&side->run.latency_ns, 0, sizeof(side->run.latency_ns));
    begin_ns = clock_now_ns();
    result = drive(run, side, options->requests);
    count = (double)(side->run.ledger.acked - before);
    snprintf(name, sizeof(name), "requests_per_s.%s", target->side);
    if (result == 0) {
        enum metric_role role = target->is_protected ? METRIC_OURS : METRIC_YARDSTICK;

        result_add(found, name, role, false, count * (double)NS_PER_S / (double)(clock_now_ns() - begin_ns));
        result_add_latency(found, target->side, role, &side->run.latency_ns);
        result = guest_target_end(target);
    }
    if (result == 0) {
        guest_target_add_counts(found, target, "request", count);
        add_steps(found, target, &side->run.latency_ns);
        add_hold(found, target);
    }
    return result;
}

static double last_value(const struct bench_result *result, const char *name)
{
    const struct metric *metric = result_find(result, name);

    return metric != NULL ? metric->values[metric->count - 1] : 0;
}

/* What a request takes at the median, of a quarter more than unprotected and one round trip of the rail. */
static void add_round_trip(struct bench_result *result)
{
    double ack_ns = last_value(result, "ack_us") * 1e3;

    if (ack_ns > 0)
        result_add(result, "round_trip_to_goal", METRIC_RATIO, true,
                   last_value(result, "protected_ns.p50") /
                       (ROUND_TRIP_GOAL * last_value(result, "unprotected_ns.p50") + ack_ns));
}

/* What protection adds in this round, and how many times as long a request takes. */
static void add_ratios(struct bench_result *result)
{
    static const char *const percentiles[] = { "p50", "p90", "p99" };
    char ours[64], theirs[64], name[64];

    for (size_t i = 0; i < sizeof(percentiles) / sizeof(percentiles[0]); i++) {
        snprintf(ours, sizeof(ours), "protected_ns.%s", percentiles[i]);
        snprintf(theirs, sizeof(theirs), "unprotected_ns.%s", percentiles[i]);
        snprintf(name, sizeof(name), "protected_to_unprotected.%s", percentiles[i]);
        result_add_ratio(result, name, true, ours, theirs, 1);
        snprintf(name, sizeof(name), "added_us.%s", percentiles[i]);
        result_add(result, name, METRIC_OURS, true, (last_value(result, ours) - last_value(result, theirs)) / 1e3);
    }
    result_add_ratio(result, "throughput_protected_to_unprotected", false, "requests_per_s.protected",
                     "requests_per_s.unprotected", 1);
    add_round_trip(result);
}

/* Each of ours beside the other, if that is measured. */
static void add_ratios_to_other(struct bench_result *result)
{
    static const char *const ours[] = { "protected", "unprotected" };

    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
        char name[64], rate[64], latency[64];

        snprintf(name, sizeof(name), "%s_to_other.p50", ours[i]);
        snprintf(latency, sizeof(latency), "%s_ns.p50", ours[i]);
        result_add_ratio(result, name, true, latency, "other_ns.p50", 1);
        snprintf(name, sizeof(name), "throughput_%s_to_other", ours[i]);
        snprintf(rate, sizeof(rate), "requests_per_s.%s", ours[i]);
        result_add_ratio(result, name, false, rate, "requests_per_s.other", 1);
    }
}

static int run_rounds(struct guest_run *run)
{
    uint64_t state = run->options->seed;
    unsigned order[GUEST_SIDES] = { 0, 1, 2 };
    int result = 0;

    for (unsigned round = 0; result == 0 && round < run->options->rounds; round++) {
        report_info("round %u of %u", round + 1, run->options->rounds);
        result_look_at_noise(&run->result);
        shuffle(order, run->side_count, &state);
        for (unsigned i = 0; result == 0 && i < run->side_count; i++)
            result = measure_side(run, &run->sides[order[i]]);
        if (result != 0)
            break;
        add_ratios(&run->result);
        add_ratios_to_other(&run->result);
    }
    result_end(&run->result);
    result_set_goal(&run->result, "hold_to_ack", "output held / commit to ack", true, HOLD_GOAL);
    result_set_goal(&run->result, "round_trip_to_goal", "median request / (1.25 x unprotected + commit to ack)", true, 1);
    return result;
}

static void say_what_is_missing(struct guest_run *run)
{
    for (unsigned i = 0; i < run->side_count; i++)
        if (run->options->targets[i].metrics[0] == '\0' && !run->options->targets[i].is_other)
            result_note(&run->result, "the steps and counts of the %s guest are not known: its target names no metrics",
                        run->options->targets[i].side);
    if (run->options->connections * run->options->pipeline > 1)
        result_note(&run->result, "%u requests are in flight at once: the steps of one do not add up to its time",
                    run->options->connections * run->options->pipeline);
}

int guest_main(int argc, char **argv)
{
    struct guest_options options;
    struct guest_run *run;
    int bytes, result = parse_options(&options, argc, argv);

    if (result != 0)
        return result > 0 ? 0 : EXIT_USAGE;
    run = calloc(1, sizeof(*run));
    if (run == NULL)
        return EXIT_NOT_MEASURED;
    run->options = &options;
    result_begin(&run->result, "guest", options.note);
    bytes = redisFormatCommand(&run->command, "INCR %s", options.key);
    run->command_bytes = bytes > 0 ? (size_t)bytes : 0;
    result = bytes > 0 ? 0 : -ENOMEM;
    run->side_count = guest_targets_count(options.targets);
    for (unsigned i = 0; result == 0 && i < run->side_count; i++)
        result = side_open(run, &run->sides[i], &options.targets[i]);
    if (result == -ENOMEM)
        report_error("no memory for %u connections", options.connections);
    if (result == 0) {
        say_what_is_missing(run);
        result = run_rounds(run);
    }
    if (result == 0) {
        guest_result_print(&run->result, &options, result_files_take_stdout(&options.files) ? stderr : stdout);
        result = guest_result_write(&run->result, &options);
    }
    for (unsigned i = 0; i < run->side_count; i++)
        side_close(&run->sides[i]);
    guest_targets_fini(options.targets);
    free(run->command);
    free(run);
    return result == 0 ? 0 : EXIT_NOT_MEASURED;
}
