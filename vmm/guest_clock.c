/* Chooses the guest's clock, and opens its counter; see guest_clock.h. */
#include "vmm/guest_clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"

#define GRADE_ROUNDS 24u
#define GRADE_BRANCHES 200000u
#define MSR_ZEN_LS_CFG 0xC0011020u
#define ZEN_SPEC_LOCK_MAP_OFF (UINT64_C(1) << 54)

/* ---- steps as a counter ---- */

struct step_counter {
    struct branch_counter counter;
    struct vcpu *vcpu;
};

static struct vcpu *stepped(struct branch_counter *counter)
{
    return ((struct step_counter *)counter)->vcpu;
}

static int step_start(struct branch_counter *counter)
{
    vcpu_step_clock(stepped(counter));
    return 0;
}

static int step_read(struct branch_counter *counter, uint64_t *count)
{
    *count = stepped(counter)->steps;
    return 0;
}

static int step_arm(struct branch_counter *counter, uint64_t at)
{
    stepped(counter)->step_limit = at;
    return 0;
}

static int step_disarm(struct branch_counter *counter)
{
    return step_arm(counter, UINT64_MAX);
}

static void step_stop(struct branch_counter *counter)
{
    free(counter);
}

static const struct branch_counter_ops step_ops = {
    .start = step_start, .read = step_read, .arm = step_arm, .disarm = step_disarm, .stop = step_stop,
};

static int open_steps(struct branch_counter **counter, struct vcpu *vcpu)
{
    struct step_counter *steps = calloc(1, sizeof(*steps));

    if (steps == NULL)
        return -ENOMEM;
    *steps = (struct step_counter){ .counter = { .ops = &step_ops }, .vcpu = vcpu };
    *counter = &steps->counter;
    return 0;
}

/* ---- the CPU's counter ---- */

static int open_pmu(void *ctx, struct vcpu *vcpu, struct branch_counter **counter)
{
    (void)vcpu; /* it counts whatever guest this thread runs */
    return perf_counter_open(counter, ctx, vcpu_kick_signal());
}

/* A machine whose CPUs are not all of one kind has no PMU of the plain name. */
static bool cpus_differ(void)
{
    return access("/sys/bus/event_source/devices/cpu_atom", F_OK) == 0;
}

/* 1: SpecLockMap is off, so that locked instructions are counted once; 0: it is on; -1: it cannot be seen. */
static int spec_lock_map_is_off(void)
{
    char path[64];
    uint64_t value;
    int fd, known = -1;

    snprintf(path, sizeof(path), "/dev/cpu/%d/msr", sched_getcpu());
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && pread(fd, &value, sizeof(value), MSR_ZEN_LS_CFG) == sizeof(value))
        known = (value & ZEN_SPEC_LOCK_MAP_OFF) != 0;
    if (fd >= 0)
        close(fd);
    return known;
}

/* SMM's branches are counted as the guest's, unless the counters stand still there (Intel SDM 3B, IA32_DEBUGCTL's
 * FREEZE_WHILE_SMM). The file is there where the CPU can. */
static void judge_smi(struct guest_clock_choice *choice)
{
    FILE *file = fopen("/sys/bus/event_source/devices/cpu/freeze_on_smi", "r");
    int frozen = 1;

    if (file == NULL)
        return;
    if (fscanf(file, "%d", &frozen) == 1 && frozen == 0 && choice->grading.grade == COUNTER_EXACT) {
        choice->grading.grade = COUNTER_FLAGGED;
        snprintf(choice->why, sizeof(choice->why),
                 "the counter did right, but would count what the firmware does at an SMI; echo 1 "
                 ">/sys/bus/event_source/devices/cpu/freeze_on_smi");
    }
    fclose(file);
}

static void judge_zen(struct guest_clock_choice *choice)
{
    int off = spec_lock_map_is_off();

    if (off == 0) {
        choice->grading.grade = COUNTER_UNUSABLE;
        snprintf(choice->why, sizeof(choice->why),
                 "AMD Zen counts locked instructions twice now and then while SpecLockMap is on; set bit 54 of MSR "
                 "0xC0011020 on all CPUs (wrmsr; rr's zen_workaround.py does it)");
    } else if (off < 0 && choice->grading.grade == COUNTER_EXACT) {
        choice->grading.grade = COUNTER_FLAGGED;
        snprintf(choice->why, sizeof(choice->why),
                 "AMD Zen's counter did right, but whether SpecLockMap is off cannot be seen; modprobe msr, and run as "
                 "root");
    }
}

