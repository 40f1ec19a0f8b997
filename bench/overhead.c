/*
 * ftbench overhead: whole programs in a protected guest and in the same guest unprotected, in alternating rounds: what
 * is left of their speed, and how much log they make. Table 1 of "The design of a practical system for fault-tolerant
 * virtual machines" (Scales, Nelson, Venkitachalam, 2010), with programs of today, which program.c has. Time is taken
 * here.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/program.h"
#include "bench/shuffle.h"
#include "bench/statistics.h"
#include "bench/stop.h"
#include "bench/workloads.h"

#define EXIT_NOT_MEASURED 1
#define EXIT_USAGE        2
#define AGENT_PORT        7100
#define REDIS_GOAL        0.9
#define REDIS_LOG_GOAL    1.3

struct overhead {
    struct guest_target targets[GUEST_SIDES]; /* protected, unprotected, other */
    struct program_settings settings;
    bool chosen[PROGRAMS];
    bool by_name; /* chosen by --run: who leaves one of them out has not done what was asked */
    bool left_out; /* one of those chosen */
    unsigned amounts[PROGRAMS];
    unsigned rounds;
    unsigned sides; /* of the guests */
    uint64_t seed;
    const char *note;
    struct result_files files;
    struct bench_result result;
};

/* ---- options ---- */

static bool take_programs(const struct argument *argument, const char *text, void *place)
{
    struct overhead *overhead = place;

    memset(overhead->chosen, 0, sizeof(overhead->chosen));
    overhead->by_name = true;
    for (;; text++) {
        size_t length = strcspn(text, ",");
        char item[64], *amount;
        size_t i = 0;

        snprintf(item, sizeof(item), "%.*s", (int)length, text);
        amount = strchr(item, '=');
        if (amount != NULL)
            *amount++ = '\0';
        while (i < PROGRAMS && strcmp(item, programs[i].name) != 0)
            i++;
        if (i == PROGRAMS || length >= sizeof(item)) {
            report_error("--run has '%s'; `ftbench overhead --help` lists the programs", item);
            return false;
        }
        if (amount != NULL && !argument_unsigned(argument->name, amount, 1, 100000000, &overhead->amounts[i]))
            return false;
        overhead->chosen[i] = true;
        text += length;
        if (*text == '\0')
            return true;
    }
}

static const struct argument arguments[] = {
    GUEST_TARGET_ARGUMENTS(struct overhead),
    {"run", "NAME[=AMOUNT],...",
     "which programs, and how much of them; default: all that can be\n"
     "done there and from here",
     .take = take_programs},
    {"redis-port", "N", "default 6379", ARGUMENT_UNSIGNED(struct overhead, settings.redis_port, 1, 65535)},
    {"http-port", "N", "default 80", ARGUMENT_UNSIGNED(struct overhead, settings.http_port, 1, 65535)},
    ARGUMENT_ROUNDS(struct overhead, "default 5"),
    {"limit", "S", "no program may take longer, default 300", ARGUMENT_SECONDS(struct overhead, settings.limit_ns)},
    ARGUMENT_SEED(struct overhead, "of the order within a round, default 1"),
    ARGUMENT_NOTE(struct overhead, "about the hosts"),
    ARGUMENT_FILES(struct overhead),
    {0},
};

static void print_programs(void)
{
    printf("\nNAME and AMOUNT:\n");
    for (size_t i = 0; i < PROGRAMS; i++)
        printf("  %-20s %s; default %u\n", programs[i].name, programs[i].words, programs[i].amount);
}

static const struct command_line command_line = {
    .workload = "overhead",
    .usage =
        "usage: ftbench overhead --protected TARGET --unprotected TARGET [OPTION...]\n\n"
        "Runs programs in a protected guest and in the same guest unprotected, in alternating rounds: the ratio of\n"
        "their speeds, and the log they make. TARGET is HOST[:PORT][,metrics=HOST:PORT]: the guest, the port of\n"
        "the agent in it (7100; scripts/guest-image --workloads), and where its ftvmm's --metrics can be reached\n"
        "from here.\n\n",
    .arguments = arguments,
    .print_more = print_programs,
    .exit_status = "0 measured, 1 not, or not all that --run names, 2 usage",
};

static int parse_options(struct overhead *overhead, int argc, char **argv)
{
    int result;

    guest_targets_init(overhead->targets, AGENT_PORT);
    overhead->settings = (struct program_settings){.redis_port = 6379, .http_port = 80, .limit_ns = 300 * NS_PER_S};
    overhead->rounds = 5;
    overhead->seed = 1;
    for (size_t i = 0; i < PROGRAMS; i++) {
        overhead->chosen[i] = true;
        overhead->amounts[i] = programs[i].amount;
    }
    result = arguments_read(&command_line, argc, argv, overhead);
    return result == 0 && !guest_targets_given(overhead->targets) ? -EINVAL : result;
}

/* ---- what can be done ---- */

static bool anything_left(const struct overhead *overhead)
{
    for (size_t i = 0; i < PROGRAMS; i++)
        if (overhead->chosen[i])
            return true;
    return false;
}

