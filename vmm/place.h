/*
 * A place: a point in the guest's execution that is no exit, named so that the other host finds it by running there. It
 * is found by the counter, armed early by its skid, and from there on by its address and all general registers.
 * Arithmetic over whatever guest and counter it is given: it knows no KVM.
 */
#ifndef FTVMM_VMM_PLACE_H
#define FTVMM_VMM_PLACE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/branch_counter.h"

/* The payload of a PLACE record. */
struct event_place {
    uint64_t count;  /* of the clock, since the position before */
    uint64_t rip;
    uint64_t rcx;    /* part of the digest, too; for people */
    uint64_t digest; /* XXH3-64 of struct kvm_regs, RF in rflags taken as 0 */
    uint32_t clock;  /* enum guest_clock: PMU or STEP */
    uint32_t reserved;
};

uint64_t place_digest(const struct kvm_regs *regs);

/* Why the guest came back. */
enum place_stop {
    PLACE_STOP_KICKED, /* anywhere */
    PLACE_STOP_THERE,  /* run_to: at that address */
    PLACE_STOP_EXIT,   /* at a synchronous exit */
    PLACE_STOP_FAILED, /* said in words */
    PLACE_STOP_GIVE_UP, /* nobody wants the place any more */
};

struct place_guest {
    void *ctx;
    struct branch_counter *counter;
    enum place_stop (*run)(void *ctx);
    /* Until it is about to execute the instruction at `rip`; if it was THERE by the call before, the next time. */
    enum place_stop (*run_to)(void *ctx, uint64_t rip);
    const struct kvm_regs *(*registers)(void *ctx);
    uint64_t (*now_ns)(void *ctx);
};

enum place_result {
    PLACE_FOUND,
    PLACE_PASSED, /* the guest is beyond it, or it never was there: counts and registers do not meet */
    PLACE_EXITED, /* a synchronous exit came first */
    PLACE_STUCK,  /* the counter does not count on, for seconds */
    PLACE_FAILED, /* guest or counter failed */
    PLACE_GIVEN_UP,
};

/*
 * Runs `guest` to `place`, from the position before it. FOUND: it stands there, and not one instruction further; never
 * said of another place whose count and registers differ. `count`: of the clock since that position, at the end.
 */
enum place_result place_find(const struct place_guest *guest, const struct event_place *place, uint64_t *count);

#endif
