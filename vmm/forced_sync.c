/*
 * Forced sync: where the guest runs long without an exit, the primary makes a position out of the instant by
 * shipping the whole vCPU and the pages written since a position not long ago; the backup, which still stands at
 * the position before, loads them instead of running. Devices need not travel: they change at positions only.
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
 * size is bought with that. Twice a second the faults are lost in the noise. */
#define FORGET_NS (500 * NS_PER_MS)

struct staged_sync {
    struct staged_sync *next;
    size_t bytes;
    uint8_t payload[]; /* of one PAGES record */
};

/* Logs the unsent pages; returns how many. */
static uint64_t log_pages(struct lockstep *ls)
{
    const struct guest_memory *memory = &ls->machine.memory;
    struct pages_batch batch;
    uint64_t page = 0, pages = 0;

    while (pages_take(&batch, memory, ls->unsent_pages, &page)) {
        pages_write(&batch, memory, primary_log_begin(ls, EVENT_PAGES, ls->machine.position + 1, batch.bytes));
        primary_log_end(ls);
        pages += batch.count;
    }
    return pages;
}

int forced_sync_forget(struct lockstep *ls)
{
    uint64_t now_ns = clock_now_ns();
    int rc;

    if (ls->unsent_pages == NULL || lockstep_role_now(ls) != ROLE_PRIMARY || now_ns < ls->forgotten_ns + FORGET_NS)
        return 0;
    ls->forgotten_ns = now_ns;
    rc = dirty_collect(ls);
    memset(ls->unsent_pages, 0, pages_words(&ls->machine.memory) * sizeof(uint64_t));
    return rc;
}

int forced_sync_log(struct lockstep *ls)
{
    uint64_t began_ns = clock_now_ns();
    uint64_t pages;
    int rc;

    if (lockstep_role_now(ls) == ROLE_PRIMARY) {
        rc = dirty_collect(ls);
        if (rc < 0)
            return rc;
        pages = log_pages(ls);
        struct vcpu_state state; /* saved before the ring is asked: saving may fail, and a record cannot be undone */
        rc = vcpu_save(&ls->machine.vcpu, &state);
        if (rc < 0)
            return rc;
        memcpy(primary_log_begin(ls, EVENT_SYNC, ls->machine.position + 1, sizeof(state)), &state, sizeof(state));
        primary_log_end(ls);
        COUNT_ADD(ls->forced_syncs, 1);
        COUNT_ADD(ls->forced_pages, pages);
        if (pages > COUNT_GET(ls->forced_max_pages))
            COUNT_SET(ls->forced_max_pages, pages);
        COUNT_ADD(ls->forced_ns, clock_now_ns() - began_ns);
    }
    machine_force_position(&ls->machine);
    return 0;
}

int forced_sync_stage(struct lockstep *ls, const struct channel_record *record)
{
    struct staged_sync *staged = malloc(sizeof(*staged) + record->bytes);

    if (staged == NULL) {
        report_error("no memory to keep the pages of a forced sync");
        return -ENOMEM;
    }
    staged->bytes = record->bytes;
    memcpy(staged->payload, record->payload, record->bytes);
    staged->next = ls->staged;
    ls->staged = staged;
    return 0;
}

int forced_sync_load(struct lockstep *ls, const struct channel_record *record)
{
    struct vcpu *vcpu = &ls->machine.vcpu;
    uint64_t began_ns = clock_now_ns();
    struct vcpu_state state;
    int rc = vcpu_complete(vcpu); /* or the last exit's result would land in the new registers */

    for (const struct staged_sync *staged = ls->staged; rc == 0 && staged != NULL; staged = staged->next)
        rc = pages_load(&ls->machine.memory, staged->payload, staged->bytes);
    forced_sync_discard(ls);
    if (rc < 0)
        return rc;
    memcpy(&state, record->payload, sizeof(state));
    rc = vcpu_load(vcpu, &state);
    if (rc == 0)
        rc = vcpu_complete(vcpu); /* refreshes what the shared page tells of the vCPU */
    if (rc < 0)
        return rc;
    machine_force_position(&ls->machine);
    COUNT_ADD(ls->forced_syncs, 1);
    COUNT_ADD(ls->forced_ns, clock_now_ns() - began_ns);
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
