/*
 * The two sides of a planned switch-over (handover.h). Why no two hosts can run the guest: from HANDOVER on the primary
 * runs it again only as the arbiter's winner, and the backup runs it only as the arbiter's winner. No time, no message
 * and no silence decides anything; they only decide when the primary asks.
 */
#include "vmm/handover.h"

#include <errno.h>

#include "base/fault_point.h"
#include "base/report.h"
#include "vmm/lockstep.h"

#define LOOK_NS (50 * NS_PER_US)
/* How long a stop may be kept waiting by an arbiter that does not answer. */
#define FINISH_NS (5 * NS_PER_S)

static void enter(struct handover *handover, enum handover_state state)
{
    /* H1 pairs handover_state_now: the times before the state. */
    atomic_store_explicit(&handover->state, state, memory_order_release);
}

bool handover_ask(struct lockstep *ls)
{
    enum handover_state state = handover_state_now(&ls->handover);

    if (state == HANDOVER_ASKED || state == HANDOVER_UNDER_WAY)
        return false;
    COUNT_SET(ls->handover.stopped_ns, 0); /* there may have been one before */
    COUNT_SET(ls->handover.sent_ns, 0);
    COUNT_SET(ls->handover.logged_ns, 0);
    COUNT_SET(ls->handover.taken_ns, 0);
    COUNT_SET(ls->handover.reached_ns, 0);
    COUNT_SET(ls->handover.live_ns, 0);
    COUNT_SET(ls->handover.asked_ns, clock_now_ns());
    enter(&ls->handover, HANDOVER_ASKED);
    lockstep_wake(ls); /* a guest that computes is brought to a position by the I/O thread: lockstep_input_overdue */
    return true;
}

static bool still_ours(const struct lockstep *ls)
{
    return lockstep_role_now(ls) == ROLE_PRIMARY && !COUNT_GET(ls->lost_arbitration) && !ls->failure;
}

static bool may_begin(const struct lockstep *ls)
{
    return still_ours(ls) && !COUNT_GET(ls->stop_requested) && !ls->machine.ended;
}

/* Frames that leave here are not sent again by the backup. Inputs still have their effect at this position, so that
 * what arrives meanwhile is not lost. False: something else came first. */
static bool send_what_is_held(struct lockstep *ls)
{
    uint64_t limit_ns = clock_now_ns() + ls->options.peer_timeout_ns / 4; /* a port that takes nothing is no reason */

    while (may_begin(ls) && ls->net != NULL && net_sent_count(ls->net) < net_held_count(ls->net) &&
           clock_now_ns() < limit_ns) {
        (void)primary_take_inputs(ls);
        primary_still_here(ls);
        clock_sleep_ns(LOOK_NS);
    }
    return may_begin(ls);
}

/* HANDOVER stands in the log. Returns with its outcome in ls->failure and the role. */
static void await_outcome(struct lockstep *ls, uint64_t lsn)
{
    uint64_t consumed_lsn = 0, moved_ns = clock_now_ns(), stop_ns = 0;

    while (still_ours(ls)) {
        uint64_t now_ns = primary_still_here(ls), consumed_now_lsn = channel_consumed_lsn(ls->channel);

        if (consumed_now_lsn >= lsn) { /* it consumes this record only when it has won */
            COUNT_SET(ls->handover.taken_ns, now_ns);
            fault_point("handover-taken");
            COUNT_SET(ls->lost_arbitration, true);
            break;
        }
        if (consumed_now_lsn != consumed_lsn) { /* it is on its way */
            consumed_lsn = consumed_now_lsn;
            moved_ns = now_ns;
        }
        if (now_ns > moved_ns + ls->options.peer_timeout_ns)
            COUNT_SET(ls->handover.overdue, true);
        if (stop_ns == 0 && COUNT_GET(ls->stop_requested))
            stop_ns = now_ns;
        if (stop_ns != 0 && now_ns > stop_ns + FINISH_NS) {
            report_warning("stopped in the midst of a handover that nobody decides: the backup may go live");
            ls->failure = -ECANCELED;
        }
        clock_sleep_ns(LOOK_NS);
    }
}

