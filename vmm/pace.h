/*
 * Pace: how much the primary is slowed so that its backup keeps up. A controller turns the lag into a share of
 * time (any thread's own, in practice the I/O thread's); a rest account turns that share into short sleeps of the
 * vCPU (machine thread). Both are arithmetic only: they neither sleep nor read a clock.
 *
 * After VMware FT (Scales et al. 2010, 2.3), whose primary gets slightly less CPU when its backup is a second
 * behind, by a slow feedback loop.
 */
#ifndef FTVMM_VMM_PACE_H
#define FTVMM_VMM_PACE_H

#include <stdint.h>

#include "channel/channel.h"

#define PACE_MOST_PERMILLE 900u /* the guest keeps a tenth of its CPU, whatever the lag */

/* The controller. Zero-initialise, then set target_ns. */
struct pace {
    uint64_t target_ns;  /* the age of the backlog to stay at; 0: never slow the guest */
    double steady;         /* what the lag so far has shown to be needed; a logarithm, see pace.c */
    double rate;           /* records that a lagging backup consumes in target_ns; 0: not known */
    uint64_t consumed_lsn; /* as of the last update */
    uint64_t updated_ns;
};

/* The share of time, in permille, that the vCPU should rest from now on: 0 to PACE_MOST_PERMILLE. Call as often as
 * the lag is looked at; with no lag it costs next to nothing. */
unsigned pace_update(struct pace *pace, const struct channel_lag *lag, uint64_t now_ns);

/* The longest rest at one position, and what a rest must add up to before it is worth a sleep. */
#define PACE_REST_MOST_NS  UINT64_C(20000000)
#define PACE_REST_LEAST_NS UINT64_C(100000)

/* The rest account of one thread. Zero-initialise. */
struct pace_rest {
    uint64_t since_ns; /* up to when the guest's running is counted; 0: nothing is counted yet */
    int64_t owed_ns;   /* below 0: rested too long before */
};

/* How long to rest now, having run since the last call (or pace_rest_skip): 0, or PACE_REST_LEAST_NS to
 * PACE_REST_MOST_NS. */
uint64_t pace_rest_due(struct pace_rest *rest, unsigned permille, uint64_t now_ns);
/* The rest that was due is over; it began at began_ns. */
void pace_rest_done(struct pace_rest *rest, uint64_t began_ns, uint64_t now_ns);
/* Until now the guest did not run, but slept or waited by itself: that is not to be rested for. */
void pace_rest_skip(struct pace_rest *rest, uint64_t now_ns);

#endif
