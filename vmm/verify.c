/* Logs and compares digests of the machine; see verify.h. */
#include "vmm/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "vmm/dirty.h"
#include "vmm/lockstep.h"
#include "vmm/pages.h"
#include "vmm/ram_digest.h"

#define SEGMENT_PAGES_PER_RECORD 4096u
/* Digesting may take one part in so many of the guest's time. */
#define COST_SHARE 50
/* But a difference shall be found some time: a segment is so much longer at most. 3 GiB written anew cost 0.1 s. */
#define LONGER_MOST 10

int verify_open(struct verify **out, const struct lockstep *ls, bool each_position)
{
    const struct guest_memory *memory = &ls->machine.memory;
    uint64_t pages = memory->bytes / GUEST_PAGE_BYTES;
    struct verify *verify = calloc(1, sizeof(*verify));

    *out = NULL;
    if (verify == NULL)
        return -ENOMEM;
    verify->written_pages = calloc((pages + 63) / 64, sizeof(uint64_t));
    verify->page_digests = calloc(pages, sizeof(uint64_t));
    verify->changed_positions = calloc(pages, sizeof(uint64_t));
    if (verify->written_pages == NULL || verify->page_digests == NULL || verify->changed_positions == NULL) {
        verify_close(verify);
        return -ENOMEM;
    }
    verify->each_position = each_position;
    *out = verify;
    return 0;
}

void verify_page(struct verify *verify, uint64_t page, const uint8_t *bytes)
{
    static const uint8_t zeroes[GUEST_PAGE_BYTES];

    uint64_t before = verify->page_digests[page], now = page_digest(bytes != NULL ? bytes : zeroes, page);

    verify->ram_digest += now - before;
    verify->page_digests[page] = now;
    if (now != before)
        verify->changed_positions[page] = verify->position;
}

void verify_all(struct verify *verify, const struct lockstep *ls)
{
    const struct guest_memory *memory = &ls->machine.memory;

    for (uint64_t page = 0; page < memory->bytes / GUEST_PAGE_BYTES; page++)
        verify_page(verify, page, memory->base + page * GUEST_PAGE_BYTES);
}

void verify_close(struct verify *verify)
{
    if (verify == NULL)
        return;
    free(verify->written_pages);
    free(verify->page_digests);
    free(verify->changed_positions);
    free(verify);
}

/* Takes the pages written since the last segment and renews their digests. */
int verify_renew(struct verify *verify, struct lockstep *ls)
{
    const struct guest_memory *memory = &ls->machine.memory;
    uint64_t began_ns = clock_now_ns(), pages = 0;
    int rc = dirty_collect(ls);

    if (rc < 0)
        return rc;
    verify->position = ls->machine.position;
    for (uint64_t i = 0; i < pages_words(memory); i++)
        for (uint64_t word = verify->written_pages[i]; word != 0; word &= word - 1) {
            uint64_t page = 64 * i + (uint64_t)__builtin_ctzll(word);

            verify_page(verify, page, memory->base + page * GUEST_PAGE_BYTES);
            pages++;
        }
    COUNT_ADD(verify->pages, pages);
    verify->segment_cost_ns = clock_now_ns() - began_ns;
    COUNT_ADD(verify->spent_ns, verify->segment_cost_ns);
    return 0;
}

void verify_begin(struct verify *verify, const struct lockstep *ls)
{
    memset(verify->written_pages, 0, pages_words(&ls->machine.memory) * sizeof(uint64_t));
    verify->segment_time_ns = ls->machine.time_ns;
    verify->collected = false;
}

static void log_segment_pages(struct verify *verify, struct lockstep *ls)
{
    uint64_t pages = ls->machine.memory.bytes / GUEST_PAGE_BYTES;
    uint64_t page = 0;

    while (page < pages) {
        struct event_segment_page batch[SEGMENT_PAGES_PER_RECORD];
        size_t count = 0;

        for (; page < pages && count < SEGMENT_PAGES_PER_RECORD; page++)
            if (verify->written_pages[page / 64] >> (page % 64) & 1)
                batch[count++] = (struct event_segment_page){ .page = page, .digest = verify->page_digests[page] };
        if (count == 0)
            break;
        memcpy(primary_log_begin(ls, EVENT_SEGMENT_PAGES, ls->machine.position, count * sizeof(batch[0])), batch,
               count * sizeof(batch[0]));
        primary_log_end(ls);
    }
}

static int log_segment(struct verify *verify, struct lockstep *ls)
{
    struct event_segment *segment;
    struct vcpu_state state;
    int rc = verify_renew(verify, ls);

    if (rc == 0)
        rc = vcpu_save(&ls->machine.vcpu, &state);
    if (rc < 0)
        return rc;
    if (verify->each_position)
        log_segment_pages(verify, ls);
    segment = primary_log_begin(ls, EVENT_SEGMENT, ls->machine.position, sizeof(*segment));
    segment->ram_digest = verify->ram_digest;
    segment->vcpu = state;
    primary_log_end(ls);
    verify_begin(verify, ls);
    return 0;
}

