/* Shows the result of ftbench guest. */
#include "bench/guest.h"

#include <string.h>

#include "base/clock.h"
#include "bench/statistics.h"

#define OURS 2 /* of the guests: their steps are known */

static bool median_of(const struct bench_result *result, const char *side, const char *step, double *us)
{
    const struct metric *metric;
    char name[64];

    snprintf(name, sizeof(name), "step_us.%s.%s", side, step);
    metric = result_find(result, name);
    if (metric != NULL)
        *us = statistics_summarize(metric->values, metric->count).median;
    return metric != NULL;
}

static void print_steps(const struct bench_result *result, const struct guest_options *options, FILE *out)
{
    double totals[OURS] = { 0 }, us;

    for (unsigned side = 0; side < OURS; side++)
        for (unsigned i = 0; i < GUEST_STEPS; i++)
            if (median_of(result, options->targets[side].side, guest_steps[i].name, &us))
                totals[side] += us;
    if (totals[0] <= 0 && totals[1] <= 0)
        return;
    fprintf(out, "\n%-46s", "steps of a request, mean us, median of rounds");
    for (unsigned side = 0; side < OURS; side++)
        fprintf(out, " %14s %9s", options->targets[side].side, "share");
    for (unsigned i = 0; i < GUEST_STEPS; i++) {
        fprintf(out, "\n  %-44s", guest_steps[i].words);
        for (unsigned side = 0; side < OURS; side++) {
            if (median_of(result, options->targets[side].side, guest_steps[i].name, &us) && totals[side] > 0)
                fprintf(out, " %14.3f %7.1f %%", us, 100 * us / totals[side]);
            else
                fprintf(out, " %14s %9s", "-", "-");
        }
    }
    fprintf(out, "\n");
}

void guest_result_print(const struct bench_result *result, const struct guest_options *options, FILE *out)
{
    fprintf(out, "guest protected %s, unprotected %s, %u connections, pipeline %u, %u rounds, seed %llu, %.1f s\n",
            options->targets[0].host, options->targets[1].host, options->connections, options->pipeline,
            options->rounds, (unsigned long long)options->seed, result->seconds);
    result_print_machine(&result->machine, "client", out);
    result_print_noise(result, out);
    result_print_latency(result, "latency in ns, from request to reply", out);
    result_print_metrics_head("requests per second", out);
    result_print_metrics(result, METRIC_OURS, true, out);
    result_print_metrics(result, METRIC_YARDSTICK, true, out);
    result_print_metrics_head("what protection adds, and ratios, of each round", out);
    for (unsigned i = 0; i < result->metric_count; i++)
        if (strncmp(result->metrics[i].name, "added_us.", strlen("added_us.")) == 0)
            result_print_metric(&result->metrics[i], out);
    result_print_metrics(result, METRIC_RATIO, false, out);
    result_print_goals(result, out);
    print_steps(result, options, out);
    result_print_metrics_head("what the log and the vCPU had to do", out);
    result_print_metrics(result, METRIC_FACT, false, out);
    fflush(out);
}

int guest_result_write(const struct bench_result *result, const struct guest_options *options)
{
    cJSON *object = result_json(result), *settings = cJSON_AddObjectToObject(object, "settings");

    for (unsigned i = 0; i < guest_targets_count(options->targets); i++)
        cJSON_AddStringToObject(settings, options->targets[i].side, options->targets[i].text);
    cJSON_AddNumberToObject(settings, "connections", options->connections);
    cJSON_AddNumberToObject(settings, "pipeline", options->pipeline);
    cJSON_AddNumberToObject(settings, "requests_per_round", (double)options->requests);
    cJSON_AddNumberToObject(settings, "warmup", (double)options->warmup);
    cJSON_AddNumberToObject(settings, "rounds", options->rounds);
    cJSON_AddNumberToObject(settings, "idle_ms", (double)options->idle_ns / (double)NS_PER_MS);
    cJSON_AddNumberToObject(settings, "spin_us", (double)options->spin_ns / (double)NS_PER_US);
    cJSON_AddNumberToObject(settings, "seed", (double)options->seed);
    return result_write(result, object, &options->files);
}
