/* Collects the numbers of a run, and writes them as JSON and CSV. */
#include "bench/result.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/statistics.h"

#define NOISE_NS (20 * NS_PER_MS) /* each round */
#define CURVE_STEPS 50            /* points of a latency's curve: a tenth of a nine apart, up to five nines */

static const double percentiles[] = { 50, 90, 99, 99.9, 99.99 };
static const char *const percentile_names[] = { "p50", "p90", "p99", "p99.9", "p99.99" };
#define PERCENTILES (sizeof(percentiles) / sizeof(percentiles[0]))

/* ---- collecting ---- */

void result_begin(struct bench_result *result, const char *workload, const char *note)
{
    result->workload = workload;
    machine_describe(&result->machine);
    result->begin_ns = clock_now_ns();
    result->begin_stolen_ns = machine_stolen_ns();
    if (note != NULL)
        result_note(result, "%s", note);
}

void result_look_at_noise(struct bench_result *result)
{
    machine_noise_look(&result->noise, NOISE_NS);
}

void result_end(struct bench_result *result)
{
    result->seconds = (double)(clock_now_ns() - result->begin_ns) / (double)NS_PER_S;
    result->stolen_percent = 100 * (double)(machine_stolen_ns() - result->begin_stolen_ns) / (double)NS_PER_S /
                             result->seconds / result->machine.cores;
    result->load = machine_load();
}

