/* The command line of ftbench channel. */
#include "bench/channel_bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/report.h"
#include "bench/arguments.h"
#include "bench/result.h"

static bool take_cpus(const struct argument *argument, const char *text, void *place)
{
    struct bench_options *options = place;
    uint32_t list[2];
    unsigned count;

    if (!argument_list(argument->name, text, 0, 1023, 1, list, 2, &count))
        return false;
    if (count != 2) {
        report_error("--cpu is '%s'; it must name two CPUs, as in --cpu 0,1", text);
        return false;
    }
    options->cpus[0] = (int)list[0];
    options->cpus[1] = (int)list[1];
    return true;
}

static bool take_ring(const struct argument *argument, const char *text, void *place)
{
    struct bench_options *options = place;
    uint64_t mib;

    if (!argument_number(argument->name, text, 1, 1024, &mib))
        return false;
    if ((mib & (mib - 1)) != 0) {
        report_error("--ring is '%s'; it must be a power of two", text);
        return false;
    }
    options->ring_bytes = mib << 20;
    return true;
}

static bool parse_host(struct bench_options *options, const char *rest)
{
    const char *colon = strrchr(rest, ':');
    size_t length = colon != NULL ? (size_t)(colon - rest) : 0;
    uint64_t port;
    char *end;

    errno = 0;
    port = colon != NULL ? strtoull(colon + 1, &end, 10) : 0;
    if (length == 0 || length >= sizeof(options->host) || *end != '\0' || port < 1 || port > 65532) {
        report_error("'%s' is no address; give %.*s:HOST:PORT with a port from 1 to 65532", options->address,
                     (int)strcspn(options->address, ":"), options->address);
        return false;
    }
    if (rest[0] == '[' && rest[length - 1] == ']') {
        rest++;
        length -= 2;
    }
    memcpy(options->host, rest, length);
    options->host[length] = '\0';
    options->port = (unsigned)port;
    return true;
}

static bool parse_address(struct bench_options *options)
{
    const char *address = options->address;

    if (strcmp(address, "ring") == 0) {
        options->link = LINK_RING;
    } else if (strncmp(address, "shm:", 4) == 0) {
        options->link = LINK_SHM;
    } else if (strncmp(address, "verbs:", 6) == 0) {
        options->link = LINK_VERBS;
        return parse_host(options, address + 6);
    } else if (strncmp(address, "tcp:", 4) == 0) {
        options->link = LINK_TCP;
        return parse_host(options, address + 4);
    } else {
        report_error("'%s' is no link that can be measured; give shm:, ring, verbs:HOST:PORT or tcp:HOST:PORT",
                     address);
        return false;
    }
    if (options->receive) {
        report_error("--receive is for verbs: and tcp:; with %s one command runs both ends", address);
        return false;
    }
    options->fork = true;
    return true;
}

uint32_t bench_payload_bytes(uint32_t whole_frame_bytes)
{
    return whole_frame_bytes - (uint32_t)sizeof(struct frame_header) - (uint32_t)sizeof(uint64_t);
}

