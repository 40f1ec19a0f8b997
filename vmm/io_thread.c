/*
 * The I/O thread. One round: frames in and out, the channel's completions, a heartbeat, a look at the peer's, and
 * a kick for a vCPU that runs too long while an input waits. It never waits for the machine thread.
 */
#include "vmm/io_thread.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/fault_point.h"
#include "base/report.h"

/* What may leave when the guest has ended: held frames get this long. */
#define LEAVE_NS (500 * NS_PER_MS)
#define ARBITER_SAY_NS (10 * NS_PER_S)
#define ANNOUNCEMENTS 3
#define ANNOUNCE_NS (200 * NS_PER_MS)
/* While frames are held this thread spins on, if it spins at all, so that they leave when the ack comes; but not for so long
 * that another host's trouble would cost a core. */
#define AWAIT_ACK_NS NS_PER_MS

struct io {
    struct lockstep *ls;
    enum lockstep_role role; /* of this round */
    struct idle idle;
    uint64_t heartbeat_due_ns;
    uint64_t kicked_ns;
    uint64_t healthy_since_ns; /* since when both our threads have lived */
    uint64_t round_ns;         /* when the last round began */
    uint64_t arbiter_said_ns;
    unsigned announcements_left;
    uint64_t announce_due_ns;
    uint64_t announce_lsn; /* primary: not before this one is acked */
    bool link_was_down;
    bool was_backup;
    struct pace pace;
    uint64_t awaited_ns, awaited_sent; /* since when the oldest held frame is, and how many had been sent then */
    uint64_t told_word; /* backup: heal.h */
    bool peer_told; /* after a handover to this host */
    uint64_t rate_since_ns, rate_since_bytes; /* of the log; the last second began so */
};

/* The vCPU thread beats at every exit and wherever it waits; if it is stuck, so is the guest, and the peer
 * should know: no heartbeat goes out then. */
static bool machine_beats(const struct io *io, uint64_t now_ns)
{
    const struct lockstep *ls = io->ls;

    return !COUNT_GET(ls->running) || COUNT_GET(ls->finished) ||
           now_ns < COUNT_GET(ls->beat_ns) + ls->options.peer_timeout_ns / 2;
}

static void kick_if_needed(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    uint64_t beat_limit_ns = ls->options.peer_timeout_ns / 8;
    uint64_t delay_ns = ls->options.max_input_delay_ns;

    if (!COUNT_GET(ls->running) || COUNT_GET(ls->finished))
        return;
    if (now_ns < io->kicked_ns + delay_ns)
        return;
    if ((lockstep_role_now(ls) != ROLE_BACKUP && lockstep_input_overdue(ls, now_ns)) ||
        now_ns > COUNT_GET(ls->beat_ns) + beat_limit_ns || COUNT_GET(ls->lost_arbitration) || heal_is_due(ls)) {
        vcpu_kick(&ls->machine.vcpu);
        if (heal_is_due(ls))
            lockstep_wake(ls);
        io->kicked_ns = now_ns;
    }
}

/* Decides how much the vCPU rests from now on; it does so in primary.c. */
static void keep_pace(struct io *io, uint64_t now_ns)
{
    struct channel_lag lag;

    channel_get_lag(io->ls->channel, &lag);
    COUNT_SET(io->ls->pace_permille, pace_update(&io->pace, &lag, now_ns));
}

/* The primary's peer is silent: ask who may go on. The output stays held meanwhile. */
static void decide_alone(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    struct arbiter_status status;
    enum arbiter_verdict verdict;

    if (COUNT_GET(ls->lost_arbitration)) { /* that was said; the machine thread stops, wherever it sleeps or runs */
        vcpu_kick(&ls->machine.vcpu);
        lockstep_wake(ls);
        return;
    }
    verdict = arbiter_ask(ls->arbiter, ls->generation);

    if (verdict == ARBITER_WON || verdict == ARBITER_LOST)
        journal_note(&ls->journal, JOURNAL_DECIDED, "generation %llu is %s", (unsigned long long)ls->generation,
                     verdict == ARBITER_WON ? "this host's" : "the other host's");
    switch (verdict) {
    case ARBITER_WON:
        COUNT_SET(ls->receipt.decided_ns, clock_now_ns());
        fault_point("alone-decided");
        COUNT_SET(ls->receipt.live_ns, clock_now_ns());
        COUNT_SET(ls->pace_permille, 0);
        atomic_store_explicit(&ls->role, ROLE_ALONE, memory_order_release); /* R3 */
        report_warning("%s; generation %llu goes on here, without protection",
                       COUNT_GET(ls->peer_lost) ? "the backup is lost" : "the backup is left, as was asked for",
                       (unsigned long long)ls->generation);
        journal_note(&ls->journal, JOURNAL_LIVE, "without protection");
        return;
    case ARBITER_LOST:
        COUNT_SET(ls->lost_arbitration, true);
        vcpu_kick(&ls->machine.vcpu);
        lockstep_wake(ls);
        report_error("the backup has gone live with generation %llu: this host stops its guest and sends nothing more",
                     (unsigned long long)ls->generation);
        return;
    case ARBITER_UNREACHABLE:
        if (now_ns > io->arbiter_said_ns + ARBITER_SAY_NS) {
            arbiter_get_status(ls->arbiter, &status);
            report_warning(COUNT_GET(ls->peer_lost) ?
                               "the backup is silent and the arbiter does not answer (%s); output stays held, asking again" :
                               "the backup is to be left and the arbiter does not answer (%s); asking again",
                           status.why);
            io->arbiter_said_ns = now_ns;
        }
        return;
    case ARBITER_ASKING:
        return;
    }
}

