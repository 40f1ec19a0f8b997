/*
 * The backup: at each position it fetches the records that bear it, applies each, and goes on. With no record
 * beyond its position it waits, and so can never run ahead. When the log ends because the primary is gone, it
 * fences, replays what it has, asks the arbiter, and goes live: from then on primary.c has the machine. The
 * mirror image is primary.c.
 */
#include "vmm/lockstep.h"

#include <errno.h>
#include <string.h>

#include "base/fault_point.h"
#include "base/report.h"
#include "vmm/difference.h"
#include "vmm/heal_disk.h"
#include "vmm/transfer.h"

/* How often to look for the arbiter's answer; how often to say that there is none. */
#define ARBITER_LOOK_NS NS_PER_MS
#define ARBITER_SAY_NS (10 * NS_PER_S)
/* Two hosts' clocks are taken to run at rates that differ by less than one in this many. */
#define CLOCK_RATES_EQUAL_TO 10000
/* How long a primary may take to begin to send a machine anew. */
#define HEAL_PATIENCE_NS (10 * NS_PER_S)

/* All that the old primary left is replayed, and nothing more of it will count. Ask who may go on. */
int backup_decide(struct lockstep *ls)
{
    struct arbiter_status status;
    uint64_t said_ns = 0;

    COUNT_SET(ls->receipt.drained_ns, clock_now_ns());
    fault_point("drained");
    for (;;) {
        COUNT_SET(ls->beat_ns, clock_now_ns());
        switch (arbiter_ask(ls->arbiter, ls->generation)) {
        case ARBITER_WON:
            COUNT_SET(ls->receipt.decided_ns, clock_now_ns());
            fault_point("decided");
            journal_note(&ls->journal, JOURNAL_DECIDED, "generation %llu is this host's",
                         (unsigned long long)ls->generation);
            return 0;
        case ARBITER_LOST:
            report_error("generation %llu belongs to the other host, which goes on without this backup",
                         (unsigned long long)ls->generation);
            COUNT_SET(ls->lost_arbitration, true);
            journal_note(&ls->journal, JOURNAL_DECIDED, "generation %llu is the other host's",
                         (unsigned long long)ls->generation);
            return -ECANCELED;
        case ARBITER_UNREACHABLE:
            if (clock_now_ns() > said_ns + ARBITER_SAY_NS) {
                arbiter_get_status(ls->arbiter, &status);
                report_warning("the arbiter does not answer (%s); this host stays a backup and asks again",
                               status.why);
                said_ns = clock_now_ns();
            }
            if (COUNT_GET(ls->stop_requested))
                return -ECANCELED;
            break;
        case ARBITER_ASKING: /* nor is it left now: the claim may be won */
            break;
        }
        clock_sleep_ns(ARBITER_LOOK_NS);
    }
}

/*
 * A look at the clock is applied later than it was made, by the way and by this backup's lag, so it tells of the primary's
 * clock only how far it is at least. What the quickest of them has told holds, less what the two hosts' clocks may have
 * drifted apart since: or a backup that lags by a second when the primary dies would set the guest's clock back by it.
 */
static void hear_time(struct lockstep *ls, uint64_t time_ns)
{
    uint64_t now_ns = clock_now_ns();
    int64_t offset_ns = (int64_t)(time_ns - now_ns);

    if (ls->time_heard_ns != 0) {
        int64_t before_ns = ls->clock_offset_ns - (int64_t)((now_ns - ls->time_heard_ns) / CLOCK_RATES_EQUAL_TO);

        if (before_ns > offset_ns)
            offset_ns = before_ns;
    }
    ls->clock_offset_ns = offset_ns;
    ls->time_heard_ns = now_ns;
}

