/* Finds out, tells, sends anew; see heal.h. What is saved of a difference is difference.c's. */
#include "vmm/heal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fault_point.h"
#include "base/report.h"
#include "vmm/difference.h"
#include "vmm/dirty.h"
#include "vmm/heal_disk.h"
#include "vmm/lockstep.h"
#include "vmm/pages.h"

/* So long the machine thread sends, and as long the guest then runs: it keeps half of its CPU. */
#define SLICE_NS (2 * NS_PER_MS)
/* How long the guest may be stopped until its frames have left and its disk requests have ended; then it runs on, and another
 * round is made. Each try may take twice as long as the one before, so that a slow disk comes to its end in one of them. */
#define SETTLE_NS      (100 * NS_PER_MS)
#define DOUBLINGS_MOST 5u
/* The guest is stopped for the rest when it is expected to take no longer than this, or after so many rounds. */
#define PAUSE_NS    (50 * NS_PER_MS)
#define ROUNDS_MOST 6
#define WAIT_NS     (50 * NS_PER_US)
/* transfer.pause: the slice is over. */
#define SLICE_OVER (-EINPROGRESS)
/* An instruction that is to be forgotten may have so many accesses left (a REP with 16 MiB of bytes has more). */
#define ACCESSES_MOST (UINT64_C(1) << 20)

#define PAGES_PER_LIST 4096u

/* ---- primary, I/O thread ---- */

void heal_listen(struct lockstep *ls)
{
    uint64_t word = channel_told(ls->channel);

    if (word & HEAL_WORD_ANSWER) {
        if (word == COUNT_GET(ls->heal.answer))
            return;
        COUNT_SET(ls->heal.answer, word);
        lockstep_wake(ls);
        return;
    }
    if (word == COUNT_GET(ls->heal.asked))
        return;
    COUNT_SET(ls->protected_lsn, UINT64_MAX); /* until the machine thread knows which record it is */
    COUNT_SET(ls->followed, false);
    COUNT_ADD(ls->divergences, 1);
    COUNT_SET(ls->heal.last_unix, (int64_t)time(NULL));
    COUNT_SET(ls->heal.last_position, word & HEAL_WORD_POSITION_MASK);
    COUNT_SET(ls->heal.found_ns, clock_now_ns());
    COUNT_SET(ls->heal.took_ns, 0);
    report_warning("the backup differs, found at position %llu: the guest is without protection until the backup has been "
                   "sent all of it again", (unsigned long long)(word & HEAL_WORD_POSITION_MASK));
    journal_note(&ls->journal, JOURNAL_DIVERGED, "found by the backup at position %llu",
                 (unsigned long long)(word & HEAL_WORD_POSITION_MASK));
    /* H1 pairs heal_serve: protected_lsn before the wish. */
    atomic_store_explicit(&ls->heal.asked, word, memory_order_release);
}

bool heal_is_due(const struct lockstep *ls)
{
    return COUNT_GET(ls->heal.asked) != 0 && COUNT_GET(ls->protected_lsn) == UINT64_MAX;
}

void heal_done(struct lockstep *ls)
{
    if (COUNT_GET(ls->heal.found_ns) == 0)
        return;
    COUNT_SET(ls->heal.took_ns, clock_now_ns() - COUNT_GET(ls->heal.found_ns));
    COUNT_SET(ls->heal.found_ns, 0);
    COUNT_ADD(ls->heal.healed, 1);
    report_info("the backup is whole again, %llu ms after it said that it differed: %llu KiB sent, the guest stood still "
                "for %.1f ms", (unsigned long long)(COUNT_GET(ls->heal.took_ns) / NS_PER_MS),
                (unsigned long long)(COUNT_GET(ls->heal.sent_bytes) >> 10),
                (double)COUNT_GET(ls->heal.pause_ns) / (double)NS_PER_MS);
}

/* ---- primary, machine thread ---- */

static int slice_pause(void *ctx, bool full)
{
    struct lockstep *ls = ctx;

    return full || primary_still_here(ls) >= ls->heal.slice_end_ns ? SLICE_OVER : 0;
}

static int end_pause(void *ctx, bool full)
{
    struct lockstep *ls = ctx;

    (void)primary_still_here(ls);
    if (full)
        clock_sleep_ns(WAIT_NS);
    return lockstep_role_now(ls) != ROLE_PRIMARY || COUNT_GET(ls->lost_arbitration) || COUNT_GET(ls->stop_requested) ?
               -ECANCELED :
               0;
}

