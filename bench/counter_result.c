/* The result of `ftbench counter`, as a table for people and as JSON for scripts. */
#include <inttypes.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/counter.h"
#include "bench/result.h"

static const double percentiles[] = { 50, 99, 99.9 };
static const char *const percentile_names[] = { "p50", "p99", "p99.9" };

static double to_ms(uint64_t ns)
{
    return (double)ns / (double)NS_PER_MS;
}

static double seconds_between(uint64_t from_ns, uint64_t to_ns)
{
    return ((double)to_ns - (double)from_ns) / (double)NS_PER_S;
}

static double throughput(const struct counter_run *run)
{
    double seconds = seconds_between(run->begin_ns, run->end_ns);

    return seconds > 0 ? (double)run->ledger.acked / seconds : 0;
}

static void print_table(const struct counter_run *run, const struct verdict *verdict)
{
    const struct ledger *ledger = &run->ledger;
    const struct counter_gap *gap = &run->gap;

    printf("counter '%s' on %s:%u, %u connections, pipeline %u\n", run->options->key, run->options->host,
           run->options->port, run->options->connections, run->options->pipeline);
    printf("  increments sent           %12" PRIu64 "\n", ledger->sent);
    printf("  acknowledged              %12" PRIu64, ledger->acked);
    if (run->mark_ns != 0)
        printf("   (%" PRIu64 " before the mark, %" PRIu64 " after)", ledger->acked_before_mark,
               ledger->acked_after_mark);
    printf("\n  in flight, fate unknown   %12" PRIu64 "\n", ledger->unknown);
    printf("  refused with an error     %12" PRIu64 "\n", ledger->errors);
    printf("  connections opened anew   %12" PRIu64 "\n", run->reconnects);
    printf("  value at the start        %12" PRId64 "\n", ledger->start);
    printf("  highest acknowledged      %12" PRId64 "\n", ledger->max);
    if (verdict != NULL)
        printf("  value at the end          %12" PRId64 "\n", verdict->final);
    else
        printf("  value at the end           unreachable\n");
    if (verdict != NULL) {
        printf("  LOST                      %12" PRIu64 "\n", verdict->lost);
        printf("  executed more than asked  %12" PRIu64 "\n", verdict->surplus);
    }
    printf("  DUPLICATED values         %12" PRIu64 "\n", ledger->duplicated);
    printf("  values out of order       %12" PRIu64 "\n", ledger->out_of_order);
    printf("  longest gap               %12.3f ms on connection %u, from %.3f s after the start",
           to_ms(gap->end_ns - gap->begin_ns), gap->connection,
           gap->end_ns > 0 ? seconds_between(run->begin_ns, gap->begin_ns) : 0);
    if (run->mark_ns != 0 && gap->end_ns > 0)
        printf(" (%+.3f s to %+.3f s from the mark)", seconds_between(run->mark_ns, gap->begin_ns),
               seconds_between(run->mark_ns, gap->end_ns));
    printf("\n  latency                  ");
    for (size_t i = 0; i < sizeof(percentiles) / sizeof(percentiles[0]); i++)
        printf(" %s %.3f ms,", percentile_names[i], to_ms(histogram_percentile(&run->latency_ns, percentiles[i])));
    printf(" max %.3f ms\n", to_ms(run->latency_ns.max));
    printf("  throughput                %12.1f increments/s\n", throughput(run));
    printf("%s\n", verdict == NULL   ? "UNREACHABLE: the final value could not be read"
                   : verdict->clean ? "OK: nothing acknowledged was lost or duplicated"
                                    : "FAILED: the counter contradicts its own acknowledgments");
    fflush(stdout);
}

/* What all workloads' results have. */
static cJSON *build_frame(const struct counter_run *run)
{
    struct bench_result *result = calloc(1, sizeof(*result));
    cJSON *object;

    if (result == NULL)
        return NULL;
    result_begin(result, "counter", NULL);
    result->seconds = seconds_between(run->begin_ns, run->end_ns);
    if (run->latency_ns.samples > 0)
        result_add_latency(result, "increment", METRIC_OURS, &run->latency_ns);
    result_add(result, "increments_per_s.acknowledged", METRIC_OURS, false, throughput(run));
    result_add(result, "longest_gap_ms", METRIC_OURS, true, to_ms(run->gap.end_ns - run->gap.begin_ns));
    object = result_json(result);
    free(result);
    return object;
}

