/* ftbench: measures a service while its host dies, what protection costs, the channel. One subcommand a workload. */
#include <stdio.h>
#include <string.h>

#include "base/report.h"
#include "bench/counter.h"
#include "bench/workloads.h"

#define EXIT_USAGE 2

static const struct workload {
    const char *name, *purpose;
    int (*run)(int argc, char **argv); /* argv[0] is the workload's name; returns the exit status */
} workloads[] = {
    { "counter", "pipelined INCRs on one redis key: is any acknowledged increment lost?", counter_main },
    { "history", "writes, reads and increments of several clients: is their history linearizable?", history_main },
    { "channel", "the logging channel: latency and throughput, held against bare loops in the same run", channel_main },
    { "guest", "requests to a protected guest, held against the same guest unprotected; their steps", guest_main },
    { "net", "frames forwarded, held against testpmd; throughput of a protected guest, held against it unprotected", net_main },
    { "overhead", "programs in a protected guest, held against the same guest unprotected", overhead_main },
    { "failover", "a script's failovers, one after the other: how long each step takes", failover_main },
    { "determinism", "what keeping a guest the same twice took in a run: log, exits, forced syncs", determinism_main },
    { "sim", "what measured steps predict for other hardware: a model", sim_main },
    { "compare", "two results of one workload: what changed beyond the noise?", compare_main },
    { "report", "a page of results for people, HTML or Markdown", report_main },
};

static void print_help(FILE *out)
{
    fprintf(out, "usage: ftbench WORKLOAD [OPTION...]\n\n");
    for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++)
        fprintf(out, "  %-11s %s\n", workloads[i].name, workloads[i].purpose);
    fprintf(out, "\n`ftbench WORKLOAD --help` lists its options; see also ftbench(1).\n");
}

int main(int argc, char **argv)
{
    report_set_program("ftbench");
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        return 0;
    }
    for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++)
        if (strcmp(argv[1], workloads[i].name) == 0)
            return workloads[i].run(argc - 1, argv + 1);
    report_error("no workload is called '%s'; `ftbench --help` lists them", argv[1]);
    return EXIT_USAGE;
}
