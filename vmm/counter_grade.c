/* The trial of counter_grade.h. */
#include "vmm/counter_grade.h"

#include <errno.h>

static uint64_t next_random(uint64_t *state) /* xorshift64* */
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(0x2545F4914F6CDD1D);
}

static int read_count(const struct grade_guest *guest, uint64_t *count)
{
    struct branch_counter *counter = guest->place.counter;
    int rc = counter->ops->read(counter, count);

    *count -= counter->position_count;
    return rc;
}

/* The guest begins, and the count with it. */
static int begin(const struct grade_guest *guest, uint64_t branches)
{
    struct branch_counter *counter = guest->place.counter;
    int rc = guest->begin(guest->place.ctx, branches);

    return rc < 0 ? rc : counter->ops->read(counter, &counter->position_count);
}

static int run_to_exit(const struct grade_guest *guest)
{
    enum place_stop stop;

    while ((stop = guest->place.run(guest->place.ctx)) == PLACE_STOP_KICKED)
        ;
    return stop == PLACE_STOP_EXIT ? 0 : -EIO;
}

static int check_end(const struct grade_guest *guest, uint64_t branches, struct counter_grading *grading)
{
    uint64_t count, off;
    int rc = run_to_exit(guest);

    if (rc == 0)
        rc = read_count(guest, &count);
    if (rc < 0)
        return rc;
    off = count > branches ? count - branches : branches - count;
    grading->wrong += off != 0;
    if (off > grading->worst_off)
        grading->worst_off = off;
    return 0;
}

/* An interrupt is asked for in the midst; then the guest goes on to its end. */
static int try_interrupt(const struct grade_guest *guest, uint64_t branches, uint64_t at,
                         struct counter_grading *grading)
{
    struct branch_counter *counter = guest->place.counter;
    uint64_t count = 0;
    enum place_stop stop;
    int rc = begin(guest, branches);

    if (rc == 0)
        rc = counter->ops->arm(counter, counter->position_count + at);
    if (rc < 0)
        return rc;
    stop = guest->place.run(guest->place.ctx);
    rc = read_count(guest, &count);
    if (rc == 0)
        rc = counter->ops->disarm(counter);
    if (rc < 0)
        return rc;
    if (stop == PLACE_STOP_EXIT) {
        grading->lost++;
        return 0;
    }
    if (stop != PLACE_STOP_KICKED)
        return -EIO;
    if (count < at)
        grading->early++;
    else if (count - at > grading->worst_skid)
        grading->worst_skid = count - at;
    return check_end(guest, branches, grading);
}

/* Where that interrupt stopped is a place; a second run must find it. */
static int try_place(const struct grade_guest *guest, uint64_t branches, uint64_t at, struct counter_grading *grading)
{
    struct branch_counter *counter = guest->place.counter;
    const struct kvm_regs *regs;
    struct event_place place = { 0 };
    uint64_t count;
    int rc = begin(guest, branches);

    if (rc == 0)
        rc = counter->ops->arm(counter, counter->position_count + at);
    if (rc < 0)
        return rc;
    if (guest->place.run(guest->place.ctx) != PLACE_STOP_KICKED)
        return counter->ops->disarm(counter); /* lost: counted by the other trial */
    rc = counter->ops->disarm(counter);
    if (rc == 0)
        rc = read_count(guest, &place.count);
    if (rc < 0)
        return rc;
    regs = guest->place.registers(guest->place.ctx);
    place.rip = regs->rip;
    place.digest = place_digest(regs);
    rc = begin(guest, branches);
    if (rc < 0)
        return rc;
    if (place_find(&guest->place, &place, &count) != PLACE_FOUND) {
        grading->wrong++;
        return 0; /* it may be at its end already */
    }
    return check_end(guest, branches, grading);
}

int counter_grade(const struct grade_guest *guest, unsigned rounds, uint64_t seed, struct counter_grading *grading)
{
    struct branch_counter *counter = guest->place.counter;
    uint64_t margin = counter->skid_margin, random = seed | 1;
    int rc = 0;

    *grading = (struct counter_grading){ .grade = COUNTER_UNTRIED };
    for (unsigned i = 0; i < rounds && rc == 0; i++) {
        uint64_t branches = 1 + next_random(&random) % guest->branches_most;
        uint64_t at = 1 + next_random(&random) % branches;

        rc = begin(guest, branches);
        if (rc == 0)
            rc = check_end(guest, branches, grading);
        /* With the margin behind it: what comes later than the guest's end would look lost. */
        if (rc == 0)
            rc = try_interrupt(guest, branches + 2 * margin, at, grading);
        if (rc == 0)
            rc = try_place(guest, branches + 2 * margin, at, grading);
        grading->rounds++;
    }
    if (rc < 0)
        return rc;
    if (grading->wrong != 0 || grading->early != 0 || grading->lost != 0 || grading->worst_skid > margin)
        grading->grade = COUNTER_UNUSABLE;
    else if (2 * grading->worst_skid > margin)
        grading->grade = COUNTER_FLAGGED;
    else
        grading->grade = COUNTER_EXACT;
    return 0;
}
