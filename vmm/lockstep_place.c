/*
 * Places: with a clock that counts between exits, the primary makes a position of an arbitrary instant by naming it, where
 * a forced sync would send it; the backup runs there from the position before. The name is checked there to the last
 * register: who does not find the place says so, and does not guess.
 */
#include "vmm/lockstep.h"

#include <errno.h>

#include "base/report.h"
#include "vmm/vcpu_place.h"

/* Until a forced sync takes the place of a place: so many instants that could not be named, or so many kicks at the same
 * one, and at least --max-input-delay after the first of them. */
#define PLACE_TRIES 4u
#define PLACE_KICKS 16u

int clock_choose(struct lockstep *ls)
{
    struct guest_clock_choice choice;
    int rc = guest_clock_choose(ls->options.clock, &choice);

    ls->clock = choice.clock;
    if (rc < 0)
        report_error("the clock pmu cannot be had: %s; --clock exits, or auto, can", choice.why);
    else if (choice.grading.grade == COUNTER_FLAGGED)
        report_warning("the guest's clock is pmu: %s", choice.why);
    else if (ls->clock != GUEST_CLOCK_EXITS)
        report_info("the guest's clock is %s: %s", guest_clock_name(ls->clock), choice.why);
    return rc;
}

int clock_follow(struct lockstep *ls, const struct event_start *start)
{
    struct guest_clock_choice choice;
    enum guest_clock wanted = ls->options.clock;

    ls->clock = start->clock;
    if (wanted != GUEST_CLOCK_AUTO && (uint32_t)wanted != ls->clock) {
        report_error("the log's clock is %s, and --clock %s is asked for here: leave it out", guest_clock_name(ls->clock),
                     guest_clock_name(wanted));
        return -EPROTO;
    }
    if (ls->gdb != NULL && ls->clock != GUEST_CLOCK_EXITS) {
        report_error("the log's clock is %s, whose places are found with the breakpoints and steps that --gdb would need",
                     guest_clock_name(ls->clock));
        return -ENOTSUP;
    }
    if (guest_clock_choose((enum guest_clock)ls->clock, &choice) == 0)
        return 0;
    report_error("the log's clock is pmu, which cannot be had here: %s; begin with --clock exits", choice.why);
    return -ENOTSUP;
}

int clock_open(struct lockstep *ls)
{
    return guest_clock_open((enum guest_clock)ls->clock, &ls->machine.vcpu, &ls->counter);
}

void clock_close(struct lockstep *ls)
{
    if (ls->counter != NULL)
        ls->counter->ops->stop(ls->counter);
    ls->counter = NULL;
}

/* The counter has failed, which no other user of the CPU's counters should have been able to bring about. */
static void lose_clock(struct lockstep *ls, int error)
{
    report_warning("the guest's clock cannot be read any more: %s; forced syncs are made instead",
                   perf_counter_error(error));
    clock_close(ls);
}

void place_arrived(struct lockstep *ls)
{
    struct branch_counter *counter = ls->counter;
    int rc;

    ls->place_misses.tries = 0;
    if (ls->machine.vcpu.step_clock)
        vcpu_steps_begin(&ls->machine.vcpu);
    rc = counter->ops->read(counter, &counter->position_count);
    if (rc < 0)
        lose_clock(ls, rc);
}

/* This instant cannot be named. Kicks between which the guest did not come to run are one try: a host that is short of
 * CPUs would soon have made four. */
static int miss(struct lockstep *ls, uint64_t count)
{
    uint64_t rip = vcpu_regs(&ls->machine.vcpu)->rip, now_ns = clock_now_ns();
    struct place_misses *misses = &ls->place_misses;

    COUNT_ADD(ls->places_refused, 1);
    if (misses->tries == 0)
        *misses = (struct place_misses){ .since_ns = now_ns };
    misses->kicks++;
    if (misses->tries == 0 || misses->count != count || misses->rip != rip)
        misses->tries++;
    misses->count = count;
    misses->rip = rip;
    if (now_ns < misses->since_ns + ls->options.max_input_delay_ns)
        return -EBUSY;
    return misses->tries < PLACE_TRIES && misses->kicks < PLACE_KICKS ? -EBUSY : -EAGAIN;
}

/* With interrupts off an input could only wait for the window, whose opening is an exit; that may be soon. Steps count to
 * the window just as well. */
static bool waits_for_interrupts(const struct lockstep *ls)
{
    const struct vcpu *vcpu = &ls->machine.vcpu;

    return !vcpu->step_clock && !vcpu->run->if_flag && ls->place_misses.tries + 1 < PLACE_TRIES;
}

