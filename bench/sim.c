/*
 * ftbench sim: what measured steps predict for other hardware. Reads the steps from results and options, says where
 * each number comes from, and prints what the model (model.h) makes of them: a prediction, labelled as one everywhere.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/arguments.h"
#include "bench/model.h"
#include "bench/result_file.h"
#include "bench/statistics.h"
#include "bench/workloads.h"

#define EXIT_NOT_READ 1
#define EXIT_USAGE 2
#define LINKS_MAX 6
#define SIZES_MAX 6
#define FROM_MAX 8

/* The numbers that the model needs, as options and in the result. */
enum input {
    INPUT_WRITE, INPUT_RECORD, INPUT_RECORD_BYTE, INPUT_EXIT, INPUT_POLL, INPUT_GUEST, INPUT_OUTSIDE, INPUT_EXITS,
    INPUT_RECORDS, INPUT_LOG_BYTES, INPUT_LOG_WRITES, INPUTS,
};

static const struct input_kind {
    const char *option, *unit, *words, *origin; /* origin: of the value without option and result */
    double value, min, max;                     /* in `unit` */
    double scale;                               /* to the model's unit */
    size_t offset;
} kinds[INPUTS] = {
    [INPUT_WRITE] = { "write-us", "us", "a small RDMA write, posted to completed", "Mu's median replication, OSDI'20",
                      1.3, 0, 1e6, 1e3, offsetof(struct model, write_ns) },
    [INPUT_RECORD] = { "record-ns", "ns", "the CPU's work for a record", "commit to ack over shm, docs/benchmarks.md",
                       50, 0, 1e9, 1, offsetof(struct model, record_ns) },
    [INPUT_RECORD_BYTE] = { "record-byte-ns", "ns", "and for each of its bytes", "assumed", 0.1, 0, 1e6, 1,
                            offsetof(struct model, record_byte_ns) },
    [INPUT_EXIT] = { "exit-us", "us", "an exit, served, and back in the guest", "assumed", 2, 0, 1e6, 1e3,
                     offsetof(struct model, exit_ns) },
    [INPUT_POLL] = { "poll-us", "us", "a round of the polling thread", "assumed", 0.5, 0, 1e6, 1e3,
                     offsetof(struct model, poll_ns) },
    [INPUT_GUEST] = { "guest-us", "us", "the guest's own work for a request", "assumed", 20, 0, 1e7, 1e3,
                      offsetof(struct model, guest_ns) },
    [INPUT_OUTSIDE] = { "outside-us", "us", "wire, network stacks and client", "assumed", 20, 0, 1e7, 1e3,
                        offsetof(struct model, outside_ns) },
    [INPUT_EXITS] = { "exits", "per request", "exits", "assumed", 10, 0, 1e6, 1, offsetof(struct model, exits) },
    [INPUT_RECORDS] = { "records", "per request", "records", "assumed", 6, 0, 1e6, 1, offsetof(struct model, records) },
    [INPUT_LOG_BYTES] = { "log-bytes", "per request", "bytes of log", "assumed", 600, 0, 1e9, 1,
                          offsetof(struct model, log_bytes) },
    [INPUT_LOG_WRITES] = { "log-writes", "per request", "RDMA writes of it", "assumed", 4, 0, 1e6, 1,
                           offsetof(struct model, log_writes) },
};

struct sim {
    double values[INPUTS]; /* in the option's unit */
    char origins[INPUTS][96];
    bool given[INPUTS];    /* by an option: no result changes it */
    bool counts_only;
    uint32_t links_gbit[LINKS_MAX], sizes[SIZES_MAX];
    unsigned link_count, size_count, load_percent;
    uint64_t requests, seed;
    const char *from[FROM_MAX];
    unsigned from_count;
    struct result_files files;
    struct model model;
    struct bench_result result;
};

static void set_input(struct sim *sim, enum input input, double value, const char *path, const char *what)
{
    if (sim->given[input])
        return;
    sim->values[input] = value;
    snprintf(sim->origins[input], sizeof(sim->origins[input]), "%.60s of %s", what,
             strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path);
}

/* The median of a metric; false: the result does not have it. */
static bool median_of(const cJSON *result, const char *name, double *median)
{
    double values[VALUES_MAX];
    unsigned count;

    if (!result_file_values(result_file_metric(result, name), values, &count))
        return false;
    *median = statistics_summarize(values, count).median;
    return true;
}

