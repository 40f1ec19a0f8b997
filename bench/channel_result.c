/* Collects the numbers of a run, and shows them as a table, JSON and CSV. */
#include "bench/channel_result.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "bench/statistics.h"

static const double percentiles[] = { 50, 90, 99, 99.9, 99.99 };
static const char *const percentile_names[] = { "p50", "p90", "p99", "p99.9", "p99.99" };
#define PERCENTILES (sizeof(percentiles) / sizeof(percentiles[0]))

/* ---- collecting ---- */

void result_add(struct bench_result *result, const char *name, enum metric_role role, bool lower_is_better,
                double value)
{
    struct metric *metric = NULL;

    for (unsigned i = 0; i < result->metric_count; i++)
        if (strcmp(result->metrics[i].name, name) == 0)
            metric = &result->metrics[i];
    if (metric == NULL) {
        if (result->metric_count == METRICS_MAX)
            report_bug("no room for the metric %s", name);
        metric = &result->metrics[result->metric_count++];
        snprintf(metric->name, sizeof(metric->name), "%s", name);
        metric->role = role;
        metric->lower_is_better = lower_is_better;
    }
    if (metric->count == ROUNDS_MAX)
        report_bug("the metric %s has more values than rounds", name);
    metric->values[metric->count++] = value;
}

void result_add_latency(struct bench_result *result, const char *name, enum metric_role role,
                        const struct histogram *ns)
{
    struct series *series = NULL;
    char metric[64];

    for (unsigned i = 0; i < result->series_count; i++)
        if (strcmp(result->series[i].name, name) == 0)
            series = &result->series[i];
    if (series == NULL) {
        if (result->series_count == SERIES_MAX)
            report_bug("no room for the series %s", name);
        series = &result->series[result->series_count++];
        snprintf(series->name, sizeof(series->name), "%s", name);
        series->role = role;
    }
    histogram_merge(&series->ns, ns);
    for (size_t i = 0; i < PERCENTILES; i++) {
        snprintf(metric, sizeof(metric), "%s_ns.%s", name, percentile_names[i]);
        result_add(result, metric, role, true, (double)histogram_percentile(ns, percentiles[i]));
    }
    snprintf(metric, sizeof(metric), "%s_ns.max", name);
    result_add(result, metric, role, true, (double)ns->max);
}

const struct metric *result_find(const struct bench_result *result, const char *name)
{
    for (unsigned i = 0; i < result->metric_count; i++)
        if (strcmp(result->metrics[i].name, name) == 0)
            return &result->metrics[i];
    return NULL;
}

void result_add_ratio(struct bench_result *result, const char *ratio, bool lower_is_better, const char *name,
                      const char *by, double factor)
{
    const struct metric *above = result_find(result, name), *below = result_find(result, by);

    if (above == NULL || below == NULL || above->count != below->count || below->values[below->count - 1] == 0)
        return;
    result_add(result, ratio, METRIC_RATIO, lower_is_better,
               above->values[above->count - 1] / below->values[below->count - 1] * factor);
}

const char *metric_role_name(enum metric_role role)
{
    switch (role) {
    case METRIC_OURS:
        return "channel";
    case METRIC_YARDSTICK:
        return "yardstick";
    case METRIC_RATIO:
        return "ratio";
    case METRIC_FACT:
        break;
    }
    return "fact";
}

bool goal_is_met(const struct goal *goal, const struct metric *metric)
{
    double median = statistics_summarize(metric->values, metric->count).median;

    return goal->at_most ? median <= goal->limit : median >= goal->limit;
}

/* ---- table ---- */

static void print_machine(const struct machine *machine, const char *whose, FILE *out)
{
    fprintf(out, "  %-9s %s, %u cores%s, %s, RDMA devices: %s\n", whose, machine->cpu, machine->cores,
            machine->virtual_machine != 0 ? " (virtual)" : "", machine->kernel,
            machine->rdma[0] != '\0' ? machine->rdma : "none");
}

