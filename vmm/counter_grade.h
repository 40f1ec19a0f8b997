/*
 * Is a counter of use as a clock? It is tried on a guest whose branches are known, again and again: counts must be right
 * to the last one, also across kicks, and it must interrupt no earlier and no later than its margin allows.
 */
#ifndef FTVMM_VMM_COUNTER_GRADE_H
#define FTVMM_VMM_COUNTER_GRADE_H

#include <stdint.h>

#include "vmm/place.h"
#include "vmm/vcpu.h"

enum counter_grade {
    COUNTER_UNTRIED,
    COUNTER_EXACT,    /* nothing was amiss */
    COUNTER_FLAGGED,  /* nothing was wrong, but it came near its margin, or may be wrong at other times */
    COUNTER_UNUSABLE, /* something was wrong */
};

struct counter_grading {
    enum counter_grade grade;
    unsigned rounds;
    unsigned wrong;          /* rounds with another count than there were branches, or a place not found */
    unsigned early, lost;    /* interrupts before their time; that did not come */
    uint64_t worst_off;      /* by how much a count was wrong at most */
    uint64_t worst_skid;     /* by how much an interrupt was late at most */
};

/* A guest that retires a known number of conditional branches and then exits. */
struct grade_guest {
    struct place_guest place; /* its counter is the one to be graded */
    uint64_t branches_most; /* in a round */
    /* It is to begin anew, with so many branches ahead of it. 0 or -errno. */
    int (*begin)(void *ctx, uint64_t branches);
};

/* Grades the counter in so many rounds, drawn from `seed`. 0, or -errno: guest or counter failed. */
int counter_grade(const struct grade_guest *guest, unsigned rounds, uint64_t seed, struct counter_grading *grading);

/* The same by a guest of a few bytes on /dev/kvm, for the counter that `open` makes on this thread. */
int counter_grade_on_kvm(int (*open)(void *ctx, struct vcpu *vcpu, struct branch_counter **counter), void *ctx,
                         uint64_t branches_most, unsigned rounds, uint64_t seed, struct counter_grading *grading);

#endif
