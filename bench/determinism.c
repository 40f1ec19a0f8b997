/*
 * ftbench determinism: what it takes to keep a guest the same twice. Reads what an ftvmm has written of a run
 * (--status, and `ftvmm log --summary --json` of its log) or looks at a running one (--live), and tells what was
 * logged, by kind and against time, exits and instructions; what forced syncs cost; the share of time in KVM_RUN, and
 * that of the comparison. Measures nothing itself: each run given is one value of each metric.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/arguments.h"
#include "bench/result_file.h"
#include "bench/vmm_metrics.h"
#include "bench/workloads.h"

#define EXIT_FAILED 1
#define EXIT_USAGE  2
/* What VMware FT (2010) is measured at: guest speed, and log of its four loads, in Mbit/s. */
#define GOAL_RATIO          0.94
#define GOAL_DIGEST_PERCENT 2.0

struct run {
    const char *status, *log, *unprotected; /* files; log and unprotected may be NULL */
};

struct determinism {
    struct run runs[ROUNDS_MAX];
    unsigned run_count;
    const char *live, *note;
    uint64_t live_ns;
    unsigned looks;
    struct result_files files;
    bool no_instructions;
    struct bench_result result;
};

/* ---- options ---- */

static bool take_status(const struct argument *argument, const char *file, void *place)
{
    struct determinism *determinism = place;

    if (determinism->run_count == ROUNDS_MAX) {
        report_error("more than %d times --%s", ROUNDS_MAX, argument->name);
        return false;
    }
    determinism->runs[determinism->run_count++].status = file;
    return true;
}

/* --log or --unprotected. */
static bool take_other_file(const struct argument *argument, const char *file, void *place)
{
    struct determinism *determinism = place;
    struct run *run = &determinism->runs[determinism->run_count - 1]; /* if there is one */

    if (determinism->run_count == 0) {
        report_error("--log and --unprotected belong to the --status before them");
        return false;
    }
    *(strcmp(argument->name, "log") == 0 ? &run->log : &run->unprotected) = file;
    return true;
}

static const struct argument arguments[] = {
    {"status", "FILE", "the status file of a recording, or of a primary, when it had ended", .take = take_status},
    {"log", "FILE", "of the same run: what `ftvmm log --summary --json LOG` printed", .take = take_other_file},
    {"unprotected", "FILE", "the status file of the same workload under `ftvmm run`, to its end too",
     .take = take_other_file},
    {"live", "HOST:PORT", "instead: a running ftvmm's --metrics, looked at", ARGUMENT_TEXT(struct determinism, live)},
    {"seconds", "S", "for so long, default 10", ARGUMENT_SECONDS(struct determinism, live_ns)},
    {"looks", "N", "so often, default 1", ARGUMENT_UNSIGNED(struct determinism, looks, 1, ROUNDS_MAX)},
    ARGUMENT_NOTE(struct determinism, "about the hosts"),
    ARGUMENT_FILES(struct determinism),
    {0},
};

static const struct command_line command_line = {
    .workload = "determinism",
    .usage =
        "usage: ftbench determinism --status FILE [--log FILE] [--unprotected FILE] [--status FILE ...]\n"
        "       ftbench determinism --live HOST:PORT [--seconds S] [--looks N]\n\n"
        "Tells what keeping a guest the same twice took in a run: the log by kind, exits by kind, forced syncs, the\n"
        "time in KVM_RUN, the cost of comparing.\n\n",
    .arguments = arguments,
    .exit_status = "0 done, 1 a file cannot be used or nobody answers, 2 usage",
};

static int parse_options(struct determinism *determinism, int argc, char **argv)
{
    int result;

    determinism->live_ns = 10 * NS_PER_S;
    determinism->looks = 1;
    result = arguments_read(&command_line, argc, argv, determinism);
    if (result == 0 && (determinism->run_count == 0) == (determinism->live == NULL)) {
        report_error("give the --status of runs that have ended, or --live of one; `ftbench determinism --help` shows "
                     "how");
        return -EINVAL;
    }
    return result;
}

/* ---- what is found, from whichever source ---- */

/* Sums of one run, or of the time between two looks at it. */
struct figures {
    double seconds; /* of the guest's time */
    double log_bytes, log_records;
    double positions, clock_reads, time_records, time_bytes;
    double instructions; /* 0: not countable */
    double run_s, checked_s, forced_s;
    double forced_syncs, forced_pages, forced_zero_pages, forced_delta_pages, forced_bytes;
};