static void print_metrics(const struct bench_result *result, enum metric_role role, bool per_second, FILE *out)
{
    for (unsigned i = 0; i < result->metric_count; i++) {
        const struct metric *metric = &result->metrics[i];
        struct summary summary;

        if (metric->role != role || (strstr(metric->name, "_per_s.") != NULL) != per_second ||
            strstr(metric->name, "_ns.") != NULL)
            continue;
        summary = statistics_summarize(metric->values, metric->count);
        fprintf(out, "  %-44s %14.*f %14.*f %14.*f %7.1f %%\n", metric->name, per_second ? 0 : 3, summary.median,
                per_second ? 0 : 3, summary.min, per_second ? 0 : 3, summary.max, 100 * statistics_spread(&summary));
    }
}

void result_print(const struct bench_result *result, FILE *out)
{
    const struct bench_options *options = result->options;
    const struct machine_noise *noise = &result->noise;
    char title[64];

    fprintf(out, "channel %s, %u rounds, seed %llu, %.1f s\n", options->address, options->rounds,
            (unsigned long long)options->seed, result->seconds);
    print_machine(&result->machine, "machine", out);
    if (!options->fork)
        print_machine(&result->peer_machine, "other", out);
    fprintf(out, "  %-9s a loop that only looks at the clock lost %.3f %% in gaps over %u us, the longest %.1f us; "
                 "stolen %.2f %%; load %.2f\n", "noise",
            100.0 * (double)noise->lost_ns / (double)noise->looked_ns, (unsigned)(MACHINE_GAP_NS / NS_PER_US),
            (double)noise->longest_ns / (double)NS_PER_US, result->stolen_percent, result->load);
    if (result->notes[0] != '\0')
        fprintf(out, "  %-9s %s\n", "note", result->notes);

    snprintf(title, sizeof(title), "latency in ns, frames of %u bytes", options->sizes[0]);
    fprintf(out, "\n%-46s", title);
    for (size_t i = 0; i < PERCENTILES; i++)
        fprintf(out, " %9s", percentile_names[i]);
    fprintf(out, " %10s %9s  p50 by round\n", "max", "samples");
    for (unsigned i = 0; i < result->series_count; i++) {
        const struct series *series = &result->series[i];
        const struct metric *metric;
        char name[64];

        snprintf(name, sizeof(name), "%s_ns.p50", series->name);
        metric = result_find(result, name);
        fprintf(out, "  %-32s %-11s", series->name, metric_role_name(series->role));
        for (size_t p = 0; p < PERCENTILES; p++)
            fprintf(out, " %9llu", (unsigned long long)histogram_percentile(&series->ns, percentiles[p]));
        fprintf(out, " %10llu %9llu ", (unsigned long long)series->ns.max, (unsigned long long)series->ns.samples);
        if (metric != NULL) {
            struct summary summary = statistics_summarize(metric->values, metric->count);

            fprintf(out, " %.0f..%.0f", summary.min, summary.max);
        }
        fprintf(out, "\n");
    }
    fprintf(out, "\n%-46s %14s %14s %14s %9s\n", "throughput, per second", "median", "min", "max", "spread");
    print_metrics(result, METRIC_OURS, true, out);
    print_metrics(result, METRIC_YARDSTICK, true, out);
    print_metrics(result, METRIC_FACT, false, out);
    fprintf(out, "\n%-46s %14s %14s %14s %9s\n", "ratios, of each round", "median", "min", "max", "spread");
    print_metrics(result, METRIC_RATIO, false, out);
    for (unsigned i = 0; i < result->goal_count; i++) {
        const struct goal *goal = &result->goals[i];
        const struct metric *metric = result_find(result, goal->metric);

        if (i == 0)
            fprintf(out, "\ngoals\n");
        if (metric == NULL)
            fprintf(out, "  %-8s %s %s %.2f\n", "NOT KNOWN", goal->what, goal->at_most ? "<=" : ">=", goal->limit);
        else
            fprintf(out, "  %-8s %s %s %.2f: %.2f\n", goal_is_met(goal, metric) ? "met" : "MISSED", goal->what,
                    goal->at_most ? "<=" : ">=", goal->limit,
                    statistics_summarize(metric->values, metric->count).median);
    }
    fflush(out);
}