/* A host may have been through a failover before, and been given a new backup. */
static void receipt_begin(struct failover_receipt *receipt, uint64_t peer_seen_ns, uint64_t detected_ns)
{
    COUNT_SET(receipt->fenced_ns, 0);
    COUNT_SET(receipt->drained_ns, 0);
    COUNT_SET(receipt->decided_ns, 0);
    COUNT_SET(receipt->live_ns, 0);
    COUNT_SET(receipt->first_frame_ns, 0);
    COUNT_SET(receipt->resent_frames, 0);
    COUNT_SET(receipt->peer_seen_ns, peer_seen_ns);
    COUNT_SET(receipt->detected_ns, detected_ns);
}

static void watch_peer(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    uint64_t seen_ns = channel_peer_seen_ns(ls->channel);

    if (ls->arbiter == NULL)
        return;
    if (COUNT_GET(ls->unprotect_requested) && lockstep_role_now(ls) == ROLE_PRIMARY && !COUNT_GET(ls->finished)) {
        decide_alone(io, now_ns);
        return;
    }
    if (!COUNT_GET(ls->peer_lost)) {
        bool overdue = COUNT_GET(ls->handover.overdue); /* it lives, and does not take the guest */

        if (!overdue && (now_ns < seen_ns + ls->options.peer_timeout_ns ||
                         now_ns < io->healthy_since_ns + ls->options.peer_timeout_ns / 2))
            return;
        receipt_begin(&ls->receipt, seen_ns, now_ns);
        fault_point("detected");
        COUNT_SET(ls->peer_lost, true);
        if (overdue)
            report_warning("the backup does not take the guest over");
        else
            report_warning("no sign of life from the %s for %llu ms",
                           lockstep_role_now(ls) == ROLE_BACKUP ? "primary" : "backup",
                           (unsigned long long)((now_ns - seen_ns) / NS_PER_MS));
        journal_note(&ls->journal, JOURNAL_PEER_SILENT, "%s, last sign of life %llu ms ago",
                     overdue ? "it does not take the guest over" : "nothing is heard",
                     (unsigned long long)((now_ns - seen_ns) / NS_PER_MS));
    }
    /* A backup's machine thread fences, drains and decides in backup_fetch. */
    if (lockstep_role_now(ls) == ROLE_PRIMARY && !COUNT_GET(ls->finished))
        decide_alone(io, now_ns);
}

/* How long an ack takes, and how much is logged. */
static void measure_log(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    uint64_t acked_lsn = channel_acked_lsn(ls->channel);
    /* P2 pairs P1 in primary_log_end. */
    uint64_t probe_lsn = atomic_load_explicit(&ls->probe_lsn, memory_order_acquire);
    struct channel_statistics statistics;

    if (probe_lsn != 0 && acked_lsn >= probe_lsn) {
        histogram_record(&ls->ack_ns, clock_now_ns() - COUNT_GET(ls->probe_ns));
        COUNT_SET(ls->probe_lsn, 0);
        probe_lsn = 0;
    }
    if (probe_lsn == 0)
        /* P3 pairs P4 in primary_log_end: the place is empty before it is filled anew. */
        atomic_store_explicit(&ls->probe_wanted, true, memory_order_release);
    if (!COUNT_GET(ls->followed) && ls->arbiter != NULL &&
        channel_consumed_lsn(ls->channel) >= COUNT_GET(ls->protected_lsn)) {
        COUNT_SET(ls->followed, true);
        heal_done(ls);
        journal_note(&ls->journal, JOURNAL_PROTECTED, "the backup follows");
    }
    if (now_ns < io->rate_since_ns + NS_PER_S)
        return;
    channel_get_statistics(ls->channel, &statistics);
    if (io->rate_since_ns != 0)
        COUNT_SET(ls->log_bytes_per_s,
                  (statistics.record_bytes - io->rate_since_bytes) * NS_PER_S / (now_ns - io->rate_since_ns));
    io->rate_since_ns = now_ns;
    io->rate_since_bytes = statistics.record_bytes;
}

