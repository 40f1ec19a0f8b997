/* The tables of a result. */
#include "bench/result.h"

#include <string.h>

#include "base/clock.h"
#include "bench/statistics.h"

static const double percentiles[] = { 50, 90, 99, 99.9, 99.99 };
static const char *const percentile_names[] = { "p50", "p90", "p99", "p99.9", "p99.99" };
#define PERCENTILES (sizeof(percentiles) / sizeof(percentiles[0]))

void result_print_machine(const struct machine *machine, const char *whose, FILE *out)
{
    fprintf(out, "  %-9s %s, %u cores%s, %s, RDMA devices: %s\n", whose, machine->cpu, machine->cores,
            machine->virtual_machine != 0 ? " (virtual)" : "", machine->kernel,
            machine->rdma[0] != '\0' ? machine->rdma : "none");
}

void result_print_noise(const struct bench_result *result, FILE *out)
{
    const struct machine_noise *noise = &result->noise;

    if (noise->looked_ns != 0)
        fprintf(out, "  %-9s a loop that only looks at the clock lost %.3f %% in gaps over %u us, the longest %.1f us; "
                     "stolen %.2f %%; load %.2f\n", "noise",
                100.0 * (double)noise->lost_ns / (double)noise->looked_ns, (unsigned)(MACHINE_GAP_NS / NS_PER_US),
                (double)noise->longest_ns / (double)NS_PER_US, result->stolen_percent, result->load);
    if (result->notes[0] != '\0')
        fprintf(out, "  %-9s %s\n", "note", result->notes);
}

void result_print_latency(const struct bench_result *result, const char *title, FILE *out)
{
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
}

void result_print_metrics_head(const char *title, FILE *out)
{
    fprintf(out, "\n%-46s %14s %14s %14s %9s\n", title, "median", "min", "max", "spread");
}

static bool is_rate(const struct metric *metric)
{
    return strstr(metric->name, "_per_s.") != NULL;
}

void result_print_metric(const struct metric *metric, FILE *out)
{
    struct summary summary = statistics_summarize(metric->values, metric->count);
    int digits = is_rate(metric) ? 0 : 3;

    fprintf(out, "  %-44s %14.*f %14.*f %14.*f %7.1f %%\n", metric->name, digits, summary.median, digits, summary.min,
            digits, summary.max, 100 * statistics_spread(&summary));
}

void result_print_metrics(const struct bench_result *result, enum metric_role role, bool rates, FILE *out)
{
    for (unsigned i = 0; i < result->metric_count; i++) {
        const struct metric *metric = &result->metrics[i];

        if (metric->role == role && is_rate(metric) == rates && strstr(metric->name, "_ns.") == NULL)
            result_print_metric(metric, out);
    }
}

void result_print_goals(const struct bench_result *result, FILE *out)
{
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
}