static void fact(struct determinism *determinism, const char *name, double value)
{
    result_add(&determinism->result, name, METRIC_FACT, true, value);
}

static void add_if(struct determinism *determinism, const char *name, bool known, double value)
{
    if (known)
        fact(determinism, name, value);
}

static void add_figures(struct determinism *determinism, const struct figures *figures)
{
    bool any_sync = figures->forced_syncs > 0, countable = figures->instructions > 0;

    fact(determinism, "guest_seconds", figures->seconds);
    fact(determinism, "positions_per_s", figures->positions / figures->seconds);
    fact(determinism, "log_bytes_per_s", figures->log_bytes / figures->seconds);
    fact(determinism, "log_megabits_per_s", figures->log_bytes * 8e-6 / figures->seconds);
    add_if(determinism, "log_bytes_per_position", figures->positions > 0, figures->log_bytes / figures->positions);
    add_if(determinism, "log_bytes_per_1000_instructions", countable,
           figures->log_bytes / (figures->instructions / 1000));
    add_if(determinism, "instructions_per_position", countable && figures->positions > 0,
           figures->instructions / figures->positions);
    if (!countable)
        determinism->no_instructions = true;
    fact(determinism, "clock_reads_per_s", figures->clock_reads / figures->seconds);
    add_if(determinism, "time_bytes_per_clock_read", figures->clock_reads > 0,
           figures->time_bytes / figures->clock_reads);
    fact(determinism, "forced_syncs_per_s", figures->forced_syncs / figures->seconds);
    fact(determinism, "forced_bytes_per_s", figures->forced_bytes / figures->seconds);
    add_if(determinism, "forced_pages_per_sync", any_sync, figures->forced_pages / figures->forced_syncs);
    add_if(determinism, "forced_zero_pages_per_sync", any_sync, figures->forced_zero_pages / figures->forced_syncs);
    add_if(determinism, "forced_delta_pages_per_sync", any_sync,
           figures->forced_delta_pages / figures->forced_syncs);
    result_add(&determinism->result, "run_percent", METRIC_FACT, false, 100 * figures->run_s / figures->seconds);
    fact(determinism, "forced_percent", 100 * figures->forced_s / figures->seconds);
    if (figures->run_s > 0)
        result_add(&determinism->result, "checked_percent_of_run", METRIC_RATIO, true,
                   100 * figures->checked_s / figures->run_s);
}

/* ---- files ---- */

static double number_at(const cJSON *object, const char *name)
{
    return result_file_number(object, name, 0);
}

/* NULL: cannot be read, and that was said. `needed`: a member that it must have. */
static cJSON *read_json(const char *path, const char *needed, const char *what)
{
    cJSON *json = result_file_json(path);

    if (json == NULL || cJSON_GetObjectItemCaseSensitive(json, needed) != NULL)
        return json;
    report_error("%s is no %s: it has no '%s'", path, what, needed);
    cJSON_Delete(json);
    return NULL;
}

static void add_kinds(struct determinism *determinism, const cJSON *kinds, double seconds)
{
    const cJSON *kind;
    char name[64];

    cJSON_ArrayForEach(kind, kinds)
    {
        snprintf(name, sizeof(name), "records_per_s.%.40s", kind->string);
        fact(determinism, name, number_at(kind, "records") / seconds);
        snprintf(name, sizeof(name), "bytes_per_s.%.40s", kind->string);
        fact(determinism, name, number_at(kind, "bytes") / seconds);
    }
}

static void add_exits(struct determinism *determinism, const cJSON *exits, double seconds)
{
    const cJSON *exit;
    char name[64];

    cJSON_ArrayForEach(exit, exits)
    {
        snprintf(name, sizeof(name), "exits_per_s.%.40s", exit->string);
        if (cJSON_IsNumber(exit) && exit->valuedouble > 0)
            fact(determinism, name, exit->valuedouble / seconds);
    }
}

/* How fast the guest was against the same work unprotected: both ran it to its end. false: said. */
static bool add_ratio(struct determinism *determinism, const char *path, const cJSON *status)
{
    cJSON *plain = read_json(path, "lockstep", "status file of ftvmm");
    bool good = plain != NULL;

    if (good && (!cJSON_HasObjectItem(plain, "ended") || !cJSON_HasObjectItem(status, "ended") ||
                 number_at(plain, "virtual_ms") <= 0)) {
        report_error("%s: a ratio needs two runs of one workload that came to their ends by themselves", path);
        good = false;
    }
    if (good)
        result_add(&determinism->result, "protected_by_unprotected", METRIC_RATIO, false,
                   number_at(plain, "virtual_ms") / number_at(status, "virtual_ms"));
    cJSON_Delete(plain);
    return good;
}