/*
 * Who is alone says nothing more to the peer, whose silence then makes it ask the arbiter, and lose. But after a
 * planned switch-over the old primary is told first that this host has the guest: its consumed record says so. Then the
 * fence, late: the old primary logs nothing more, so that nothing is missed by it.
 */
static void leave_peer(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    uint64_t live_ns = COUNT_GET(ls->handover.live_ns);

    if (COUNT_GET(ls->channel_left))
        return;
    COUNT_SET(ls->log_bytes_per_s, 0);
    if (live_ns != 0 && now_ns <= live_ns + ls->options.peer_timeout_ns) {
        (void)channel_poll(ls->channel);
        if (!io->peer_told || now_ns >= io->heartbeat_due_ns) {
            channel_heartbeat(ls->channel);
            io->peer_told = true;
            io->heartbeat_due_ns = now_ns + ls->options.heartbeat_ns;
        }
        return;
    }
    if (live_ns != 0)
        (void)channel_fence(ls->channel); /* the arbiter has spoken: what fails here is said, and changes nothing */
    /* L1 pairs protect.c: nothing of the channel is used from here on. */
    atomic_store_explicit(&ls->channel_left, true, memory_order_release);
}

/* Another role begins, with another channel perhaps. */
static void change_role(struct io *io, enum lockstep_role role)
{
    struct lockstep *ls = io->ls;

    if (io->role != role && role == ROLE_PRIMARY) { /* a new backup */
        COUNT_SET(ls->followed, false);
        io->rate_since_ns = 0;
        io->healthy_since_ns = 0;
        io->announcements_left = 0;
        io->pace = (struct pace){ .target_ns = ls->options.max_lag_ns };
        COUNT_SET(ls->handover.live_ns, 0); /* of the backup that was left; the journal keeps it */
    }
    io->role = role;
    if (role != ROLE_ALONE)
        COUNT_SET(ls->channel_left, false);
    /* R4 pairs protect.c: from here on this thread acts by the new role. */
    atomic_store_explicit(&ls->io_role, (int)role, memory_order_release);
}

static void poll_channel(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    uint64_t word;

    switch (io->role) {
    case ROLE_PRIMARY:
        (void)channel_poll(ls->channel); /* broken is a hint; the heartbeat decides */
        keep_pace(io, now_ns);
        if (ls->arbiter != NULL)
            heal_listen(ls);
        measure_log(io, now_ns);
        break;
    case ROLE_BACKUP:
        (void)channel_poll(ls->channel); /* what has arrived is seen at once, however busy the vCPU is */
        word = atomic_load_explicit(&ls->heal.word, memory_order_acquire); /* H3 pairs heal_disk.c */
        if (word != io->told_word) {
            io->told_word = word;
            channel_tell(ls->channel, io->told_word);
            io->heartbeat_due_ns = 0; /* it goes with the heartbeat */
        }
        break;
    case ROLE_ALONE:
        leave_peer(io, now_ns);
        return;
    }
    /* Who cannot beat is in no state to judge others: its own silence is why it has not heard them. */
    if (!machine_beats(io, now_ns)) {
        io->healthy_since_ns = UINT64_MAX;
        return;
    }
    if (io->healthy_since_ns > now_ns || now_ns > io->round_ns + ls->options.peer_timeout_ns / 2)
        io->healthy_since_ns = now_ns; /* this thread itself may have been frozen */
    if (now_ns >= io->heartbeat_due_ns) {
        channel_heartbeat(ls->channel);
        io->heartbeat_due_ns = now_ns + ls->options.heartbeat_ns;
    }
    watch_peer(io, now_ns);
}

/*
 * A primary may say no more about its guest than the backup's host holds. And one that was cut off or frozen does not know
 * yet that the guest is elsewhere: only what is acked since the cable is back proves that it is not.
 */
static bool may_announce(const struct io *io)
{
    const struct lockstep *ls = io->ls;

    return io->role == ROLE_ALONE || (channel_acked_lsn(ls->channel) >= io->announce_lsn &&
                                      net_sent_count(ls->net) == net_held_count(ls->net));
}