/* ---- JSON ---- */

static void add_machine(cJSON *object, const char *name, const struct machine *machine)
{
    cJSON *json = cJSON_AddObjectToObject(object, name);

    cJSON_AddStringToObject(json, "cpu", machine->cpu);
    cJSON_AddNumberToObject(json, "cores", machine->cores);
    cJSON_AddBoolToObject(json, "virtual", machine->virtual_machine != 0);
    cJSON_AddStringToObject(json, "kernel", machine->kernel);
    cJSON_AddStringToObject(json, "rdma_devices", machine->rdma);
}

static void add_numbers(cJSON *object, const char *name, const uint32_t *numbers, unsigned count)
{
    cJSON *array = cJSON_AddArrayToObject(object, name);

    for (unsigned i = 0; i < count; i++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber(numbers[i]));
}

static void add_settings(cJSON *object, const struct bench_options *options)
{
    cJSON *json = cJSON_AddObjectToObject(object, "settings");

    add_numbers(json, "frame_bytes", options->sizes, options->size_count);
    add_numbers(json, "windows", options->windows, options->window_count);
    cJSON_AddNumberToObject(json, "rounds", options->rounds);
    cJSON_AddNumberToObject(json, "samples_per_round", (double)options->samples);
    cJSON_AddNumberToObject(json, "run_ms", (double)options->run_ns / (double)NS_PER_MS);
    cJSON_AddNumberToObject(json, "ring_bytes", (double)options->ring_bytes);
    cJSON_AddNumberToObject(json, "spin_us", (double)options->idle.spin_ns / (double)NS_PER_US);
    cJSON_AddNumberToObject(json, "sleep_us", (double)options->idle.sleep_ns / (double)NS_PER_US);
    cJSON_AddNumberToObject(json, "seed", (double)options->seed);
}

static void add_noise(cJSON *object, const struct bench_result *result)
{
    const struct machine_noise *noise = &result->noise;
    cJSON *json = cJSON_AddObjectToObject(object, "noise");

    cJSON_AddNumberToObject(json, "looked_ms", (double)noise->looked_ns / (double)NS_PER_MS);
    cJSON_AddNumberToObject(json, "lost_percent", 100.0 * (double)noise->lost_ns / (double)noise->looked_ns);
    cJSON_AddNumberToObject(json, "gaps", (double)noise->gaps);
    cJSON_AddNumberToObject(json, "longest_gap_us", (double)noise->longest_ns / (double)NS_PER_US);
    cJSON_AddNumberToObject(json, "stolen_percent", result->stolen_percent);
    cJSON_AddNumberToObject(json, "load", result->load);
}

static cJSON *metric_json(const struct metric *metric)
{
    struct summary summary = statistics_summarize(metric->values, metric->count);
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "name", metric->name);
    cJSON_AddStringToObject(json, "role", metric_role_name(metric->role));
    cJSON_AddStringToObject(json, "better", metric->lower_is_better ? "lower" : "higher");
    cJSON_AddNumberToObject(json, "median", summary.median);
    cJSON_AddNumberToObject(json, "min", summary.min);
    cJSON_AddNumberToObject(json, "max", summary.max);
    cJSON_AddItemToObject(json, "values", cJSON_CreateDoubleArray(metric->values, (int)metric->count));
    return json;
}

static cJSON *series_json(const struct series *series)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "name", series->name);
    cJSON_AddStringToObject(json, "role", metric_role_name(series->role));
    cJSON_AddNumberToObject(json, "samples", (double)series->ns.samples);
    for (size_t i = 0; i < PERCENTILES; i++)
        cJSON_AddNumberToObject(json, percentile_names[i], (double)histogram_percentile(&series->ns, percentiles[i]));
    cJSON_AddNumberToObject(json, "max", (double)series->ns.max);
    return json;
}

