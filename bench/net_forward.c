/*
 * ftbench net forward: frames that go round between two memif ports joined by a cable, forwarded by dpdk-net and by
 * dpdk-testpmd, one after the other on the same CPU, in rounds of which each has an order of its own.
 *
 * The frames go round, so that nobody need make them: a generator takes from and gives to two memif ports of its own,
 * which is all that testpmd does, and so it would be measured rather than testpmd. What counts is the time that the
 * forwarding thread was running: another program on its CPU does not make the one look slower than the other.
 */
#include "bench/net_forward.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/arguments.h"
#include "bench/shuffle.h"
#include "bench/statistics.h"

#define EXIT_NOT_MEASURED 1
#define EXIT_USAGE        2
#define SIZES_MAX         8
#define FRAME_MIN         60u
#define FRAME_MAX         1514u
#define START_LIMIT_NS    (60 * NS_PER_S) /* of our process, besides its run */
#define GOAL              0.8

static const struct {
    const char *name, *words;
    enum metric_role role;
} forwarders[FORWARDERS] = {
    [FORWARD_PORT] = {"port", "dpdk-net: port, receive queue, port", METRIC_OURS},
    [FORWARD_NET] = {"net", "dpdk-net: the same and the hold queue", METRIC_OURS},
    [FORWARD_TESTPMD] = {"testpmd", "dpdk-testpmd, io mode", METRIC_YARDSTICK},
};

struct forward_run {
    uint32_t sizes[SIZES_MAX];
    unsigned size_count, rounds, cpu;
    uint64_t run_ns, warmup_ns, seed;
    bool testpmd; /* there is one */
    const char *note;
    struct result_files files;
    char directory[64], socket[100];
    struct bench_result result;
};

/* ---- options ---- */

static const struct argument arguments[] = {
    {"sizes", "N,...", "bytes of the frames, 60 to 1514; default 64,512,1500",
     ARGUMENT_LIST(struct forward_run, sizes, size_count, FRAME_MIN, FRAME_MAX, 1)},
    ARGUMENT_ROUNDS(struct forward_run, "default 7"),
    {"run-ms", "N", "of each measurement, default 300",
     ARGUMENT_TIME(struct forward_run, run_ns, 10, 60000, NS_PER_MS)},
    {"warmup-ms", "N", "before it, not counted, default 100",
     ARGUMENT_TIME(struct forward_run, warmup_ns, 0, 60000, NS_PER_MS)},
    {"cpu", "N", "where all of them forward; default: the last one that this process may use",
     ARGUMENT_UNSIGNED(struct forward_run, cpu, 0, CPU_SETSIZE - 1)},
    {"no-testpmd", NULL, "without the yardstick (Debian's package dpdk-dev)",
     ARGUMENT_FLAG(struct forward_run, testpmd, false)},
    ARGUMENT_SEED(struct forward_run, "of the order within a round, default 1"),
    ARGUMENT_NOTE(struct forward_run, "about the machine"),
    ARGUMENT_FILES(struct forward_run),
    {0},
};

static const struct command_line command_line = {
    .workload = "net forward",
    .usage =
        "usage: ftbench net forward [OPTION...]\n\n"
        "Frames go round between two memif ports, forwarded by dpdk-net (its port path, as ftvmm uses it, and all of\n"
        "it with the hold queue) and by dpdk-testpmd in io mode, on the same CPU, in alternating rounds.\n\n",
    .arguments = arguments,
    .exit_status = "0 measured, 1 not measured, 2 usage",
};

static bool last_cpu(unsigned *cpu)
{
    cpu_set_t allowed;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return false;
    for (unsigned i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &allowed))
            *cpu = i;
    return true;
}

static int parse_options(struct forward_run *run, int argc, char **argv)
{
    static const uint32_t sizes[] = {64, 512, 1500};

    memcpy(run->sizes, sizes, sizeof(sizes));
    run->size_count = 3;
    run->rounds = 7;
    run->run_ns = 300 * NS_PER_MS;
    run->warmup_ns = 100 * NS_PER_MS;
    run->seed = 1;
    run->testpmd = true;
    return last_cpu(&run->cpu) ? arguments_read(&command_line, argc, argv, run) : -EINVAL;
}

/* ---- one measurement ---- */

struct outcome {
    int result;
    struct forward_count count;
};

/* What a process of ours said; shown when something went wrong. */
static void pass_on(int words)
{
    char text[512];
    ssize_t got;

    (void)lseek(words, 0, SEEK_SET);
    while ((got = read(words, text, sizeof(text))) > 0)
        if (write(STDERR_FILENO, text, (size_t)got) != got)
            break;
}

