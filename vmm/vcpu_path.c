/* The vCPU while it runs: one call per exit, and the saving and loading of its state. */
#include "vmm/vcpu.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/count.h"
#include "base/report.h"

const uint32_t vcpu_msr_numbers[VCPU_MSR_COUNT] = {
    0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000100,
    0xC0000101, 0xC0000102, 0x174,      0x175,      0x176,      0x277,
};
#define MSR_SYSENTER_ESP 0x175u
#define MSR_SYSENTER_EIP 0x176u

#define RFLAGS_RF   (UINT64_C(1) << 16)
#define DR7_ENABLED UINT64_C(0xff) /* L0 to G3 */
#define DR7_FIXED   UINT64_C(0x400)

struct msr_list {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[VCPU_MSR_COUNT];
};

const char *vcpu_exit_name(enum vcpu_exit exit)
{
    switch (exit) {
    case VCPU_EXIT_IO: return "io";
    case VCPU_EXIT_MMIO: return "mmio";
    case VCPU_EXIT_HLT: return "hlt";
    case VCPU_EXIT_MSR_READ: return "msr_read";
    case VCPU_EXIT_MSR_WRITE: return "msr_write";
    case VCPU_EXIT_WINDOW: return "window";
    case VCPU_EXIT_SHUTDOWN: return "shutdown";
    case VCPU_EXIT_FORCED: return "forced";
    case VCPU_EXIT_INTERRUPTED: return "interrupted";
    case VCPU_EXIT_FAILED: return "failed";
    }
    return "unknown";
}

static int set_debug(struct vcpu *vcpu, bool stepping)
{
    struct kvm_guest_debug debug = { .control = stepping ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0 };
    int error;

    if (vcpu->breakpoints.count != 0) {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[7] = DR7_FIXED;
        for (unsigned i = 0; i < vcpu->breakpoints.count; i++) { /* of one byte, on execution: no further bits */
            debug.arch.debugreg[i] = vcpu->breakpoints.at[i];
            debug.arch.debugreg[7] |= UINT64_C(1) << (2 * i);
        }
    }
    if (ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug) == 0)
        return 0;
    error = errno;
    report_error("KVM cannot single-step the guest, nor stop it at a breakpoint: %s", strerror(error));
    return -error;
}

int vcpu_set_breakpoints(struct vcpu *vcpu, const struct vcpu_breakpoints *breakpoints)
{
    vcpu->breakpoints = *breakpoints;
    return set_debug(vcpu, vcpu->stepping);
}

/* Single-steps the guest, or no longer does; only while an interrupt window is wanted. */
static int set_stepping(struct vcpu *vcpu, bool on)
{
    int rc = set_debug(vcpu, on);

    if (rc < 0)
        return rc;
    vcpu->stepping = on;
    /* With the window still asked for, KVM would leave at once, again and again, without a step. */
    vcpu->run->request_interrupt_window = !on;
    return 0;
}

/*
 * True if the instruction before RIP may have been STI (FB), so that an interrupt window that is open here
 * may be open by mistake: some hosts open it in the STI's shadow, others one instruction later. A false
 * alarm (FB as the last byte of a longer instruction) costs one step and is the same on both hosts.
 */
static bool in_sti_shadow(struct vcpu *vcpu)
{
    struct kvm_translation where = { .linear_address = vcpu_regs(vcpu)->rip - 1 };
    const uint8_t *byte;

    if (ioctl(vcpu->fd, KVM_TRANSLATE, &where) < 0 || !where.valid)
        return false;
    byte = guest_memory_at(vcpu->memory, where.physical_address, 1);
    return byte != NULL && *byte == 0xFB;
}

/* On from a breakpoint: RF keeps it from firing again, for one instruction (SDM 3, 18.3.1.1). */
static void pass_breakpoint(struct vcpu *vcpu)
{
    vcpu->at_breakpoint = false;
    vcpu->passes_breakpoint = true;
    vcpu_regs(vcpu)->rflags |= RFLAGS_RF;
    vcpu_set_registers(vcpu);
}

