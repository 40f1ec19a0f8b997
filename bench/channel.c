/*
 * ftbench channel: measures the logging channel and its yardsticks, in rounds. Each round takes every measurement once,
 * in an order of its own, so that what drifts (clock speeds, neighbours) hits all of them alike; a ratio is that of the
 * two values of one round.
 */
#include "bench/channel_bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "bench/channel_result.h"
#include "bench/shuffle.h"
#include "bench/workloads.h"

#define EXIT_NOT_MEASURED 1
#define EXIT_USAGE 2
#define LATENCY_RUNS 20           /* a latency may take so many times run_ns */
#define RTE_BURST 32              /* DPDK's usual one */

struct run {
    const struct bench_options *options;
    struct bench_end end;
    struct bench_result result;
    struct histogram first, second;
    bool perftest_missing;
};

/* ---- names ---- */

static void rate_name(char name[64], const char *what, uint32_t bytes, uint32_t window)
{
    if (window == 0)
        snprintf(name, 64, "%s.%uB.ring_full", what, bytes);
    else
        snprintf(name, 64, "%s.%uB.w%u", what, bytes, window);
}

static double per_second(uint64_t count, const struct bench_rate *rate)
{
    return (double)count * (double)NS_PER_S / (double)(rate->elapsed_ns + 1);
}

/* ---- measurements: each adds one value to each of its metrics ---- */

static uint64_t latency_limit_ns(const struct run *run)
{
    return LATENCY_RUNS * run->options->run_ns;
}

static int measure_channel_latency(struct run *run, uint32_t bytes, uint32_t window)
{
    bool one_clock = run->end.shared != NULL;
    int result;

    (void)window;
    memset(&run->first, 0, sizeof(run->first));
    memset(&run->second, 0, sizeof(run->second));
    result = channel_end_latency(&run->end, bytes, one_clock ? ORDER_STAMP : 0, run->options->samples,
                                 latency_limit_ns(run), &run->first, &run->second);
    if (result != 0)
        return result;
    result_add_latency(&run->result, "commit_to_ack", METRIC_OURS, &run->first);
    if (one_clock)
        result_add_latency(&run->result, "commit_to_seen", METRIC_OURS, &run->end.answer.seen_ns);
    return 0;
}

/* The round trip to the receiver's word that it has consumed the record: all that can be told between two clocks. */
static int measure_channel_round_trip(struct run *run, uint32_t bytes, uint32_t window)
{
    int result;

    (void)window;
    memset(&run->first, 0, sizeof(run->first));
    memset(&run->second, 0, sizeof(run->second));
    result = channel_end_latency(&run->end, bytes, ORDER_TELL, run->options->samples, latency_limit_ns(run),
                                 &run->first, &run->second);
    if (result == 0)
        result_add_latency(&run->result, "commit_to_consumed", METRIC_OURS, &run->second);
    return result;
}

static int measure_line(struct run *run, uint32_t bytes, uint32_t window)
{
    int result;

    (void)bytes;
    (void)window;
    memset(&run->first, 0, sizeof(run->first));
    result = yardstick_line(&run->end, run->options->samples, latency_limit_ns(run), &run->first);
    if (result == 0)
        result_add_latency(&run->result, "cache_line_one_way", METRIC_YARDSTICK, &run->first);
    return result;
}

static int measure_socket(struct run *run, uint32_t bytes, uint32_t window)
{
    int result;

    (void)window;
    memset(&run->first, 0, sizeof(run->first));
    result = yardstick_socket(&run->end, bytes, run->options->samples, latency_limit_ns(run), &run->first);
    if (result == 0)
        result_add_latency(&run->result, "socket_one_way", METRIC_YARDSTICK, &run->first);
    return result;
}

static int quote_perftest(struct run *run, bool latency, uint32_t bytes, double *value)
{
    int result;

    if (!run->options->perftest || run->perftest_missing)
        return -ENOENT;
    result = yardstick_perftest(&run->end, latency, bytes, value);
    if (result == -ENOENT) {
        run->perftest_missing = true;
        result_note(&run->result, "ib_write_lat and ib_write_bw are not quoted: they do not run on both hosts "
                                  "(Debian's package perftest has them)");
    }
    return result;
}