/* Leaves out what cannot be done. */
static int prepare(struct overhead *overhead)
{
    for (size_t i = 0; i < PROGRAMS; i++) {
        char why[256] = "";
        int result = 0;

        if (!overhead->chosen[i])
            continue;
        report_info("preparing %s", programs[i].name);
        for (unsigned side = 0; result == 0 && side < overhead->sides; side++)
            result = program_prepare(&programs[i], &overhead->settings, &overhead->targets[side], why, sizeof(why));
        if (result == 0)
            continue;
        if (result != -EPROTO)
            return result;
        report_warning("%s is not measured: %s", programs[i].name, why);
        result_note(&overhead->result, "%s is not measured: %s", programs[i].name, why);
        overhead->chosen[i] = false;
        overhead->left_out = true;
    }
    if (anything_left(overhead))
        return 0;
    report_error("there is nothing to measure");
    return -ENOENT;
}

/* ---- a round ---- */

static void add_rates_of_log(struct overhead *overhead, const struct guest_target *target, size_t program)
{
    static const struct {
        const char *counter, *name;
        double scale;
        bool of_the_log;
    } counts[] = {
        {"log_bytes_total", "log_mbit_per_second", 8e-6, true},
        {"log_records_total", "log_records_per_second", 1, true},
        {"positions_total", "exits_per_second", 1, false},
        {"forced_syncs_total", "forced_syncs_per_second", 1, true},
        {"forced_sync_pages_total", "forced_pages_per_second", 1, true},
    };
    double seconds = guest_target_seconds(target);
    char name[64];

    if (target->metrics[0] == '\0' || seconds <= 0)
        return;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (counts[i].of_the_log && !target->is_protected)
            continue;
        snprintf(name, sizeof(name), "%s.%s.%s", counts[i].name, programs[program].name, target->side);
        result_add(&overhead->result, name, METRIC_FACT, true,
                   guest_target_growth(target, counts[i].counter) * counts[i].scale / seconds);
    }
    if (target->is_protected && guest_target_growth(target, "net_received_bytes_total") > 0) {
        snprintf(name, sizeof(name), "log_to_received_bytes.%s", programs[program].name);
        result_add(&overhead->result, name, METRIC_RATIO, true,
                   guest_target_growth(target, "log_bytes_total") / guest_target_growth(target, "net_received_bytes_total"));
    }
}

static int measure(struct overhead *overhead, size_t program, unsigned side)
{
    struct guest_target *target = &overhead->targets[side];
    uint64_t begin_ns;
    double done = 0;
    char name[64];
    int result = guest_target_begin(target);

    if (result != 0)
        return result;
    begin_ns = clock_now_ns();
    result = program_run(&programs[program], overhead->amounts[program], &overhead->settings, target, &done);
    if (result != 0)
        return result;
    snprintf(name, sizeof(name), "%s_%s_per_second.%s", programs[program].name, programs[program].unit, target->side);
    result_add(&overhead->result, name, target->is_protected ? METRIC_OURS : METRIC_YARDSTICK, false,
               done * (double)NS_PER_S / (double)(clock_now_ns() - begin_ns));
    result = guest_target_end(target);
    if (result == 0)
        add_rates_of_log(overhead, target, program);
    return result;
}

/* One program that fails takes nothing from the others, nor from its own earlier rounds. */
static void give_up(struct overhead *overhead, size_t program, unsigned round)
{
    report_warning("%s is left out from here on", programs[program].name);
    result_note(&overhead->result, "%s failed in round %u and was left out from there on", programs[program].name, round);
    overhead->chosen[program] = false;
    overhead->left_out = true;
}

static void run_round(struct overhead *overhead, unsigned round, const unsigned *order)
{
    unsigned sides = overhead->sides, measured[PROGRAMS] = {0};

    for (unsigned i = 0; i < PROGRAMS * sides && !stop_wanted; i++) {
        size_t program = order[i] / sides;

        if (!overhead->chosen[program])
            continue;
        report_info("round %u of %u: %s, %s", round, overhead->rounds, programs[program].name,
                    overhead->targets[order[i] % sides].side);
        if (measure(overhead, program, order[i] % sides) == 0)
            measured[program]++;
        else
            give_up(overhead, program, round);
    }
    for (size_t i = 0; i < PROGRAMS; i++) {
        char rate[64];

        snprintf(rate, sizeof(rate), "%s_%s_per_second", programs[i].name, programs[i].unit);
        if (measured[i] == sides)
            guest_targets_add_ratios(&overhead->result, rate, programs[i].name);
    }
}

