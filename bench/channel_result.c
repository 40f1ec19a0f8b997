/* Shows the result of ftbench channel. */
#include "bench/channel_result.h"

void channel_result_print(const struct bench_result *result, const struct bench_options *options, FILE *out)
{
    char title[64];

    fprintf(out, "channel %s, %u rounds, seed %llu, %.1f s\n", options->address, options->rounds,
            (unsigned long long)options->seed, result->seconds);
    result_print_machine(&result->machine, "machine", out);
    if (!options->fork)
        result_print_machine(&result->peer_machine, "other", out);
    result_print_noise(result, out);
    snprintf(title, sizeof(title), "latency in ns, frames of %u bytes", options->sizes[0]);
    result_print_latency(result, title, out);
    result_print_metrics_head("throughput, per second", out);
    result_print_metrics(result, METRIC_OURS, true, out);
    result_print_metrics(result, METRIC_YARDSTICK, true, out);
    result_print_metrics(result, METRIC_FACT, false, out);
    result_print_metrics_head("ratios, of each round", out);
    result_print_metrics(result, METRIC_RATIO, false, out);
    result_print_goals(result, out);
    fflush(out);
}

static void add_numbers(cJSON *object, const char *name, const uint32_t *numbers, unsigned count)
{
    cJSON *array = cJSON_AddArrayToObject(object, name);

    for (unsigned i = 0; i < count; i++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber(numbers[i]));
}

int channel_result_write(const struct bench_result *result, const struct bench_options *options)
{
    static const char *const links[] = { [LINK_RING] = "ring", [LINK_SHM] = "shm", [LINK_VERBS] = "verbs",
                                         [LINK_TCP] = "tcp" };
    cJSON *object = result_json(result), *settings = cJSON_AddObjectToObject(object, "settings");

    cJSON_AddStringToObject(object, "link", links[options->link]);
    cJSON_AddStringToObject(object, "address", options->address);
    cJSON_AddBoolToObject(object, "one_machine", options->fork);
    add_numbers(settings, "frame_bytes", options->sizes, options->size_count);
    add_numbers(settings, "windows", options->windows, options->window_count);
    cJSON_AddNumberToObject(settings, "rounds", options->rounds);
    cJSON_AddNumberToObject(settings, "samples_per_round", (double)options->samples);
    cJSON_AddNumberToObject(settings, "run_ms", (double)options->run_ns / (double)NS_PER_MS);
    cJSON_AddNumberToObject(settings, "ring_bytes", (double)options->ring_bytes);
    cJSON_AddNumberToObject(settings, "spin_us", (double)options->idle.spin_ns / (double)NS_PER_US);
    cJSON_AddNumberToObject(settings, "sleep_us", (double)options->idle.sleep_ns / (double)NS_PER_US);
    cJSON_AddNumberToObject(settings, "seed", (double)options->seed);
    return result_write(result, object, &options->files);
}