static int measure_write_latency(struct run *run, uint32_t bytes, uint32_t window)
{
    double lat_us;
    int result;

    (void)window;
    memset(&run->first, 0, sizeof(run->first));
    result = yardstick_write(&run->end, bytes, run->options->samples, latency_limit_ns(run), &run->first, 0, NULL);
    if (result != 0)
        return result;
    result_add_latency(&run->result, "bare_write_to_ack", METRIC_YARDSTICK, &run->first);
    result = quote_perftest(run, true, bytes, &lat_us);
    if (result == 0)
        result_add(&run->result, "ib_write_lat_typical_ns.one_way", METRIC_YARDSTICK, true, lat_us * 1e3);
    return result == -ENOENT ? 0 : result;
}

/* verbs: bare writes of the size that ours had on average, and perftest's. */
static int measure_write_rate(struct run *run, uint32_t frame_bytes, uint32_t window, const struct bench_rate *rate)
{
    uint64_t average = rate->bytes / (rate->writes != 0 ? rate->writes : 1);
    uint32_t bytes = (uint32_t)((average + FRAME_ALIGN_BYTES - 1) & ~(uint64_t)(FRAME_ALIGN_BYTES - 1));
    double bandwidth_mb;
    struct bench_rate bare;
    char name[64], ratio[64];
    int result = yardstick_write(&run->end, bytes, 0, 0, NULL, run->options->run_ns, &bare);

    if (result != 0)
        return result;
    rate_name(name, "bare_write_bytes_per_s", frame_bytes, window);
    result_add(&run->result, name, METRIC_YARDSTICK, false, per_second(bare.bytes, &bare));
    rate_name(ratio, "channel_to_bare_write_bytes", frame_bytes, window);
    result_add(&run->result, ratio, METRIC_RATIO, false, per_second(rate->bytes, rate) / per_second(bare.bytes, &bare));
    result = quote_perftest(run, false, bytes, &bandwidth_mb);
    if (result == 0) {
        rate_name(name, "ib_write_bw_bytes_per_s", frame_bytes, window);
        result_add(&run->result, name, METRIC_YARDSTICK, false, bandwidth_mb * 1048576);
        rate_name(ratio, "channel_to_ib_write_bw", frame_bytes, window);
        result_add(&run->result, ratio, METRIC_RATIO, false, per_second(rate->bytes, rate) / bandwidth_mb / 1048576);
    }
    return result == -ENOENT ? 0 : result;
}

static int measure_channel_rate(struct run *run, uint32_t bytes, uint32_t window)
{
    struct bench_rate rate = { 0 };
    char name[64];
    int result = channel_end_rate(&run->end, bytes, window, run->options->run_ns, &rate);

    if (result != 0)
        return result;
    rate_name(name, "records_per_s", bytes, window);
    result_add(&run->result, name, METRIC_OURS, false, per_second(rate.records, &rate));
    if (bench_shares_memory(run->options))
        return 0;
    rate_name(name, "records_per_write", bytes, window);
    result_add(&run->result, name, METRIC_FACT, false,
               rate.writes != 0 ? (double)rate.records / (double)rate.writes : 0);
    /* What the wire can carry is asked once a size, for the widest window. */
    if (run->options->link != LINK_VERBS || window != run->options->windows[run->options->window_count - 1])
        return 0;
    return measure_write_rate(run, bytes, window, &rate);
}

static int measure_rte_ring(struct run *run, uint32_t bytes, uint32_t burst)
{
    struct bench_rate rate;
    char name[64];
    int result = yardstick_rte_ring(&run->end, bytes, burst, run->options->run_ns, &rate);

    if (result != 0)
        return result;
    snprintf(name, sizeof(name), "rte_ring_per_s.%uB.burst%u", bytes, burst);
    result_add(&run->result, name, METRIC_YARDSTICK, false, per_second(rate.records, &rate));
    return 0;
}

