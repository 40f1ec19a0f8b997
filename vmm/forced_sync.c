/*
 * Forced sync: where the guest runs long without an exit, the primary makes a position out of the instant by
 * shipping the whole vCPU and the pages written since a position not long ago; the backup, which still stands at
 * the position before, loads them instead of running. Devices need not travel: they change at positions only. Of a page
 * that has travelled before only the words that have changed since do so again (page_copies.h).
 *
 * The backup keeps the pages aside until the SYNC record has come, so that a primary that dies in the midst
 * leaves a backup that still can run by itself.
 */
#include "vmm/lockstep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "vmm/dirty.h"
#include "vmm/pages.h"

/* Clearing the dirty log write-protects what was written, and each page's next write faults once: a forced sync's
 * size is bought with that. Twice a second the faults are lost in the noise. A guest that writes so much meanwhile that a
 * forced sync would be a long pause has its pages forgotten more often, up to fifty times a second. */
#define FORGET_SELDOM_NS (500 * NS_PER_MS)
#define FORGET_OFTEN_NS  (20 * NS_PER_MS)
#define FORGET_PAGES     2048u

struct staged_sync {
    struct staged_sync *next;
    size_t bytes;
    uint8_t payload[]; /* of one PAGES record */
};

uint64_t forced_sync_forget_next(uint64_t interval_ns, uint64_t pages)
{
    if (pages > FORGET_PAGES)
        interval_ns /= 2;
    else if (pages < FORGET_PAGES / 4)
        interval_ns *= 2;
    if (interval_ns < FORGET_OFTEN_NS)
        return FORGET_OFTEN_NS;
    return interval_ns > FORGET_SELDOM_NS ? FORGET_SELDOM_NS : interval_ns;
}

/* Both machines are equal at this position: nothing has to be sent of what was written before. */
static void forget(struct lockstep *ls)
{
    memset(ls->unsent_pages, 0, pages_words(&ls->machine.memory) * sizeof(uint64_t));
}

void forced_sync_begin(struct lockstep *ls)
{
    if (ls->unsent_pages != NULL)
        forget(ls);
    forced_sync_discard(ls);
    page_copies_clear(ls->page_copies);
}

int forced_sync_forget(struct lockstep *ls)
{
    uint64_t now_ns = clock_now_ns(), pages = 0;
    int rc;

    if (ls->unsent_pages == NULL || lockstep_role_now(ls) != ROLE_PRIMARY)
        return 0;
    if (ls->forget_interval_ns == 0)
        ls->forget_interval_ns = FORGET_SELDOM_NS;
    if (now_ns < ls->forgotten_ns + ls->forget_interval_ns)
        return 0;
    ls->forgotten_ns = now_ns;
    rc = dirty_collect(ls);
    for (uint64_t i = 0; i < pages_words(&ls->machine.memory); i++)
        pages += (uint64_t)__builtin_popcountll(ls->unsent_pages[i]);
    ls->forget_interval_ns = forced_sync_forget_next(ls->forget_interval_ns, pages);
    forget(ls);
    return rc;
}

/* Logs the unsent pages, and counts them. */
static void log_pages(struct lockstep *ls)
{
    const struct guest_memory *memory = &ls->machine.memory;
    struct pages_batch batch;
    uint64_t page = 0, pages = 0;

    while (pages_take(&batch, memory, ls->page_copies, ls->unsent_pages, &page)) {
        pages_write(&batch, memory, ls->page_copies,
                    primary_log_begin(ls, EVENT_PAGES, ls->machine.position + 1, batch.bytes));
        primary_log_end(ls);
        pages += batch.count;
        for (unsigned i = 0; i < batch.count; i++) {
            COUNT_ADD(ls->forced_zero_pages, batch.heads[i].bytes == 0);
            COUNT_ADD(ls->forced_delta_pages, batch.heads[i].form == EVENT_PAGE_DELTA);
        }
        COUNT_ADD(ls->forced_bytes, channel_frame_bytes((uint32_t)batch.bytes));
    }
    COUNT_ADD(ls->forced_pages, pages);
    if (pages > COUNT_GET(ls->forced_max_pages))
        COUNT_SET(ls->forced_max_pages, pages);
}

