/*
 * A counter of what one vCPU has done: its conditional branches (the CPU's own counter, perf_counter.c), its
 * instructions (single steps, guest_clock.c), or whatever a test's model counts. It counts while the guest runs and at no
 * other time.
 */
#ifndef FTVMM_VMM_BRANCH_COUNTER_H
#define FTVMM_VMM_BRANCH_COUNTER_H

#include <stdint.h>

struct branch_counter;

/* All on the vCPU's thread, while it does not run. 0 or -errno. */
struct branch_counter_ops {
    int (*start)(struct branch_counter *counter);
    int (*read)(struct branch_counter *counter, uint64_t *count);
    /* Kicks the vCPU once the count is `at`, which is ahead: not before, and late by skid_margin at most. */
    int (*arm)(struct branch_counter *counter, uint64_t at);
    int (*disarm)(struct branch_counter *counter);
    void (*stop)(struct branch_counter *counter); /* and frees it */
};

struct branch_counter {
    const struct branch_counter_ops *ops;
    uint64_t skid_margin;
    uint64_t position_count; /* when the vCPU was at its last position */
};

/* What a CPU's model has to count. */
struct branch_event {
    uint64_t config;        /* perf's raw event: bits 0-7 event, 8-15 unit mask */
    uint64_t skid_margin;
    const char *name;       /* of the CPU's kind */
    int is_zen;             /* exact only while SpecLockMap is off */
};

/* 0; -ENOTSUP: this model is not known to count exactly. `vendor` as CPUID leaf 0 has it, 12 characters. */
int branch_event_find(const char *vendor, unsigned family, unsigned model, struct branch_event *event);

/* The event of the CPU that this runs on. */
int branch_event_here(struct branch_event *event);

/* The CPU's counter for the calling thread's guest; kicks come as the signal `kick_signal`. 0, or -errno. */
int perf_counter_open(struct branch_counter **counter, const struct branch_event *event, int kick_signal);

/* What keeps perf_counter_open from it, in words, with the remedy. */
const char *perf_counter_error(int error);

#endif
