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

#define PAGES_PER_RECORD (CHANNEL_PAYLOAD_MAX_BYTES / (sizeof(struct event_page) + GUEST_PAGE_BYTES))

/* Clearing the dirty log write-protects what was written, and each page's next write faults once: a forced sync's
 * size is bought with that. Twice a second the faults are lost in the noise. */
#define FORGET_NS (500 * NS_PER_MS)

struct staged_sync {
    struct staged_sync *next;
    size_t bytes;
    uint8_t payload[]; /* of one PAGES record */
};

static bool page_is_zero(const uint8_t *page)
{
    const uint64_t *words = (const void *)page;

    return words[0] == 0 && memcmp(page, page + 8, GUEST_PAGE_BYTES - 8) == 0;
}

/* Builds one PAGES record from up to PAGES_PER_RECORD unsent pages at or after `*page`; returns how many. */
static unsigned log_pages(struct lockstep *ls, uint64_t *page)
{
    const struct guest_memory *memory = &ls->machine.memory;
    uint64_t pages = memory->bytes / GUEST_PAGE_BYTES;
    uint64_t numbers[PAGES_PER_RECORD];
    bool zero[PAGES_PER_RECORD];
    size_t bytes = 0;
    unsigned count = 0;
    uint8_t *at;

    for (; *page < pages && count < PAGES_PER_RECORD; (*page)++) {
        uint64_t *word = &ls->unsent_pages[*page / 64];

        if (*word == 0) { /* skip to the end of an empty word; the loop adds the last one */
            *page |= 63;
            continue;
        }
        if (!(*word >> (*page % 64) & 1))
            continue;
        *word &= ~(UINT64_C(1) << (*page % 64));
        numbers[count] = *page;
        zero[count] = page_is_zero(memory->base + *page * GUEST_PAGE_BYTES);
        bytes += sizeof(struct event_page) + (zero[count] ? 0 : GUEST_PAGE_BYTES);
        count++;
    }
    if (count == 0)
        return 0;
    at = primary_log_begin(ls, EVENT_PAGES, ls->machine.position + 1, bytes);
    for (unsigned i = 0; i < count; i++) {
        struct event_page head = { .gpa = numbers[i] * GUEST_PAGE_BYTES, .bytes = zero[i] ? 0 : GUEST_PAGE_BYTES };

        memcpy(at, &head, sizeof(head));
        at += sizeof(head);
        memcpy(at, memory->base + head.gpa, head.bytes);
        at += head.bytes;
    }
    primary_log_end(ls);
    return count;
}

int forced_sync_forget(struct lockstep *ls)
{
    uint64_t now_ns = clock_now_ns();
    int rc;

    if (ls->unsent_pages == NULL || lockstep_role_now(ls) != ROLE_PRIMARY || now_ns < ls->forgotten_ns + FORGET_NS)
        return 0;
    ls->forgotten_ns = now_ns;
    rc = dirty_collect(ls);
    memset(ls->unsent_pages, 0, (ls->machine.memory.bytes / GUEST_PAGE_BYTES + 63) / 64 * sizeof(uint64_t));
    return rc;
}

int forced_sync_log(struct lockstep *ls)
{
    uint64_t began_ns = clock_now_ns();
    uint64_t page = 0, pages = 0;
    unsigned count;
    int rc;

    if (lockstep_role_now(ls) == ROLE_PRIMARY) {
        rc = dirty_collect(ls);
        if (rc < 0)
            return rc;
        while ((count = log_pages(ls, &page)) > 0)
            pages += count;
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

static int load_pages(struct guest_memory *memory, const struct staged_sync *staged)
{
    const uint8_t *at = staged->payload;

    while (at < staged->payload + staged->bytes) {
        struct event_page head;
        uint8_t *page;

        memcpy(&head, at, sizeof(head));
        at += sizeof(head);
        page = guest_memory_at(memory, head.gpa, GUEST_PAGE_BYTES);
        if (page == NULL) {
            report_error("a forced sync has a page at 0x%llx, outside the guest's memory",
                         (unsigned long long)head.gpa);
            return -EBADMSG;
        }
        if (head.bytes == 0)
            memset(page, 0, GUEST_PAGE_BYTES);
        else
            memcpy(page, at, GUEST_PAGE_BYTES);
        guest_memory_mark(memory, head.gpa, GUEST_PAGE_BYTES);
        at += head.bytes;
    }
    return 0;
}

int forced_sync_load(struct lockstep *ls, const struct channel_record *record)
{
    struct vcpu *vcpu = &ls->machine.vcpu;
    uint64_t began_ns = clock_now_ns();
    struct vcpu_state state;
    int rc = vcpu_complete(vcpu); /* or the last exit's result would land in the new registers */

    if (rc == 0 && vcpu->exit_waits) {
        report_error("the machines differ: a forced sync comes at position %llu, in the midst of an instruction",
                     (unsigned long long)ls->machine.position);
        rc = -EILSEQ;
    }
    for (const struct staged_sync *staged = ls->staged; rc == 0 && staged != NULL; staged = staged->next)
        rc = load_pages(&ls->machine.memory, staged);
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
