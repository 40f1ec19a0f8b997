/* What a run of ftbench channel found, and its shapes: a table, JSON, CSV, SVG. */
#ifndef FTVMM_BENCH_CHANNEL_RESULT_H
#define FTVMM_BENCH_CHANNEL_RESULT_H

#include <stdio.h>

#include <cjson/cJSON.h>

#include "bench/channel_bench.h"

#define ROUNDS_MAX  64
#define METRICS_MAX 192
#define SERIES_MAX  8
#define GOALS_MAX   4

#define RESULT_FORMAT "ftbench channel 1" /* of the JSON; ftbench compare reads no other */

enum metric_role {
    METRIC_OURS,
    METRIC_YARDSTICK,
    METRIC_RATIO,
    METRIC_FACT, /* neither good nor bad */
};

/* One number, measured once each round. */
struct metric {
    char name[64]; /* with its unit at the end of its first word */
    enum metric_role role;
    bool lower_is_better;
    unsigned count;
    double values[ROUNDS_MAX];
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

struct bench_result {
    const struct bench_options *options;
    struct machine machine, peer_machine;
    struct machine_noise noise;
    double load, stolen_percent, seconds;
    struct metric metrics[METRICS_MAX];
    unsigned metric_count;
    struct series series[SERIES_MAX];
    unsigned series_count;
    struct goal goals[GOALS_MAX];
    unsigned goal_count;
    char notes[512]; /* what is not there, and why */
};

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

const char *metric_role_name(enum metric_role role);
bool goal_is_met(const struct goal *goal, const struct metric *metric);

void result_print(const struct bench_result *result, FILE *out);
cJSON *result_json(const struct bench_result *result);
/* To the files of the options; "-" is stdout. 0 or -errno, said. */
int result_write(const struct bench_result *result);

/* svg.c: latency percentiles as lines over a logarithmic axis, throughput as bars. false: could not be written. */
bool svg_write(const struct bench_result *result, FILE *out);

#endif