void result_add(struct bench_result *result, const char *name, enum metric_role role, bool lower_is_better,
                double value)
{
    struct metric *metric = (struct metric *)result_find(result, name);

    if (metric == NULL) {
        if (result->metric_count == METRICS_MAX)
            report_bug("no room for the metric %s", name);
        metric = &result->metrics[result->metric_count++];
        snprintf(metric->name, sizeof(metric->name), "%s", name);
        metric->role = role;
        metric->lower_is_better = lower_is_better;
    }
    if (metric->count == VALUES_MAX)
        report_bug("the metric %s has too many values", name);
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

void result_set_goal(struct bench_result *result, const char *metric, const char *what, bool at_most, double limit)
{
    struct goal *goal = &result->goals[result->goal_count];

    if (result_find(result, metric) == NULL || result->goal_count == GOALS_MAX)
        return;
    *goal = (struct goal){ .what = what, .limit = limit, .at_most = at_most };
    snprintf(goal->metric, sizeof(goal->metric), "%s", metric);
    result->goal_count++;
}

void result_note(struct bench_result *result, const char *format, ...)
{
    size_t used = strlen(result->notes);
    va_list args;

    if (used > 0)
        used += (size_t)snprintf(result->notes + used, sizeof(result->notes) - used, "; ");
    if (used >= sizeof(result->notes))
        return;
    va_start(args, format);
    vsnprintf(result->notes + used, sizeof(result->notes) - used, format, args);
    va_end(args);
}

const char *metric_role_name(enum metric_role role)
{
    switch (role) {
    case METRIC_OURS:
        return "ours";
    case METRIC_YARDSTICK:
        return "yardstick";
    case METRIC_RATIO:
        return "ratio";
    case METRIC_MODEL:
        return "model";
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

/* ---- JSON ---- */

static void add_machine(cJSON *object, const char *name, const struct machine *machine)
{
    cJSON *json;

    if (machine->cores == 0)
        return;
    json = cJSON_AddObjectToObject(object, name);
    cJSON_AddStringToObject(json, "cpu", machine->cpu);
    cJSON_AddNumberToObject(json, "cores", machine->cores);
    cJSON_AddBoolToObject(json, "virtual", machine->virtual_machine != 0);
    cJSON_AddStringToObject(json, "kernel", machine->kernel);
    cJSON_AddStringToObject(json, "rdma_devices", machine->rdma);
}

static void add_noise(cJSON *object, const struct bench_result *result)
{
    const struct machine_noise *noise = &result->noise;
    cJSON *json;

    if (noise->looked_ns == 0)
        return;
    json = cJSON_AddObjectToObject(object, "noise");
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

/* No further than samples reach: beyond 1 - 1/samples there is only the maximum. */
static void add_curve(cJSON *json, const struct histogram *ns)
{
    cJSON *curve = cJSON_AddArrayToObject(json, "curve");
    double end = ns->samples > 0 ? log10((double)ns->samples) : -1;

    for (unsigned i = 0; i <= CURVE_STEPS && i / 10.0 <= end; i++) {
        double percentile = 100 * (1 - pow(10, -(i / 10.0)));
        const double point[2] = { percentile, (double)histogram_percentile(ns, percentile) };

        cJSON_AddItemToArray(curve, cJSON_CreateDoubleArray(point, 2));
    }
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
    add_curve(json, &series->ns);
    return json;
}

static cJSON *goal_json(const struct bench_result *result, const struct goal *goal)
{
    const struct metric *metric = result_find(result, goal->metric);
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "metric", goal->metric);
    cJSON_AddStringToObject(json, "what", goal->what);
    cJSON_AddNumberToObject(json, goal->at_most ? "at_most" : "at_least", goal->limit);
    if (metric != NULL)
        cJSON_AddBoolToObject(json, "met", goal_is_met(goal, metric));
    else
        cJSON_AddNullToObject(json, "met");
    return json;
}

cJSON *result_json(const struct bench_result *result)
{
    cJSON *object = cJSON_CreateObject(), *array;
    char format[64];

    snprintf(format, sizeof(format), "ftbench %s %u", result->workload, RESULT_VERSION);
    cJSON_AddStringToObject(object, "format", format);
    cJSON_AddNumberToObject(object, "seconds", result->seconds);
    add_machine(object, "machine", &result->machine);
    add_machine(object, "peer_machine", &result->peer_machine);
    add_noise(object, result);
    cJSON_AddStringToObject(object, "notes", result->notes);
    array = cJSON_AddArrayToObject(object, "latency_ns");
    for (unsigned i = 0; i < result->series_count; i++)
        cJSON_AddItemToArray(array, series_json(&result->series[i]));
    array = cJSON_AddArrayToObject(object, "metrics");
    for (unsigned i = 0; i < result->metric_count; i++)
        cJSON_AddItemToArray(array, metric_json(&result->metrics[i]));
    array = cJSON_AddArrayToObject(object, "goals");
    for (unsigned i = 0; i < result->goal_count; i++)
        cJSON_AddItemToArray(array, goal_json(result, &result->goals[i]));
    return object;
}

/* ---- files ---- */

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

/* `text`, or what `write` makes of the result. */
static int write_file(const struct bench_result *result, const char *path, const char *text,
                      bool (*write)(const struct bench_result *result, FILE *out))
{
    FILE *out;
    bool good;

    if (path == NULL)
        return 0;
    errno = 0;
    out = strcmp(path, "-") == 0 ? stdout : fopen(path, "we");
    good = out != NULL && (write != NULL ? write(result, out) : text != NULL && fprintf(out, "%s\n", text) > 0) &&
           fflush(out) == 0;
    if (!good)
        report_error("cannot write %s: %s", path, strerror(errno));
    if (out != NULL && out != stdout)
        fclose(out);
    return good ? 0 : -EIO;
}

bool result_files_take_stdout(const struct result_files *files)
{
    return (files->json != NULL && strcmp(files->json, "-") == 0) ||
           (files->csv != NULL && strcmp(files->csv, "-") == 0) ||
           (files->svg != NULL && strcmp(files->svg, "-") == 0);
}

int result_write(const struct bench_result *result, cJSON *json, const struct result_files *files)
{
    char *text = cJSON_Print(json);
    int written_json = write_file(result, files->json, text, NULL);
    int written_csv = write_file(result, files->csv, NULL, write_csv);
    int written_svg = write_file(result, files->svg, NULL, result_write_svg);

    free(text);
    cJSON_Delete(json);
    return written_json != 0 ? written_json : written_csv != 0 ? written_csv : written_svg;
}