static int measure_stream(struct run *run, uint32_t bytes, uint32_t window)
{
    struct bench_rate rate;
    int result = yardstick_stream(&run->end, bytes, run->options->run_ns, &rate);

    (void)window;
    if (result == 0)
        result_add(&run->result, "socket_stream_bytes_per_s.64KiB", METRIC_YARDSTICK, false,
                   per_second(rate.bytes, &rate));
    return result;
}

/* ---- a round ---- */

struct measurement {
    int (*measure)(struct run *run, uint32_t bytes, uint32_t window);
    uint32_t bytes, window;
};

#define MEASUREMENTS_MAX (BENCH_SIZES_MAX * (BENCH_WINDOWS_MAX + 2) + 4)

static unsigned list_measurements(const struct bench_options *options, struct measurement *list)
{
    uint32_t first = options->sizes[0];
    unsigned count = 0;

    list[count++] = (struct measurement){ measure_channel_latency, first, 0 };
    if (!bench_shares_memory(options))
        list[count++] = (struct measurement){ measure_channel_round_trip, first, 0 };
    else
        list[count++] = (struct measurement){ measure_line, 0, 0 };
    if (options->link == LINK_TCP) {
        list[count++] = (struct measurement){ measure_socket, first, 0 };
        list[count++] = (struct measurement){ measure_stream, first, 0 };
    }
    if (options->link == LINK_VERBS)
        list[count++] = (struct measurement){ measure_write_latency, first, 0 };
    for (unsigned i = 0; i < options->size_count; i++) {
        for (unsigned w = 0; w < options->window_count; w++)
            list[count++] = (struct measurement){ measure_channel_rate, options->sizes[i], options->windows[w] };
        if (bench_shares_memory(options)) {
            list[count++] = (struct measurement){ measure_rte_ring, options->sizes[i], 1 };
            list[count++] = (struct measurement){ measure_rte_ring, options->sizes[i], RTE_BURST };
        }
    }
    return count;
}

static void add_ratios(struct run *run)
{
    const struct bench_options *options = run->options;
    uint32_t widest = options->windows[options->window_count - 1];
    char name[64], by[64], ratio[64];

    result_add_ratio(&run->result, "seen_to_cache_line", true, "commit_to_seen_ns.p50", "cache_line_one_way_ns.p50", 1);
    result_add_ratio(&run->result, "ack_to_bare_write", true, "commit_to_ack_ns.p50", "bare_write_to_ack_ns.p50", 1);
    result_add_ratio(&run->result, "seen_to_socket", true, "commit_to_seen_ns.p50", "socket_one_way_ns.p50", 1);
    /* There and back. */
    result_add_ratio(&run->result, "consumed_to_socket", true, "commit_to_consumed_ns.p50", "socket_one_way_ns.p50",
                     0.5);
    for (unsigned i = 0; i < options->size_count; i++) {
        uint32_t bytes = options->sizes[i];

        rate_name(name, "records_per_s", bytes, widest);
        snprintf(by, sizeof(by), "rte_ring_per_s.%uB.burst1", bytes);
        snprintf(ratio, sizeof(ratio), "channel_to_rte_ring.%uB", bytes);
        result_add_ratio(&run->result, ratio, false, name, by, 1);
        snprintf(by, sizeof(by), "rte_ring_per_s.%uB.burst%u", bytes, RTE_BURST);
        snprintf(ratio, sizeof(ratio), "channel_to_rte_ring_burst%u.%uB", RTE_BURST, bytes);
        result_add_ratio(&run->result, ratio, false, name, by, 1);
        snprintf(ratio, sizeof(ratio), "channel_to_socket_stream.%uB", bytes);
        result_add_ratio(&run->result, ratio, false, name, "socket_stream_bytes_per_s.64KiB", bytes);
        if (widest != options->windows[0] && !bench_shares_memory(options)) {
            rate_name(by, "records_per_s", bytes, options->windows[0]);
            snprintf(ratio, sizeof(ratio), "coalesced_to_one_write_each.%uB", bytes);
            result_add_ratio(&run->result, ratio, false, name, by, 1);
        }
    }
}

