/* Finds out where two copies of a disk differ, beside the guest; see heal_disk.h. */
#include "vmm/heal_disk.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "base/report.h"
#include "vmm/lockstep.h"

struct heal_disk {
    struct lockstep *ls;
    pthread_t thread; /* reads; asleep but for that */
    sem_t work;
    _Atomic bool closing;

    /* One stretch at a time. The semaphore hands over what is asked for; H2: the thread's release of `busy` pairs with
     * is_idle's acquire: what was found. */
    _Atomic bool busy;
    struct event_stretch ours, theirs;
    bool answers; /* backup: it compares the two, and tells */
    int rc;       /* 0, or why ours could not be read */

    /* -- primary, machine thread -- */
    uint64_t next;      /* stretch to be logged */
    bool asked, awaits; /* it has been asked for; the answer to the one before is to come */
};

static bool is_mirrored(const struct lockstep *ls)
{
    return ls->disk != NULL && disk_mode_of(ls->disk) == DISK_MIRRORED;
}

static bool is_idle(const struct heal_disk *own)
{
    return !atomic_load_explicit(&own->busy, memory_order_acquire); /* H2 */
}

/* The answer about that stretch to the primary that took this wish up, but for the shares. */
static uint64_t answer_about(uint64_t wish, uint64_t stretch)
{
    return (wish & HEAL_WORD_WISHES_MASK) | HEAL_WORD_ANSWER |
           (stretch & HEAL_WORD_STRETCH_MASK) << HEAL_WORD_STRETCH_SHIFT;
}

static void count(struct heal *heal, const struct disk *disk, uint64_t stretch, uint32_t shares)
{
    if (shares != 0 && COUNT_GET(heal->disk_differing_bytes) == 0)
        COUNT_SET(heal->disk_first_differing,
                  (stretch * DISK_STRETCH_SHARES + (unsigned)__builtin_ctz(shares)) * DISK_SHARE_BYTES);
    COUNT_ADD(heal->disk_compared_bytes, disk_shares_bytes(disk, stretch, UINT32_MAX));
    COUNT_ADD(heal->disk_differing_bytes, disk_shares_bytes(disk, stretch, shares));
}

/* ---- the thread ---- */

/* Which shares are not the same. What cannot be read here can perhaps be written. */
static uint32_t compare(const struct heal_disk *own)
{
    uint32_t shares = own->rc < 0 ? UINT32_MAX : 0;

    for (unsigned i = 0; i < DISK_STRETCH_SHARES; i++)
        shares |= (uint32_t)(own->ours.digests[i] != own->theirs.digests[i]) << i;
    return shares;
}

static void *heal_disk_run(void *arg)
{
    struct heal_disk *own = arg;
    struct heal *heal = &own->ls->heal;

    for (;;) {
        uint64_t answer = 0;

        while (sem_wait(&own->work) < 0 && errno == EINTR)
            ;
        if (COUNT_GET(own->closing))
            return NULL;
        own->rc = disk_digest(own->ls->disk, own->ours.number, own->ours.digests);
        if (own->answers) {
            uint32_t shares = compare(own);

            answer = answer_about(COUNT_GET(heal->word), own->ours.number) | shares;
            count(heal, own->ls->disk, own->ours.number, shares);
        }
        atomic_store_explicit(&own->busy, false, memory_order_release); /* H2 */
        if (answer != 0) /* H3 pairs io_thread.c: not busy before it is told, or the next would come too early */
            atomic_store_explicit(&heal->word, answer, memory_order_release);
        else
            lockstep_wake(own->ls);
        fault_point("heal-stretch-read");
    }
}

static void ask(struct heal_disk *own, uint64_t stretch)
{
    own->ours.number = stretch;
    COUNT_SET(own->busy, true); /* relaxed: the semaphore releases it */
    sem_post(&own->work);
}