void heal_drop(struct lockstep *ls)
{
    struct heal *heal = &ls->heal;

    if (heal->transfer.pages != NULL && ls->transfer_pages == heal->transfer.pages)
        ls->transfer_pages = NULL;
    if (heal->active)
        heal_disk_drop(ls);
    free(heal->transfer.pages);
    heal->transfer.pages = NULL;
    heal->active = false;
}

/* It cannot be done: the backup is told, and ends; then the guest goes on alone. */
static void give_up(struct lockstep *ls, int why)
{
    const struct event_start none = { .clock = (uint8_t)ls->clock };

    report_error("the backup cannot be sent the guest anew (%s), and is told to end", strerror(-why));
    ls->heal.transfer.pause = end_pause;
    (void)transfer_start(&ls->heal.transfer, &none); /* if it does not go out, the pair is coming apart already */
    heal_drop(ls);
}

/* A step of the transfer has returned `rc`. Always 0. */
static int step_ended(struct lockstep *ls, int rc)
{
    /* The slice is over; the link is down, and comes back or the pair comes apart; the guest is stopped: others see to
     * that. Else it is memory or the disk. */
    if (rc != 0 && rc != SLICE_OVER && rc != -EPIPE && rc != -ECANCELED)
        give_up(ls, rc);
    return 0;
}

/* Which pages this machine has changed since the position at which the backup found that it differs: of these it can not
 * tell whether they differed then. */
static int send_changed(struct lockstep *ls, uint64_t since_position)
{
    const struct verify *verify = ls->verify;
    uint64_t pages = ls->machine.memory.bytes / GUEST_PAGE_BYTES, page = 0;
    struct transfer *transfer = &ls->heal.transfer;
    int rc = 0;

    while (rc == 0 && page < pages) {
        static struct event_segment_page list[PAGES_PER_LIST]; /* the machine thread's own */
        size_t count = 0;

        for (; page < pages && count < PAGES_PER_LIST; page++)
            if (verify->changed_positions[page] > since_position)
                list[count++] = (struct event_segment_page){ .page = page, .digest = verify->page_digests[page] };
        if (count > 0)
            rc = transfer_list(transfer, list, count);
    }
    return rc;
}

/* The registers at the positions up to that one, so that the backup finds the first at which they differed. */
static int send_registers(struct lockstep *ls, uint64_t up_to)
{
    uint64_t from = up_to > REGISTER_RING_TOLD ? up_to - REGISTER_RING_TOLD + 1 : 1;
    int rc = 0;

    for (uint64_t position = from; rc == 0 && position <= up_to; position++) {
        const struct kvm_regs *regs = register_ring_at(ls->registers, position);

        if (regs != NULL)
            rc = transfer_registers(&ls->heal.transfer, position, regs);
    }
    return rc;
}

static int begin(struct lockstep *ls, uint64_t asked)
{
    struct event_start start = { .transfer = 1, .verify = ls->verify->each_position, .clock = (uint8_t)ls->clock };
    struct heal *heal = &ls->heal;
    int rc;

    heal_drop(ls);
    heal->begun = asked;
    heal->transfer = (struct transfer){ .ls = ls, .channel = ls->channel, .pause = end_pause, .ctx = ls };
    heal->transfer.pages = malloc(pages_words(&ls->machine.memory) * sizeof(uint64_t));
    heal->active = true;
    heal->compared = false;
    heal->rounds = heal->tries = 0;
    rc = heal->transfer.pages != NULL ? heal_disk_begin(ls) : -ENOMEM;
    if (rc < 0)
        return step_ended(ls, rc);
    rc = verify_renew(ls->verify, ls);
    if (rc < 0)
        return rc;
    rc = transfer_start(&heal->transfer, &start);
    if (rc == 0)
        rc = send_registers(ls, asked & HEAL_WORD_POSITION_MASK);
    if (rc == 0)
        rc = send_changed(ls, asked & HEAL_WORD_POSITION_MASK);
    fault_point("heal-begun");
    /* How many pages there are is a multiple of 64 (machine.c). From here on the dirty log adds to them. */
    memset(heal->transfer.pages, 0xFF, pages_words(&ls->machine.memory) * sizeof(uint64_t));
    ls->transfer_pages = heal->transfer.pages;
    return step_ended(ls, rc);
}

