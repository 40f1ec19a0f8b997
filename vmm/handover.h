/*
 * A planned switch-over: the guest moves to its backup because an operator asks for it, while both hosts are well.
 *
 * The primary stops its guest at a position and logs HANDOVER, the last record that it will ever log. The backup, when
 * it has replayed all before it, claims the generation at the arbiter, as at any failover, goes live at that position,
 * and only then consumes the record: its consumption is the word that it has the guest. A primary that does not hear
 * that word within the peer time-out asks the arbiter itself; it runs its guest again only if it wins.
 */
#ifndef FTVMM_VMM_HANDOVER_H
#define FTVMM_VMM_HANDOVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct lockstep;
struct channel_record;

enum handover_state {
    HANDOVER_NONE,
    HANDOVER_ASKED,     /* primary: somebody has asked; the guest still runs */
    HANDOVER_UNDER_WAY, /* primary: the guest stands at a position; backup: HANDOVER is the next record */
    HANDOVER_DONE,      /* the backup has the guest */
    HANDOVER_FAILED,    /* the backup has not taken it; the arbiter's word is with the primary */
    HANDOVER_CANCELLED, /* primary: something else came first, and HANDOVER was not logged */
};

/* Zero-initialise. Who asks writes ASKED and asked_ns, the machine thread all else; times in clock_now_ns(). */
struct handover {
    _Atomic int state;          /* enum handover_state */
    _Atomic bool overdue;       /* primary: the I/O thread is to ask the arbiter */
    _Atomic uint64_t asked_ns;
    _Atomic uint64_t stopped_ns; /* primary: the guest stands still */
    _Atomic uint64_t sent_ns;    /* primary: what it had sent is acked and gone, or has been given time enough */
    _Atomic uint64_t logged_ns;  /* primary: HANDOVER is logged */
    _Atomic uint64_t taken_ns;   /* primary: heard that the backup has the guest */
    _Atomic uint64_t reached_ns; /* backup: all before HANDOVER is replayed */
    _Atomic uint64_t live_ns;    /* backup: the guest runs on */
};

static inline enum handover_state handover_state_now(const struct handover *handover)
{
    /* H1 in handover.c: the times of the steps before are seen with the state. */
    return (enum handover_state)atomic_load_explicit(&handover->state, memory_order_acquire);
}

/* Asks a primary for it; the machine thread does it at its next position. One thread. True; false if there is one
 * already. */
bool handover_ask(struct lockstep *ls);

/* Primary, machine thread, at a position whose inputs may still be logged. Returns when it is decided: the other host
 * has the guest, or none may run it (ls->failure is set); or the guest goes on here. */
void handover_give(struct lockstep *ls);

/* Backup, machine thread: `record` is HANDOVER at this position. Goes live, or sets ls->failure. */
void handover_take(struct lockstep *ls, const struct channel_record *record);

#endif
