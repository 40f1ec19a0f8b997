/* A vCPU as place.h wants a guest. */
#include "vmm/vcpu_place.h"

#include "base/clock.h"

static enum place_stop stop_of(enum vcpu_exit exit)
{
    switch (exit) {
    case VCPU_EXIT_INTERRUPTED: return PLACE_STOP_KICKED;
    case VCPU_EXIT_FAILED: return PLACE_STOP_FAILED;
    case VCPU_EXIT_IO:
    case VCPU_EXIT_MMIO:
    case VCPU_EXIT_HLT:
    case VCPU_EXIT_MSR_READ:
    case VCPU_EXIT_MSR_WRITE:
    case VCPU_EXIT_WINDOW:
    case VCPU_EXIT_SHUTDOWN:
    case VCPU_EXIT_FORCED:
        break;
    }
    return PLACE_STOP_EXIT;
}

static enum place_stop run(void *ctx)
{
    return stop_of(vcpu_run(ctx));
}

static enum place_stop run_to(void *ctx, uint64_t rip)
{
    struct vcpu *vcpu = ctx;
    enum place_stop stop;
    bool there;

    if (!vcpu->step_clock) {
        stop = stop_of(vcpu_run_to(vcpu, rip, &there));
        return there ? PLACE_STOP_THERE : stop;
    }
    vcpu->step_limit = vcpu->steps + 1; /* steps count all there is: the next one is not the place, or it is */
    stop = run(ctx);
    vcpu->step_limit = UINT64_MAX;
    return stop;
}

static const struct kvm_regs *registers(void *ctx)
{
    return vcpu_regs(ctx);
}

static uint64_t now_ns(void *ctx)
{
    (void)ctx;
    return clock_now_ns();
}

struct place_guest vcpu_place_guest(struct vcpu *vcpu, struct branch_counter *counter)
{
    return (struct place_guest){
        .ctx = vcpu, .counter = counter, .run = run, .run_to = run_to, .registers = registers, .now_ns = now_ns
    };
}