static void log_registers(struct lockstep *ls)
{
    struct vcpu_registers *registers =
        primary_log_begin(ls, EVENT_VERIFY, ls->machine.position, sizeof(*registers));

    vcpu_get_registers(&ls->machine.vcpu, registers);
    primary_log_end(ls);
}

uint64_t verify_segment_ns(const struct verify *verify, uint64_t asked_ns)
{
    uint64_t bearable_ns = verify->segment_cost_ns * COST_SHARE;

    if (verify->each_position || bearable_ns < asked_ns)
        return asked_ns;
    return bearable_ns < asked_ns * LONGER_MOST ? bearable_ns : asked_ns * LONGER_MOST;
}

int verify_log(struct verify *verify, struct lockstep *ls)
{
    if (verify->each_position)
        log_registers(ls);
    if (ls->machine.time_ns < verify->segment_time_ns + verify_segment_ns(verify, ls->options.segment_ns))
        return 0;
    return log_segment(verify, ls);
}

static int compare_registers(struct lockstep *ls, const struct vcpu_registers *theirs)
{
    struct vcpu_registers ours;
    uint64_t values[2] = { 0, 0 };
    const char *name;

    vcpu_get_registers(&ls->machine.vcpu, &ours);
    name = vcpu_registers_difference(&ours, theirs, values);
    if (name == NULL) {
        COUNT_ADD(ls->positions_compared, 1);
        return 0;
    }
    report_error("the machines differ: at position %llu (exit kind %d, RIP 0x%llx) %s is 0x%llx here and 0x%llx at the "
                 "primary", (unsigned long long)ls->machine.position, (int)ls->machine.exit,
                 (unsigned long long)ours.regs.rip, name, (unsigned long long)values[0],
                 (unsigned long long)values[1]);
    return -EILSEQ;
}

static int compare_pages(struct verify *verify, struct lockstep *ls, const struct channel_record *record)
{
    const struct event_segment_page *theirs = record->payload;
    uint64_t pages = ls->machine.memory.bytes / GUEST_PAGE_BYTES;

    if (!verify->collected) {
        int rc = verify_renew(verify, ls);
        if (rc < 0)
            return rc;
        verify->collected = true;
    }
    for (size_t i = 0; i < record->bytes / sizeof(theirs[0]); i++) {
        if (theirs[i].page < pages && verify->page_digests[theirs[i].page] == theirs[i].digest)
            continue;
        report_error("the machines differ: at position %llu the page at 0x%llx has digest %016llx here and %016llx at "
                     "the primary", (unsigned long long)ls->machine.position,
                     (unsigned long long)theirs[i].page * GUEST_PAGE_BYTES,
                     (unsigned long long)(theirs[i].page < pages ? verify->page_digests[theirs[i].page] : 0),
                     (unsigned long long)theirs[i].digest);
        return -EILSEQ;
    }
    return 0;
}

static int compare_segment(struct verify *verify, struct lockstep *ls, const struct event_segment *theirs)
{
    struct vcpu_state state;
    uint64_t values[2];
    const char *name;
    int rc = verify->collected ? 0 : verify_renew(verify, ls);

    if (rc == 0)
        rc = vcpu_save(&ls->machine.vcpu, &state);
    if (rc < 0)
        return rc;
    if (theirs->ram_digest != verify->ram_digest) {
        report_error("the machines differ: at position %llu RAM has digest %016llx here and %016llx at the primary; %s",
                     (unsigned long long)ls->machine.position, (unsigned long long)verify->ram_digest,
                     (unsigned long long)theirs->ram_digest,
                     verify->each_position ? "this backup has written a page that the primary has not"
                                           : "--verify on the primary would have named the page");
        return -EILSEQ;
    }
    name = vcpu_state_difference(&state, &theirs->vcpu, values);
    if (name != NULL) {
        report_error("the machines differ: at position %llu %s is 0x%llx here and 0x%llx at the primary",
                     (unsigned long long)ls->machine.position, name, (unsigned long long)values[0],
                     (unsigned long long)values[1]);
        return -EILSEQ;
    }
    verify_begin(verify, ls);
    COUNT_ADD(ls->segments_compared, 1);
    return 0;
}

int verify_compare(struct verify *verify, struct lockstep *ls, const struct channel_record *record)
{
    if (verify == NULL || (record->kind != EVENT_SEGMENT && !verify->each_position)) {
        report_error("the log has %s records although its start announced none", event_name(record->kind));
        return -EBADMSG;
    }
    if (record->kind == EVENT_VERIFY)
        return compare_registers(ls, record->payload);
    if (record->kind == EVENT_SEGMENT_PAGES)
        return compare_pages(verify, ls, record);
    return compare_segment(verify, ls, record->payload);
}
