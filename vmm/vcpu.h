/*
 * One virtual CPU on KVM: running it up to its next synchronous exit, injecting interrupts, and its state.
 * linux/kvm.h's styles (ioctl, errno) end here. Source: Documentation/virt/kvm/api.rst.
 *
 * All functions are for the vCPU's own thread, except vcpu_kick.
 */
#ifndef FTVMM_VMM_VCPU_H
#define FTVMM_VMM_VCPU_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/guest_memory.h"

/* Why vcpu_run came back. All but INTERRUPTED and FAILED happen at a point that only the guest's own
 * execution determines, and count on the exits clock. */
enum vcpu_exit {
    VCPU_EXIT_IO,          /* run->io */
    VCPU_EXIT_MMIO,        /* run->mmio */
    VCPU_EXIT_HLT,
    VCPU_EXIT_MSR_READ,    /* run->msr */
    VCPU_EXIT_MSR_WRITE,   /* run->msr */
    VCPU_EXIT_WINDOW,      /* the guest can take an interrupt now, as vcpu_want_window asked */
    VCPU_EXIT_SHUTDOWN,    /* triple fault; the registers are those of the reset vCPU */
    VCPU_EXIT_FORCED,      /* not from vcpu_run: a forced sync took the place of an exit */
    VCPU_EXIT_INTERRUPTED, /* kicked: the guest is at an arbitrary instruction */
    VCPU_EXIT_FAILED,      /* KVM could not go on; said in words */
};

/* "io", "hlt", ... */
const char *vcpu_exit_name(enum vcpu_exit exit);

#define VCPU_MSR_COUNT 12
/* What a guest can read of its MSRs without an exit, in the order that loading needs: EFER first. */
extern const uint32_t vcpu_msr_numbers[VCPU_MSR_COUNT];

/* All of the vCPU's state that a guest can see, as forced sync ships it. */
struct vcpu_state {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debugregs;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp_state;
    uint32_t reserved;
    uint64_t msrs[VCPU_MSR_COUNT];
    struct kvm_xsave xsave;
};

/* What is compared at every position under --verify: cheap to read at an exit. */
struct vcpu_registers {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
};

struct vcpu {
    int kvm_fd, vm_fd, fd;
    struct kvm_run *run;
    size_t run_bytes;
    bool stepping; /* KVM_GUESTDBG_SINGLESTEP is on */
    struct vcpu_breakpoints {
        uint64_t at[4]; /* the CPU has so many */
        unsigned count;
    } breakpoints;
    bool at_breakpoint; /* the last exit was INTERRUPTED by one; its instruction is not executed yet */
    bool passes_breakpoint; /* RF is set by us, for that instruction */
    bool exit_waits; /* vcpu_complete has come upon the next exit already; vcpu_run gives it */
    struct kvm_cpuid2 *cpuid;
    pthread_t thread; /* set by vcpu_enter_thread */
    const struct guest_memory *memory; /* to look at the byte before RIP */
    uint64_t sysenter_mask; /* bits of SYSENTER_ESP and _EIP that this CPU keeps */
    _Atomic uint64_t window_steps; /* interrupt windows that opened in the shadow of an STI */

    /* The clock `step` (vcpu_debug.c). */
    bool step_clock;           /* the guest is single-stepped, always */
    bool step_armed;           /* KVM knows, since the last exit */
    uint64_t steps;            /* since vcpu_steps_begin */
    uint64_t step_limit;       /* vcpu_run gives INTERRUPTED here */
    struct kvm_regs step_regs; /* after the last one */
    bool broke;                /* vcpu_run_to has come there */
};

/*
 * Opens /dev/kvm and makes a VM with `memory` as its RAM and one vCPU without in-kernel interrupt
 * controller. `log_dirty`: KVM notes the pages the guest writes, for vcpu_dirty_pages. Errors are said in
 * words (no /dev/kvm, no permission, a capability that this KVM lacks) and returned as -errno. On failure
 * vcpu_close cleans up.
 */
int vcpu_open(struct vcpu *vcpu, const struct guest_memory *memory, bool log_dirty);
void vcpu_close(struct vcpu *vcpu);

/* The CPUID table the guest sees: the host's, less all that would not be the same twice (docs/determinism.md).
 * Owned by the vCPU. */
const struct kvm_cpuid2 *vcpu_cpuid(const struct vcpu *vcpu);
/* 0 if `entries` are the same table as ours; else -EPROTO after naming the first leaf that differs. */
int vcpu_cpuid_compare(const struct vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count);

/* Claims the vCPU for the calling thread and lets vcpu_kick reach it. */
int vcpu_enter_thread(struct vcpu *vcpu);
/* It is no longer the calling thread's: a kick that comes late finds none. */
void vcpu_leave_thread(void);
/* Makes the vCPU leave the guest, from any thread; it may come back INTERRUPTED once more than needed. */
void vcpu_kick(struct vcpu *vcpu);
/* The signal by which that is done, for others that are to do it. */
int vcpu_kick_signal(void);

