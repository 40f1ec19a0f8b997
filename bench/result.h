/*
 * What a run of a workload found: numbers by round, latencies, the machine and how much of it was somebody else's; and
 * the shapes that it is shown in: tables, JSON, CSV, SVG. The JSON has one frame for all workloads, result.schema.json,
 * to which each adds what is its own.
 */
#ifndef FTVMM_BENCH_RESULT_H
#define FTVMM_BENCH_RESULT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "base/histogram.h"
#include "bench/machine.h"

#define ROUNDS_MAX  64   /* that a workload may be told to make */
#define VALUES_MAX  1000 /* of one metric */
#define METRICS_MAX 256
#define SERIES_MAX  12
#define GOALS_MAX   4

#define RESULT_VERSION 2 /* of the JSON: its "format" is "ftbench WORKLOAD VERSION" */

enum metric_role {
    METRIC_OURS,
    METRIC_YARDSTICK,
    METRIC_RATIO,
    METRIC_FACT,  /* neither good nor bad */
    METRIC_MODEL, /* computed, not measured */
};

/* One number, measured once each round. */
struct metric {
    char name[64]; /* with its unit at the end of its first word */
    enum metric_role role;
    bool lower_is_better;
    unsigned count;
    double values[VALUES_MAX];
};

/* All latencies of one kind, of all rounds. */
struct series {
    char name[32];
    enum metric_role role;
    struct histogram ns;
};

struct goal {
    char metric[64]; /* a METRIC_RATIO */
    const char *what;
    double limit;
    bool at_most;
};

/* Where a result goes besides the table; NULL: nowhere, "-": standard output, and the table then to standard error. */
struct result_files {
    const char *json, *csv, *svg;
};

/* Zero-initialise (it is large: calloc), then result_begin. */
struct bench_result {
    const char *workload;
    struct machine machine;
    struct machine peer_machine; /* cores 0: none, or it is not known */
    struct machine_noise noise;
    double load, stolen_percent, seconds;
    struct metric metrics[METRICS_MAX];
    unsigned metric_count;
    struct series series[SERIES_MAX];
    unsigned series_count;
    struct goal goals[GOALS_MAX];
    unsigned goal_count;
    char notes[512]; /* what is not there, and why */
    uint64_t begin_ns, begin_stolen_ns;
};

/* ---- collecting ---- */

/* The run begins: describes this machine. `workload` must outlive the result. `note`: the first one, or NULL. */
void result_begin(struct bench_result *result, const char *workload, const char *note);
/* `metric` should have a median of at most (or at least) the limit. One that is not measured has no goal: nothing is done.
 * `what` must outlive the result. */
void result_set_goal(struct bench_result *result, const char *metric, const char *what, bool at_most, double limit);
/* Looks how noisy the machine is, for 20 ms; once each round. */
void result_look_at_noise(struct bench_result *result);
/* The run has ended. */
void result_end(struct bench_result *result);

/* Adds this round's value. */
void result_add(struct bench_result *result, const char *name, enum metric_role role, bool lower_is_better,
                double value);
/* Adds one round's latencies: to the series, and as NAME_ns.p50 and so on. */
void result_add_latency(struct bench_result *result, const char *name, enum metric_role role,
                        const struct histogram *ns);
/* NULL: no such metric. */
const struct metric *result_find(const struct bench_result *result, const char *name);
/* Adds value i of `name` / value i of `by`, times `factor`, for the last round, if both are there. */
void result_add_ratio(struct bench_result *result, const char *ratio, bool lower_is_better, const char *name,
                      const char *by, double factor);
/* Adds a sentence to the notes. */
__attribute__((format(printf, 2, 3))) void result_note(struct bench_result *result, const char *format, ...);

const char *metric_role_name(enum metric_role role);
bool goal_is_met(const struct goal *goal, const struct metric *metric);

/* ---- tables: result_print.c ---- */

/* The machine, its noise, the notes. */
void result_print_machine(const struct machine *machine, const char *whose, FILE *out);
void result_print_noise(const struct bench_result *result, FILE *out);
/* All series. */
void result_print_latency(const struct bench_result *result, const char *title, FILE *out);
/* A line for each metric of the role that is a rate (NAME_per_s.) or is none; percentiles never: see above. */
void result_print_metrics(const struct bench_result *result, enum metric_role role, bool rates, FILE *out);
void result_print_metrics_head(const char *title, FILE *out);
void result_print_metric(const struct metric *metric, FILE *out);
void result_print_goals(const struct bench_result *result, FILE *out);

/* ---- files ---- */

/* The frame of the JSON; the caller adds its own and gives it to result_write. */
cJSON *result_json(const struct bench_result *result);
/* One of the files is standard output. */
bool result_files_take_stdout(const struct result_files *files);
/* Writes the files and deletes `json`. 0 or -errno, said. */
int result_write(const struct bench_result *result, cJSON *json, const struct result_files *files);

/* svg.c: latency percentiles as lines over a logarithmic axis, throughput as bars. false: could not be written. */
bool result_write_svg(const struct bench_result *result, FILE *out);

#endif