static void become_forwarder(enum forwarder forwarder, const struct forward_order *order, int answer, int words)
{
    struct outcome outcome = {0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(words, STDERR_FILENO);
    outcome.result = forward_by_us(forwarder, order, &outcome.count);
    _exit(write(answer, &outcome, sizeof(outcome)) == (ssize_t)sizeof(outcome) ? 0 : 1);
}

static int forward_in_child(enum forwarder forwarder, const struct forward_order *order, struct forward_count *count)
{
    uint64_t limit_ns = START_LIMIT_NS + 10 * (order->run_ns + order->warmup_ns);
    int pipes[2], words = memfd_create("words", MFD_CLOEXEC);
    struct outcome outcome = {.result = -EPIPE};
    struct pollfd ready = {.events = POLLIN};
    pid_t child;

    if (words < 0 || pipe2(pipes, O_CLOEXEC) != 0) {
        outcome.result = -errno;
        report_error("no process can be started: %s", strerror(errno));
        if (words >= 0)
            close(words);
        return outcome.result;
    }
    child = fork();
    if (child == 0)
        become_forwarder(forwarder, order, pipes[1], words);
    close(pipes[1]);
    ready.fd = pipes[0];
    if (child > 0 && poll(&ready, 1, (int)(limit_ns / NS_PER_MS)) == 1 &&
        read(pipes[0], &outcome, sizeof(outcome)) != (ssize_t)sizeof(outcome))
        outcome.result = -EPIPE;
    close(pipes[0]);
    if (child > 0) {
        kill(child, SIGKILL); /* it has nothing more to say */
        waitpid(child, NULL, 0);
    }
    if (outcome.result != 0) {
        pass_on(words);
        report_error("dpdk-net has not forwarded frames of %u bytes: %s", order->frame_bytes,
                     outcome.result == -EPIPE ? "its process gave no answer" : strerror(-outcome.result));
    }
    close(words);
    *count = outcome.count;
    return outcome.result;
}

static void add_count(struct forward_run *run, enum forwarder forwarder, uint32_t bytes,
                      const struct forward_count *count)
{
    char name[64];

    snprintf(name, sizeof(name), "frames_per_s.%uB.%s", bytes, forwarders[forwarder].name);
    result_add(&run->result, name, forwarders[forwarder].role, false,
               (double)count->frames * (double)NS_PER_S / (double)count->wall_ns);
    if (count->cpu_ns == 0)
        return;
    snprintf(name, sizeof(name), "cpu_frames_per_s.%uB.%s", bytes, forwarders[forwarder].name);
    result_add(&run->result, name, forwarders[forwarder].role, false,
               (double)count->frames * (double)NS_PER_S / (double)count->cpu_ns);
}

static int measure(struct forward_run *run, enum forwarder forwarder, uint32_t bytes)
{
    const struct forward_order order = {.socket = run->socket,
                                        .frame_bytes = bytes,
                                        .cpu = run->cpu,
                                        .warmup_ns = run->warmup_ns,
                                        .run_ns = run->run_ns};
    struct forward_count count = {0};
    int result;

    (void)unlink(run->socket);
    if (forwarder != FORWARD_TESTPMD) {
        result = forward_in_child(forwarder, &order, &count);
    } else if (!run->testpmd) {
        return 0;
    } else {
        result = forward_by_testpmd(&order, &count);
        if (result == -ENOENT) {
            run->testpmd = false;
            result_note(&run->result, "no dpdk-testpmd here to hold it against: Debian's package dpdk-dev has it");
            return 0;
        }
    }
    if (result == 0)
        add_count(run, forwarder, bytes, &count);
    return result;
}

/* ---- rounds ---- */

static void add_ratios(struct forward_run *run, uint32_t bytes)
{
    static const char *const clocks[] = {"cpu_frames_per_s", "frames_per_s"}, *const suffixes[] = {"", ".wall"};

    for (unsigned i = 0; i < FORWARD_TESTPMD; i++)
        for (unsigned clock = 0; clock < 2; clock++) {
            char ratio[64], ours[64], theirs[64];

            snprintf(ratio, sizeof(ratio), "%s_to_testpmd.%uB%s", forwarders[i].name, bytes, suffixes[clock]);
            snprintf(ours, sizeof(ours), "%s.%uB.%s", clocks[clock], bytes, forwarders[i].name);
            snprintf(theirs, sizeof(theirs), "%s.%uB.testpmd", clocks[clock], bytes);
            result_add_ratio(&run->result, ratio, false, ours, theirs, 1);
        }
}

static int run_rounds(struct forward_run *run)
{
    unsigned order[SIZES_MAX * FORWARDERS], count = run->size_count * FORWARDERS;
    uint64_t state = run->seed;
    int result = 0;

    for (unsigned i = 0; i < count; i++)
        order[i] = i;
    for (unsigned round = 0; result == 0 && round < run->rounds; round++) {
        report_info("round %u of %u", round + 1, run->rounds);
        result_look_at_noise(&run->result);
        shuffle(order, count, &state);
        for (unsigned i = 0; result == 0 && i < count; i++)
            result = measure(run, order[i] % FORWARDERS, run->sizes[order[i] / FORWARDERS]);
        for (unsigned i = 0; result == 0 && i < run->size_count; i++)
            add_ratios(run, run->sizes[i]);
    }
    result_end(&run->result);
    return result;
}

/* ---- showing ---- */

static void print_one(const struct bench_result *result, const char *what, uint32_t bytes, enum forwarder forwarder,
                      FILE *out)
{
    const struct metric *metric;
    char name[64];

    snprintf(name, sizeof(name), "%s.%uB.%s", what, bytes, forwarders[forwarder].name);
    metric = result_find(result, name);
    if (metric != NULL)
        result_print_metric(metric, out);
}

static void print(const struct forward_run *run, FILE *out)
{
    const struct bench_result *result = &run->result;

    fprintf(
        out,
        "net forward, %u frames go round between two memif ports, CPU %u, %u rounds of %llu ms, seed %llu, %.1f s\n",
        FORWARD_FRAMES, run->cpu, run->rounds, (unsigned long long)(run->run_ns / NS_PER_MS),
        (unsigned long long)run->seed, result->seconds);
    result_print_machine(&result->machine, "machine", out);
    result_print_noise(result, out);
    for (unsigned i = 0; i < FORWARDERS; i++)
        fprintf(out, "  %-9s %s\n", forwarders[i].name, forwarders[i].words);
    result_print_metrics_head("frames a second (cpu: while its thread ran)", out);
    for (unsigned i = 0; i < run->size_count * FORWARDERS; i++) {
        print_one(result, "cpu_frames_per_s", run->sizes[i / FORWARDERS], i % FORWARDERS, out);
        print_one(result, "frames_per_s", run->sizes[i / FORWARDERS], i % FORWARDERS, out);
    }
    result_print_metrics_head("of testpmd's, by round", out);
    result_print_metrics(result, METRIC_RATIO, false, out);
    result_print_goals(result, out);
    fflush(out);
}

static int write_files(const struct forward_run *run)
{
    cJSON *object = result_json(&run->result), *settings = cJSON_AddObjectToObject(object, "settings"), *sizes;

    cJSON_AddStringToObject(object, "part", "forward");
    sizes = cJSON_AddArrayToObject(settings, "frame_bytes");
    for (unsigned i = 0; i < run->size_count; i++)
        cJSON_AddItemToArray(sizes, cJSON_CreateNumber(run->sizes[i]));
    cJSON_AddNumberToObject(settings, "rounds", run->rounds);
    cJSON_AddNumberToObject(settings, "run_ms", (double)(run->run_ns / NS_PER_MS));
    cJSON_AddNumberToObject(settings, "warmup_ms", (double)(run->warmup_ns / NS_PER_MS));
    cJSON_AddNumberToObject(settings, "cpu", run->cpu);
    cJSON_AddNumberToObject(settings, "seed", (double)run->seed);
    return result_write(&run->result, object, &run->files);
}

int net_forward_main(int argc, char **argv)
{
    struct forward_run *run = calloc(1, sizeof(*run));
    int result;

    if (run == NULL)
        return EXIT_NOT_MEASURED;
    result = parse_options(run, argc, argv);
    if (result != 0) {
        free(run);
        return result > 0 ? 0 : EXIT_USAGE;
    }
    snprintf(run->directory, sizeof(run->directory), "/tmp/ftbench-net-XXXXXX");
    if (mkdtemp(run->directory) == NULL) {
        report_error("no directory can be made in /tmp for the memif's socket: %s", strerror(errno));
        free(run);
        return EXIT_NOT_MEASURED;
    }
    snprintf(run->socket, sizeof(run->socket), "%s/memif", run->directory);
    result_begin(&run->result, "net", run->note);
    result = run_rounds(run);
    result_set_goal(&run->result, "port_to_testpmd.64B", "dpdk-net's port path, of testpmd's frames of 64 bytes", false,
                    GOAL);
    if (result == 0) {
        print(run, result_files_take_stdout(&run->files) ? stderr : stdout);
        result = write_files(run);
    }
    (void)unlink(run->socket);
    (void)rmdir(run->directory);
    free(run);
    return result == 0 ? 0 : EXIT_NOT_MEASURED;
}