void backup_go_live(struct lockstep *ls)
{
    uint64_t now_ns = clock_now_ns();

    kept_log_end(ls->kept);
    forced_sync_discard(ls);
    /* The guest's clock has stood still since the last TIME record; real time went on, and so does its. */
    if (ls->time_heard_ns == 0)
        ls->clock_offset_ns = (int64_t)(ls->machine.time_ns - now_ns);
    COUNT_SET(ls->receipt.live_ns, now_ns);
    /* R3: the I/O thread sends what is held only after it has seen the role. */
    atomic_store_explicit(&ls->role, ROLE_ALONE, memory_order_release);
    fault_point("live");
    report_info("live at position %llu, generation %llu: the guest goes on here",
                (unsigned long long)ls->machine.position, (unsigned long long)ls->generation);
    journal_note(&ls->journal, JOURNAL_LIVE, "at position %llu", (unsigned long long)ls->machine.position);
}

/* ---- a TIME record with several looks is seen as so many records with one ---- */

static void show_look(struct lockstep *ls, struct channel_record *record)
{
    struct backup_times *times = &ls->taken_times;

    times->look.time_ns = times->reader.time_ns;
    record->position = times->reader.position;
    record->bytes = sizeof(times->look);
    record->payload = &times->look;
}

static void begin_looks(struct lockstep *ls, struct channel_record *record)
{
    ls->taken_times.open = time_reader_begin(&ls->taken_times.reader, record->position, record->payload, record->bytes);
    COUNT_ADD(ls->time_records, 1);
    COUNT_ADD(ls->time_bytes, channel_frame_bytes(record->bytes));
    show_look(ls, record);
}

/* The channel's record is done with, whatever is left in it. */
static void consume_whole(struct lockstep *ls)
{
    ls->taken_times.open = false;
    channel_consume(ls->channel);
}

/*
 * The next record, which stays until consumed. True: there is one. False: there is none and will be none; we
 * are live now, or ls->failure says why not.
 */
static bool backup_fetch(struct lockstep *ls, struct channel_record *record)
{
    for (;;) {
        int rc = channel_next(ls->channel, record);

        COUNT_SET(ls->beat_ns, clock_now_ns());
        switch (rc) {
        case 0:
            idle_end(&ls->idle);
            if (ls->taken_times.open) {
                show_look(ls, record);
                return true;
            }
            if (ls->arbiter == NULL && COUNT_GET(ls->stop_requested)) { /* a replay never has to wait */
                ls->failure = -ECANCELED;
                return false;
            }
            ls->failure = event_check(record);
            if (!ls->failure && ls->arbiter != NULL)
                heal_keep_record(ls, record);
            if (!ls->failure && record->kind == EVENT_TIME)
                begin_looks(ls, record);
            return !ls->failure;
        case -EAGAIN:
            if (COUNT_GET(ls->stop_requested)) {
                ls->failure = -ECANCELED;
                return false;
            }
            if (COUNT_GET(ls->peer_lost)) {
                ls->failure = channel_fence(ls->channel); /* said in words; unfenced we must not go live */
                if (ls->failure)
                    return false;
                if (COUNT_GET(ls->receipt.fenced_ns) == 0) {
                    COUNT_SET(ls->receipt.fenced_ns, clock_now_ns());
                    fault_point("fenced");
                    journal_note(&ls->journal, JOURNAL_FENCED, "nothing of the primary's can arrive any more");
                }
                idle_wait(&ls->idle, &ls->options.idle); /* what remains in the ring, until -ENODATA */
                continue;
            }
            idle_wait(&ls->idle, &ls->options.idle);
            continue;
        case -ENODATA:
            if (ls->arbiter == NULL && ls->replays_kept) {
                ls->failure = rc; /* session.c makes an end in order of it */
                return false;
            }
            if (ls->arbiter == NULL) {
                report_error("the log ends at position %llu without the guest's end: the recording was cut off",
                             (unsigned long long)ls->machine.position);
                ls->failure = rc;
                return false;
            }
            if (!COUNT_GET(ls->running)) {
                report_error("the primary has left before this host had the guest: it cannot go on here");
                ls->failure = -ECONNRESET;
                return false;
            }
            ls->failure = backup_decide(ls);
            if (!ls->failure && ls->disk != NULL)
                ls->failure = lockstep_disk_go_live(ls);
            if (!ls->failure)
                backup_go_live(ls);
            return false;
        default:
            ls->failure = rc;
            return false;
        }
    }
}

