/*
 * Answers a user program's RDTSC in the guest. CR4.TSD is always set there (tsc_patch.h), so the instruction
 * raises #GP; the guest's #GP entry begins with an OUT that brings the VMM here.
 */
#ifndef FTVMM_VMM_USER_TSC_H
#define FTVMM_VMM_USER_TSC_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/guest_memory.h"

/*
 * To be called at the exit for TSC_PORT_USER_GP, when the OUT is complete: RIP is behind it, RSP points to the
 * exception's frame. If user code's RDTSC or RDTSCP (or the IN that stands for one in the vDSO) caused the #GP,
 * RAX and RDX (and RCX) get `tsc` (and `tsc_aux`) and *regs, *sregs become what an IRETQ to the next instruction
 * would make of them: true, the caller loads both. Otherwise false, nothing changed: the guest handles its #GP.
 *
 * A program that single-steps itself (RFLAGS.TF) gets its trap one instruction late. Only the flat user segments
 * of 64-bit Linux (CS 0x33 and 0x23) count as user code. Reads guest memory only, and believes none of it.
 * vCPU thread. Source: Intel SDM vol. 3, 4.5 (paging), 6.14 (frames); vol. 2, IRET, RDTSC.
 */
bool user_tsc_emulate(const struct guest_memory *memory, struct kvm_regs *regs, struct kvm_sregs *sregs, uint64_t tsc,
                      uint32_t tsc_aux);

#endif