/* Compares the disk, before any RAM is sent: it may take minutes, in which the guest would write most of that anew. */
static int compare_disk(struct lockstep *ls)
{
    struct heal *heal = &ls->heal;
    int rc;

    heal->transfer.pause = slice_pause;
    heal->slice_end_ns = clock_now_ns() + SLICE_NS;
    rc = heal_disk_serve(ls);
    if (rc <= 0)
        return step_ended(ls, rc);
    heal->compared = true;
    heal->began_ns = clock_now_ns();
    if (COUNT_GET(heal->disk_compared_bytes) > 0)
        report_info("of %llu MiB of the disk %llu MiB are not the same at the backup, and are sent to it",
                    (unsigned long long)(COUNT_GET(heal->disk_compared_bytes) >> 20),
                    (unsigned long long)(COUNT_GET(heal->disk_differing_bytes) >> 20));
    fault_point("heal-compared");
    return 0;
}

/* The disk's answers, and what else comes, are taken as inputs (*taken): the backup throws away what is logged of them, and
 * finds them in the machine that is sent. */
static bool settle(struct lockstep *ls, bool *taken)
{
    const struct virtio_blk_state *blk = &ls->machine.blk.state;
    struct heal *heal = &ls->heal;
    uint64_t limit_ns = clock_now_ns() + (SETTLE_NS << (blk->completed != blk->submitted ? heal->tries : 0));

    while (!primary_all_has_left(ls)) {
        if (clock_now_ns() > limit_ns) {
            heal->tries += blk->completed != blk->submitted && heal->tries < DOUBLINGS_MOST;
            return false;
        }
        if (end_pause(ls, true) < 0 || ls->failure)
            return false;
        *taken |= primary_take_inputs(ls);
    }
    return !ls->failure;
}

/* The guest runs on. What it was given while it stood still may have raised an interrupt. As heal_serve. */
static int let_go(struct lockstep *ls, bool taken)
{
    if (ls->failure || !taken)
        return ls->failure;
    machine_force_position(&ls->machine);
    return 1;
}

/* The guest stands still: the rest, and MACHINE. As heal_serve. */
static int finish(struct lockstep *ls)
{
    struct heal *heal = &ls->heal;
    uint64_t stopped_ns = clock_now_ns(), lsn;
    bool taken = false;
    int rc = vcpu_complete(&ls->machine.vcpu);

    if (rc < 0)
        return rc;
    if (ls->machine.vcpu.exit_waits || ls->machine.ended) /* in the midst of an instruction: another time */
        return 0;
    if (!settle(ls, &taken))
        return let_go(ls, taken);
    rc = dirty_collect(ls);
    if (rc < 0)
        return rc;
    primary_log_times(ls); /* a transfer's records do not see to that */
    heal->transfer.pause = end_pause;
    rc = transfer_round(&heal->transfer);
    if (rc == 0)
        rc = transfer_machine(&heal->transfer, &lsn);
    if (rc < 0) {
        (void)step_ended(ls, rc);
        return let_go(ls, taken);
    }
    COUNT_SET(heal->sent_bytes, COUNT_GET(heal->transfer.sent_bytes));
    fault_point("heal-logged");
    heal_drop(ls);
    verify_begin(ls->verify, ls);
    machine_force_position(&ls->machine);
    ls->output_pending = false;
    ls->logged_position = ls->machine.position;
    ls->logged_ns = clock_now_ns();
    forced_sync_begin(ls);
    COUNT_SET(heal->pause_ns, ls->logged_ns - stopped_ns);
    COUNT_SET(ls->protected_lsn, lsn);
    return 1;
}

/* All of it once, or what was written meanwhile. 1: what is left is little. 0: not yet, or the slice is over. */
static int send_slice(struct lockstep *ls)
{
    struct heal *heal = &ls->heal;
    double ns_per_byte;
    int rc;

    heal->slice_end_ns = clock_now_ns() + SLICE_NS;
    heal->transfer.pause = slice_pause;
    rc = transfer_round(&heal->transfer);
    if (rc < 0)
        return step_ended(ls, rc);
    rc = dirty_collect(ls);
    if (rc < 0)
        return rc;
    heal->rounds++;
    ns_per_byte = (double)(clock_now_ns() - heal->began_ns) / (double)(COUNT_GET(heal->transfer.sent_bytes) + 1);
    return heal->rounds >= ROUNDS_MOST || (double)transfer_left_bytes(&heal->transfer) * ns_per_byte <= (double)PAUSE_NS;
}