/* A record's cost from two sizes' rates: that of the end that works longer. */
static void take_record_cost(struct sim *sim, const cJSON *result, const char *path)
{
    static const uint32_t sizes[] = { 64, 4096 };
    double rates[2], ns[2], byte_ns;
    char name[64];

    for (unsigned i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "records_per_s.%uB.ring_full", sizes[i]);
        if (!median_of(result, name, &rates[i]) || rates[i] <= 0) {
            report_warning("%s has no %s: a record's cost is not taken from it", path, name);
            return;
        }
        ns[i] = (double)NS_PER_S / rates[i];
    }
    byte_ns = ns[1] > ns[0] ? (ns[1] - ns[0]) / (sizes[1] - sizes[0]) : 0;
    if (ns[0] <= byte_ns * sizes[0]) {
        report_warning("%s is of a machine too noisy to tell a record's cost", path);
        return;
    }
    set_input(sim, INPUT_RECORD, ns[0] - byte_ns * sizes[0], path, "records_per_s, 64 and 4096 B,");
    set_input(sim, INPUT_RECORD_BYTE, byte_ns, path, "records_per_s, 64 and 4096 B,");
}

static void take_channel(struct sim *sim, const cJSON *result, const char *path)
{
    const char *link = result_file_text(result, "link");
    double ns;

    if (strcmp(link, "shm") == 0 || strcmp(link, "ring") == 0)
        take_record_cost(sim, result, path);
    else if (strcmp(link, "verbs") == 0 && median_of(result, "bare_write_to_ack_ns.p50", &ns))
        set_input(sim, INPUT_WRITE, ns / 1e3, path, "bare_write_to_ack, p50,");
    else
        report_warning("%s is of %s: it has nothing that the model uses", path, link);
}

static void take_guest(struct sim *sim, const cJSON *result, const char *path)
{
    static const struct {
        const char *metric;
        enum input input;
    } counts[] = {
        { "exits_per_request.protected", INPUT_EXITS },
        { "records_per_request.protected", INPUT_RECORDS },
        { "log_bytes_per_request.protected", INPUT_LOG_BYTES },
        { "log_writes_per_request.protected", INPUT_LOG_WRITES },
    };
    double us, exit_us, wait_us, send_us;

    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (median_of(result, counts[i].metric, &us))
            set_input(sim, counts[i].input, us, path, counts[i].metric);
        else
            report_warning("%s has no %s", path, counts[i].metric);
    }
    if (sim->counts_only || !median_of(result, "step_us.protected.guest", &us) ||
        !median_of(result, "step_us.protected.exit", &exit_us))
        return;
    /* The guest's time as measured has its exits in it; what they take is an input of its own. */
    us += exit_us - sim->values[INPUT_EXITS] * sim->values[INPUT_EXIT];
    set_input(sim, INPUT_GUEST, us > 0 ? us : 0, path, "step_us guest and exit, less exits,");
    if (median_of(result, "step_us.protected.outside", &us) &&
        median_of(result, "step_us.protected.input_wait", &wait_us) &&
        median_of(result, "step_us.protected.send", &send_us))
        set_input(sim, INPUT_OUTSIDE, us + wait_us + send_us, path, "step_us outside, input_wait, send,");
}

static int read_results(struct sim *sim)
{
    for (unsigned i = 0; i < sim->from_count; i++) {
        cJSON *result = result_file_read(sim->from[i]);
        const char *workload = result != NULL ? result_file_workload(result) : "";

        if (result == NULL)
            return -EINVAL;
        if (strcmp(workload, "channel") == 0)
            take_channel(sim, result, sim->from[i]);
        else if (strcmp(workload, "guest") == 0)
            take_guest(sim, result, sim->from[i]);
        else
            report_warning("%s is of `ftbench %s`: it has nothing that the model uses", sim->from[i], workload);
        cJSON_Delete(result);
    }
    for (unsigned i = 0; i < INPUTS; i++)
        *(double *)((char *)&sim->model + kinds[i].offset) = sim->values[i] * kinds[i].scale;
    return 0;
}

/* ---- options ---- */

static bool take_from(const struct argument *argument, const char *path, void *place)
{
    struct sim *sim = place;

    (void)argument;
    if (sim->from_count == FROM_MAX) {
        report_error("more than %u results; give those that differ", FROM_MAX);
        return false;
    }
    sim->from[sim->from_count++] = path;
    return true;
}

