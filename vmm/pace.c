/*
 * The arithmetic of pace.h.
 *
 * The lag becomes one number, the pressure: 1 is where it should stay. It is the greatest of
 *   age / target             how long the oldest record has waited;
 *   drain / target           how long the newest will wait: records outstanding, by the rate at which the backup
 *                            consumes when it lags. The same as the age when nothing changes, but an age earlier;
 *   full / empty of the ring 1 when it is half full, and beyond all bounds when there is no room left.
 *
 * The guest's share of its CPU is exp(-(quick + steady)). quick follows the pressure at once, from half the target
 * on; it damps. steady adds up, over some ten targets, what quick alone leaves of the error; it makes the lag stay
 * at its target and not beyond. With a logarithm as the controlled value the loop is as well damped with a backup of
 * a quarter of the primary's speed as with one almost as fast: the age grows by 1 - backup's speed / share, which
 * near balance changes by as much as the logarithm does. It does so an age later, when the backup gets to what was
 * logged at the new pace; an integrator behind a dead time of one target begins to oscillate at a gain of pi / 2 per
 * target (Nyquist), and QUICK_GAIN is a third of that.
 */
#include "vmm/pace.h"

#include <math.h>

#define QUICK_FROM    0.5 /* the pressure from which on the guest is slowed */
#define QUICK_GAIN    0.5
#define STEADY_GAIN   0.1   /* per target of time */
#define PRESSURE_MOST 20.0
#define LAGS_FROM     0.125 /* from this age on, in targets, the backup is busy and its rate can be told */
#define RATE_OVER     0.5   /* targets of time over which the rate is smoothed */
#define STEP_MOST     0.1   /* targets of time: a thread that was frozen for long has learned nothing meanwhile */

/* Keeps the rate; returns the time to drain, in targets, or 0 while it cannot be told. */
static double drain_of(struct pace *pace, const struct channel_lag *lag, double age, double passed)
{
    double consumed = (double)(lag->consumed_lsn - pace->consumed_lsn);

    if (age < LAGS_FROM) {
        pace->rate = 0;
        return 0;
    }
    if (pace->rate <= 0)
        pace->rate = (double)lag->records / age; /* what came in that time, for want of better */
    else if (passed > 0)
        pace->rate += (consumed / passed - pace->rate) * fmin(1, passed / RATE_OVER);
    return (double)lag->records / fmax(pace->rate, 1);
}

static double full_by_empty(const struct channel_lag *lag)
{
    if (lag->bytes >= lag->ring_bytes)
        return lag->bytes > 0 ? PRESSURE_MOST : 0;
    return (double)lag->bytes / (double)(lag->ring_bytes - lag->bytes);
}

unsigned pace_update(struct pace *pace, const struct channel_lag *lag, uint64_t now_ns)
{
    const double most = log(1000.0 / (1000 - PACE_MOST_PERMILLE));
    double target = (double)pace->target_ns, age, passed, pressure, quick;

    if (pace->target_ns == 0)
        return 0;
    age = (double)lag->age_ns / target;
    passed = pace->updated_ns != 0 ? (double)(now_ns - pace->updated_ns) / target : 0;
    pressure = fmax(age, fmax(drain_of(pace, lag, age, passed), full_by_empty(lag)));
    pressure = fmin(pressure, PRESSURE_MOST);
    pace->consumed_lsn = lag->consumed_lsn;
    pace->updated_ns = now_ns;
    if (pressure <= QUICK_FROM && pace->steady <= 0)
        return 0;
    quick = QUICK_GAIN * fmax(0, pressure - QUICK_FROM);
    /* What cannot be given is not added up either, or it would have to be worked off later. */
    if (pressure < 1 || quick + pace->steady < most)
        pace->steady += STEADY_GAIN * (pressure - 1) * fmin(passed, STEP_MOST);
    pace->steady = fmax(0, fmin(pace->steady, most));
    return (unsigned)lround(1000 - 1000 * exp(-fmin(quick + pace->steady, most)));
}

uint64_t pace_rest_due(struct pace_rest *rest, unsigned permille, uint64_t now_ns)
{
    if (rest->since_ns != 0)
        rest->owed_ns += (int64_t)((now_ns - rest->since_ns) * permille / (1000 - permille));
    rest->since_ns = now_ns;
    if (rest->owed_ns > (int64_t)PACE_REST_MOST_NS)
        rest->owed_ns = (int64_t)PACE_REST_MOST_NS;
    return rest->owed_ns >= (int64_t)PACE_REST_LEAST_NS ? (uint64_t)rest->owed_ns : 0;
}

void pace_rest_done(struct pace_rest *rest, uint64_t began_ns, uint64_t now_ns)
{
    rest->owed_ns -= (int64_t)(now_ns - began_ns);
    if (rest->owed_ns < -(int64_t)PACE_REST_MOST_NS)
        rest->owed_ns = -(int64_t)PACE_REST_MOST_NS; /* a host that let us sleep for long is no reason to rest less */
    rest->since_ns = now_ns;
}

void pace_rest_skip(struct pace_rest *rest, uint64_t now_ns)
{
    rest->since_ns = now_ns;
}