int heal_serve(struct lockstep *ls)
{
    struct heal *heal = &ls->heal;
    uint64_t asked = atomic_load_explicit(&heal->asked, memory_order_acquire); /* H1 */
    uint64_t now_ns;
    int rc = 0;

    if (asked == heal->begun && !heal->active)
        return 0;
    now_ns = clock_now_ns();
    if (asked != heal->begun)
        rc = begin(ls, asked);
    else if (now_ns < heal->due_ns)
        return 0;
    if (rc == 0 && heal->active && !heal->compared)
        rc = compare_disk(ls);
    if (rc == 0 && heal->active && heal->compared)
        rc = send_slice(ls);
    if (rc > 0)
        rc = finish(ls);
    heal->due_ns = clock_now_ns() + (clock_now_ns() - now_ns);
    return rc;
}

/* ---- backup ---- */

void heal_keep_record(struct lockstep *ls, const struct channel_record *record)
{
    struct heal_recent *recent = &ls->heal.recent[ls->heal.recent_count % HEAL_RECENT_RECORDS];

    if (ls->heal.recent_count > 0 &&
        ls->heal.recent[(ls->heal.recent_count - 1) % HEAL_RECENT_RECORDS].lsn == record->lsn)
        return; /* looked at again */
    recent->lsn = record->lsn;
    recent->position = record->position;
    recent->bytes = record->bytes;
    recent->kind = record->kind;
    memcpy(recent->payload, record->payload, record->bytes < HEAL_RECENT_BYTES ? record->bytes : HEAL_RECENT_BYTES);
    ls->heal.recent_count++;
}

/* The instruction that the vCPU is in the midst of comes to its end, wherever its accesses go: or what is left of it would
 * fall upon the machine that is loaded. */
static int leave_instruction(struct lockstep *ls)
{
    struct vcpu *vcpu = &ls->machine.vcpu;
    int rc = vcpu_complete(vcpu);

    for (uint64_t accesses = 0; rc == 0 && vcpu->exit_waits && accesses < ACCESSES_MOST; accesses++) {
        vcpu->exit_waits = false;
        rc = vcpu_complete(vcpu);
        COUNT_SET(ls->beat_ns, clock_now_ns());
    }
    return rc == 0 && vcpu->exit_waits ? -EILSEQ : rc;
}

/* Every frame that this machine has built is none of the guest's. */
static void forget_frames(struct lockstep *ls)
{
    if (ls->net != NULL)
        COUNT_SET(ls->peer_sent_count, net_held_count(ls->net));
}

int heal_follow(struct lockstep *ls)
{
    struct heal *heal = &ls->heal;
    struct difference *difference;
    uint64_t began_ns = clock_now_ns(), wishes = (COUNT_GET(heal->word) >> HEAL_WORD_WISHES_SHIFT) + 1;
    int rc;

    COUNT_ADD(ls->divergences, 1);
    COUNT_SET(heal->last_unix, (int64_t)time(NULL));
    COUNT_SET(heal->last_position, ls->machine.position);
    COUNT_SET(heal->took_ns, 0);
    COUNT_SET(heal->disk_compared_bytes, 0);
    COUNT_SET(heal->disk_differing_bytes, 0);
    journal_note(&ls->journal, JOURNAL_DIVERGED, "%s", report_last_error());
    difference = difference_open(ls);
    if (ls->arbiter == NULL || ls->verify == NULL) {
        difference_close(difference, -EILSEQ);
        return -EILSEQ;
    }
    kept_log_break(ls->kept, "the machine was found to differ");
    COUNT_SET(ls->running, false); /* so that this host can not go live: backup_fetch */
    ls->failure = 0;
    forced_sync_discard(ls);
    forget_frames(ls);
    ls->output_ns = 0;
    ls->position_closed = false;
    rc = leave_instruction(ls);
    if (rc == 0 && ls->disk != NULL)
        rc = lockstep_disk_forget(ls);
    if (rc == 0)
        COUNT_SET(heal->word, wishes << HEAL_WORD_WISHES_SHIFT | (ls->machine.position & HEAL_WORD_POSITION_MASK));
    if (rc == 0)
        rc = backup_receive_again(ls, difference);
    difference_close(difference, rc);
    if (rc < 0)
        return rc;
    COUNT_SET(heal->took_ns, clock_now_ns() - began_ns);
    COUNT_ADD(heal->healed, 1);
    COUNT_SET(ls->running, true);
    report_info("the machine is the primary's again at position %llu, %llu ms after it was found to differ",
                (unsigned long long)ls->machine.position, (unsigned long long)(COUNT_GET(heal->took_ns) / NS_PER_MS));
    journal_note(&ls->journal, JOURNAL_HEALED, "the primary's machine again, from position %llu on",
                 (unsigned long long)ls->machine.position);
    return 0;
}
