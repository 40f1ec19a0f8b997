/*
 * The vCPU by single steps and to a breakpoint, as clocks need it; cold. KVM API, KVM_SET_GUEST_DEBUG.
 *
 * A single step is not transparent: KVM sets TF, and what stores the flags stores TF with them. So the clock `step`, which
 * steps always, mends what PUSHF and SYSCALL store; and run_to steps only where a breakpoint lets the guest make no way.
 */
#include "vmm/vcpu.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/report.h"

#define RFLAGS_TF   (UINT64_C(1) << 8)
#define RFLAGS_RF   (UINT64_C(1) << 16)
#define DR7_ENABLED UINT64_C(0xff)   /* L0 to G3 */
#define DR7_L0      UINT64_C(1)      /* an instruction breakpoint at DR0 */
#define DR7_FIXED   UINT64_C(0x400)
#define INSTRUCTION_BYTES_MAX 15u

/* What KVM does while the guest runs, besides: nothing, step, or break at an address. */
static int set_debug(struct vcpu *vcpu, uint32_t control, uint64_t break_at)
{
    struct kvm_guest_debug debug = { .control = control };

    if (control & KVM_GUESTDBG_USE_HW_BP) {
        debug.arch.debugreg[0] = break_at;
        debug.arch.debugreg[7] = DR7_FIXED | DR7_L0;
    }
    if (ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug) < 0) {
        report_error("KVM cannot single-step the guest or break into it: %s", strerror(errno));
        return -errno;
    }
    return 0;
}

/* Host address of the guest's linear address, if it is in RAM; `bytes` of them up to the page's end, at most. */
static uint8_t *linear_at(const struct vcpu *vcpu, uint64_t linear, size_t *bytes)
{
    struct kvm_translation where = { .linear_address = linear };
    uint64_t room = GUEST_PAGE_BYTES - linear % GUEST_PAGE_BYTES;

    if (*bytes > room)
        *bytes = room;
    if (ioctl(vcpu->fd, KVM_TRANSLATE, &where) < 0 || !where.valid)
        return NULL;
    return guest_memory_at(vcpu->memory, where.physical_address, *bytes);
}

/* The bytes from RIP on, as many as an instruction may have; how many could be read. */
static size_t read_instruction(const struct vcpu *vcpu, uint64_t linear, uint8_t bytes[INSTRUCTION_BYTES_MAX])
{
    size_t have = 0;

    while (have < INSTRUCTION_BYTES_MAX) {
        size_t count = INSTRUCTION_BYTES_MAX - have;
        const uint8_t *from = linear_at(vcpu, linear + have, &count);

        if (from == NULL)
            break;
        memcpy(bytes + have, from, count);
        have += count;
    }
    return have;
}

enum instruction {
    INSTRUCTION_PLAIN,
    INSTRUCTION_UNKNOWN,  /* cannot be read */
    INSTRUCTION_REPEATED, /* a string instruction, which may be half done */
    INSTRUCTION_PUSHF,
    INSTRUCTION_SYSCALL,
    INSTRUCTION_FLAGS,    /* loads or saves the flags, or shadows what follows, in another way */
};

static bool is_prefix(uint8_t byte)
{
    return byte == 0x66 || byte == 0x67 || byte == 0xF0 || byte == 0x2E || byte == 0x36 || byte == 0x3E ||
           byte == 0x26 || byte == 0x64 || byte == 0x65;
}

static bool is_string(uint8_t opcode)
{
    return (opcode >= 0x6C && opcode <= 0x6F) || (opcode >= 0xA4 && opcode <= 0xA7) ||
           (opcode >= 0xAA && opcode <= 0xAF);
}

static enum instruction instruction_at(const struct vcpu *vcpu, uint64_t linear, bool long_mode)
{
    uint8_t bytes[INSTRUCTION_BYTES_MAX];
    size_t have = read_instruction(vcpu, linear, bytes), at = 0;
    bool repeated = false;

    while (at < have && (is_prefix(bytes[at]) || bytes[at] == 0xF2 || bytes[at] == 0xF3)) {
        repeated = repeated || bytes[at] == 0xF2 || bytes[at] == 0xF3;
        at++;
    }
    if (long_mode && at < have && (bytes[at] & 0xF0) == 0x40) /* REX */
        at++;
    if (at >= have)
        return INSTRUCTION_UNKNOWN;
    if (repeated && is_string(bytes[at]))
        return INSTRUCTION_REPEATED;
    switch (bytes[at]) {
    case 0x9C: return INSTRUCTION_PUSHF;
    case 0x9D: /* POPF */
    case 0x17: /* POP SS */
    case 0x8E: /* MOV to a segment register */
    case 0xCC: /* INT3, INT, INTO, IRET */
    case 0xCD:
    case 0xCE:
    case 0xCF:
    case 0xF1: /* INT1 */
    case 0xFB: /* STI */
        return INSTRUCTION_FLAGS;
    case 0x0F:
        if (at + 1 >= have)
            return INSTRUCTION_UNKNOWN;
        if (bytes[at + 1] == 0x05)
            return INSTRUCTION_SYSCALL;
        /* SYSRET, SYSENTER, SYSEXIT, LSS */
        return bytes[at + 1] == 0x07 || bytes[at + 1] == 0x34 || bytes[at + 1] == 0x35 || bytes[at + 1] == 0xB2
                   ? INSTRUCTION_FLAGS
                   : INSTRUCTION_PLAIN;
    default: return INSTRUCTION_PLAIN;
    }
}

