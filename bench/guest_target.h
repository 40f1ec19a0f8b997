/*
 * A guest that is measured from outside: where its service is, and what its ftvmm counts meanwhile. One is protected
 * (a primary with its backup), one is not (`ftvmm run`).
 */
#ifndef FTVMM_BENCH_GUEST_TARGET_H
#define FTVMM_BENCH_GUEST_TARGET_H

#include "bench/result.h"
#include "bench/vmm_metrics.h"

/* Zero-initialise, with `side` and `is_protected`. */
struct guest_target {
    const char *side; /* "protected" or "unprotected": the option, and part of the metrics' names */
    bool is_protected;
    const char *text; /* as given; NULL: was not */
    char host[256];
    unsigned port;
    char metrics[280]; /* HOST:PORT; empty: nobody is asked */
    struct vmm_metrics before, after;
};

/* Reads HOST[:PORT][,metrics=HOST:PORT]. false: it is wrong, and that was said. */
bool guest_target_parse(struct guest_target *target, const char *text, unsigned default_port);
void guest_target_fini(struct guest_target *target);
/* All were named on the command line; false: one was not, and that was said. */
bool guest_targets_given(const struct guest_target *targets, unsigned count);

/* A stretch that is measured begins, and ends. 0 or -errno, said; nothing where there are no metrics. The first one
 * finds out whether the guest is protected as it should be: -EINVAL, said. */
int guest_target_begin(struct guest_target *target);
int guest_target_end(struct guest_target *target);
/* By how much a counter (vmm_metrics_value) has grown in the stretch. */
double guest_target_growth(const struct guest_target *target, const char *name);
double guest_target_seconds(const struct guest_target *target);

/* Adds for each of `count` (requests, runs) what the log and the vCPU had to do: NAME_per_UNIT.SIDE. */
void guest_target_add_counts(struct bench_result *result, const struct guest_target *target, const char *unit,
                             double count);

#endif
