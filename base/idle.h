/*
 * What a polling thread does when it finds nothing: spin for a while, then sleep a little between looks.
 * Spinning gives microseconds on a core of one's own; on a shared core it ruins everybody's tails.
 */
#ifndef FTVMM_BASE_IDLE_H
#define FTVMM_BASE_IDLE_H

#include <sched.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/doorbell.h"

struct idle_policy {
    uint64_t spin_ns;  /* look again at once for so long */
    uint64_t sleep_ns; /* then sleep so long between looks */
};

/* One thread's own. Zero-initialise. */
struct idle {
    uint64_t since_ns; /* when the idle stretch began; 0: not idle */
};

static inline void idle_end(struct idle *idle)
{
    idle->since_ns = 0;
}

/* Spins or yields, if that is its turn; true: it is time to sleep. */
static inline bool idle_is_long(struct idle *idle, const struct idle_policy *policy)
{
    uint64_t now_ns = clock_now_ns();

    if (idle->since_ns == 0)
        idle->since_ns = now_ns;
    if (now_ns - idle->since_ns < policy->spin_ns)
        __builtin_ia32_pause();
    else if (policy->sleep_ns == 0)
        sched_yield();
    else
        return true;
    return false;
}

static inline void idle_wait(struct idle *idle, const struct idle_policy *policy)
{
    if (idle_is_long(idle, policy))
        clock_sleep_ns(policy->sleep_ns);
}

/* The same, and a ring ends the sleep; `heard` was so before the look that found nothing. */
static inline void idle_wait_or_ring(struct idle *idle, const struct idle_policy *policy, struct doorbell *bell,
                                     uint32_t heard)
{
    if (idle_is_long(idle, policy))
        doorbell_sleep(bell, heard, policy->sleep_ns);
}

#endif
