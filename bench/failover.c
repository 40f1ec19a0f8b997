/*
 * ftbench failover: runs a script that makes one failover, again and again, and tells how long each step of them took,
 * and how long their clients waited. The script leaves OUT/result.json, as scripts/demo does; docs/benchmarks.md tells
 * what must be in it, so that another script can do the same with real hosts.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/arguments.h"
#include "bench/result_file.h"
#include "bench/shuffle.h"
#include "bench/statistics.h"
#include "bench/stop.h"
#include "bench/workloads.h"

#define EXIT_FAILED 1
#define EXIT_USAGE  2
#define WORDS_MAX   64
#define TICK_NS     (20 * NS_PER_MS)

/* What is read of each run, at a path of at most two names. */
static const struct line {
    const char *outer, *inner;
    const char *name, *words;
    double to_ns; /* 0: it is no time */
    bool must_be_none;
} lines[] = {
    {"failover", "detected_us", "detected", "silence noticed", 1e3, false},
    {"failover", "fenced_us", "fenced", "the log shut to the other host", 1e3, false},
    {"failover", "drained_us", "drained", "what was left replayed", 1e3, false},
    {"failover", "decided_us", "decided", "the arbiter's answer", 1e3, false},
    {"failover", "live_us", "live", "live", 1e3, false},
    {"failover", "first_frame_us", "first_frame", "the guest's first frame sent", 1e3, false},
    {"counter", "longest_gap_ms", "client_gap", "the client's longest wait", 1e6, false},
    {"failover", "resent_frames", "resent_frames", "held frames sent again", 0, false},
    {"counter", "lost", "lost", "acknowledged and lost", 0, true},
    {"counter", "duplicated", "duplicated", "answered twice", 0, true},
};
#define LINES (sizeof(lines) / sizeof(lines[0]))
#define ADDED "live_less_detected" /* what comes on top of the time-out, which is a setting */

struct failover {
    unsigned runs;
    uint64_t seed, limit_ns;
    const char *out, *note;
    char **words;
    unsigned word_count, failed;
    struct result_files files;
    struct bench_result result;
};

/* ---- options ---- */

static const struct argument arguments[] = {
    {"runs", "N", "default 10, at most 1000", ARGUMENT_UNSIGNED(struct failover, runs, 1, VALUES_MAX)},
    {"out", "DIR", "of the runs' directories, default failover-out", ARGUMENT_TEXT(struct failover, out)},
    ARGUMENT_LIMIT(struct failover, "a run may take so long, default 900"),
    ARGUMENT_SEED(struct failover, "of the seeds, default 1"),
    ARGUMENT_NOTE(struct failover, "about the hosts"),
    ARGUMENT_FILES(struct failover),
    {0},
};

static const struct command_line command_line = {
    .workload = "failover",
    .usage = "usage: ftbench failover [OPTION...] -- SCRIPT [ARGUMENT...]\n\n"
             "Runs a script that makes one failover, N times, and prints how long each step took. In its arguments\n"
             "{out} is a directory for this run, {seed} a number of its own from 0 to 32767, {run} its number from 1.\n"
             "The script leaves result.json in {out}, as scripts/demo does:\n\n"
             "    ftbench failover --runs 20 -- scripts/demo --lab NAME --kill alpha --seed {seed} --out {out}\n\n",
    .arguments = arguments,
    .exit_status = "0 all runs went well, 1 one did not, lost or duplicated something, 2 usage",
    .words = WORDS_BEHIND,
};

static int parse_options(struct failover *failover, int argc, char **argv)
{
    int result;

    failover->runs = 10;
    failover->seed = 1;
    failover->limit_ns = 900 * NS_PER_S;
    failover->out = "failover-out";
    result = arguments_read(&command_line, argc, argv, failover);
    if (result != 0)
        return result;
    failover->words = argv + optind;
    failover->word_count = (unsigned)(argc - optind);
    if (failover->word_count == 0 || failover->word_count >= WORDS_MAX) {
        report_error(failover->word_count == 0 ? "which script makes a failover? `ftbench failover --help` shows how"
                                               : "the script has too many arguments");
        return -EINVAL;
    }
    if (mkdir(failover->out, 0777) != 0 && errno != EEXIST) {
        report_error("the directory %s cannot be made: %s; give another --out", failover->out, strerror(errno));
        return -EINVAL;
    }
    return 0;
}

/* ---- one run ---- */

/* A copy of `word` with the braces filled in, to be freed; NULL: no memory. */
static char *fill_in(const char *word, const char *out, unsigned seed, unsigned run)
{
    char *text = NULL, number[16];
    size_t bytes;
    FILE *into = open_memstream(&text, &bytes);

    while (into != NULL && *word != '\0') {
        const char *with = NULL;
        size_t length = 0;

        if (strncmp(word, "{out}", length = 5) == 0)
            with = out;
        else if (strncmp(word, "{run}", length) == 0 || strncmp(word, "{seed}", length = 6) == 0) {
            snprintf(number, sizeof(number), "%u", length == 5 ? run : seed);
            with = number;
        }
        if (with != NULL)
            fputs(with, into);
        else
            fputc(*word, into);
        word += with != NULL ? length : 1;
    }
    if (into == NULL || fclose(into) != 0)
        return NULL;
    return text;
}

