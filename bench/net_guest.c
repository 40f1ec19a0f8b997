/*
 * ftbench net guest: how fast TCP goes into and out of a protected guest and the same guest unprotected, in alternating
 * rounds, by iperf3, and how much log that makes. Table 2 of "The design of a practical system for fault-tolerant
 * virtual machines" (Scales, Nelson, Venkitachalam, 2010).
 *
 * In each guest `iperf3 -s` runs; the client is started from here for each measurement, and its JSON read.
 */
#include "bench/net_forward.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/arguments.h"
#include "bench/child.h"
#include "bench/guest_target.h"
#include "bench/shuffle.h"
#include "bench/statistics.h"

#define EXIT_NOT_MEASURED 1
#define EXIT_USAGE        2
#define IPERF_PORT        5201
#define TEXT_BYTES        (1u << 20)
#define CONNECT_MS        "10000"
#define IPERF_TRIES       3
#define IPERF_REST_NS     (500 * NS_PER_MS)

enum { RECEIVE, TRANSMIT, DIRECTIONS }; /* of the guest */
static const char *const directions[DIRECTIONS] = {"receive", "transmit"};

struct net_guest {
    struct guest_target targets[GUEST_SIDES]; /* protected, unprotected, other */
    unsigned rounds, streams;
    uint64_t seconds, warmup_seconds, limit_ns, seed;
    const char *note;
    struct result_files files;
    char *text; /* of iperf3 */
    unsigned iperf_failures;
    struct bench_result result;
};

/* ---- options ---- */

static const struct argument arguments[] = {
    GUEST_TARGET_ARGUMENTS(struct net_guest),
    {"seconds", "N", "of each measurement, default 5", ARGUMENT_NUMBER(struct net_guest, seconds, 1, 3600)},
    {"warmup", "N", "seconds before each that are not counted, default 1",
     ARGUMENT_NUMBER(struct net_guest, warmup_seconds, 0, 60)},
    {"streams", "N", "connections at once, default 1", ARGUMENT_UNSIGNED(struct net_guest, streams, 1, 128)},
    ARGUMENT_ROUNDS(struct net_guest, "default 5; each has both directions of both guests"),
    ARGUMENT_LIMIT(struct net_guest, "no measurement may take longer, default 120"),
    ARGUMENT_SEED(struct net_guest, "of the order within a round, default 1"),
    ARGUMENT_NOTE(struct net_guest, "about the hosts"),
    ARGUMENT_FILES(struct net_guest),
    {0},
};

static const struct command_line command_line = {
    .workload = "net guest",
    .usage =
        "usage: ftbench net guest --protected TARGET --unprotected TARGET [OPTION...]\n\n"
        "TCP throughput into (receive) and out of (transmit) a protected guest and the same guest unprotected, in\n"
        "alternating rounds, by iperf3, and the log that it makes. TARGET is HOST[:PORT][,metrics=HOST:PORT]: the\n"
        "guest's `iperf3 -s` (port 5201), and where its ftvmm's --metrics can be reached from here.\n\n",
    .arguments = arguments,
    .exit_status = "0 measured, 1 not measured, 2 usage",
};

static int parse_options(struct net_guest *run, int argc, char **argv)
{
    int result;

    guest_targets_init(run->targets, IPERF_PORT);
    run->seconds = 5;
    run->warmup_seconds = 1;
    run->streams = 1;
    run->rounds = 5;
    run->limit_ns = 120 * NS_PER_S;
    run->seed = 1;
    result = arguments_read(&command_line, argc, argv, run);
    return result == 0 && !guest_targets_given(run->targets) ? -EINVAL : result;
}

/* ---- iperf3 ---- */

/* What arrived, in bits per second, and how many segments its sender sent again. 0 or -errno; `why` is filled then. */
static int read_answer(const char *text, double *bits_per_second, double *retransmits, char why[200])
{
    cJSON *answer = cJSON_Parse(text);
    const cJSON *end = cJSON_GetObjectItemCaseSensitive(answer, "end");
    const cJSON *received = cJSON_GetObjectItemCaseSensitive(end, "sum_received");
    const cJSON *sent = cJSON_GetObjectItemCaseSensitive(end, "sum_sent");
    const cJSON *rate = cJSON_GetObjectItemCaseSensitive(received, "bits_per_second");
    const cJSON *again = cJSON_GetObjectItemCaseSensitive(sent, "retransmits");
    const char *error = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "error"));
    bool good = error == NULL && cJSON_IsNumber(rate) && rate->valuedouble > 0;

    if (good) {
        *bits_per_second = rate->valuedouble;
        *retransmits = cJSON_IsNumber(again) ? again->valuedouble : 0;
    } else {
        snprintf(why, 200, "%s",
                 error != NULL     ? error
                 : text[0] != '\0' ? "its answer tells no throughput"
                                   : "no answer");
    }
    cJSON_Delete(answer);
    return good ? 0 : -EPROTO;
}