/* ---- the clock `step` ---- */

void vcpu_step_clock(struct vcpu *vcpu)
{
    vcpu->step_clock = true;
    vcpu->step_limit = UINT64_MAX;
    vcpu_steps_begin(vcpu);
}

void vcpu_steps_begin(struct vcpu *vcpu)
{
    vcpu->steps = 0;
    vcpu->step_armed = false;
}

/* What the instruction has stored of our TF. */
static void mend_flags(struct vcpu *vcpu, enum instruction instruction)
{
    struct kvm_regs *regs = vcpu_regs(vcpu);
    size_t bytes = 2;
    uint8_t *pushed;

    if (instruction == INSTRUCTION_SYSCALL && regs->r11 & RFLAGS_TF) {
        regs->r11 &= ~RFLAGS_TF;
        vcpu_set_registers(vcpu);
    }
    if (instruction != INSTRUCTION_PUSHF)
        return;
    pushed = linear_at(vcpu, regs->rsp, &bytes);
    if (pushed != NULL && bytes == 2 && pushed[1] & RFLAGS_TF >> 8) {
        pushed[1] &= (uint8_t) ~(RFLAGS_TF >> 8);
        guest_memory_mark((struct guest_memory *)vcpu->memory, (uint64_t)(pushed - vcpu->memory->base), bytes);
    }
}

/* What stores the flags at RIP, in 64-bit code; other code is left alone. */
static enum instruction flags_stored_here(struct vcpu *vcpu)
{
    enum instruction instruction = instruction_at(vcpu, vcpu_regs(vcpu)->rip, true);
    struct kvm_sregs sregs;

    if (instruction != INSTRUCTION_PUSHF && instruction != INSTRUCTION_SYSCALL)
        return INSTRUCTION_PLAIN;
    return vcpu_get_sregs(vcpu, &sregs) == 0 && sregs.cs.l ? instruction : INSTRUCTION_PLAIN;
}

/* One step, or what comes instead; sets *stepped. The flags that it stores are mended. */
static int step(struct vcpu *vcpu, bool *stepped)
{
    enum instruction instruction = INSTRUCTION_PLAIN;
    int rc = 0;

    *stepped = false;
    if (!vcpu->exit_waits) {
        if (vcpu->steps != 0) /* else the last exit's instruction may be under way, and RIP not be where it will be */
            instruction = flags_stored_here(vcpu);
        rc = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
    }
    vcpu->exit_waits = false;
    if (rc == 0 && vcpu->run->exit_reason == KVM_EXIT_DEBUG) {
        mend_flags(vcpu, instruction);
        vcpu_note_step(vcpu);
        *stepped = true;
    }
    return rc;
}

void vcpu_note_step(struct vcpu *vcpu)
{
    vcpu->steps++;
    vcpu->step_regs = *vcpu_regs(vcpu);
}

/*
 * As vcpu_run. An interrupt window is looked for after each step: KVM, asked for it, would leave an STI's shadow again
 * and again without a step.
 */
enum vcpu_exit vcpu_run_stepped(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    bool window = run->request_interrupt_window, stepped = true;
    enum vcpu_exit exit = VCPU_EXIT_INTERRUPTED;
    int rc = 0;

    /* Once after each exit; not after a kick, which would begin to step in an exception's handler where no step was. */
    if (!vcpu->step_armed && set_debug(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, 0) < 0)
        return VCPU_EXIT_FAILED;
    vcpu->step_armed = true;
    run->request_interrupt_window = 0;
    while (vcpu->steps < vcpu->step_limit) {
        rc = step(vcpu, &stepped);
        if (rc < 0 || !stepped)
            break;
        if (window && vcpu_can_inject(vcpu)) {
            exit = VCPU_EXIT_WINDOW;
            vcpu->step_armed = false;
            break;
        }
    }
    run->request_interrupt_window = window;
    if (rc == -EINTR) {
        run->immediate_exit = 0;
        return VCPU_EXIT_INTERRUPTED;
    }
    if (rc < 0) {
        report_error("KVM_RUN: %s", strerror(-rc));
        return VCPU_EXIT_FAILED;
    }
    if (stepped)
        return exit;
    vcpu->step_armed = run->exit_reason == KVM_EXIT_INTR;
    return vcpu_exit_now(vcpu);
}