/* false: it cannot be used, and that was said. */
static bool take_files(struct determinism *determinism, const struct run *run)
{
    cJSON *status = read_json(run->status, "lockstep", "status file of ftvmm"), *log = NULL;
    const cJSON *lockstep = cJSON_GetObjectItemCaseSensitive(status, "lockstep"), *pause;
    struct figures figures;
    bool good = status != NULL;

    if (good && number_at(status, "virtual_ms") <= 0) {
        report_error("%s: that guest has not run", run->status);
        good = false;
    }
    if (good && run->log != NULL)
        good = (log = read_json(run->log, "kinds", "summary of a log (ftvmm log --summary --json)")) != NULL;
    if (good) {
        const cJSON *channel = cJSON_GetObjectItemCaseSensitive(status, "channel");

        figures = (struct figures){
            .seconds = number_at(status, "virtual_ms") / 1e3,
            .log_bytes = number_at(channel, "record_bytes"),
            .log_records = number_at(channel, "records"),
            .positions = number_at(lockstep, "positions"),
            .clock_reads = number_at(lockstep, "clock_reads"),
            .time_records = number_at(lockstep, "time_records"),
            .time_bytes = number_at(lockstep, "time_bytes"),
            .instructions = number_at(lockstep, "instructions"),
            .run_s = number_at(lockstep, "run_ms") / 1e3,
            .checked_s = number_at(lockstep, "checked_ms") / 1e3,
            .forced_s = number_at(lockstep, "forced_ms") / 1e3,
            .forced_syncs = number_at(lockstep, "forced_syncs"),
            .forced_pages = number_at(lockstep, "forced_pages"),
            .forced_zero_pages = number_at(lockstep, "forced_zero_pages"),
            .forced_delta_pages = number_at(lockstep, "forced_delta_pages"),
            .forced_bytes = number_at(lockstep, "forced_bytes"),
        };
        add_figures(determinism, &figures);
        pause = cJSON_GetObjectItemCaseSensitive(lockstep, "forced_pause");
        if (number_at(pause, "samples") > 0) {
            fact(determinism, "forced_pause_us.p50", number_at(pause, "p50_us"));
            fact(determinism, "forced_pause_us.p99", number_at(pause, "p99_us"));
            fact(determinism, "forced_pause_us.max", number_at(pause, "max_us"));
        }
        fact(determinism, "divergences", number_at(lockstep, "divergences"));
        add_exits(determinism, cJSON_GetObjectItemCaseSensitive(status, "exits"), figures.seconds);
        if (log != NULL)
            add_kinds(determinism, cJSON_GetObjectItemCaseSensitive(log, "kinds"), figures.seconds);
        if (run->unprotected != NULL)
            good = add_ratio(determinism, run->unprotected, status);
    }
    cJSON_Delete(status);
    cJSON_Delete(log);
    return good;
}

/* ---- a running one ---- */

static double grown(const struct vmm_metrics looks[2], const char *name)
{
    return vmm_metrics_value(&looks[1], name) - vmm_metrics_value(&looks[0], name);
}

static void add_live(struct determinism *determinism, const struct vmm_metrics looks[2])
{
    static const char *const exits[] = {"io",     "mmio",   "hlt",         "msr_read",       "msr_write",
                                        "window", "forced", "interrupted", "user_tsc_reads", "window_steps"};
    struct figures figures = {
        .seconds = (double)(looks[1].at_ns - looks[0].at_ns) / (double)NS_PER_S,
        .log_bytes = grown(looks, "log_bytes_total"),
        .log_records = grown(looks, "log_records_total"),
        .positions = grown(looks, "positions_total"),
        .clock_reads = grown(looks, "clock_reads_total"),
        .time_records = grown(looks, "time_records_total"),
        .time_bytes = grown(looks, "time_bytes_total"),
        .instructions = grown(looks, "guest_instructions_total"),
        .run_s = grown(looks, "guest_run_seconds_total"),
        .checked_s = grown(looks, "checked_seconds_total"),
        .forced_s = grown(looks, "forced_sync_seconds_total"),
        .forced_syncs = grown(looks, "forced_syncs_total"),
        .forced_pages = grown(looks, "forced_sync_pages_total"),
        .forced_zero_pages = grown(looks, "forced_sync_zero_pages_total"),
        .forced_delta_pages = grown(looks, "forced_sync_delta_pages_total"),
        .forced_bytes = grown(looks, "forced_sync_bytes_total"),
    };
    char name[64];

    add_figures(determinism, &figures);
    fact(determinism, "records_per_s.time", figures.time_records / figures.seconds);
    fact(determinism, "records_per_s.frame", grown(looks, "frame_records_total") / figures.seconds);
    fact(determinism, "records_per_s.output", grown(looks, "output_records_total") / figures.seconds);
    fact(determinism, "records_per_s.all", figures.log_records / figures.seconds);
    for (size_t i = 0; i < sizeof(exits) / sizeof(exits[0]); i++) {
        double count;

        snprintf(name, sizeof(name), "exits_total{kind=\"%s\"}", exits[i]);
        count = grown(looks, name);
        snprintf(name, sizeof(name), "exits_per_s.%s", exits[i]);
        if (count > 0)
            fact(determinism, name, count / figures.seconds);
    }
}