static int try_iperf(struct net_guest *run, const struct guest_target *target, unsigned direction,
                     double *bits_per_second, double *retransmits)
{
    char port[8], seconds[16], warmup[16], streams[8], why[200] = "";
    char *const argv[] = {"iperf3",   "-c",    (char *)target->host,
                          "-p",       port,    "-t",
                          seconds,    "-O",    warmup,
                          "-P",       streams, "--connect-timeout",
                          CONNECT_MS, "-J",    direction == TRANSMIT ? "-R" : NULL,
                          NULL};
    int result;

    snprintf(port, sizeof(port), "%u", target->port);
    snprintf(seconds, sizeof(seconds), "%llu", (unsigned long long)run->seconds);
    snprintf(warmup, sizeof(warmup), "%llu", (unsigned long long)run->warmup_seconds);
    snprintf(streams, sizeof(streams), "%u", run->streams);
    result = child_run(argv, false, run->text, TEXT_BYTES, run->limit_ns);
    if (result == -ENOENT) {
        report_error("iperf3 does not start here: install Debian's package iperf3");
        return result;
    }
    if (result < 0)
        snprintf(why, sizeof(why), "%s", result == -ETIMEDOUT ? "not done within --limit" : strerror(-result));
    else /* whatever its exit status: its answer tells more */
        result = read_answer(run->text, bits_per_second, retransmits, why);
    if (result != 0)
        report_warning("iperf3 with the %s guest at %s:%u, %s: %s; does `iperf3 -s` run there?", target->side,
                       target->host, target->port, directions[direction], why);
    return result;
}

/*
 * More than one try: in a slow guest iperf3's server now and then asks a stream for its statistics that it has closed
 * already ("getsockopt - Bad file descriptor") and drops the test. How often is told with the result.
 */
static int run_iperf(struct net_guest *run, const struct guest_target *target, unsigned direction,
                     double *bits_per_second, double *retransmits)
{
    int result = -EPROTO;

    for (unsigned tries = 0; result == -EPROTO && tries < IPERF_TRIES; tries++) {
        if (tries > 0) {
            run->iperf_failures++;
            clock_sleep_ns(IPERF_REST_NS);
        }
        result = try_iperf(run, target, direction, bits_per_second, retransmits);
    }
    if (result != 0)
        report_error("nothing was measured of the %s guest, %s", target->side, directions[direction]);
    return result;
}

/* ---- rounds ---- */

static void add_fact(struct net_guest *run, const char *name, unsigned direction, const struct guest_target *target,
                     double value)
{
    char full[64];

    snprintf(full, sizeof(full), "%s.%s.%s", name, directions[direction], target->side);
    result_add(&run->result, full, METRIC_FACT, true, value);
}

/* From the metrics, over the whole stretch: the warm-up and both ends of the connection are in it. */
static void add_counts(struct net_guest *run, unsigned direction, const struct guest_target *target)
{
    double seconds = guest_target_seconds(target), log_bytes;
    double moved =
        guest_target_growth(target, direction == RECEIVE ? "net_received_bytes_total" : "net_transmitted_bytes_total");

    if (target->metrics[0] == '\0' || seconds <= 0)
        return;
    add_fact(run, "exits_per_second", direction, target, guest_target_growth(target, "positions_total") / seconds);
    if (!target->is_protected)
        return;
    log_bytes = guest_target_growth(target, "log_bytes_total");
    add_fact(run, "log_mbit_per_second", direction, target, log_bytes * 8e-6 / seconds);
    add_fact(run, "log_records_per_second", direction, target,
             guest_target_growth(target, "log_records_total") / seconds);
    add_fact(run, "forced_syncs_per_second", direction, target,
             guest_target_growth(target, "forced_syncs_total") / seconds);
    if (moved > 0) /* of the frames that went that way */
        add_fact(run, "log_bytes_per_byte", direction, target, log_bytes / moved);
}

static int measure(struct net_guest *run, unsigned direction, unsigned side)
{
    struct guest_target *target = &run->targets[side];
    double bits_per_second = 0, retransmits = 0;
    int result = guest_target_begin(target);
    char name[64];

    if (result == 0)
        result = run_iperf(run, target, direction, &bits_per_second, &retransmits);
    if (result == 0)
        result = guest_target_end(target);
    if (result != 0)
        return result;
    snprintf(name, sizeof(name), "mbit_per_s.%s.%s", directions[direction], target->side);
    result_add(&run->result, name, target->is_protected ? METRIC_OURS : METRIC_YARDSTICK, false, bits_per_second / 1e6);
    add_fact(run, "retransmits", direction, target, retransmits);
    add_counts(run, direction, target);
    return 0;
}

