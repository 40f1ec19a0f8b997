/* The command line of ftbench channel. */
#include "bench/channel_bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/report.h"
#include "bench/arguments.h"
#include "bench/result.h"

static void print_help(void)
{
    printf("usage: ftbench channel [OPTION...] [ADDRESS]\n"
           "       ftbench channel --receive ADDRESS [OPTION...]      on the other host, first\n\n"
           "Measures the logging channel and, in the same run, what it is held against. ADDRESS is\n"
           "  shm: or shm:NAME     shared memory; both ends here. The default\n"
           "  ring                 the ring alone, between two threads\n"
           "  verbs:HOST:PORT      RDMA to the host where --receive runs; PORT and the next three must be free there\n"
           "  tcp:HOST:PORT        likewise, over TCP\n\n"
           "  --receive            be the other end, for one run\n"
           "  --fork               verbs:, tcp: start the other end too, on this machine; HOST is its address\n"
           "  --sizes N,...        bytes of the frames that records travel in, multiples of 64; the first is that of\n"
           "                       latencies; default 64,256,1024,4096\n"
           "  --windows N,...      records in flight, 0: as many as the ring holds; default 0 (one machine) or\n"
           "                       4,64,1024\n"
           "  --rounds N           repetitions of everything, default 7\n"
           "  --samples N          of each latency and round, default 20000; fewer where they take longer than\n"
           "                       20 times --run-ms\n"
           "  --run-ms N           of each throughput and round, default 50\n"
           "  --ring MIB           a power of two, default 4\n"
           "  --cpu A,B            CPUs of this end and of the other one; with --receive B counts\n"
           "  --spin-us N          look again at once for so long, default 200\n"
           "  --sleep-us N         then sleep so long between looks, default 20; 0: only yield the CPU\n"
           "  --patience S         silence of the other end that ends the run, default 5\n"
           "  --join-timeout S     default 10; with --receive 60\n"
           "  --no-perftest        verbs: do not quote ib_write_lat and ib_write_bw\n"
           "  --seed N             of the records' content and the order within a round, default 1\n"
           "  --json FILE, --csv FILE, --svg FILE   the result in these shapes too; - is standard output\n\n"
           "exit status: 0 measured (the goals it missed are in the table), 1 not measured, 2 usage\n");
}

static bool parse_cpus(const char *text, int cpus[2])
{
    uint32_t list[2];
    unsigned count;

    if (!argument_list("cpu", text, 0, 1023, 1, list, 2, &count))
        return false;
    if (count != 2) {
        report_error("--cpu is '%s'; it must name two CPUs, as in --cpu 0,1", text);
        return false;
    }
    cpus[0] = (int)list[0];
    cpus[1] = (int)list[1];
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

int bench_parse(struct bench_options *options, int argc, char **argv)
{
    enum { RECEIVE = 1, FORK, SIZES, WINDOWS, ROUNDS, SAMPLES, RUN, RING, CPU, SPIN, SLEEP, PATIENCE, JOIN,
           NO_PERFTEST, SEED, HELP };
    static const struct option known[] = {
        { "receive", no_argument, NULL, RECEIVE },        { "fork", no_argument, NULL, FORK },
        { "sizes", required_argument, NULL, SIZES },      { "windows", required_argument, NULL, WINDOWS },
        { "rounds", required_argument, NULL, ROUNDS },    { "samples", required_argument, NULL, SAMPLES },
        { "run-ms", required_argument, NULL, RUN },       { "ring", required_argument, NULL, RING },
        { "cpu", required_argument, NULL, CPU },          { "spin-us", required_argument, NULL, SPIN },
        { "sleep-us", required_argument, NULL, SLEEP },   { "patience", required_argument, NULL, PATIENCE },
        { "join-timeout", required_argument, NULL, JOIN }, { "no-perftest", no_argument, NULL, NO_PERFTEST },
        { "seed", required_argument, NULL, SEED },
        ARGUMENT_FILES,
        { "help", no_argument, NULL, HELP },              { NULL, 0, NULL, 0 },
    };
    uint64_t number = 0;
    bool good = true;
    int option;

    *options = (struct bench_options){ .address = "shm:", .perftest = true, .sizes = { 64, 256, 1024, 4096 },
                                       .size_count = 4, .rounds = 7, .samples = 20000, .run_ns = 50 * NS_PER_MS,
                                       .ring_bytes = 4u << 20, .seed = 1, .patience_ns = 5 * NS_PER_S,
                                       .idle = { 200 * NS_PER_US, 20 * NS_PER_US }, .cpus = { -1, -1 } };
    while (good && (option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case RECEIVE:
            options->receive = true;
            break;
        case FORK:
            options->fork = true;
            break;
        case SIZES:
            good = argument_list("sizes", optarg, 64, 65536, FRAME_ALIGN_BYTES, options->sizes, BENCH_SIZES_MAX,
                                 &options->size_count);
            break;
        case WINDOWS:
            good = argument_list("windows", optarg, 0, 1u << 20, 1, options->windows, BENCH_WINDOWS_MAX,
                                 &options->window_count);
            break;
        case ROUNDS:
            good = argument_unsigned("rounds", optarg, 1, ROUNDS_MAX, &options->rounds);
            break;
        case SAMPLES:
            good = argument_number("samples", optarg, 10, 100000000, &options->samples);
            break;
        case RUN:
            good = argument_number("run-ms", optarg, 1, 60000, &number);
            options->run_ns = number * NS_PER_MS;
            break;
        case RING:
            good = argument_number("ring", optarg, 1, 1024, &number);
            options->ring_bytes = number << 20;
            if (good && (number & (number - 1)) != 0) {
                report_error("--ring is '%s'; it must be a power of two", optarg);
                good = false;
            }
            break;
        case CPU:
            good = parse_cpus(optarg, options->cpus);
            break;
        case SPIN:
            good = argument_number("spin-us", optarg, 0, 1000000, &number);
            options->idle.spin_ns = number * NS_PER_US;
            break;
        case SLEEP:
            good = argument_number("sleep-us", optarg, 0, 100000, &number);
            options->idle.sleep_ns = number * NS_PER_US;
            break;
        case PATIENCE:
            good = argument_number("patience", optarg, 1, 600, &number);
            options->patience_ns = number * NS_PER_S;
            break;
        case JOIN:
            good = argument_number("join-timeout", optarg, 1, 3600, &number);
            options->join_ns = number * NS_PER_S;
            break;
        case NO_PERFTEST:
            options->perftest = false;
            break;
        case SEED:
            good = argument_number("seed", optarg, 0, UINT32_MAX, &options->seed);
            break;
        case HELP:
        case 'h':
            print_help();
            return 1;
        default:
            if (!argument_file(option, optarg, &options->files))
                return -EINVAL; /* getopt has said it */
        }
    }
    if (good && optind < argc)
        options->address = argv[optind++];
    if (good && optind < argc) {
        report_error("'%s' is one address too many; `ftbench channel --help` shows what can be given", argv[optind]);
        good = false;
    }
    if (good && options->receive && options->fork) {
        report_error("--receive and --fork exclude each other: one is the other end, one starts it");
        good = false;
    }
    if (!good || !parse_address(options))
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
