/* ftbench net: the network's two measurements, each in a file of its own. */
#include <stdio.h>
#include <string.h>

#include "base/report.h"
#include "bench/net_forward.h"
#include "bench/workloads.h"

#define EXIT_USAGE 2

static void print_help(FILE *out)
{
    fprintf(out, "usage: ftbench net forward [OPTION...]\n"
                 "       ftbench net guest --protected TARGET --unprotected TARGET [OPTION...]\n\n"
                 "  forward   frames between two memif ports by dpdk-net, held against dpdk-testpmd on the same\n"
                 "  guest     TCP throughput of a protected guest, held against the same guest unprotected\n\n"
                 "`ftbench net forward --help` and `ftbench net guest --help` list their options.\n");
}

int net_main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "forward") == 0)
        return net_forward_main(argc - 1, argv + 1);
    if (argc >= 2 && strcmp(argv[1], "guest") == 0)
        return net_guest_main(argc - 1, argv + 1);
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        print_help(stdout);
        return 0;
    }
    if (argc < 2)
        print_help(stderr);
    else
        report_error("`ftbench net` measures 'forward' or 'guest', not '%s'", argv[1]);
    return EXIT_USAGE;
}