/* The record has had its effect, unless that failed. */
static void consume(struct lockstep *ls, const struct channel_record *record)
{
    if (!ls->failure)
        kept_log_record(ls->kept, record);
    if (!ls->taken_times.open || time_reader_next(&ls->taken_times.reader) <= 0)
        consume_whole(ls);
}

int backup_fetch_start(struct lockstep *ls, struct event_start *start)
{
    struct channel_record record;

    if (!backup_fetch(ls, &record))
        return ls->failure ? ls->failure : -ECONNRESET;
    if (record.kind != EVENT_START) {
        report_error("the log begins with a %s record, not with its start", event_name(record.kind));
        return -EBADMSG;
    }
    memcpy(start, record.payload, sizeof(*start));
    int rc = vcpu_cpuid_compare(&ls->machine.vcpu,
                                (const void *)((const uint8_t *)record.payload + sizeof(*start)),
                                start->cpuid_entries);
    consume(ls, &record);
    return rc;
}

void backup_note_sent(struct lockstep *ls, uint64_t frames_sent)
{
    int64_t ours = (int64_t)(frames_sent - ls->frames_before); /* frames_before may be "negative" (transfer.c) */

    COUNT_SET(ls->peer_sent_count, ours > 0 ? (uint64_t)ours : 0);
}

/* Position by position the registers were the same up to here. */
static int compare_registers(struct lockstep *ls, uint64_t register_chain)
{
    if (register_chain == ls->register_chain)
        return 0;
    report_error("the machines differ: at or before position %llu a general register was not the same here and at the "
                 "primary; --verify on the primary would have named it", (unsigned long long)ls->machine.position);
    return -EILSEQ;
}

static int follow_progress(struct lockstep *ls, const struct event_progress *progress)
{
    backup_note_sent(ls, progress->frames_sent);
    return compare_registers(ls, progress->register_chain);
}

static int compare_output(struct lockstep *ls, const struct event_output *output)
{
    if (output->frames_built == (uint32_t)ls->frames_built && output->digest == ls->output_digest) {
        backup_note_sent(ls, ls->frames_built - output->frames_held);
        return compare_registers(ls, output->register_chain);
    }
    report_error("the machines differ: at position %llu the primary has built %u frames (digest %016llx), this "
                 "backup %u (%016llx)", (unsigned long long)ls->machine.position, output->frames_built,
                 (unsigned long long)output->digest, (uint32_t)ls->frames_built, (unsigned long long)ls->output_digest);
    return -EILSEQ;
}

int backup_receive_machine(struct lockstep *ls)
{
    bool whole = false;

    report_info("the guest runs already, on the other host: its state is coming");
    while (!ls->failure && !whole) {
        struct channel_record record;

        if (!backup_fetch(ls, &record))
            return ls->failure;
        ls->failure = transfer_take(ls, &record, &whole);
        consume(ls, &record);
        fault_point(whole ? "transfer-machine-taken" : "transfer-part-taken");
    }
    if (ls->failure)
        return ls->failure;
    ls->stands_at_position = true;
    report_info("the guest's state is here: it follows from position %llu on",
                (unsigned long long)ls->machine.position);
    return 0;
}

/*
 * The machine has been found to differ, and its primary sends it anew: in the midst of the log there comes a START that
 * announces a transfer, and behind it RAM, and at last MACHINE. All else is of a machine that this one is not any more.
 */
