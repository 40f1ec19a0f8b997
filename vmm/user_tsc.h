/* Answers a user program's RDTSC, which faults in the guest because CR4.TSD is set. */
#ifndef FTVMM_VMM_USER_TSC_H
#define FTVMM_VMM_USER_TSC_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/guest_memory.h"

/*
 * The vCPU stands at the guest's #GP entry, behind the OUT that tsc_patch put there, on the exception's stack.
 * If the fault came from user mode at an RDTSC or RDTSCP, sets `regs` and `sregs` as IRETQ to the instruction
 * after it would, with `tsc` in EDX:EAX (and `tsc_aux` in ECX), and returns true. Otherwise changes nothing and
 * returns false: the guest's own handler goes on.
 */
bool user_tsc_emulate(const struct guest_memory *memory, struct kvm_regs *regs, struct kvm_sregs *sregs, uint64_t tsc,
                      uint32_t tsc_aux);

#endif