/* Without the zeroes at its end: of XSAVE's area most CPUs use a fifth. */
static size_t state_bytes(const struct vcpu_state *state)
{
    const uint64_t *words = (const void *)state;
    size_t count = sizeof(*state) / 8;

    while (count > EVENT_SYNC_BYTES_MIN / 8 && words[count - 1] == 0)
        count--;
    return 8 * count;
}

int forced_sync_log(struct lockstep *ls)
{
    uint64_t began_ns = clock_now_ns(), took_ns;
    int rc;

    if (lockstep_role_now(ls) == ROLE_PRIMARY) {
        struct vcpu_state state; /* saved before the ring is asked: saving may fail, and a record cannot be undone */
        size_t bytes;

        rc = dirty_collect(ls);
        if (rc == 0)
            rc = vcpu_save(&ls->machine.vcpu, &state);
        if (rc < 0)
            return rc;
        log_pages(ls);
        bytes = state_bytes(&state);
        memcpy(primary_log_begin(ls, EVENT_SYNC, ls->machine.position + 1, bytes), &state, bytes);
        primary_log_end(ls);
        COUNT_ADD(ls->forced_syncs, 1);
        COUNT_ADD(ls->forced_bytes, channel_frame_bytes((uint32_t)bytes));
        took_ns = clock_now_ns() - began_ns;
        COUNT_ADD(ls->forced_ns, took_ns);
        COUNT_SET(ls->forced_took_ns, took_ns);
        histogram_record(&ls->forced_pause_ns, took_ns);
    }
    machine_force_position(&ls->machine);
    return 0;
}

int forced_sync_stage(struct lockstep *ls, struct channel_record *record)
{
    size_t bytes = pages_whole_bytes(record->payload, record->bytes);
    struct staged_sync *staged = malloc(sizeof(*staged) + bytes);
    int rc;

    if (staged == NULL) {
        report_error("no memory to keep the pages of a forced sync");
        return -ENOMEM;
    }
    rc = pages_make_whole(ls->page_copies, record->payload, record->bytes, staged->payload);
    if (rc < 0) {
        free(staged);
        return rc;
    }
    staged->bytes = bytes;
    staged->next = ls->staged;
    ls->staged = staged;
    record->payload = staged->payload;
    record->bytes = (uint32_t)bytes;
    return 0;
}

int forced_sync_load(struct lockstep *ls, const struct channel_record *record)
{
    struct vcpu *vcpu = &ls->machine.vcpu;
    uint64_t began_ns = clock_now_ns();
    struct vcpu_state state = { 0 };
    int rc = vcpu_complete(vcpu); /* or the last exit's result would land in the new registers */

    if (rc == 0 && vcpu->exit_waits) {
        report_error("the machines differ: a forced sync comes at position %llu, in the midst of an instruction",
                     (unsigned long long)ls->machine.position);
        rc = -EILSEQ;
    }
    for (const struct staged_sync *staged = ls->staged; rc == 0 && staged != NULL; staged = staged->next)
        rc = pages_load(&ls->machine.memory, staged->payload, staged->bytes);
    forced_sync_discard(ls);
    if (rc < 0)
        return rc;
    memcpy(&state, record->payload, record->bytes);
    rc = vcpu_load(vcpu, &state);
    if (rc == 0)
        rc = vcpu_complete(vcpu); /* refreshes what the shared page tells of the vCPU */
    if (rc < 0)
        return rc;
    machine_force_position(&ls->machine);
    COUNT_ADD(ls->forced_syncs, 1);
    COUNT_ADD(ls->forced_ns, clock_now_ns() - began_ns);
    histogram_record(&ls->forced_pause_ns, clock_now_ns() - began_ns);
    return 0;
}

void forced_sync_discard(struct lockstep *ls)
{
    while (ls->staged != NULL) {
        struct staged_sync *next = ls->staged->next;

        free(ls->staged);
        ls->staged = next;
    }
}