static cJSON *build_json(const struct counter_run *run, const struct verdict *verdict)
{
    const struct ledger *ledger = &run->ledger;
    const struct counter_gap *gap = &run->gap;
    cJSON *object = build_frame(run), *latency, *seconds;

    cJSON_AddStringToObject(object, "host", run->options->host);
    cJSON_AddNumberToObject(object, "port", run->options->port);
    cJSON_AddStringToObject(object, "key", run->options->key);
    cJSON_AddNumberToObject(object, "connections", run->options->connections);
    cJSON_AddNumberToObject(object, "pipeline", run->options->pipeline);
    cJSON_AddNumberToObject(object, "sent", (double)ledger->sent);
    cJSON_AddNumberToObject(object, "acknowledged", (double)ledger->acked);
    cJSON_AddNumberToObject(object, "acknowledged_before_mark", (double)ledger->acked_before_mark);
    cJSON_AddNumberToObject(object, "acknowledged_after_mark", (double)ledger->acked_after_mark);
    cJSON_AddNumberToObject(object, "unknown", (double)ledger->unknown);
    cJSON_AddNumberToObject(object, "errors", (double)ledger->errors);
    cJSON_AddNumberToObject(object, "reconnects", (double)run->reconnects);
    cJSON_AddNumberToObject(object, "start_value", (double)ledger->start);
    cJSON_AddNumberToObject(object, "max_value", (double)ledger->max);
    if (verdict != NULL) {
        cJSON_AddNumberToObject(object, "final_value", (double)verdict->final);
        cJSON_AddNumberToObject(object, "lost", (double)verdict->lost);
        cJSON_AddNumberToObject(object, "surplus", (double)verdict->surplus);
    } else {
        cJSON_AddNullToObject(object, "final_value");
        cJSON_AddNullToObject(object, "lost");
        cJSON_AddNullToObject(object, "surplus");
    }
    cJSON_AddNumberToObject(object, "duplicated", (double)ledger->duplicated);
    cJSON_AddNumberToObject(object, "out_of_order", (double)ledger->out_of_order);
    cJSON_AddNumberToObject(object, "longest_gap_ms", to_ms(gap->end_ns - gap->begin_ns));
    cJSON_AddNumberToObject(object, "longest_gap_begin_s",
                            gap->end_ns > 0 ? seconds_between(run->begin_ns, gap->begin_ns) : 0);
    if (run->mark_ns != 0) {
        cJSON_AddNumberToObject(object, "mark_s", seconds_between(run->begin_ns, run->mark_ns));
        cJSON_AddNumberToObject(object, "longest_gap_begin_from_mark_s", seconds_between(run->mark_ns, gap->begin_ns));
    } else {
        cJSON_AddNullToObject(object, "mark_s");
        cJSON_AddNullToObject(object, "longest_gap_begin_from_mark_s");
    }
    latency = cJSON_AddObjectToObject(object, "latency_us");
    for (size_t i = 0; i < sizeof(percentiles) / sizeof(percentiles[0]); i++)
        cJSON_AddNumberToObject(latency, percentile_names[i],
                                (double)histogram_percentile(&run->latency_ns, percentiles[i]) / (double)NS_PER_US);
    cJSON_AddNumberToObject(latency, "max", (double)run->latency_ns.max / (double)NS_PER_US);
    cJSON_AddNumberToObject(object, "throughput_per_s", throughput(run));
    seconds = cJSON_AddArrayToObject(object, "acknowledged_per_second");
    for (unsigned i = 0; i < run->seconds && run->begin_ns + i * NS_PER_S <= run->end_ns; i++)
        cJSON_AddItemToArray(seconds, cJSON_CreateNumber((double)run->acked_per_second[i]));
    cJSON_AddStringToObject(object, "verdict", verdict == NULL ? "unreachable" : verdict->clean ? "ok" : "failed");
    return object;
}

void counter_print(const struct counter_run *run, const struct verdict *verdict)
{
    cJSON *object;
    char *text;

    print_table(run, verdict);
    if (run->options->json == NULL)
        return;
    object = build_json(run, verdict);
    text = cJSON_Print(object);
    if (text == NULL || fprintf(run->options->json, "%s\n", text) < 0 || fflush(run->options->json) != 0)
        report_error("the JSON result could not be written");
    free(text);
    cJSON_Delete(object);
}