/* ---- to a place ---- */

const char *vcpu_place_obstacle(struct vcpu *vcpu)
{
    const struct kvm_regs *regs = vcpu_regs(vcpu);
    struct kvm_debugregs debugregs;
    struct kvm_vcpu_events events;
    struct kvm_sregs sregs;

    if (vcpu->exit_waits)
        return "an instruction is under way";
    if (vcpu->run->request_interrupt_window)
        return "an interrupt waits";
    if (ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0 || ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debugregs) < 0 ||
        vcpu_get_sregs(vcpu, &sregs) < 0)
        return "KVM does not tell the vCPU's state";
    if (events.exception.injected || events.exception.pending || events.interrupt.injected ||
        events.interrupt.shadow || events.nmi.injected || events.nmi.pending || events.smi.smm)
        return "an event is under way";
    if (vcpu->step_clock) {
        if (vcpu->steps == 0)
            return "no step was made yet";
        return memcmp(&vcpu->step_regs, regs, sizeof(*regs)) == 0 ? NULL : "the guest is between two steps";
    }
    if (debugregs.dr7 & DR7_ENABLED || regs->rflags & RFLAGS_TF)
        return "the guest debugs";
    switch (instruction_at(vcpu, sregs.cs.base + regs->rip, sregs.cs.l)) {
    case INSTRUCTION_PLAIN: return NULL;
    case INSTRUCTION_UNKNOWN: return "the instruction cannot be read";
    case INSTRUCTION_REPEATED: return "a string instruction may be half done";
    case INSTRUCTION_PUSHF:
    case INSTRUCTION_SYSCALL:
    case INSTRUCTION_FLAGS:
        break;
    }
    return "the instruction touches the flags";
}

static enum vcpu_exit run_debugged(struct vcpu *vcpu, bool *broke)
{
    int rc = vcpu->exit_waits ? 0 : ioctl(vcpu->fd, KVM_RUN, 0);

    vcpu->exit_waits = false;
    *broke = false;
    if (rc < 0 && errno != EINTR) {
        report_error("KVM_RUN: %s", strerror(errno));
        return VCPU_EXIT_FAILED;
    }
    if (rc < 0) {
        vcpu->run->immediate_exit = 0;
        return VCPU_EXIT_INTERRUPTED;
    }
    if (vcpu->run->exit_reason != KVM_EXIT_DEBUG)
        return vcpu_exit_now(vcpu);
    *broke = true;
    return VCPU_EXIT_INTERRUPTED;
}

/* Nothing but RF may differ. */
static bool made_no_way(const struct kvm_regs *before, const struct kvm_regs *now)
{
    struct kvm_regs compared = *now;

    compared.rflags = (now->rflags & ~RFLAGS_RF) | (before->rflags & RFLAGS_RF);
    return memcmp(before, &compared, sizeof(compared)) == 0;
}

/* From the breakpoint on. RF switches instruction breakpoints off for one instruction; where this KVM emulates that and
 * does not heed RF, it is stepped over. */
static enum vcpu_exit run_past(struct vcpu *vcpu, uint64_t rip, bool *broke)
{
    struct kvm_regs *regs = vcpu_regs(vcpu), before = *regs;
    enum vcpu_exit exit;

    regs->rflags |= RFLAGS_RF;
    vcpu_set_registers(vcpu);
    exit = run_debugged(vcpu, broke);
    if (!*broke || !made_no_way(&before, regs))
        return exit;
    if (set_debug(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, 0) < 0)
        return VCPU_EXIT_FAILED;
    exit = run_debugged(vcpu, broke);
    if (!*broke || regs->rip == rip)
        return exit;
    if (set_debug(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, rip) < 0)
        return VCPU_EXIT_FAILED;
    return run_debugged(vcpu, broke);
}

enum vcpu_exit vcpu_run_to(struct vcpu *vcpu, uint64_t rip, bool *there)
{
    enum vcpu_exit exit;
    bool broke;

    *there = false;
    if (set_debug(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, rip) < 0)
        return VCPU_EXIT_FAILED;
    /* Not merely because RIP is there: an interrupt that has just been injected comes first, and would push RF. */
    exit = vcpu->broke ? run_past(vcpu, rip, &broke) : run_debugged(vcpu, &broke);
    *there = vcpu->broke = broke && vcpu_regs(vcpu)->rip == rip;
    return exit;
}

int vcpu_run_to_end(struct vcpu *vcpu)
{
    vcpu->broke = false;
    return set_debug(vcpu, 0, 0);
}
