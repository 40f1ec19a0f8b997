/* Fills in and loads records of guest pages; see pages.h. */
#include "vmm/pages.h"

#include <errno.h>
#include <string.h>

#include "base/report.h"

static bool page_is_zero(const uint8_t *page)
{
    const uint64_t *words = (const void *)page;

    return words[0] == 0 && memcmp(page, page + 8, GUEST_PAGE_BYTES - 8) == 0;
}

bool pages_take(struct pages_batch *batch, const struct guest_memory *memory, uint64_t *marked, uint64_t *page)
{
    uint64_t pages = memory->bytes / GUEST_PAGE_BYTES;

    batch->count = 0;
    batch->bytes = 0;
    for (; *page < pages && batch->count < PAGES_PER_RECORD; (*page)++) {
        uint64_t *word = &marked[*page / 64];
        bool zero;

        if (*word == 0) { /* skip to the end of an empty word; the loop adds the last one */
            *page |= 63;
            continue;
        }
        if (!(*word >> (*page % 64) & 1))
            continue;
        *word &= ~(UINT64_C(1) << (*page % 64));
        zero = page_is_zero(memory->base + *page * GUEST_PAGE_BYTES);
        batch->numbers[batch->count] = *page;
        batch->zero[batch->count++] = zero;
        batch->bytes += sizeof(struct event_page) + (zero ? 0 : GUEST_PAGE_BYTES);
    }
    return batch->count > 0;
}

void pages_write(const struct pages_batch *batch, const struct guest_memory *memory, void *payload)
{
    uint8_t *at = payload;

    for (unsigned i = 0; i < batch->count; i++) {
        struct event_page head = {
            .gpa = batch->numbers[i] * GUEST_PAGE_BYTES, .bytes = batch->zero[i] ? 0 : GUEST_PAGE_BYTES
        };

        memcpy(at, &head, sizeof(head));
        at += sizeof(head);
        memcpy(at, memory->base + head.gpa, head.bytes);
        at += head.bytes;
    }
}

int pages_load(struct guest_memory *memory, const void *payload, size_t bytes)
{
    const uint8_t *at = payload, *end = at + bytes;

    while (at < end) {
        struct event_page head;
        uint8_t *page;

        memcpy(&head, at, sizeof(head));
        at += sizeof(head);
        page = guest_memory_at(memory, head.gpa, GUEST_PAGE_BYTES);
        if (page == NULL) {
            report_error("the log has a page at 0x%llx, outside the guest's memory", (unsigned long long)head.gpa);
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