/* Runs until the next exit. */
enum vcpu_exit vcpu_run(struct vcpu *vcpu);
/* From now on the guest is INTERRUPTED (at_breakpoint) before it executes an instruction at one of these addresses. By the
 * CPU's breakpoint registers, which are not the guest's meanwhile: what it sets itself does not fire. Only where KVM has
 * them (not in a CPU that is emulated). 0 or -errno, said in words. */
int vcpu_set_breakpoints(struct vcpu *vcpu, const struct vcpu_breakpoints *breakpoints);
/* What the last KVM_RUN, which was not interrupted, came back for. */
enum vcpu_exit vcpu_exit_now(struct vcpu *vcpu);
/* Completes the instruction of the last I/O, memory or MSR exit without running another: afterwards state may be read,
 * and loaded unless exit_waits: an access in several parts, or the next round of a REP, may exit again. 0 or -errno. */
int vcpu_complete(struct vcpu *vcpu);

/* May vcpu_inject be called before the next run? What completing the last exit's instruction does is not known before
 * vcpu_complete. */
static inline bool vcpu_can_inject(const struct vcpu *vcpu)
{
    return !vcpu->exit_waits && vcpu->run->ready_for_interrupt_injection && vcpu->run->if_flag;
}
/*
 * RF, which IRET leaves set for one instruction, may be lost when the host interrupts the guest just there, and a
 * frame pushed there would tell. It means something only to an instruction breakpoint; unless one is armed this clears
 * it. Only between two instructions. Comparisons and digests leave it out. 0 or -errno.
 */
int vcpu_forget_resume_flag(struct vcpu *vcpu);
/* Injects an external interrupt; only when vcpu_can_inject. 0 or -errno. */
int vcpu_inject(struct vcpu *vcpu, uint8_t vector);
static inline void vcpu_want_window(struct vcpu *vcpu, bool want)
{
    vcpu->run->request_interrupt_window = want;
}

/* Registers as of the last exit, without a system call; after changing them call vcpu_set_registers. */
static inline struct kvm_regs *vcpu_regs(struct vcpu *vcpu)
{
    return &vcpu->run->s.regs.regs;
}
static inline void vcpu_set_registers(struct vcpu *vcpu)
{
    vcpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}
/* From the next exit on, the special registers come with the others. */
static inline void vcpu_want_registers(struct vcpu *vcpu)
{
    vcpu->run->kvm_valid_regs |= KVM_SYNC_X86_SREGS;
}
/* What VERIFY compares, as of the last exit (after vcpu_want_registers). */
void vcpu_get_registers(struct vcpu *vcpu, struct vcpu_registers *out);

/* Whole state; only after vcpu_complete or an INTERRUPTED exit. 0 or -errno. */
int vcpu_save(struct vcpu *vcpu, struct vcpu_state *out);
int vcpu_load(struct vcpu *vcpu, const struct vcpu_state *state);
/* Digest of what the guest can see of it: registers, segments, control, debug, MSRs, x87 and SSE (XXH3-64). */
uint64_t vcpu_state_digest(const struct vcpu_state *state);
/* Name of the first register in which the two differ, and its values; NULL if none does. */
const char *vcpu_state_difference(const struct vcpu_state *ours, const struct vcpu_state *theirs, uint64_t values[2]);
const char *vcpu_registers_difference(const struct vcpu_registers *ours, const struct vcpu_registers *theirs,
                                      uint64_t values[2]);

/* Calls `visit` for each of the registers that are compared, general and control registers first. */
void vcpu_registers_visit(const struct vcpu_registers *registers,
                          void (*visit)(void *ctx, const char *name, uint64_t value), void *ctx);

/* Sets the state at boot from general and special registers. */
int vcpu_set_boot_state(struct vcpu *vcpu, const struct kvm_regs *regs, const struct kvm_sregs *sregs);
int vcpu_get_sregs(struct vcpu *vcpu, struct kvm_sregs *sregs);
int vcpu_set_sregs(struct vcpu *vcpu, const struct kvm_sregs *sregs);

/* ---- vcpu_debug.c ---- */
/* From now on vcpu_run single-steps, and counts. */
void vcpu_step_clock(struct vcpu *vcpu);
/* The count begins anew, at a position. */
void vcpu_steps_begin(struct vcpu *vcpu);
/* vcpu_run of a vCPU with the clock `step`. */
enum vcpu_exit vcpu_run_stepped(struct vcpu *vcpu);
/* A step has been made. */
void vcpu_note_step(struct vcpu *vcpu);
/* After INTERRUPTED: why another vCPU could not be brought to this very place; NULL: it can. */
const char *vcpu_place_obstacle(struct vcpu *vcpu);
/* Runs until the instruction at `rip` is about to be executed (*there), and if it was there already, by the call before,
 * until the next time; or to an exit, or a kick. vcpu_run_to_end must follow the last of these. */
enum vcpu_exit vcpu_run_to(struct vcpu *vcpu, uint64_t rip, bool *there);
int vcpu_run_to_end(struct vcpu *vcpu);

/* ORs the pages that the guest has written since the last call into `bitmap` (one bit a page), and forgets
 * them. 0 or -errno. */
int vcpu_dirty_pages(struct vcpu *vcpu, uint64_t *bitmap);

#endif