/* The child: what it says goes to OUT/log. */
__attribute__((noreturn)) static void become(char *const argv[], const char *out, pid_t parent)
{
    char path[4096];
    int log;

    snprintf(path, sizeof(path), "%s/log", out);
    log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* no failovers without somebody who counts them */
    if (log >= 0 && getppid() == parent) {
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
        execvp(argv[0], argv);
        dprintf(STDERR_FILENO, "ftbench failover: %s does not start: %s\n", argv[0], strerror(errno));
    }
    _exit(127);
}

/* Its exit status, or -1 with the reason said. */
static int await(pid_t child, uint64_t limit_ns, unsigned run)
{
    uint64_t until_ns = clock_now_ns() + limit_ns;
    bool told = false;
    int status;

    while (waitpid(child, &status, WNOHANG) == 0) {
        bool late = clock_now_ns() >= until_ns;

        if ((late || stop_wanted) && !told) {
            if (late)
                report_warning("run %u is not done after %llu s; it is ended", run,
                               (unsigned long long)(limit_ns / NS_PER_S));
            kill(-child, SIGTERM); /* it may have something to put in order */
            until_ns = clock_now_ns() + 60 * NS_PER_S;
            told = true;
        } else if (late) {
            kill(-child, SIGKILL);
        }
        clock_sleep_ns(TICK_NS);
    }
    return !told && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int run_script(const struct failover *failover, const char *out, unsigned seed, unsigned run)
{
    char *argv[WORDS_MAX + 1] = {NULL};
    pid_t parent = getpid(), child = -1;
    int status = -1;
    bool good = true;

    for (unsigned i = 0; i < failover->word_count; i++)
        good = (argv[i] = fill_in(failover->words[i], out, seed, run)) != NULL && good;
    if (good)
        child = fork();
    if (child == 0)
        become(argv, out, parent);
    if (child > 0)
        status = await(child, failover->limit_ns, run);
    else
        report_error("run %u cannot be started: %s", run, strerror(errno));
    for (unsigned i = 0; i < failover->word_count; i++)
        free(argv[i]);
    return status;
}

/* NULL: it is not there. */
static cJSON *read_result(const char *out)
{
    static char text[1 << 20];
    char path[4096];
    size_t bytes;
    FILE *file;

    snprintf(path, sizeof(path), "%s/result.json", out);
    file = fopen(path, "re");
    if (file == NULL)
        return NULL;
    bytes = fread(text, 1, sizeof(text), file);
    fclose(file);
    return cJSON_ParseWithLength(text, bytes);
}

/* Adds what the run tells of itself. false: something is wrong with it, and that was said. */
static bool take_result(struct failover *failover, const cJSON *result, int status, unsigned run)
{
    double detected_us = 0, live_us = 0;
    bool good = status == 0;

    if (result == NULL)
        report_warning("run %u has left no result (status %d)", run, status);
    else if (!good)
        report_warning("run %u has failed (status %d)", run, status);
    for (size_t i = 0; result != NULL && i < LINES; i++) {
        const cJSON *outer = cJSON_GetObjectItemCaseSensitive(result, lines[i].outer);
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(outer, lines[i].inner);
        char name[64];

        if (!cJSON_IsNumber(value))
            continue; /* a backup that is lost drains nothing */
        snprintf(name, sizeof(name), lines[i].to_ns != 0 ? "step_ms.%s" : "%s", lines[i].name);
        result_add(&failover->result, name, METRIC_OURS, true,
                   lines[i].to_ns != 0 ? value->valuedouble * lines[i].to_ns / 1e6 : value->valuedouble);
        if (strcmp(lines[i].name, "detected") == 0)
            detected_us = value->valuedouble;
        if (strcmp(lines[i].name, "live") == 0)
            live_us = value->valuedouble;
        if (lines[i].must_be_none && value->valuedouble != 0) {
            report_warning("run %u: %g %s", run, value->valuedouble, lines[i].words);
            good = false;
        }
    }
    if (live_us > 0 && detected_us > 0)
        result_add(&failover->result, "step_ms." ADDED, METRIC_OURS, true, (live_us - detected_us) / 1e3);
    return good && result != NULL;
}

static void make_runs(struct failover *failover)
{
    uint64_t state = failover->seed;

    for (unsigned run = 1; run <= failover->runs && !stop_wanted; run++) {
        unsigned seed = shuffle_next(&state, 32768);
        char out[3800];
        cJSON *result = NULL;
        int status = -1;

        snprintf(out, sizeof(out), "%s/%04u", failover->out, run);
        report_info("run %u of %u, seed %u", run, failover->runs, seed);
        result_look_at_noise(&failover->result);
        if (mkdir(out, 0777) != 0 && errno != EEXIST) {
            report_error("the directory %s cannot be made: %s", out, strerror(errno));
        } else {
            char old[4096];

            snprintf(old, sizeof(old), "%s/result.json", out); /* of an earlier run */
            unlink(old);
            status = run_script(failover, out, seed, run);
            result = read_result(out);
        }
        if (stop_wanted)
            result_note(&failover->result, "stopped in run %u", run);
        else
            failover->failed += !take_result(failover, result, status, run);
        cJSON_Delete(result);
    }
    result_end(&failover->result);
    if (failover->failed > 0)
        result_note(&failover->result, "%u runs have failed; what they told is in the figures", failover->failed);
}

/* ---- showing ---- */

/* Each step as a curve over the runs. */
static void add_curves(struct failover *failover)
{
    static struct histogram ns;

    for (unsigned i = 0; i < failover->result.metric_count; i++) {
        const struct metric *metric = &failover->result.metrics[i];

        if (strncmp(metric->name, "step_ms.", strlen("step_ms.")) != 0)
            continue;
        memset(&ns, 0, sizeof(ns));
        for (unsigned value = 0; value < metric->count; value++)
            histogram_record(&ns, (uint64_t)(metric->values[value] * 1e6));
        result_add_latency(&failover->result, metric->name + strlen("step_ms."), METRIC_OURS, &ns);
    }
}

static void print_line(const struct bench_result *result, const char *prefix, const char *name, const char *words,
                       FILE *out)
{
    static const double quantiles[] = {0, 0.5, 0.9, 0.99, 1};
    const struct metric *metric;
    char full[64];

    snprintf(full, sizeof(full), "%s%s", prefix, name);
    metric = result_find(result, full);
    if (metric == NULL)
        return;
    fprintf(out, "  %-34s", words);
    for (size_t i = 0; i < sizeof(quantiles) / sizeof(quantiles[0]); i++)
        fprintf(out, " %11.1f", statistics_quantile(metric->values, metric->count, quantiles[i]));
    fprintf(out, " %6u\n", metric->count);
}

static void print(const struct failover *failover, FILE *out)
{
    fprintf(out, "failover %s, %u runs, %u failed, seed %llu, %.1f s\n", failover->words[0], failover->runs,
            failover->failed, (unsigned long long)failover->seed, failover->result.seconds);
    result_print_machine(&failover->result.machine, "machine", out);
    result_print_noise(&failover->result, out);
    fprintf(out, "\n%-36s %11s %11s %11s %11s %11s %6s\n", "ms since the last sign of life", "min", "p50", "p90", "p99",
            "max", "runs");
    for (size_t i = 0; i < LINES; i++)
        if (lines[i].to_ns != 0)
            print_line(&failover->result, "step_ms.", lines[i].name, lines[i].words, out);
    print_line(&failover->result, "step_ms.", ADDED, "live less noticed: what ftvmm adds", out);
    fprintf(out, "\n%-36s\n", "of each run");
    for (size_t i = 0; i < LINES; i++)
        if (lines[i].to_ns == 0)
            print_line(&failover->result, "", lines[i].name, lines[i].words, out);
    fflush(out);
}

static int write_files(const struct failover *failover)
{
    cJSON *object = result_json(&failover->result), *settings = cJSON_AddObjectToObject(object, "settings");
    cJSON *words = cJSON_AddArrayToObject(settings, "script");

    for (unsigned i = 0; i < failover->word_count; i++)
        cJSON_AddItemToArray(words, cJSON_CreateString(failover->words[i]));
    cJSON_AddNumberToObject(settings, "runs", failover->runs);
    cJSON_AddNumberToObject(settings, "seed", (double)failover->seed);
    cJSON_AddNumberToObject(object, "failed_runs", failover->failed);
    return result_write(&failover->result, object, &failover->files);
}

int failover_main(int argc, char **argv)
{
    struct failover *failover = calloc(1, sizeof(*failover));
    int result;

    if (failover == NULL)
        return EXIT_FAILED;
    result = parse_options(failover, argc, argv);
    if (result != 0) {
        free(failover);
        return result > 0 ? 0 : EXIT_USAGE;
    }
    stop_on_signals(0);
    result_begin(&failover->result, "failover", failover->note);
    make_runs(failover);
    add_curves(failover);
    print(failover, result_files_take_stdout(&failover->files) ? stderr : stdout);
    result = write_files(failover);
    if (failover->failed > 0 || stop_wanted)
        result = -EIO;
    free(failover);
    return result == 0 ? 0 : EXIT_FAILED;
}
