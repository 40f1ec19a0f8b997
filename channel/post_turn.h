/*
 * Who posts: the committing thread and the polling thread both want to send what is committed, and the one
 * that comes second must not wait. A try-flag (the turn) with a look back after it is given up.
 *
 * Claim: once both threads have left post_turn_run, nothing waits that could have been posted, that is,
 * posted == committed or `in_flight` operations fill the limit.
 *
 * Proof. A thread leaves without posting only at L (nothing to post, as it sees it) or at T (the turn is
 * taken). Everything named here is sequentially consistent, so all of it has one order S.
 *   - Let B publish X (S2: committed = X, or C: in_flight falls) and then find the turn taken at T. T read the
 *     holder A's 1, so T precedes A's release G in S, and so does B's publication. A's next step is L, after G
 *     in S: A sees X, and goes round again. A in turn either gets the turn, or finds it taken by somebody who
 *     has yet to reach its own L after the same publication.
 *   - If B finds the turn free, B posts X itself.
 *   - in_flight rises only under the turn, so a thread at L that sees it full sees posts whose completions are
 *     still to come; each completion is followed by post_turn_run of the polling thread.
 *   - Who takes the turn for something else (a control block) calls post_turn_run after giving it back, and so
 *     comes to L as well.
 * The holder never waits for anybody. The committing thread goes round at most once for every completion and
 * every record, and records come from itself: it cannot be kept here.
 */
#ifndef FTVMM_CHANNEL_POST_TURN_H
#define FTVMM_CHANNEL_POST_TURN_H

#include "channel/ring_memory.h"

#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct post_turn {
    alignas(RING_LINE_BYTES) _Atomic bool taken;
    _Atomic uint32_t in_flight; /* operations posted and not completed */
    _Atomic uint64_t posted;    /* index up to which all is posted; written by the turn's holder */
    uint32_t in_flight_limit;   /* constant */
    _Atomic uint32_t awaited;   /* threads in post_turn_await; a receiver's */
};

/* Sends [from, to) of the ring, or a first part of it; called with the turn taken. Returns where the part ends;
 * `from`: the link is down, stop trying. */
typedef uint64_t post_function(void *link, uint64_t from, uint64_t to);

static inline bool post_turn_take(struct post_turn *turn)
{
    /* relaxed: whoever sees it late takes one round more */
    if (atomic_load_explicit(&turn->awaited, memory_order_relaxed) != 0)
        return false;
    /* T. Acquires what the last holder left behind (G): posted, the send queue. */
    return !atomic_exchange_explicit(&turn->taken, true, memory_order_seq_cst);
}

/* For a thread that cannot come again later, of an end that posts nothing: waits while the present holder finishes its
 * round, and keeps those who only try from beginning another. */
static inline void post_turn_await(struct post_turn *turn)
{
    atomic_fetch_add_explicit(&turn->awaited, 1, memory_order_relaxed);
    while (atomic_exchange_explicit(&turn->taken, true, memory_order_seq_cst)) /* T */
        sched_yield();
    atomic_fetch_sub_explicit(&turn->awaited, 1, memory_order_relaxed);
}

static inline void post_turn_give(struct post_turn *turn)
{
    atomic_store_explicit(&turn->taken, false, memory_order_seq_cst); /* G */
}

static inline bool post_turn_waits(const struct post_turn *turn, const _Atomic uint64_t *committed)
{
    /* L. `posted` relaxed: if it is older than what another holder wrote, that costs one round in vain. */
    return atomic_load_explicit(committed, memory_order_seq_cst) !=
               atomic_load_explicit(&turn->posted, memory_order_relaxed) &&
           atomic_load_explicit(&turn->in_flight, memory_order_seq_cst) < turn->in_flight_limit;
}

/* Posts what waits, unless somebody else is about to. Committing and polling thread. */
static inline void post_turn_run(struct post_turn *turn, const _Atomic uint64_t *committed, post_function *post,
                                 void *link)
{
    while (post_turn_waits(turn, committed) && post_turn_take(turn)) {
        /* P1, pairs with S2 in send_ring.c: the frames' bytes are in place. */
        uint64_t to = atomic_load_explicit(committed, memory_order_seq_cst);
        uint64_t from = atomic_load_explicit(&turn->posted, memory_order_relaxed); /* ordered by T */
        bool up = true;

        if (to != from &&
            atomic_load_explicit(&turn->in_flight, memory_order_relaxed) < turn->in_flight_limit) { /* only falls */
            atomic_fetch_add_explicit(&turn->in_flight, 1, memory_order_seq_cst);
            to = post(link, from, to);
            up = to != from;
            atomic_store_explicit(&turn->posted, to, memory_order_relaxed); /* published by G */
        }
        post_turn_give(turn);
        if (!up)
            return;
    }
}

/* Polling thread, once for each completion; post_turn_run must follow. */
static inline void post_turn_complete(struct post_turn *turn)
{
    atomic_fetch_sub_explicit(&turn->in_flight, 1, memory_order_seq_cst); /* C */
}

#endif