/* Where that instruction was one that exits, RF is still there, and is not the guest's. True: it was. */
static bool passed_breakpoint(struct vcpu *vcpu)
{
    bool left = vcpu_regs(vcpu)->rflags & RFLAGS_RF;

    vcpu->passes_breakpoint = false;
    if (left) {
        vcpu_regs(vcpu)->rflags &= ~RFLAGS_RF;
        vcpu_set_registers(vcpu);
    }
    return left;
}

/* A KVM that does not know RF (a software one): the instruction is executed by a single step, no breakpoint being set.
 * What it exits for, vcpu_run finds as the next exit. */
static int step_off_breakpoint(struct vcpu *vcpu)
{
    const struct vcpu_breakpoints breakpoints = vcpu->breakpoints;
    uint8_t window = vcpu->run->request_interrupt_window;
    int rc, error;

    vcpu->breakpoints.count = 0;
    rc = set_debug(vcpu, true);
    vcpu->run->request_interrupt_window = 0; /* or KVM would leave without a step */
    if (rc == 0) {
        do {
            vcpu->run->immediate_exit = 0;
            rc = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
        } while (rc == -EINTR);
        vcpu->exit_waits = rc == 0 && vcpu->run->exit_reason != KVM_EXIT_DEBUG;
    }
    vcpu->run->request_interrupt_window = window;
    error = vcpu_set_breakpoints(vcpu, &breakpoints);
    return rc < 0 ? rc : error;
}

static enum vcpu_exit failed(const struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    const struct kvm_regs *regs = &run->s.regs.regs;

    if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
        report_error("KVM cannot go on: internal error %u at RIP 0x%llx (data 0x%llx 0x%llx)", run->internal.suberror,
                     (unsigned long long)regs->rip, (unsigned long long)run->internal.data[0],
                     (unsigned long long)run->internal.data[1]);
    else if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
        report_error("the CPU refuses to enter the guest: reason 0x%llx at RIP 0x%llx",
                     (unsigned long long)run->fail_entry.hardware_entry_failure_reason, (unsigned long long)regs->rip);
    else
        report_error("KVM left the guest for a reason that this program does not know: %u at RIP 0x%llx",
                     run->exit_reason, (unsigned long long)regs->rip);
    return VCPU_EXIT_FAILED;
}

enum vcpu_exit vcpu_exit_now(struct vcpu *vcpu)
{
    switch (vcpu->run->exit_reason) {
    case KVM_EXIT_IO: return VCPU_EXIT_IO;
    case KVM_EXIT_MMIO: return VCPU_EXIT_MMIO;
    case KVM_EXIT_HLT: return VCPU_EXIT_HLT;
    case KVM_EXIT_X86_RDMSR: return VCPU_EXIT_MSR_READ;
    case KVM_EXIT_X86_WRMSR: return VCPU_EXIT_MSR_WRITE;
    case KVM_EXIT_SHUTDOWN: return VCPU_EXIT_SHUTDOWN;
    case KVM_EXIT_INTR: return VCPU_EXIT_INTERRUPTED;
    case KVM_EXIT_IRQ_WINDOW_OPEN: return VCPU_EXIT_WINDOW;
    default: return failed(vcpu);
    }
}

