/* The search of place.h: far by the counter, near by address and registers. */
#include "vmm/place.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define RFLAGS_RF (UINT64_C(1) << 16)
/* Kicks in a row between which nothing was counted, and the time since the first. A kick alone says little: on a busy
 * machine the guest may not have come to run since the one before. */
#define KICKS_STUCK 16u
#define STUCK_NS    UINT64_C(5000000000)
/* Stops near the place at which nothing was counted: a loop without a conditional branch that passes it by. */
#define STOPS_STUCK 100000u

uint64_t place_digest(const struct kvm_regs *regs)
{
    struct kvm_regs compared = *regs;

    compared.rflags &= ~RFLAGS_RF;
    return XXH3_64bits(&compared, sizeof(compared));
}

static enum place_result result_of(enum place_stop stop)
{
    switch (stop) {
    case PLACE_STOP_EXIT: return PLACE_EXITED;
    case PLACE_STOP_GIVE_UP: return PLACE_GIVEN_UP;
    case PLACE_STOP_KICKED:
    case PLACE_STOP_THERE:
    case PLACE_STOP_FAILED:
        break;
    }
    return PLACE_FAILED;
}

static bool read_count(const struct place_guest *guest, uint64_t *count)
{
    if (guest->counter->ops->read(guest->counter, count) < 0)
        return false;
    *count -= guest->counter->position_count;
    return true;
}

static bool stands_at(const struct place_guest *guest, const struct event_place *place)
{
    const struct kvm_regs *regs = guest->registers(guest->ctx);

    return regs->rip == place->rip && place_digest(regs) == place->digest;
}

/* How long nothing has been counted. */
struct standstill {
    unsigned kicks;
    uint64_t since_ns;
};

static bool is_stuck(const struct place_guest *guest, struct standstill *still, bool counted, bool kicked)
{
    uint64_t now_ns;

    if (counted || !kicked) {
        if (counted)
            still->kicks = 0;
        return false;
    }
    now_ns = guest->now_ns(guest->ctx);
    if (still->kicks++ == 0)
        still->since_ns = now_ns;
    return still->kicks >= KICKS_STUCK && now_ns >= still->since_ns + STUCK_NS;
}

/* Runs until the count is `at` or more. FOUND: it is. */
static enum place_result run_far(const struct place_guest *guest, uint64_t at, uint64_t *count)
{
    struct standstill still = { 0 };

    if (guest->counter->ops->arm(guest->counter, guest->counter->position_count + at) < 0)
        return PLACE_FAILED;
    while (*count < at) {
        uint64_t before = *count;
        enum place_stop stop = guest->run(guest->ctx);

        if (stop != PLACE_STOP_KICKED)
            return result_of(stop);
        if (!read_count(guest, count))
            return PLACE_FAILED;
        if (is_stuck(guest, &still, *count != before, true))
            return PLACE_STUCK;
    }
    return PLACE_FOUND;
}

static enum place_result run_near(const struct place_guest *guest, const struct event_place *place, uint64_t *count)
{
    struct standstill still = { 0 };
    unsigned stops = 0;

    while (*count < place->count || !stands_at(guest, place)) {
        uint64_t before = *count;
        enum place_stop stop;

        stop = guest->run_to(guest->ctx, place->rip);
        if (stop != PLACE_STOP_THERE && stop != PLACE_STOP_KICKED)
            return result_of(stop);
        if (!read_count(guest, count))
            return PLACE_FAILED;
        if (*count > place->count)
            return PLACE_PASSED;
        stops = *count != before ? 0 : stops + (stop == PLACE_STOP_THERE);
        if (is_stuck(guest, &still, *count != before, stop == PLACE_STOP_KICKED) || stops >= STOPS_STUCK)
            return *count == place->count ? PLACE_PASSED : PLACE_STUCK;
    }
    return PLACE_FOUND;
}

enum place_result place_find(const struct place_guest *guest, const struct event_place *place, uint64_t *count)
{
    uint64_t margin = guest->counter->skid_margin;
    enum place_result result = PLACE_FOUND;

    if (!read_count(guest, count))
        return PLACE_FAILED;
    if (*count + margin < place->count) {
        result = run_far(guest, place->count - margin, count);
        if (guest->counter->ops->disarm(guest->counter) < 0)
            return PLACE_FAILED;
    }
    if (result != PLACE_FOUND)
        return result;
    if (*count > place->count)
        return PLACE_PASSED;
    return run_near(guest, place, count);
}