static bool take_input(const struct argument *argument, const char *text, void *place)
{
    struct sim *sim = place;
    unsigned i = 0;

    while (strcmp(kinds[i].option, argument->name) != 0)
        i++;
    sim->given[i] = true;
    snprintf(sim->origins[i], sizeof(sim->origins[i]), "given");
    return argument_real(argument->name, text, kinds[i].min, kinds[i].max, kinds[i].unit, &sim->values[i]);
}

static const struct argument other_arguments[] = {
    { "from", "FILE", "take what it has from a result of `ftbench channel` (shm:, ring: a record's cost;\n"
      "verbs: the write's latency) or `ftbench guest` (counts and times of a request)", .take = take_from },
    { "counts-only", NULL, "of guest results take the counts, not the times (they were emulated)",
      ARGUMENT_FLAG(struct sim, counts_only, true) },
    { "links", "N,...", "Gb/s of the rail, default 25,100,400",
      ARGUMENT_LIST(struct sim, links_gbit, link_count, 1, 3200, 1) },
    { "sizes", "N,...", "frame bytes of records, default 64,256,1024,4096",
      ARGUMENT_LIST(struct sim, sizes, size_count, 64, 65536, 64) },
    { "load", "PERCENT", "of the highest throughput at which requests arrive, default 50",
      ARGUMENT_UNSIGNED(struct sim, load_percent, 1, 95) },
    { "requests", "N", "simulated for each line of percentiles, default 200000",
      ARGUMENT_NUMBER(struct sim, requests, 100, 100000000) },
    ARGUMENT_SEED(struct sim, "default 1"),
    ARGUMENT_FILES(struct sim),
};
#define OTHERS (sizeof(other_arguments) / sizeof(other_arguments[0]))

static int parse_options(struct sim *sim, int argc, char **argv)
{
    static const uint32_t links[] = { 25, 100, 400 }, sizes[] = { 64, 256, 1024, 4096 };
    struct argument arguments[OTHERS + INPUTS + 1] = { 0 };
    const struct command_line line = {
        .workload = "sim",
        .usage =
            "usage: ftbench sim [--from RESULT.json]... [OPTION...]\n\n"
            "Predicts latency and throughput for other hardware from measured steps. A model, not a measurement:\n"
            "docs/benchmarks.md has its formulas. From --write-us on the options are numbers of the model, with their\n"
            "units; each wins over a result's.\n\n",
        .arguments = arguments,
        .exit_status = "0 done, 1 a result cannot be read, 2 usage",
    };
    char words[INPUTS][160];

    memcpy(arguments, other_arguments, sizeof(other_arguments));
    for (unsigned i = 0; i < INPUTS; i++) {
        snprintf(words[i], sizeof(words[i]), "%s: %s, default %g (%s)", kinds[i].unit, kinds[i].words, kinds[i].value,
                 kinds[i].origin);
        arguments[OTHERS + i] = (struct argument){ kinds[i].option, "N", words[i], .take = take_input };
        sim->values[i] = kinds[i].value;
        snprintf(sim->origins[i], sizeof(sim->origins[i]), "%s", kinds[i].origin);
    }
    memcpy(sim->links_gbit, links, sizeof(links));
    memcpy(sim->sizes, sizes, sizeof(sizes));
    sim->link_count = 3;
    sim->size_count = 4;
    sim->load_percent = 50;
    sim->requests = 200000;
    sim->seed = 1;
    return arguments_read(&line, argc, argv, sim);
}

/* ---- predictions ---- */

static void metric_name(char name[64], const char *what, const char *of, uint32_t link_gbit)
{
    snprintf(name, 64, "%s.%s%s%uGb", what, of, of[0] != '\0' ? "." : "", link_gbit);
}

static void add(struct sim *sim, const char *what, const char *of, uint32_t link_gbit, bool lower_is_better,
                double value)
{
    char name[64];

    metric_name(name, what, of, link_gbit);
    result_add(&sim->result, name, METRIC_MODEL, lower_is_better, value);
}

/* 1 where the link is the limit, 0 where the CPU is. */
static void add_limit(struct sim *sim, const char *what, const char *of, uint32_t link_gbit, int by_link)
{
    char name[64];

    metric_name(name, what, of, link_gbit);
    result_add(&sim->result, name, METRIC_FACT, true, by_link);
}