int backup_receive_again(struct lockstep *ls, struct difference *difference)
{
    uint64_t limit_ns = clock_now_ns() + HEAL_PATIENCE_NS;
    bool begun = false, whole = false;

    while (!ls->failure && !whole) {
        struct channel_record record;

        if (!backup_fetch(ls, &record))
            return ls->failure;
        if (record.kind == EVENT_END || record.kind == EVENT_HANDOVER)
            return -EILSEQ; /* not consumed: the primary must not take it that this host has the guest */
        if (!begun && clock_now_ns() > limit_ns) {
            report_error("the primary does not send the machine anew: another build?");
            return -EILSEQ;
        }
        if (record.kind == EVENT_START) { /* perhaps once more, if the primary had to begin again */
            begun = ((const struct event_start *)record.payload)->transfer;
            if (!begun) {
                report_error("the primary cannot send the machine anew, and says why");
                return -EILSEQ;
            }
        } else if (begun && record.kind == EVENT_VERIFY) {
            difference_registers(difference, &record);
        } else if (begun && record.position == 0 && record.kind == EVENT_SEGMENT_PAGES) {
            difference_excuse(difference, &record);
        } else if (begun && record.kind == EVENT_STRETCH) {
            ls->failure = heal_disk_compare(ls, record.payload);
        } else if (begun && ((record.position == 0 && record.kind == EVENT_PAGES) || record.kind == EVENT_SECTORS ||
                             record.kind == EVENT_MACHINE)) {
            bool pages = record.kind == EVENT_PAGES;

            if (pages)
                difference_before(difference, &record);
            ls->failure = transfer_take(ls, &record, &whole);
            if (pages && !ls->failure)
                difference_after(difference, &record);
            fault_point(record.kind == EVENT_SECTORS ? "heal-sectors-taken" : "heal-part-taken");
        }
        consume_whole(ls);
    }
    if (!ls->failure)
        ls->stands_at_position = true;
    return ls->failure;
}

void backup_stand(struct lockstep *ls, const struct event_start *start)
{
    if (start->transfer != EVENT_TRANSFER_DONE)
        return;
    ls->stands_at_position = false;
    vcpu_want_window(&ls->machine.vcpu, pic_output(&ls->machine.pic));
}

enum lockstep_step backup_before_run(struct lockstep *ls)
{
    struct channel_record record;

    ls->failure = kept_log_stand(ls->kept);
    if (ls->failure)
        return STEP_END;
    while (backup_fetch(ls, &record)) {
        if (record.position > ls->machine.position + 1 ||
            (record.position == ls->machine.position + 1 && record.kind != EVENT_PAGES && record.kind != EVENT_SYNC &&
             record.kind != EVENT_PLACE))
            return STEP_RUN; /* the primary got past here by running, so may we */
        if (record.kind == EVENT_PAGES && record.position > ls->machine.position) {
            ls->failure = forced_sync_stage(ls, &record);
            consume(ls, &record);
        } else if (record.kind == EVENT_SYNC && record.position > ls->machine.position) {
            ls->failure = forced_sync_load(ls, &record);
            consume(ls, &record);
            return ls->failure ? STEP_END : STEP_SYNCED;
        } else if (record.kind == EVENT_PLACE && record.position > ls->machine.position) {
            ls->failure = place_reach(ls, record.payload);
            consume(ls, &record);
            return ls->failure ? STEP_END : STEP_SYNCED;
        } else if (record.kind == EVENT_PROGRESS && record.position == ls->machine.position) {
            ls->failure = follow_progress(ls, record.payload);
            consume(ls, &record);
        } else {
            report_error("the machines differ: a %s record for position %llu comes when this backup is done with "
                         "position %llu", event_name(record.kind), (unsigned long long)record.position,
                         (unsigned long long)ls->machine.position);
            ls->failure = -EILSEQ;
        }
        if (ls->failure)
            return STEP_END;
    }
    return ls->failure ? STEP_END : STEP_RUN;
}