static int run_rounds(struct net_guest *run)
{
    unsigned order[DIRECTIONS * GUEST_SIDES], sides = guest_targets_count(run->targets);
    uint64_t state = run->seed;
    int result = 0;

    for (unsigned i = 0; i < DIRECTIONS * sides; i++)
        order[i] = i;
    for (unsigned round = 0; result == 0 && round < run->rounds; round++) {
        report_info("round %u of %u", round + 1, run->rounds);
        result_look_at_noise(&run->result);
        shuffle(order, DIRECTIONS * sides, &state);
        for (unsigned i = 0; result == 0 && i < DIRECTIONS * sides; i++)
            result = measure(run, order[i] / sides, order[i] % sides);
        for (unsigned i = 0; result == 0 && i < DIRECTIONS; i++) {
            char rate[64];

            snprintf(rate, sizeof(rate), "mbit_per_s.%s", directions[i]);
            guest_targets_add_ratios(&run->result, rate, directions[i]);
        }
    }
    result_end(&run->result);
    return result;
}

/* ---- showing ---- */

/* "0.812 [0.7..0.9]", or "-" */
static const char *words_of(const struct bench_result *result, const char *name, const char *direction,
                            const char *side, char text[48])
{
    const struct metric *metric;
    char full[64];

    snprintf(full, sizeof(full), "%s.%s%s%s", name, direction, side != NULL ? "." : "", side != NULL ? side : "");
    metric = result_find(result, full);
    if (metric == NULL) {
        snprintf(text, 48, "-");
    } else {
        struct summary summary = statistics_summarize(metric->values, metric->count);

        snprintf(text, 48, "%.3g [%.3g..%.3g]", summary.median, summary.min, summary.max);
    }
    return text;
}

static void print(const struct net_guest *run, FILE *out)
{
    const struct bench_result *result = &run->result;

    fprintf(out, "net guest, protected %s, unprotected %s, %u stream%s, %u rounds of %llu s, seed %llu, %.1f s\n",
            run->targets[0].host, run->targets[1].host, run->streams, run->streams > 1 ? "s" : "", run->rounds,
            (unsigned long long)run->seconds, (unsigned long long)run->seed, result->seconds);
    result_print_machine(&result->machine, "client", out);
    result_print_noise(result, out);
    fprintf(out, "\n%-10s %24s %24s %24s %24s %24s %24s\n", "the guest", "other, Mb/s", "unprotected, Mb/s",
            "protected, Mb/s", "of the unprotected", "log, Mb/s", "log bytes per byte");
    for (unsigned i = 0; i < DIRECTIONS; i++) {
        char texts[6][48];

        fprintf(out, "  %-8s %24s %24s %24s %24s %24s %24s\n", directions[i],
                words_of(result, "mbit_per_s", directions[i], "other", texts[5]),
                words_of(result, "mbit_per_s", directions[i], "unprotected", texts[0]),
                words_of(result, "mbit_per_s", directions[i], "protected", texts[1]),
                words_of(result, "protected_to_unprotected", directions[i], NULL, texts[2]),
                words_of(result, "log_mbit_per_second", directions[i], "protected", texts[3]),
                words_of(result, "log_bytes_per_byte", directions[i], "protected", texts[4]));
    }
    result_print_metrics_head("ratios, of each round", out);
    result_print_metrics(result, METRIC_RATIO, false, out);
    result_print_metrics_head("beside them", out);
    result_print_metrics(result, METRIC_FACT, false, out);
    fflush(out);
}

static int write_files(const struct net_guest *run)
{
    cJSON *object = result_json(&run->result), *settings = cJSON_AddObjectToObject(object, "settings");

    cJSON_AddStringToObject(object, "part", "guest");
    for (unsigned i = 0; i < guest_targets_count(run->targets); i++)
        cJSON_AddStringToObject(settings, run->targets[i].side, run->targets[i].text);
    cJSON_AddNumberToObject(settings, "seconds", (double)run->seconds);
    cJSON_AddNumberToObject(settings, "warmup", (double)run->warmup_seconds);
    cJSON_AddNumberToObject(settings, "streams", run->streams);
    cJSON_AddNumberToObject(settings, "rounds", run->rounds);
    cJSON_AddNumberToObject(settings, "seed", (double)run->seed);
    return result_write(&run->result, object, &run->files);
}

int net_guest_main(int argc, char **argv)
{
    struct net_guest *run = calloc(1, sizeof(*run));
    int result;

    if (run == NULL)
        return EXIT_NOT_MEASURED;
    result = parse_options(run, argc, argv);
    if (result != 0) {
        free(run);
        return result > 0 ? 0 : EXIT_USAGE;
    }
    result_begin(&run->result, "net", run->note);
    for (unsigned i = 0; i < GUEST_SIDES; i++)
        if (run->targets[i].metrics[0] == '\0' && !run->targets[i].is_other)
            result_note(&run->result, "the %s guest's counts are not known: its target names no metrics",
                        run->targets[i].side);
    run->text = malloc(TEXT_BYTES);
    result = run->text != NULL ? run_rounds(run) : -ENOMEM;
    if (run->iperf_failures > 0)
        result_note(&run->result, "iperf3 broke off %u measurements, which were made again", run->iperf_failures);
    if (result == 0) {
        print(run, result_files_take_stdout(&run->files) ? stderr : stdout);
        result = write_files(run);
    }
    guest_targets_fini(run->targets);
    free(run->text);
    free(run);
    return result == 0 ? 0 : EXIT_NOT_MEASURED;
}