static void predict_channel(struct sim *sim, uint32_t link_gbit)
{
    int by_link;

    for (unsigned i = 0; i < sim->size_count; i++) {
        char size[16];

        snprintf(size, sizeof(size), "%uB", sim->sizes[i]);
        add(sim, "commit_to_ack_us", size, link_gbit, true,
            model_commit_to_ack_ns(&sim->model, sim->sizes[i], link_gbit) / 1e3);
        add(sim, "records_per_s", size, link_gbit, false,
            model_records_per_s(&sim->model, sim->sizes[i], link_gbit, &by_link));
        add_limit(sim, "records_limited_by_link", size, link_gbit, by_link);
    }
}

static void predict_requests(struct sim *sim, uint32_t link_gbit)
{
    const struct model *model = &sim->model;
    double without_ns = model_request_ns(model, 0, link_gbit), with_ns = model_request_ns(model, 1, link_gbit);
    int by_link, ignored;
    double with_per_s = model_requests_per_s(model, 1, link_gbit, &by_link);
    double without_per_s = model_requests_per_s(model, 0, link_gbit, &ignored);

    add(sim, "hold_us", "", link_gbit, true, model_hold_ns(model, link_gbit) / 1e3);
    add(sim, "request_us", "unprotected", link_gbit, true, without_ns / 1e3);
    add(sim, "request_us", "protected", link_gbit, true, with_ns / 1e3);
    add(sim, "added_us", "", link_gbit, true, (with_ns - without_ns) / 1e3);
    add(sim, "protected_to_unprotected", "", link_gbit, true, with_ns / without_ns);
    add(sim, "requests_per_s", "unprotected", link_gbit, false, without_per_s);
    add(sim, "requests_per_s", "protected", link_gbit, false, with_per_s);
    add(sim, "throughput_protected_to_unprotected", "", link_gbit, false, with_per_s / without_per_s);
    add_limit(sim, "requests_limited_by_link", "protected", link_gbit, by_link);
    add(sim, "log_mbit_per_second_at_most", "", link_gbit, true, with_per_s * model->log_bytes * 8 / 1e6);
}

/* The same arrivals for all, at the load that the slowest can bear. */
static double arrivals_per_s(const struct sim *sim)
{
    double least = 0;
    int by_link;

    for (unsigned i = 0; i < sim->link_count; i++) {
        double per_s = model_requests_per_s(&sim->model, 1, sim->links_gbit[i], &by_link);

        if (i == 0 || per_s < least)
            least = per_s;
    }
    return least * sim->load_percent / 100;
}

static void simulate(struct sim *sim, double per_s)
{
    static struct histogram ns;
    char name[32];

    for (unsigned i = 0; i <= sim->link_count; i++) {
        uint32_t link_gbit = sim->links_gbit[i < sim->link_count ? i : 0];

        memset(&ns, 0, sizeof(ns));
        model_simulate(&sim->model, i < sim->link_count, link_gbit, per_s, sim->requests, sim->seed, &ns);
        if (i < sim->link_count)
            snprintf(name, sizeof(name), "protected.%uGb", link_gbit);
        else
            snprintf(name, sizeof(name), "unprotected");
        result_add_latency(&sim->result, name, METRIC_MODEL, &ns);
    }
}

/* A row of the table: a prediction for each link; `limited` (or NULL) tells where the link is the limit. */
static void print_row(const struct sim *sim, const char *what, const char *of, const char *limited, FILE *out)
{
    char name[64];

    fprintf(out, "  %s%s%-*s", what, of[0] != '\0' ? "." : "", (int)(44 - strlen(what) - (of[0] != '\0')), of);
    for (unsigned i = 0; i < sim->link_count; i++) {
        const struct metric *limit = NULL;

        if (limited != NULL) {
            metric_name(name, limited, of, sim->links_gbit[i]);
            limit = result_find(&sim->result, name);
        }
        metric_name(name, what, of, sim->links_gbit[i]);
        fprintf(out, " %13.6g%s", result_find(&sim->result, name)->values[0],
                limit != NULL && limit->values[0] != 0 ? "L" : " ");
    }
    fprintf(out, "\n");
}