void backup_arrive(struct lockstep *ls)
{
    struct channel_record record;

    while (!ls->failure && backup_fetch(ls, &record) && record.position <= ls->machine.position) {
        if (record.position < ls->machine.position) {
            report_error("the machines differ: a %s record for position %llu comes when this backup is at %llu",
                         event_name(record.kind), (unsigned long long)record.position,
                         (unsigned long long)ls->machine.position);
            ls->failure = -EILSEQ;
            return;
        }
        switch ((enum event_kind)record.kind) {
        case EVENT_TIME:
            hear_time(ls, ((const struct event_time *)record.payload)->time_ns);
            /* fall through */
        case EVENT_FRAME:
        case EVENT_LINK:
        case EVENT_CONSOLE:
        case EVENT_DISK:
        case EVENT_VERIFY:
        case EVENT_SEGMENT_PAGES:
        case EVENT_SEGMENT:
            ls->failure = lockstep_apply(ls, &record);
            break;
        case EVENT_PROGRESS:
            ls->failure = follow_progress(ls, record.payload);
            break;
        case EVENT_OUTPUT: /* followed in backup_emulated, once we have put out the same */
            ls->position_closed = true;
            return;
        case EVENT_END: /* followed in backup_finish */
            ls->position_closed = true;
            if (((const struct event_end *)record.payload)->reason == EVENT_END_STOPPED)
                ls->machine.ended = EVENT_END_STOPPED;
            return;
        case EVENT_HANDOVER:
            if (ls->arbiter != NULL) {
                handover_take(ls, &record); /* consumes it when it has won */
                return;
            }
            /* no log of a file has one */
            /* fall through */
        case EVENT_START:
        case EVENT_PAGES:
        case EVENT_SYNC:
        case EVENT_SECTORS:
        case EVENT_MACHINE:
        case EVENT_PLACE:
        case EVENT_STRETCH:
            report_error("the log has a %s record at position %llu, where none can be", event_name(record.kind),
                         (unsigned long long)record.position);
            ls->failure = -EBADMSG;
            return;
        }
        consume(ls, &record);
    }
}

void backup_emulated(struct lockstep *ls)
{
    struct channel_record record;

    if (!ls->output_pending && !ls->position_closed)
        return;
    /* Something was put out: the primary's marker is the next record, or the primary died before it. */
    if (ls->machine.ended || !backup_fetch(ls, &record))
        return;
    if (record.kind != EVENT_OUTPUT || record.position != ls->machine.position) {
        report_error("the machines differ: at position %llu this backup has %s, the primary has not",
                     (unsigned long long)ls->machine.position,
                     ls->output_pending ? "put something out" : "gone on beyond the guest's end");
        ls->failure = -EILSEQ;
        return;
    }
    ls->failure = compare_output(ls, record.payload);
    COUNT_ADD(ls->output_records, 1);
    consume(ls, &record);
}

int backup_finish(struct lockstep *ls)
{
    const struct event_end *end;
    struct channel_record record;
    struct vcpu_state state;
    uint64_t ram_digest = lockstep_ram_digest(ls);

    COUNT_SET(ls->end_ram_digest, ram_digest);
    if (!backup_fetch(ls, &record))
        return ls->failure; /* the primary died with the guest's last breath; nothing is left to run */
    if (record.kind != EVENT_END) {
        report_error("the machines differ: the guest has ended here at position %llu, and goes on at the primary",
                     (unsigned long long)ls->machine.position);
        return -EILSEQ;
    }
    end = record.payload;
    if (vcpu_save(&ls->machine.vcpu, &state) < 0)
        return -EIO;
    if (end->ram_digest != ram_digest || end->vcpu_digest != vcpu_state_digest(&state)) {
        report_error("the machines differ at the end, position %llu: RAM %016llx here and %016llx at the primary, "
                     "vCPU %016llx and %016llx", (unsigned long long)ls->machine.position,
                     (unsigned long long)ram_digest, (unsigned long long)end->ram_digest,
                     (unsigned long long)vcpu_state_digest(&state), (unsigned long long)end->vcpu_digest);
        return -EILSEQ;
    }
    COUNT_SET(ls->end_compared, true);
    consume(ls, &record);
    return 0;
}