static void set_goals(struct run *run)
{
    const struct bench_options *options = run->options;
    uint32_t widest = options->windows[options->window_count - 1], least = options->sizes[0];
    char metric[64], of[64];

    switch (options->link) {
    case LINK_RING:
    case LINK_SHM:
        result_set_goal(&run->result, "seen_to_cache_line", "median commit to seen / a cache line's way", true, 2);
        snprintf(metric, sizeof(metric), "channel_to_rte_ring.%uB", least);
        result_set_goal(&run->result, metric, "records per second / rte_ring's with the same bytes", false, 1);
        break;
    case LINK_VERBS:
        result_set_goal(&run->result, "ack_to_bare_write", "median commit to ack / a bare signalled write", true, 1.15);
        rate_name(of, "channel_to_ib_write_bw", options->sizes[options->size_count - 1], widest);
        result_set_goal(&run->result, of, "bytes per second / ib_write_bw's with writes as long", false, 0.9);
        snprintf(metric, sizeof(metric), "coalesced_to_one_write_each.%uB", least);
        result_set_goal(&run->result, metric, "records per second coalesced / one write each", false, 5);
        break;
    case LINK_TCP:
        break; /* the ratios to a raw socket are told; no goal is set */
    }
}

static int run_rounds(struct run *run)
{
    const struct bench_options *options = run->options;
    struct measurement list[MEASUREMENTS_MAX];
    unsigned count = list_measurements(options, list), order[MEASUREMENTS_MAX];
    uint64_t state = options->seed;
    int result = 0;

    for (unsigned i = 0; i < count; i++) /* the first round's order is the table's */
        order[i] = i;

    for (unsigned round = 0; result == 0 && round < options->rounds; round++) {
        report_info("round %u of %u", round + 1, options->rounds);
        result_look_at_noise(&run->result);
        if (round > 0)
            shuffle(order, count, &state);
        for (unsigned i = 0; result == 0 && i < count; i++) {
            const struct measurement *next = &list[order[i]];

            bench_wait_end(&run->end.wait);
            result = next->measure(run, next->bytes, next->window);
        }
        if (result == 0)
            add_ratios(run);
    }
    result_end(&run->result);
    return result;
}

static int measure(struct run *run)
{
    const struct order join = { .kind = ORDER_CHANNEL_JOIN }, leave = { .kind = ORDER_CHANNEL_LEAVE };
    int result = bench_lead(run->options, &run->end);

    if (result != 0)
        return result;
    result_begin(&run->result, "channel", NULL);
    run->result.peer_machine = run->end.peer_machine;
    run->end.ring_bytes = run->options->ring_bytes;
    result = bench_order(&run->end, &join);
    if (result == 0)
        result = bench_answer(&run->end, channel_end_join(&run->end));
    if (result == 0)
        result = run_rounds(run);
    if (result == 0) {
        result = bench_order(&run->end, &leave);
        channel_end_leave(&run->end);
        if (result == 0)
            result = bench_answer(&run->end, 0);
    }
    return result;
}

int channel_main(int argc, char **argv)
{
    struct bench_options options;
    struct run *run;
    int result = bench_parse(&options, argc, argv);

    if (result != 0)
        return result > 0 ? 0 : EXIT_USAGE;
    if (options.receive)
        return bench_serve(&options) == 0 ? 0 : EXIT_NOT_MEASURED;
    run = calloc(1, sizeof(*run));
    if (run == NULL)
        return EXIT_NOT_MEASURED;
    run->options = &options;
    result = measure(run);
    channel_end_leave(&run->end);
    bench_leave(&run->end);
    if (result == 0) {
        set_goals(run);
        channel_result_print(&run->result, &options, result_files_take_stdout(&options.files) ? stderr : stdout);
        result = channel_result_write(&run->result, &options);
    }
    free(run);
    return result == 0 ? 0 : EXIT_NOT_MEASURED;
}