/* -EPROTO: nothing was measured. */
static int run_rounds(struct overhead *overhead)
{
    unsigned order[PROGRAMS * GUEST_SIDES], sides = overhead->sides, round = 0;
    uint64_t state = overhead->seed;

    stop_on_signals(SA_RESTART); /* the program under way comes to its end */
    for (unsigned i = 0; i < PROGRAMS * sides; i++)
        order[i] = i;
    while (round < overhead->rounds && !stop_wanted && anything_left(overhead)) {
        result_look_at_noise(&overhead->result);
        shuffle(order, PROGRAMS * sides, &state);
        run_round(overhead, ++round, order);
    }
    if (stop_wanted) {
        result_note(&overhead->result, "stopped in round %u", round);
        overhead->left_out = true;
    }
    result_end(&overhead->result);
    result_set_goal(&overhead->result, "protected_to_unprotected.redis_pipelined", "redis, 16 requests in flight", false,
                    REDIS_GOAL);
    result_set_goal(&overhead->result, "log_to_received_bytes.redis_pipelined", "its log / the bytes that came", true,
                    REDIS_LOG_GOAL);
    return overhead->result.metric_count > 0 ? 0 : -EPROTO;
}

/* ---- showing ---- */

/* The median of NAME.PROGRAM[.SIDE], or "-". */
static const char *median_text(const struct bench_result *result, const char *format, const char *name,
                               const char *side, int digits)
{
    static char texts[8][32];
    static unsigned next;
    char *text = texts[next++ % 8], full[64];
    const struct metric *metric;

    snprintf(full, sizeof(full), "%s.%s%s%s", format, name, side[0] != '\0' ? "." : "", side);
    metric = result_find(result, full);
    if (metric == NULL)
        snprintf(text, 32, "-");
    else
        snprintf(text, 32, "%.*f", digits, statistics_summarize(metric->values, metric->count).median);
    return text;
}

static void print(const struct overhead *overhead, FILE *out)
{
    const struct bench_result *result = &overhead->result;

    fprintf(out, "overhead protected %s, unprotected %s, %u rounds, seed %llu, %.1f s\n", overhead->targets[0].host,
            overhead->targets[1].host, overhead->rounds, (unsigned long long)overhead->seed, result->seconds);
    result_print_machine(&result->machine, "client", out);
    result_print_noise(result, out);
    fprintf(out, "\n%-18s %9s %15s %10s %12s %12s %14s\n", "protected", "of the", "by round", "log", "exits",
            "forced syncs", "pages of them");
    fprintf(out, "%-18s %9s %15s %10s %12s %12s %14s\n", "", "other", "", "Mb/s", "a second", "a second", "a second");
    for (size_t i = 0; i < PROGRAMS; i++) {
        const char *name = programs[i].name;
        struct summary summary;
        const struct metric *metric;
        char ratio[64];

        snprintf(ratio, sizeof(ratio), "protected_to_unprotected.%s", name);
        metric = result_find(result, ratio);
        if (metric == NULL)
            continue;
        summary = statistics_summarize(metric->values, metric->count);
        fprintf(out, "  %-16s %9.3f %7.3f..%-6.3f %10s %12s %12s %14s\n", name, summary.median, summary.min,
                summary.max, median_text(result, "log_mbit_per_second", name, "protected", 3),
                median_text(result, "exits_per_second", name, "protected", 0),
                median_text(result, "forced_syncs_per_second", name, "protected", 1),
                median_text(result, "forced_pages_per_second", name, "protected", 0));
    }
    result_print_metrics_head("ratios, of each round", out);
    result_print_metrics(result, METRIC_RATIO, false, out);
    result_print_goals(result, out);
    result_print_metrics_head("work per second", out);
    result_print_metrics(result, METRIC_OURS, false, out);
    result_print_metrics(result, METRIC_YARDSTICK, false, out);
    fflush(out);
}

static int write_files(const struct overhead *overhead)
{
    cJSON *object = result_json(&overhead->result), *settings = cJSON_AddObjectToObject(object, "settings");

    for (unsigned i = 0; i < overhead->sides; i++)
        cJSON_AddStringToObject(settings, overhead->targets[i].side, overhead->targets[i].text);
    for (size_t i = 0; i < PROGRAMS; i++)
        if (overhead->chosen[i])
            cJSON_AddNumberToObject(settings, programs[i].name, overhead->amounts[i]);
    cJSON_AddNumberToObject(settings, "rounds", overhead->rounds);
    cJSON_AddNumberToObject(settings, "seed", (double)overhead->seed);
    return result_write(&overhead->result, object, &overhead->files);
}

int overhead_main(int argc, char **argv)
{
    struct overhead *overhead = calloc(1, sizeof(*overhead));
    int result;

    if (overhead == NULL)
        return EXIT_NOT_MEASURED;
    result = parse_options(overhead, argc, argv);
    if (result != 0) {
        free(overhead);
        return result > 0 ? 0 : EXIT_USAGE;
    }
    result_begin(&overhead->result, "overhead", overhead->note);
    overhead->sides = guest_targets_count(overhead->targets);
    result = prepare(overhead);
    if (result == 0)
        result = run_rounds(overhead);
    if (result == 0) {
        print(overhead, result_files_take_stdout(&overhead->files) ? stderr : stdout);
        result = write_files(overhead);
    }
    if (result == 0 && overhead->left_out && (overhead->by_name || stop_wanted || !anything_left(overhead)))
        result = -EPROTO;
    guest_targets_fini(overhead->targets);
    free(overhead);
    return result == 0 ? 0 : EXIT_NOT_MEASURED;
}