static bool look_live(struct determinism *determinism)
{
    struct vmm_metrics looks[2] = {{0}, {0}};
    bool good = true;

    for (unsigned look = 0; good && look < determinism->looks; look++) {
        result_look_at_noise(&determinism->result);
        good = vmm_metrics_read(&looks[0], determinism->live) == 0;
        if (good) {
            clock_sleep_ns(determinism->live_ns);
            good = vmm_metrics_read(&looks[1], determinism->live) == 0;
        }
        if (good && grown(looks, "positions_total") <= 0) {
            report_error("the guest of %s has come to no position in %.1f s: it has ended, or stands still",
                         determinism->live, (double)determinism->live_ns / (double)NS_PER_S);
            good = false;
        }
        if (good)
            add_live(determinism, looks);
    }
    vmm_metrics_fini(&looks[0]);
    vmm_metrics_fini(&looks[1]);
    return good;
}

/* ---- showing ---- */

static void add_goals(struct bench_result *result)
{
    result_set_goal(result, "checked_percent_of_run", "the comparison costs less than 2 % of the guest's time", true,
                    GOAL_DIGEST_PERCENT);
    result_set_goal(result, "protected_by_unprotected", "VMware FT (2010) is at 0.94 to 0.99", false, GOAL_RATIO);
}

static void print(const struct determinism *determinism, FILE *out)
{
    const struct bench_result *result = &determinism->result;

    fprintf(out, "determinism: %u %s\n", determinism->live != NULL ? determinism->looks : determinism->run_count,
            determinism->live != NULL ? "looks at a running guest" : "runs");
    result_print_machine(&result->machine, "this machine", out);
    if (result->notes[0] != '\0')
        fprintf(out, "notes: %s\n", result->notes);
    result_print_metrics_head("\nfound", out);
    for (unsigned i = 0; i < result->metric_count; i++)
        result_print_metric(&result->metrics[i], out);
    result_print_goals(result, out);
    fflush(out);
}

static int write_files(const struct determinism *determinism)
{
    cJSON *object = result_json(&determinism->result), *settings = cJSON_AddObjectToObject(object, "settings");

    cJSON_AddStringToObject(settings, "source", determinism->live != NULL ? "live" : "files");
    cJSON_AddNumberToObject(settings, "runs", determinism->live != NULL ? determinism->looks : determinism->run_count);
    return result_write(&determinism->result, object, &determinism->files);
}

int determinism_main(int argc, char **argv)
{
    struct determinism *determinism = calloc(1, sizeof(*determinism));
    bool good = true;
    int rc;

    if (determinism == NULL)
        return EXIT_FAILED;
    rc = parse_options(determinism, argc, argv);
    if (rc != 0) {
        free(determinism);
        return rc > 0 ? 0 : EXIT_USAGE;
    }
    result_begin(&determinism->result, "determinism", determinism->note);
    for (unsigned i = 0; good && i < determinism->run_count; i++)
        good = take_files(determinism, &determinism->runs[i]);
    if (determinism->live != NULL)
        good = look_live(determinism);
    result_end(&determinism->result);
    if (good && determinism->no_instructions)
        result_note(&determinism->result,
                    "instructions were not countable on that host (it has no performance counters, "
                    "or gives no right to them)");
    if (good) {
        add_goals(&determinism->result);
        print(determinism, result_files_take_stdout(&determinism->files) ? stderr : stdout);
        good = write_files(determinism) == 0;
    }
    free(determinism);
    return good ? 0 : EXIT_FAILED;
}
