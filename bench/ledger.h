/*
 * What the clients of a shared counter were told, and whether it can all be true.
 *
 * INCR returns the value it made, so every acknowledged value is unique, later requests get higher values,
 * and the final value is at least the highest one seen. A counter that lost its last second breaks this.
 */
#ifndef FTVMM_BENCH_LEDGER_H
#define FTVMM_BENCH_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

#define LEDGER_VALUES (UINT64_C(1) << 32) /* increments that one run can check; 512 MB of mostly untouched bits */

struct ledger {
    int64_t start; /* before the run */
    int64_t max;   /* highest acknowledged value; `start` if none */
    uint64_t sent, acked, acked_before_mark, acked_after_mark;
    uint64_t unknown;      /* sent, but the connection died before the reply: executed or not */
    uint64_t errors;       /* the service answered with an error: not executed */
    uint64_t duplicated;   /* replies with a value that had been handed out before */
    uint64_t out_of_order; /* replies with a value that cannot come after what was known at the request */
    uint64_t *seen;        /* one bit a value, from start + 1 on */
};

/* What the end shows. */
struct verdict {
    int64_t final;
    uint64_t lost;    /* acknowledged increments that the final value does not have */
    uint64_t surplus; /* increments in the final value that nobody asked for: some were executed twice */
    bool clean;       /* none lost, duplicated, out of order or surplus */
};

int ledger_init(struct ledger *ledger, int64_t start);
void ledger_fini(struct ledger *ledger);

/* A reply. `floor` is the highest value known when its request was sent (ledger.max then), `previous` the
 * last value on the same connection. `after_mark`: the moment of the failure had passed. */
void ledger_ack(struct ledger *ledger, int64_t value, int64_t floor, int64_t previous, bool after_mark);

struct verdict ledger_judge(const struct ledger *ledger, int64_t final);

#endif