int place_log(struct lockstep *ls)
{
    struct vcpu *vcpu = &ls->machine.vcpu;
    const struct kvm_regs *regs = vcpu_regs(vcpu);
    struct event_place *place;
    uint64_t count;
    int rc;

    if (ls->counter == NULL || lockstep_role_now(ls) != ROLE_PRIMARY)
        return -EAGAIN;
    rc = ls->counter->ops->read(ls->counter, &count);
    if (rc < 0) {
        lose_clock(ls, rc);
        return -EAGAIN;
    }
    count -= ls->counter->position_count;
    /* With a count of 0 it might be where it was at the position, but for an interrupt that was injected there, whose
     * handler has been and gone: the other host could not tell the two apart. */
    if (count == 0 || vcpu_place_obstacle(vcpu) != NULL || waits_for_interrupts(ls))
        return miss(ls, count);
    rc = vcpu_forget_resume_flag(vcpu);
    if (rc < 0)
        return rc;
    place = primary_log_begin(ls, EVENT_PLACE, ls->machine.position + 1, sizeof(*place));
    *place = (struct event_place){
        .count = count, .rip = regs->rip, .rcx = regs->rcx,
        .digest = place_digest(regs), .clock = ls->clock,
    };
    primary_log_end(ls);
    COUNT_ADD(ls->places, 1);
    machine_force_position(&ls->machine);
    return 0;
}

/* As run() in lockstep.c for a backup: each time that the guest comes back is a sign of life. */
static enum place_stop watched(struct lockstep *ls, enum place_stop stop)
{
    COUNT_SET(ls->beat_ns, clock_now_ns());
    return COUNT_GET(ls->lost_arbitration) ? PLACE_STOP_GIVE_UP : stop;
}

static struct place_guest vcpu_guest(struct lockstep *ls)
{
    return vcpu_place_guest(&ls->machine.vcpu, ls->counter);
}

static enum place_stop run(void *ctx)
{
    struct lockstep *ls = ctx;

    return watched(ls, vcpu_guest(ls).run(&ls->machine.vcpu));
}

static enum place_stop run_to(void *ctx, uint64_t rip)
{
    struct lockstep *ls = ctx;

    return watched(ls, vcpu_guest(ls).run_to(&ls->machine.vcpu, rip));
}

static const struct kvm_regs *registers(void *ctx)
{
    return vcpu_regs(&((struct lockstep *)ctx)->machine.vcpu);
}

static uint64_t now_ns(void *ctx)
{
    (void)ctx;
    return clock_now_ns();
}

static int say_missed(const struct lockstep *ls, const struct event_place *place, uint64_t count, const char *what)
{
    const struct kvm_regs *regs = vcpu_regs((struct vcpu *)&ls->machine.vcpu);

    report_error("the machines differ: the place that is position %llu at the primary (RIP 0x%llx after %llu counts of the "
                 "clock %s) is not found here: %s, at RIP 0x%llx after %llu",
                 (unsigned long long)ls->machine.position + 1, (unsigned long long)place->rip,
                 (unsigned long long)place->count, guest_clock_name(place->clock), what, (unsigned long long)regs->rip,
                 (unsigned long long)count);
    return -EILSEQ;
}

/* The guest stands there. */
static int arrive_at_place(struct lockstep *ls)
{
    struct vcpu *vcpu = &ls->machine.vcpu;
    int rc = vcpu_forget_resume_flag(vcpu);

    if (rc == 0 && !vcpu->step_clock)
        rc = vcpu_complete(vcpu); /* refreshes what the shared page tells of the vCPU, without a breakpoint now */
    if (rc == 0)
        machine_force_position(&ls->machine);
    COUNT_ADD(ls->places, 1);
    return rc;
}

int place_reach(struct lockstep *ls, const struct event_place *place)
{
    const struct place_guest guest = {
        .ctx = ls, .counter = ls->counter, .run = run, .run_to = run_to, .registers = registers, .now_ns = now_ns
    };
    struct vcpu *vcpu = &ls->machine.vcpu;
    enum place_result result;
    uint64_t count = 0;
    int rc = 0;

    if (ls->counter == NULL && place->clock == ls->clock)
        return say_missed(ls, place, 0, "the clock has failed here");
    if (ls->counter == NULL || place->clock != ls->clock) {
        report_error("the log names a place by the clock %s, and began with the clock %s", guest_clock_name(place->clock),
                     guest_clock_name(ls->clock));
        return -EBADMSG;
    }
    if (!vcpu->step_clock) { /* or the last exit's result would meet the breakpoint's registers */
        rc = vcpu_complete(vcpu);
        if (rc < 0)
            return rc;
    }
    result = place_find(&guest, place, &count);
    if (!vcpu->step_clock)
        rc = vcpu_run_to_end(vcpu);
    if (rc < 0)
        return rc;
    switch (result) {
    case PLACE_FOUND: return arrive_at_place(ls);
    case PLACE_PASSED: return say_missed(ls, place, count, "the guest has passed it");
    case PLACE_EXITED: return say_missed(ls, place, count, "the guest comes to an exit before it");
    case PLACE_STUCK: return say_missed(ls, place, count, "the clock does not go on");
    case PLACE_GIVEN_UP: return -ECANCELED;
    case PLACE_FAILED: break;
    }
    return -EIO;
}
