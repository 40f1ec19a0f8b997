/* The corner guest's memory, registers and random program; the guest itself is corner_guest.S. */
#ifndef FTVMM_TESTS_CORNER_IMAGE_H
#define FTVMM_TESTS_CORNER_IMAGE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/guest_memory.h"

struct corner_plan {
    uint64_t seed;
    unsigned steps;
    bool whole_cpu;       /* KVM runs the CPU's own virtualization: everything; else what a software KVM has */
    uint8_t timer_mask;   /* of the high byte of the timer's counts */
    uint64_t only;        /* a bit for each gadget that may be used; 0: all */
    bool clock;           /* instead: computes or sleeps, reads the counter, sends a frame with what it read */
    bool sleeps;          /* does so in between */
};

/* Names of the gadgets, by number; NULL behind the last. */
extern const char *const corner_gadget_names[];

/* splitmix64 (S. Vigna): the next number; the plan's seed gives all that is random in a guest. */
uint64_t corner_random(uint64_t *state);
/* Builds the guest in zeroed memory of at least 2 MiB. */
void corner_image_build(struct guest_memory *memory, const struct corner_plan *plan);
/* `sregs` as KVM gives them to a new vCPU. */
void corner_image_registers(const struct corner_plan *plan, struct kvm_regs *regs, struct kvm_sregs *sregs);

#endif