enum vcpu_exit vcpu_run(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    bool same_again;

    if (__builtin_expect(vcpu->step_clock, 0))
        return vcpu_run_stepped(vcpu);
    if (vcpu->at_breakpoint)
        pass_breakpoint(vcpu);
    for (;;) {
        int rc = vcpu->exit_waits ? 0 : ioctl(vcpu->fd, KVM_RUN, 0);

        vcpu->exit_waits = false;
        if (rc < 0 && errno != EINTR) {
            report_error("KVM_RUN: %s", strerror(errno));
            return VCPU_EXIT_FAILED;
        }
        if (rc < 0) { /* kicked: exit_reason says INTR, or nothing if immediate_exit was set before entry */
            run->immediate_exit = 0;
            if (vcpu->stepping && set_stepping(vcpu, false) < 0)
                return VCPU_EXIT_FAILED;
            return VCPU_EXIT_INTERRUPTED;
        }
        if (vcpu->stepping) {
            if (set_stepping(vcpu, false) < 0)
                return VCPU_EXIT_FAILED;
            if (run->exit_reason == KVM_EXIT_DEBUG) {
                if (vcpu_can_inject(vcpu))
                    return VCPU_EXIT_WINDOW;
                continue; /* the instruction closed the window again */
            }
        }
        same_again = vcpu->passes_breakpoint && passed_breakpoint(vcpu) && run->exit_reason == KVM_EXIT_DEBUG;
        if (run->exit_reason == KVM_EXIT_IRQ_WINDOW_OPEN && in_sti_shadow(vcpu)) {
            COUNT_ADD(vcpu->window_steps, 1);
            if (set_stepping(vcpu, true) < 0)
                return VCPU_EXIT_FAILED;
            continue;
        }
        if (run->exit_reason != KVM_EXIT_DEBUG || vcpu->breakpoints.count == 0)
            return vcpu_exit_now(vcpu);
        if (!same_again) {
            vcpu->at_breakpoint = true;
            return VCPU_EXIT_INTERRUPTED;
        }
        if (step_off_breakpoint(vcpu) < 0)
            return VCPU_EXIT_FAILED;
    }
}

int vcpu_complete(struct vcpu *vcpu)
{
    int rc;

    if (vcpu->exit_waits)
        return 0;
    vcpu->run->immediate_exit = 1;
    rc = ioctl(vcpu->fd, KVM_RUN, 0);
    vcpu->run->immediate_exit = 0;
    if (rc < 0 && errno != EINTR) {
        report_error("KVM_RUN while completing an instruction: %s", strerror(errno));
        return -errno;
    }
    vcpu->exit_waits = rc == 0;
    if (vcpu->step_clock && vcpu->exit_waits && vcpu->run->exit_reason == KVM_EXIT_DEBUG) {
        vcpu->exit_waits = false; /* the instruction was the step */
        vcpu_note_step(vcpu);
    }
    return 0;
}

int vcpu_forget_resume_flag(struct vcpu *vcpu)
{
    struct kvm_debugregs debugregs;

    if (!(vcpu_regs(vcpu)->rflags & RFLAGS_RF))
        return 0;
    if (ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debugregs) < 0) {
        report_error("vCPU state cannot be read: KVM_GET_DEBUGREGS: %s", strerror(errno));
        return -errno;
    }
    if (debugregs.dr7 & DR7_ENABLED)
        return 0;
    vcpu_regs(vcpu)->rflags &= ~RFLAGS_RF;
    vcpu_set_registers(vcpu);
    return 0;
}

int vcpu_inject(struct vcpu *vcpu, uint8_t vector)
{
    struct kvm_interrupt interrupt = { .irq = vector };

    if (ioctl(vcpu->fd, KVM_INTERRUPT, &interrupt) < 0) {
        report_error("KVM refuses interrupt %u: %s", vector, strerror(errno));
        return -errno;
    }
    return 0;
}

void vcpu_get_registers(struct vcpu *vcpu, struct vcpu_registers *out)
{
    out->regs = *vcpu_regs(vcpu);
    out->sregs = vcpu->run->s.regs.sregs;
}

