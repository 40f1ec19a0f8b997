/*
 * How old the receiver's backlog is, found without a clock in the hot path: the polling thread marks now and then
 * which LSN was committed by what time, and the oldest mark not yet consumed dates the oldest record not yet
 * consumed. Knows no link.
 *
 * The age is never too great. It is too small by at most the distance of two marks: 1 ms or 1/32 of the age,
 * whichever is more, and the time between two looks. (Of the age when the mark was made: while a great lag melts
 * away the marks stay as far apart as they were.)
 */
#ifndef FTVMM_CHANNEL_LAG_H
#define FTVMM_CHANNEL_LAG_H

#include <stdatomic.h>
#include <stdint.h>

#define LAG_MARKS   128u /* even; twice LAG_PARTS, so that a steady age fits */
#define LAG_PARTS   64u  /* marks are this part of the age apart; 1/32 where a full table has been thinned out */
#define LAG_MARK_NS UINT64_C(1000000) /* and not closer than this */

/* Zero-initialise. All but `oldest_ns` is the polling thread's. */
struct lag_marks {
    struct {
        uint64_t lsn, at_ns; /* committed at the latest then */
    } marks[LAG_MARKS];      /* a ring, oldest first, both fields ascending */
    unsigned first, count;
    _Atomic uint64_t oldest_ns; /* for any thread: when the oldest unconsumed record was there; 0: there is none */
};

/* Polling thread. consumed_lsn was read before committed_lsn. */
void lag_marks_update(struct lag_marks *lag, uint64_t committed_lsn, uint64_t consumed_lsn, uint64_t now_ns);

#endif