cJSON *result_json(const struct bench_result *result)
{
    static const char *const links[] = { [LINK_RING] = "ring", [LINK_SHM] = "shm", [LINK_VERBS] = "verbs",
                                         [LINK_TCP] = "tcp" };
    const struct bench_options *options = result->options;
    cJSON *object = cJSON_CreateObject(), *array;

    cJSON_AddStringToObject(object, "format", RESULT_FORMAT);
    cJSON_AddStringToObject(object, "link", links[options->link]);
    cJSON_AddStringToObject(object, "address", options->address);
    cJSON_AddBoolToObject(object, "one_machine", options->fork);
    cJSON_AddNumberToObject(object, "seconds", result->seconds);
    add_machine(object, "machine", &result->machine);
    add_machine(object, "peer_machine", &result->peer_machine);
    add_noise(object, result);
    add_settings(object, options);
    cJSON_AddStringToObject(object, "notes", result->notes);
    array = cJSON_AddArrayToObject(object, "latency_ns");
    for (unsigned i = 0; i < result->series_count; i++)
        cJSON_AddItemToArray(array, series_json(&result->series[i]));
    array = cJSON_AddArrayToObject(object, "metrics");
    for (unsigned i = 0; i < result->metric_count; i++)
        cJSON_AddItemToArray(array, metric_json(&result->metrics[i]));
    array = cJSON_AddArrayToObject(object, "goals");
    for (unsigned i = 0; i < result->goal_count; i++) {
        const struct goal *goal = &result->goals[i];
        const struct metric *metric = result_find(result, goal->metric);
        cJSON *json = cJSON_CreateObject();

        cJSON_AddStringToObject(json, "metric", goal->metric);
        cJSON_AddStringToObject(json, "what", goal->what);
        cJSON_AddNumberToObject(json, goal->at_most ? "at_most" : "at_least", goal->limit);
        if (metric != NULL)
            cJSON_AddBoolToObject(json, "met", goal_is_met(goal, metric));
        else
            cJSON_AddNullToObject(json, "met");
        cJSON_AddItemToArray(array, json);
    }
    return object;
}

/* ---- files ---- */

static bool write_json(const struct bench_result *result, FILE *out)
{
    cJSON *object = result_json(result);
    char *text = cJSON_Print(object);
    bool good = text != NULL && fprintf(out, "%s\n", text) > 0;

    free(text);
    cJSON_Delete(object);
    return good;
}

static bool write_csv(const struct bench_result *result, FILE *out)
{
    fprintf(out, "metric,role,better,round,value\n");
    for (unsigned i = 0; i < result->metric_count; i++) {
        const struct metric *metric = &result->metrics[i];

        for (unsigned round = 0; round < metric->count; round++)
            fprintf(out, "%s,%s,%s,%u,%.9g\n", metric->name, metric_role_name(metric->role),
                    metric->lower_is_better ? "lower" : "higher", round + 1, metric->values[round]);
    }
    return !ferror(out);
}

static int write_file(const struct bench_result *result, const char *path,
                      bool (*write)(const struct bench_result *result, FILE *out))
{
    FILE *out;
    bool good;

    if (path == NULL)
        return 0;
    errno = 0;
    out = strcmp(path, "-") == 0 ? stdout : fopen(path, "we");
    good = out != NULL && write(result, out) && fflush(out) == 0;
    if (!good)
        report_error("cannot write %s: %s", path, strerror(errno));
    if (out != NULL && out != stdout)
        fclose(out);
    return good ? 0 : -EIO;
}

int result_write(const struct bench_result *result)
{
    int json = write_file(result, result->options->json_path, write_json);
    int csv = write_file(result, result->options->csv_path, write_csv);
    int svg = write_file(result, result->options->svg_path, svg_write);

    return json != 0 ? json : csv != 0 ? csv : svg;
}
