/*
 * A guest that is measured from outside: where its service is, and what its ftvmm counts meanwhile. One is protected
 * (a primary with its backup), one is not (`ftvmm run`), and a third may run under something else: QEMU, for example.
 */
#ifndef FTVMM_BENCH_GUEST_TARGET_H
#define FTVMM_BENCH_GUEST_TARGET_H

#include "bench/arguments.h"
#include "bench/vmm_metrics.h"

#define GUEST_SIDES 3

struct guest_target {
    const char *side; /* "protected", "unprotected" or "other": the option, and part of the metrics' names */
    bool is_protected;
    bool is_other;    /* not ours: nothing is known of it from inside, and it need not be there */
    const char *text; /* as given; NULL: was not */
    char host[256];
    unsigned port, default_port;
    char metrics[280]; /* HOST:PORT; empty: nobody is asked */
    struct vmm_metrics before, after;
};

/* All, before the command line is read. */
void guest_targets_init(struct guest_target targets[GUEST_SIDES], unsigned default_port);
/* Those that must be were named on it; false: one was not, and that was said. */
bool guest_targets_given(const struct guest_target targets[GUEST_SIDES]);
/* How many were named: the first ones. */
unsigned guest_targets_count(const struct guest_target targets[GUEST_SIDES]);
void guest_targets_fini(struct guest_target targets[GUEST_SIDES]);

/* Their rows of a command line whose settings have them as `targets`. */
#define GUEST_TARGET_ARGUMENTS(settings)                                                                               \
    {"protected", "TARGET", "a guest with a backup", .take = guest_target_take,                                        \
     .place = offsetof(settings, targets[0])},                                                                         \
    {"unprotected", "TARGET", "the same guest under `ftvmm run`, on the same host", .take = guest_target_take,         \
     .place = offsetof(settings, targets[1])},                                                                         \
    {"other", "TARGET", "the same guest under another VMM on that host; without metrics", .take = guest_target_take,   \
     .place = offsetof(settings, targets[2])}
/* Reads HOST[:PORT][,metrics=HOST:PORT] into a target. false: it is wrong, and that was said. */
bool guest_target_take(const struct argument *argument, const char *text, void *place);

/* A stretch that is measured begins, and ends. 0 or -errno, said; nothing where there are no metrics. The first one
 * finds out whether the guest is protected as it should be: -EINVAL, said. */
int guest_target_begin(struct guest_target *target);
int guest_target_end(struct guest_target *target);
/* By how much a counter (vmm_metrics_value) has grown in the stretch. */
double guest_target_growth(const struct guest_target *target, const char *name);
double guest_target_seconds(const struct guest_target *target);

/* Of the metric RATE.SIDE, where higher is better: PROTECTED_to_UNPROTECTED.WHAT of this round, and of both to the other one,
 * if that is measured. */
void guest_targets_add_ratios(struct bench_result *result, const char *rate, const char *what);

/* Adds for each of `count` (requests, runs) what the log and the vCPU had to do: NAME_per_UNIT.SIDE. */
void guest_target_add_counts(struct bench_result *result, const struct guest_target *target, const char *unit,
                             double count);

#endif