static void print(const struct sim *sim, double per_s, FILE *out)
{
    char title[96], size[16];

    fprintf(out, "sim: A MODEL, not a measurement: what the steps below predict\n\n%-46s %14s  %-12s %s\n", "input",
            "value", "unit", "from");
    for (unsigned i = 0; i < INPUTS; i++)
        fprintf(out, "  %-44s %14.4g  %-12s %s\n", kinds[i].words, sim->values[i], kinds[i].unit, sim->origins[i]);
    fprintf(out, "\n%-46s", "predicted (L: the link is the limit)");
    for (unsigned i = 0; i < sim->link_count; i++)
        fprintf(out, " %8u Gb/s ", sim->links_gbit[i]);
    fprintf(out, "\n");
    for (unsigned i = 0; i < 2 * sim->size_count; i++) {
        snprintf(size, sizeof(size), "%uB", sim->sizes[i % sim->size_count]);
        if (i < sim->size_count)
            print_row(sim, "commit_to_ack_us", size, NULL, out);
        else
            print_row(sim, "records_per_s", size, "records_limited_by_link", out);
    }
    print_row(sim, "hold_us", "", NULL, out);
    print_row(sim, "request_us", "unprotected", NULL, out);
    print_row(sim, "request_us", "protected", NULL, out);
    print_row(sim, "added_us", "", NULL, out);
    print_row(sim, "protected_to_unprotected", "", NULL, out);
    print_row(sim, "requests_per_s", "unprotected", NULL, out);
    print_row(sim, "requests_per_s", "protected", "requests_limited_by_link", out);
    print_row(sim, "throughput_protected_to_unprotected", "", NULL, out);
    print_row(sim, "log_mbit_per_second_at_most", "", NULL, out);
    snprintf(title, sizeof(title), "simulated ns of a request, %.0f arrive a s", per_s);
    result_print_latency(&sim->result, title, out);
    fflush(out);
}

static int write_files(struct sim *sim, double per_s)
{
    cJSON *object = result_json(&sim->result), *settings = cJSON_AddObjectToObject(object, "settings"), *inputs;

    cJSON_AddBoolToObject(object, "model", true);
    cJSON_AddNumberToObject(settings, "load_percent", sim->load_percent);
    cJSON_AddNumberToObject(settings, "arrivals_per_second", per_s);
    cJSON_AddNumberToObject(settings, "requests", (double)sim->requests);
    cJSON_AddNumberToObject(settings, "seed", (double)sim->seed);
    inputs = cJSON_AddArrayToObject(object, "inputs");
    for (unsigned i = 0; i < INPUTS; i++) {
        cJSON *input = cJSON_CreateObject();

        cJSON_AddStringToObject(input, "name", kinds[i].option);
        cJSON_AddNumberToObject(input, "value", sim->values[i]);
        cJSON_AddStringToObject(input, "unit", kinds[i].unit);
        cJSON_AddStringToObject(input, "what", kinds[i].words);
        cJSON_AddStringToObject(input, "origin", sim->origins[i]);
        cJSON_AddItemToArray(inputs, input);
    }
    return result_write(&sim->result, object, &sim->files);
}

/* The model divides by these. */
static bool inputs_make_sense(const struct sim *sim)
{
    if (model_vcpu_ns(&sim->model, 0) > 0 && sim->model.record_ns > 0)
        return true;
    report_error("a record and a request must take some time: --record-ns, and --guest-us or --exits with --exit-us, "
                 "are 0");
    return false;
}

int sim_main(int argc, char **argv)
{
    struct sim *sim = calloc(1, sizeof(*sim));
    int result, status = 0;

    if (sim == NULL)
        return EXIT_NOT_READ;
    result = parse_options(sim, argc, argv);
    if (result != 0)
        status = result > 0 ? 0 : EXIT_USAGE;
    else if (read_results(sim) != 0)
        status = EXIT_NOT_READ;
    else if (!inputs_make_sense(sim))
        status = EXIT_USAGE;
    if (result == 0 && status == 0) {
        double per_s = arrivals_per_s(sim);

        sim->result.workload = "sim";
        result_note(&sim->result, "a model, not a measurement; docs/benchmarks.md has its formulas");
        for (unsigned i = 0; i < sim->link_count; i++) {
            predict_channel(sim, sim->links_gbit[i]);
            predict_requests(sim, sim->links_gbit[i]);
        }
        simulate(sim, per_s);
        print(sim, per_s, result_files_take_stdout(&sim->files) ? stderr : stdout);
        status = write_files(sim, per_s) == 0 ? 0 : EXIT_NOT_READ;
    }
    free(sim);
    return status;
}