static int open_thread(struct lockstep *ls)
{
    struct heal_disk *own;
    int rc;

    if (ls->heal.disk != NULL)
        return 0;
    own = calloc(1, sizeof(*own));
    if (own == NULL)
        return -ENOMEM;
    own->ls = ls;
    sem_init(&own->work, 0, 0);
    rc = -pthread_create(&own->thread, NULL, heal_disk_run, own);
    if (rc < 0) {
        sem_destroy(&own->work);
        free(own);
        report_error("the thread that compares the disk does not start: %s", strerror(-rc));
        return rc;
    }
    ls->heal.disk = own;
    return 0;
}

void heal_disk_close(struct lockstep *ls)
{
    struct heal_disk *own = ls->heal.disk;

    if (own == NULL)
        return;
    COUNT_SET(own->closing, true);
    sem_post(&own->work);
    pthread_join(own->thread, NULL);
    sem_destroy(&own->work);
    free(own);
    ls->heal.disk = NULL;
}

/* ---- primary, machine thread ---- */

int heal_disk_begin(struct lockstep *ls)
{
    struct heal *heal = &ls->heal;
    int rc;

    COUNT_SET(heal->disk_compared_bytes, 0);
    COUNT_SET(heal->disk_differing_bytes, 0);
    if (!is_mirrored(ls))
        return 0;
    rc = open_thread(ls);
    if (rc == 0)
        rc = disk_track(ls->disk, false);
    if (rc < 0)
        return rc;
    heal->disk->next = 0;
    heal->disk->asked = heal->disk->awaits = false;
    return 0;
}

/* Which shares of the stretch that was logged last the backup has to be sent. False: it has not answered. */
static bool take_answer(struct lockstep *ls)
{
    struct heal_disk *own = ls->heal.disk;
    uint64_t stretch = own->next - 1, answer = COUNT_GET(ls->heal.answer); /* relaxed: it is all that is told */

    if (answer >> HEAL_WORD_STRETCH_SHIFT != answer_about(ls->heal.begun, stretch) >> HEAL_WORD_STRETCH_SHIFT)
        return false;
    disk_mark_shares(ls->disk, stretch, (uint32_t)answer);
    count(&ls->heal, ls->disk, stretch, (uint32_t)answer);
    return true;
}

int heal_disk_serve(struct lockstep *ls)
{
    struct heal_disk *own = ls->heal.disk;
    int rc;

    if (!is_mirrored(ls))
        return 1;
    if (own->awaits && !take_answer(ls))
        return 0;
    own->awaits = false;
    if (own->next == disk_stretches(ls->disk))
        return 1;
    if (!is_idle(own))
        return 0;
    if (!own->asked) { /* the first; what a healing before has left in `ours` is of no use */
        own->answers = false;
        own->asked = true;
        ask(own, own->next);
        return 0;
    }
    if (own->rc < 0) {
        report_error("the disk cannot be read to compare it with the backup's copy: %s", strerror(-own->rc));
        return own->rc;
    }
    rc = transfer_stretch(&ls->heal.transfer, &own->ours);
    if (rc < 0)
        return rc;
    own->awaits = true;
    own->next++;
    if (own->next < disk_stretches(ls->disk)) /* while the backup reads that one */
        ask(own, own->next);
    return 0;
}

void heal_disk_drop(struct lockstep *ls)
{
    if (is_mirrored(ls))
        disk_untrack(ls->disk);
}

/* ---- backup, machine thread ---- */

int heal_disk_compare(struct lockstep *ls, const struct event_stretch *theirs)
{
    struct heal_disk *own;
    int rc;

    if (!is_mirrored(ls) || theirs->number >= disk_stretches(ls->disk)) {
        report_error("the log brings digests of a part of the disk (stretch %llu) that this host has no copy of",
                     (unsigned long long)theirs->number);
        return -EBADMSG;
    }
    rc = open_thread(ls);
    if (rc < 0)
        return rc;
    own = ls->heal.disk;
    if (!is_idle(own)) {
        report_error("the log brings digests of stretch %llu of the disk before those of stretch %llu are answered",
                     (unsigned long long)theirs->number, (unsigned long long)own->ours.number);
        return -EBADMSG;
    }
    own->theirs = *theirs;
    own->answers = true;
    ask(own, theirs->number);
    return 0;
}