static const struct argument arguments[] = {
    { "receive", NULL, "be the other end, for one run", ARGUMENT_FLAG(struct bench_options, receive, true) },
    { "fork", NULL, "verbs:, tcp: start the other end too, on this machine; HOST is its address",
      ARGUMENT_FLAG(struct bench_options, fork, true) },
    { "sizes", "N,...", "bytes of the frames that records travel in, multiples of 64; the first is that of\n"
      "latencies; default 64,256,1024,4096",
      ARGUMENT_LIST(struct bench_options, sizes, size_count, 64, 65536, FRAME_ALIGN_BYTES) },
    { "windows", "N,...", "records in flight, 0: as many as the ring holds; default 0 (one machine) or\n4,64,1024",
      ARGUMENT_LIST(struct bench_options, windows, window_count, 0, 1u << 20, 1) },
    ARGUMENT_ROUNDS(struct bench_options, "repetitions of everything, default 7"),
    { "samples", "N", "of each latency and round, default 20000; fewer where they take longer than\n"
      "20 times --run-ms", ARGUMENT_NUMBER(struct bench_options, samples, 10, 100000000) },
    { "run-ms", "N", "of each throughput and round, default 50",
      ARGUMENT_TIME(struct bench_options, run_ns, 1, 60000, NS_PER_MS) },
    { "ring", "MIB", "a power of two, default 4", .take = take_ring },
    { "cpu", "A,B", "CPUs of this end and of the other one; with --receive B counts", .take = take_cpus },
    { "spin-us", "N", "look again at once for so long, default 200",
      ARGUMENT_TIME(struct bench_options, idle.spin_ns, 0, 1000000, NS_PER_US) },
    { "sleep-us", "N", "then sleep so long between looks, default 20; 0: only yield the CPU",
      ARGUMENT_TIME(struct bench_options, idle.sleep_ns, 0, 100000, NS_PER_US) },
    { "patience", "S", "silence of the other end that ends the run, default 5",
      ARGUMENT_TIME(struct bench_options, patience_ns, 1, 600, NS_PER_S) },
    { "join-timeout", "S", "default 10; with --receive 60",
      ARGUMENT_TIME(struct bench_options, join_ns, 1, 3600, NS_PER_S) },
    { "no-perftest", NULL, "verbs: do not quote ib_write_lat and ib_write_bw",
      ARGUMENT_FLAG(struct bench_options, perftest, false) },
    ARGUMENT_SEED(struct bench_options, "of the records' content and the order within a round, default 1"),
    ARGUMENT_FILES(struct bench_options),
    { 0 },
};

static const struct command_line command_line = {
    .workload = "channel",
    .usage =
        "usage: ftbench channel [OPTION...] [ADDRESS]\n"
        "       ftbench channel --receive ADDRESS [OPTION...]      on the other host, first\n\n"
        "Measures the logging channel and, in the same run, what it is held against. ADDRESS is\n"
        "  shm: or shm:NAME     shared memory; both ends here. The default\n"
        "  ring                 the ring alone, between two threads\n"
        "  verbs:HOST:PORT      RDMA to the host where --receive runs; PORT and the next three must be free there\n"
        "  tcp:HOST:PORT        likewise, over TCP\n\n",
    .arguments = arguments,
    .exit_status = "0 measured (the goals it missed are in the table), 1 not measured, 2 usage",
    .words = WORDS_ANYWHERE,
};

int bench_parse(struct bench_options *options, int argc, char **argv)
{
    int result;

    *options = (struct bench_options){ .address = "shm:", .perftest = true, .sizes = { 64, 256, 1024, 4096 },
                                       .size_count = 4, .rounds = 7, .samples = 20000, .run_ns = 50 * NS_PER_MS,
                                       .ring_bytes = 4u << 20, .seed = 1, .patience_ns = 5 * NS_PER_S,
                                       .idle = { 200 * NS_PER_US, 20 * NS_PER_US }, .cpus = { -1, -1 } };
    result = arguments_read(&command_line, argc, argv, options);
    if (result != 0)
        return result;
    if (optind < argc)
        options->address = argv[optind++];
    if (optind < argc) {
        report_error("'%s' is one address too many; `ftbench channel --help` shows what can be given", argv[optind]);
        return -EINVAL;
    }
    if (options->receive && options->fork) {
        report_error("--receive and --fork exclude each other: one is the other end, one starts it");
        return -EINVAL;
    }
    if (!parse_address(options))
        return -EINVAL;
    if (options->window_count == 0) {
        static const uint32_t between_hosts[] = { 4, 64, 1024 };

        options->window_count = bench_shares_memory(options) ? 1 : 3;
        if (options->window_count > 1)
            memcpy(options->windows, between_hosts, sizeof(between_hosts));
    }
    if (options->join_ns == 0)
        options->join_ns = (options->receive ? 60 : 10) * NS_PER_S;
    if (options->fork && sysconf(_SC_NPROCESSORS_ONLN) < 2)
        report_warning("both ends share the only CPU here; the figures are the scheduler's");
    return 0;
}