/* Tells the LAN where the guest is, some times, and again when the cable has been out: it was told nothing meanwhile. */
static void announce(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    bool up = net_link_up(ls->net);

    if (!up && io->role == ROLE_PRIMARY)
        io->announce_lsn = channel_committed_lsn(ls->channel) + 1;
    if (up && io->link_was_down)
        io->announcements_left = ANNOUNCEMENTS;
    io->link_was_down = !up;
    if (io->announcements_left == 0 || now_ns < io->announce_due_ns || !may_announce(io))
        return;
    net_announce(ls->net);
    io->announcements_left--;
    io->announce_due_ns = now_ns + ANNOUNCE_NS;
}

static unsigned poll_net_alone(struct lockstep *ls)
{
    bool awaited = COUNT_GET(ls->receipt.live_ns) != 0 && COUNT_GET(ls->receipt.first_frame_ns) == 0;
    uint64_t sent = awaited ? net_sent_count(ls->net) : 0;
    unsigned moved = net_poll_live(ls->net, UINT64_MAX);

    if (awaited && net_sent_count(ls->net) != sent)
        COUNT_SET(ls->receipt.first_frame_ns, clock_now_ns());
    return moved;
}

static unsigned poll_net(struct io *io, uint64_t now_ns)
{
    struct lockstep *ls = io->ls;
    unsigned moved = 0;

    if (COUNT_GET(ls->lost_arbitration))
        return 0; /* not one frame more */
    switch (io->role) {
    case ROLE_BACKUP:
        io->was_backup = true;
        return net_poll_standby(ls->net, COUNT_GET(ls->peer_sent_count));
    case ROLE_PRIMARY:
        announce(io, now_ns);
        moved = net_poll_live(ls->net, channel_acked_lsn(ls->channel));
        break;
    case ROLE_ALONE:
        if (io->was_backup) { /* just gone live: first the LAN must learn where the guest is, then what was held */
            io->was_backup = false;
            (void)net_poll_standby(ls->net, COUNT_GET(ls->peer_sent_count)); /* its last word may be new */
            COUNT_SET(ls->receipt.resent_frames, net_held_count(ls->net) - net_sent_count(ls->net));
            io->announcements_left = ANNOUNCEMENTS;
        }
        announce(io, now_ns);
        moved = poll_net_alone(ls);
        break;
    }
    if (COUNT_GET(ls->taking_frames) && net_receive_waiting(ls->net))
        lockstep_wake(ls);
    return moved;
}

/* Frames are held that were not held, or not so far in front, AWAIT_ACK_NS ago. */
static bool awaits_ack(struct io *io, uint64_t now_ns)
{
    uint64_t sent;

    if (io->ls->net == NULL || io->role != ROLE_PRIMARY)
        return false;
    sent = net_sent_count(io->ls->net);
    if (sent == net_held_count(io->ls->net)) {
        io->awaited_ns = 0;
        return false;
    }
    if (io->awaited_ns == 0 || sent != io->awaited_sent) {
        io->awaited_ns = now_ns;
        io->awaited_sent = sent;
    }
    return now_ns < io->awaited_ns + AWAIT_ACK_NS;
}

void *io_thread_run(void *arg)
{
    struct lockstep *ls = arg;
    struct io *io = calloc(1, sizeof(*io));
    uint64_t leave_ns = UINT64_MAX;

    if (io == NULL)
        report_bug("no memory for the I/O thread");
    io->ls = ls;
    io->role = lockstep_role_now(ls);
    io->pace.target_ns = ls->options.max_lag_ns;
    if (ls->net != NULL)
        net_thread_begin();
    for (;;) {
        uint32_t heard = doorbell_heard(&ls->output_bell);
        uint64_t now_ns = clock_now_ns();
        unsigned moved = 0;

        change_role(io, lockstep_role_now(ls));
        poll_channel(io, now_ns);
        if (ls->net != NULL)
            moved = poll_net(io, now_ns);
        kick_if_needed(io, now_ns);
        io->round_ns = now_ns;
        if (atomic_load_explicit(&ls->finished, memory_order_acquire)) {
            if (leave_ns == UINT64_MAX)
                leave_ns = now_ns + LEAVE_NS;
            if (now_ns > leave_ns || ls->net == NULL || COUNT_GET(ls->lost_arbitration) ||
                net_sent_count(ls->net) == net_held_count(ls->net))
                break;
        }
        if (moved > 0 || awaits_ack(io, now_ns))
            idle_end(&io->idle);
        if (moved == 0)
            idle_wait_or_ring(&io->idle, &ls->options.idle, &ls->output_bell, heard);
    }
    if (ls->net != NULL)
        net_thread_end();
    free(io);
    return NULL;
}