static void judge_grading(struct guest_clock_choice *choice, const struct branch_event *event)
{
    const struct counter_grading *grading = &choice->grading;
    const char *name = event->name;

    switch (grading->grade) {
    case COUNTER_EXACT:
        snprintf(choice->why, sizeof(choice->why),
                 "%s's counter of conditional branches was exact in %u trials, late by %llu at most (%llu allowed)", name,
                 grading->rounds, (unsigned long long)grading->worst_skid, (unsigned long long)event->skid_margin);
        break;
    case COUNTER_FLAGGED:
        snprintf(choice->why, sizeof(choice->why), "%s's counter was exact, but late by %llu of the %llu allowed", name,
                 (unsigned long long)grading->worst_skid, (unsigned long long)event->skid_margin);
        break;
    case COUNTER_UNTRIED:
    case COUNTER_UNUSABLE:
        snprintf(choice->why, sizeof(choice->why),
                 "%s's counter failed in %u trials: %u wrong (off by up to %llu), %u interrupts early, %u lost, late by up "
                 "to %llu (%llu allowed)", name, grading->rounds, grading->wrong,
                 (unsigned long long)grading->worst_off, grading->early, grading->lost,
                 (unsigned long long)grading->worst_skid, (unsigned long long)event->skid_margin);
        break;
    }
    if (event->is_zen)
        judge_zen(choice);
    judge_smi(choice);
}

/* Sets the grade, and why. */
static void try_pmu(struct guest_clock_choice *choice)
{
    struct branch_counter *counter;
    struct branch_event event;
    int rc = branch_event_here(&event);

    choice->grading = (struct counter_grading){ .grade = COUNTER_UNUSABLE };
    if (cpus_differ()) {
        snprintf(choice->why, sizeof(choice->why), "this machine's CPUs are of two kinds, which count differently");
        return;
    }
    if (rc < 0) /* whether there is a PMU at all is the better answer */
        event = (struct branch_event){ .config = 0xc4 };
    rc = perf_counter_open(&counter, &event, vcpu_kick_signal());
    if (rc < 0) {
        snprintf(choice->why, sizeof(choice->why), "%s", perf_counter_error(rc));
        return;
    }
    counter->ops->stop(counter);
    if (event.name == NULL) {
        snprintf(choice->why, sizeof(choice->why), "no event of this CPU's model is known to count branches exactly");
        return;
    }
    rc = counter_grade_on_kvm(open_pmu, &event, GRADE_BRANCHES, GRADE_ROUNDS, clock_now_ns(), &choice->grading);
    if (rc < 0) {
        choice->grading.grade = COUNTER_UNUSABLE;
        snprintf(choice->why, sizeof(choice->why), "the trial of %s's counter failed: %s", event.name,
                 perf_counter_error(rc));
        return;
    }
    judge_grading(choice, &event);
}

int guest_clock_choose(enum guest_clock wanted, struct guest_clock_choice *choice)
{
    *choice = (struct guest_clock_choice){ .clock = wanted };
    switch (wanted) {
    case GUEST_CLOCK_EXITS:
        snprintf(choice->why, sizeof(choice->why), "asked for");
        return 0;
    case GUEST_CLOCK_STEP:
        snprintf(choice->why, sizeof(choice->why), "asked for; the guest is single-stepped, which is for tests");
        return 0;
    case GUEST_CLOCK_PMU:
        try_pmu(choice);
        return choice->grading.grade == COUNTER_UNUSABLE ? -ENOTSUP : 0;
    case GUEST_CLOCK_AUTO:
        try_pmu(choice);
        choice->clock = choice->grading.grade == COUNTER_EXACT ? GUEST_CLOCK_PMU : GUEST_CLOCK_EXITS;
        return 0;
    }
    return -EINVAL;
}

int guest_clock_open(enum guest_clock clock, struct vcpu *vcpu, struct branch_counter **counter)
{
    struct branch_event event;
    int rc;

    *counter = NULL;
    if (clock == GUEST_CLOCK_EXITS)
        return 0;
    if (clock == GUEST_CLOCK_STEP) {
        rc = open_steps(counter, vcpu);
    } else {
        rc = branch_event_here(&event);
        if (rc == 0)
            rc = perf_counter_open(counter, &event, vcpu_kick_signal());
    }
    if (rc == 0)
        rc = (*counter)->ops->start(*counter);
    if (rc < 0)
        report_error("the clock %s cannot be had: %s; --clock exits can", guest_clock_name(clock),
                     perf_counter_error(rc));
    return rc;
}
