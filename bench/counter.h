/* The workload `ftbench counter`: its options, and what its parts share. */
#ifndef FTVMM_BENCH_COUNTER_H
#define FTVMM_BENCH_COUNTER_H

#include <stdio.h>

#include "base/histogram.h"
#include "bench/ledger.h"

#define COUNTER_PIPELINE_MAX 1024u
#define COUNTER_CONNECTIONS_MAX 256u

struct counter_options {
    const char *host, *key;
    unsigned port, connections, pipeline;
    uint64_t run_ns, patience_ns;
    const char *mark_path, *json_path; /* or NULL */
    FILE *json;            /* or NULL */
    bool progress;
};

/* The longest time that one connection waited for a reply. */
struct counter_gap {
    uint64_t begin_ns, end_ns; /* CLOCK_MONOTONIC */
    unsigned connection;
};

/* A run, as its parts fill it and the result prints it. */
struct counter_run {
    const struct counter_options *options;
    struct ledger ledger;
    struct histogram latency_ns;
    struct counter_gap gap;
    uint64_t begin_ns, end_ns; /* first request, last reply or giving up */
    uint64_t mark_ns;          /* the failure's moment; 0: none was marked */
    uint64_t reconnects;
    uint64_t *acked_per_second; /* `seconds` of them, from begin_ns on */
    unsigned seconds;
};

/* The workload. Returns the exit status: 0, 1 (lost, duplicated, ...), 2 (usage), 3 (unreachable). */
int counter_main(int argc, char **argv);

/* ---- counter_value.c ---- */

struct addrinfo;

/* The counter's value, 0 if there is none yet. 0, -EPROTO (it is no number) or -EHOSTUNREACH, the reason in `why`. */
int counter_read_value(const struct counter_options *options, int64_t *value, char *why, size_t size);
/* Looks the host up; freeaddrinfo(3) is the caller's. 0, or -EHOSTUNREACH, said. */
int counter_resolve(const struct counter_options *options, struct addrinfo **out);

/* ---- counter_result.c ---- */

/* Prints the table; and the JSON object where options->json. `verdict` is NULL if the final read failed. */
void counter_print(const struct counter_run *run, const struct verdict *verdict);

#endif
