/*
 * The guest's clock: what counts how far it has come, so that a place in its execution can be found again on the other
 * host. Synchronous exits are always counted (lockstep.h, positions); the other clocks add places between two of them.
 */
#ifndef FTVMM_VMM_GUEST_CLOCK_H
#define FTVMM_VMM_GUEST_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/branch_counter.h"
#include "vmm/counter_grade.h"
#include "vmm/vcpu.h"

/* The values are those of START and PLACE records. */
enum guest_clock {
    GUEST_CLOCK_EXITS = 0, /* nothing else is counted; between exits only a forced sync makes a position */
    GUEST_CLOCK_PMU = 1,   /* conditional branches that the guest has retired, by the CPU's counter */
    GUEST_CLOCK_STEP = 2,  /* instructions, each a single step: slow beyond use, for tests */
    GUEST_CLOCK_AUTO = 3,  /* an option, not a clock: the best that this machine has */
};

/* "exits", ...; NULL: no such clock. */
const char *guest_clock_name(uint32_t clock);
/* False: no clock has that name. */
bool guest_clock_named(const char *name, enum guest_clock *clock);

struct guest_clock_choice {
    enum guest_clock clock;
    char why[320];              /* a sentence without its full stop */
    struct counter_grading grading; /* of the CPU's counter, if it was tried */
};

/*
 * Which clock it will be, if `wanted` is asked for; with AUTO and PMU the CPU's counter is tried, on a guest of a few
 * bytes, which takes some ms. The calling thread must be the one that is to run the vCPU, and calls vcpu_enter_thread
 * afterwards. 0; -ENOTSUP: PMU is wanted and of no use here, as choice->why says.
 */
int guest_clock_choose(enum guest_clock wanted, struct guest_clock_choice *choice);

/* The counter of this clock for this vCPU, begun; NULL for EXITS. On the vCPU's thread. 0, or -errno said in words. */
int guest_clock_open(enum guest_clock clock, struct vcpu *vcpu, struct branch_counter **counter);

#endif