static void call_off(struct lockstep *ls)
{
    enter(&ls->handover, HANDOVER_CANCELLED);
    journal_note(&ls->journal, JOURNAL_HANDOVER, "called off before the backup was told");
}

void handover_give(struct lockstep *ls)
{
    struct handover *handover = &ls->handover;
    struct event_handover *record;
    uint64_t lsn;

    if (!may_begin(ls) || heal_is_due(ls)) { /* a backup that differs would not take it */
        call_off(ls);
        return;
    }
    COUNT_SET(handover->overdue, false);
    COUNT_SET(handover->stopped_ns, clock_now_ns());
    fault_point("handover-stopped");
    enter(handover, HANDOVER_UNDER_WAY);
    journal_note(&ls->journal, JOURNAL_HANDOVER, "the guest stands at position %llu, to go on at the backup",
                 (unsigned long long)ls->machine.position);
    if (!send_what_is_held(ls)) {
        call_off(ls);
        return;
    }
    COUNT_SET(handover->sent_ns, clock_now_ns());
    primary_log_time(ls); /* the backup's guest continues from the time of this moment */
    record = primary_log_begin(ls, EVENT_HANDOVER, ls->machine.position, sizeof(*record));
    record->frames_sent = lockstep_frames_sent(ls);
    lsn = primary_log_end(ls);
    COUNT_SET(handover->logged_ns, clock_now_ns());
    fault_point("handover-logged");
    if (lsn != 0) /* else the pair came apart before it was in the log */
        await_outcome(ls, lsn);

    if (COUNT_GET(ls->lost_arbitration)) {
        ls->failure = -ECANCELED;
        enter(handover, HANDOVER_DONE);
        journal_note(&ls->journal, JOURNAL_HANDOVER, "the backup has the guest");
        report_info("the guest goes on at the backup from position %llu, %llu ms after it stopped here; this host is "
                    "done", (unsigned long long)ls->machine.position,
                    (unsigned long long)((clock_now_ns() - COUNT_GET(handover->stopped_ns)) / NS_PER_MS));
        return;
    }
    enter(handover, HANDOVER_FAILED);
    journal_note(&ls->journal, JOURNAL_HANDOVER, "the backup has not taken the guest over");
    if (!ls->failure)
        report_warning("the handover failed: the backup did not take over in time; the guest goes on here");
}

void handover_take(struct lockstep *ls, const struct channel_record *record)
{
    backup_note_sent(ls, ((const struct event_handover *)record->payload)->frames_sent);
    COUNT_SET(ls->handover.reached_ns, clock_now_ns());
    fault_point("handover-reached");
    enter(&ls->handover, HANDOVER_UNDER_WAY);
    journal_note(&ls->journal, JOURNAL_HANDOVER, "the primary hands the guest over at position %llu",
                 (unsigned long long)ls->machine.position);
    ls->failure = backup_decide(ls);
    if (ls->failure) {
        enter(&ls->handover, HANDOVER_FAILED);
        return;
    }
    /* The peer's silence means nothing from here on; the I/O thread fences when the primary has been told. */
    COUNT_SET(ls->peer_lost, true);
    channel_consume(ls->channel);
    fault_point("handover-consumed");
    /* A shared disk is free when the primary, who has been told now, has let go of it. */
    if (ls->disk != NULL)
        ls->failure = lockstep_disk_go_live(ls);
    if (ls->failure) {
        enter(&ls->handover, HANDOVER_FAILED);
        return;
    }
    COUNT_SET(ls->handover.live_ns, clock_now_ns());
    enter(&ls->handover, HANDOVER_DONE);
    backup_go_live(ls);
}