#define GET(request, field)                                                                                            \
    do {                                                                                                               \
        if (ioctl(vcpu->fd, request, field) < 0) {                                                                     \
            report_error("vCPU state cannot be read: " #request ": %s", strerror(errno));                             \
            return -errno;                                                                                             \
        }                                                                                                              \
    } while (0)

#define SET(request, field)                                                                                            \
    do {                                                                                                               \
        if (ioctl(vcpu->fd, request, field) < 0) {                                                                     \
            report_error("vCPU state cannot be loaded: " #request ": %s", strerror(errno));                           \
            return -errno;                                                                                             \
        }                                                                                                              \
    } while (0)

int vcpu_save(struct vcpu *vcpu, struct vcpu_state *out)
{
    struct msr_list list = { .head.nmsrs = VCPU_MSR_COUNT };

    memset(out, 0, sizeof(*out));
    for (unsigned i = 0; i < VCPU_MSR_COUNT; i++)
        list.entries[i].index = vcpu_msr_numbers[i];
    GET(KVM_GET_REGS, &out->regs);
    GET(KVM_GET_SREGS, &out->sregs);
    GET(KVM_GET_DEBUGREGS, &out->debugregs);
    GET(KVM_GET_VCPU_EVENTS, &out->events);
    GET(KVM_GET_MP_STATE, &out->mp_state);
    GET(KVM_GET_XSAVE, &out->xsave);
    if (ioctl(vcpu->fd, KVM_GET_MSRS, &list) != VCPU_MSR_COUNT) {
        report_error("vCPU state cannot be read: KVM_GET_MSRS");
        return -EIO;
    }
    for (unsigned i = 0; i < VCPU_MSR_COUNT; i++)
        out->msrs[i] = vcpu_msr_numbers[i] == MSR_SYSENTER_ESP || vcpu_msr_numbers[i] == MSR_SYSENTER_EIP
                           ? list.entries[i].data & vcpu->sysenter_mask
                           : list.entries[i].data;
    return 0;
}

int vcpu_load(struct vcpu *vcpu, const struct vcpu_state *state)
{
    struct msr_list list = { .head.nmsrs = VCPU_MSR_COUNT };
    struct kvm_sregs sregs = state->sregs;

    /* KVM_GET_SREGS on SVM may tell an available TSS although the one in use is always busy. */
    if (sregs.tr.type == 1)
        sregs.tr.type = 3;
    for (unsigned i = 0; i < VCPU_MSR_COUNT; i++)
        list.entries[i] = (struct kvm_msr_entry){ .index = vcpu_msr_numbers[i], .data = state->msrs[i] };
    SET(KVM_SET_SREGS, &sregs);
    if (ioctl(vcpu->fd, KVM_SET_MSRS, &list) != VCPU_MSR_COUNT) {
        report_error("vCPU state cannot be loaded: KVM_SET_MSRS");
        return -EIO;
    }
    SET(KVM_SET_XSAVE, &state->xsave);
    SET(KVM_SET_DEBUGREGS, &state->debugregs);
    SET(KVM_SET_REGS, &state->regs);
    SET(KVM_SET_VCPU_EVENTS, &state->events);
    SET(KVM_SET_MP_STATE, &state->mp_state);
    vcpu->run->kvm_dirty_regs = 0;
    return 0;
}

/* x87 and SSE registers in the FXSAVE layout (Intel SDM 1, 10.5.1). What follows is padding and the XSAVE header,
 * whose XSTATE_BV tells what the host's CPU remembers of initial states: not the guest's business. */
#define FXSAVE_REGISTER_BYTES 416

uint64_t vcpu_state_digest(const struct vcpu_state *state)
{
    struct kvm_regs regs = state->regs;
    uint64_t digest;

    regs.rflags &= ~RFLAGS_RF;
    digest = XXH3_64bits(&regs, sizeof(regs));
    digest = XXH3_64bits_withSeed(&state->sregs, sizeof(state->sregs), digest);
    digest = XXH3_64bits_withSeed(&state->debugregs, sizeof(state->debugregs), digest);
    digest = XXH3_64bits_withSeed(state->msrs, sizeof(state->msrs), digest);
    return XXH3_64bits_withSeed(&state->xsave, FXSAVE_REGISTER_BYTES, digest);
}

#define REGISTERS(X)                                                                                                   \
    X(rip) X(rax) X(rbx) X(rcx) X(rdx) X(rsi) X(rdi) X(rsp) X(rbp) X(r8) X(r9) X(r10) X(r11) X(r12) X(r13)   \
    X(r14) X(r15)
#define CONTROL_REGISTERS(X) X(cr0) X(cr2) X(cr3) X(cr4) X(cr8) X(efer) X(apic_base)
#define SEGMENTS(X) X(cs) X(ds) X(es) X(fs) X(gs) X(ss) X(tr) X(ldt)
#define SEGMENT_FIELDS(X, of)                                                                                          \
    X(of, base) X(of, limit) X(of, selector) X(of, type) X(of, present) X(of, dpl) X(of, db) X(of, s) X(of, l)         \
    X(of, g) X(of, avl) X(of, unusable)
#define TABLES(X) X(gdt) X(idt)

static bool differs(uint64_t ours, uint64_t theirs, uint64_t values[2])
{
    values[0] = ours;
    values[1] = theirs;
    return ours != theirs;
}

const char *vcpu_registers_difference(const struct vcpu_registers *ours, const struct vcpu_registers *theirs,
                                      uint64_t values[2])
{
    if (differs(ours->regs.rflags & ~RFLAGS_RF, theirs->regs.rflags & ~RFLAGS_RF, values))
        return "rflags";
#define X(name)                                                                                                        \
    if (differs(ours->regs.name, theirs->regs.name, values))                                                          \
        return #name;
    REGISTERS(X)
#undef X
#define X(name)                                                                                                        \
    if (differs(ours->sregs.name, theirs->sregs.name, values))                                                        \
        return #name;
    CONTROL_REGISTERS(X)
#undef X
#define FIELD(segment, field)                                                                                          \
    if (differs(ours->sregs.segment.field, theirs->sregs.segment.field, values))                                      \
        return #segment "." #field;
#define X(segment) SEGMENT_FIELDS(FIELD, segment)
    SEGMENTS(X)
#undef X
#undef FIELD
#define X(table)                                                                                                       \
    if (differs(ours->sregs.table.base, theirs->sregs.table.base, values) ||                                          \
        differs(ours->sregs.table.limit, theirs->sregs.table.limit, values))                                          \
        return #table;
    TABLES(X)
#undef X
    return NULL;
}

void vcpu_registers_visit(const struct vcpu_registers *registers,
                          void (*visit)(void *ctx, const char *name, uint64_t value), void *ctx)
{
#define X(name) visit(ctx, #name, registers->regs.name);
    REGISTERS(X)
#undef X
    visit(ctx, "rflags", registers->regs.rflags);
#define X(name) visit(ctx, #name, registers->sregs.name);
    CONTROL_REGISTERS(X)
#undef X
#define FIELD(segment, field) visit(ctx, #segment "." #field, registers->sregs.segment.field);
#define X(segment) SEGMENT_FIELDS(FIELD, segment)
    SEGMENTS(X)
#undef X
#undef FIELD
#define X(table)                                                                                                       \
    visit(ctx, #table ".base", registers->sregs.table.base);                                                           \
    visit(ctx, #table ".limit", registers->sregs.table.limit);
    TABLES(X)
#undef X
}

/* First 8-byte word in which two parts of the state differ, as its offset; `bytes` if none does. */
static size_t first_difference(const void *ours, const void *theirs, size_t bytes, uint64_t values[2])
{
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t a, b;

        memcpy(&a, (const uint8_t *)ours + at, 8);
        memcpy(&b, (const uint8_t *)theirs + at, 8);
        if (differs(a, b, values))
            return at;
    }
    return bytes;
}

const char *vcpu_state_difference(const struct vcpu_state *ours, const struct vcpu_state *theirs, uint64_t values[2])
{
    static __thread char name[64];
    const struct vcpu_registers our_registers = { .regs = ours->regs, .sregs = ours->sregs };
    const struct vcpu_registers their_registers = { .regs = theirs->regs, .sregs = theirs->sregs };
    const struct {
        const char *what;
        const void *ours, *theirs;
        size_t bytes;
    } parts[] = {
        { "debug register", &ours->debugregs, &theirs->debugregs, sizeof(ours->debugregs) },
        { "MSR", ours->msrs, theirs->msrs, sizeof(ours->msrs) },
        { "FXSAVE word", &ours->xsave, &theirs->xsave, FXSAVE_REGISTER_BYTES },
    };
    const char *register_name = vcpu_registers_difference(&our_registers, &their_registers, values);

    if (register_name != NULL)
        return register_name;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        size_t at = first_difference(parts[i].ours, parts[i].theirs, parts[i].bytes, values);

        if (at < parts[i].bytes) {
            snprintf(name, sizeof(name), "%s %zu", parts[i].what, at / 8);
            return name;
        }
    }
    return NULL;
}
