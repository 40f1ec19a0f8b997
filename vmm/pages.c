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

/* Which lines of the page are not as in its copy. */
static uint64_t changed_lines(const uint8_t *page, const uint8_t *copy)
{
    const uint64_t *ours = (const void *)page, *theirs = (const void *)copy;
    uint64_t lines = 0;

    for (unsigned line = 0; line < 64; line++, ours += 8, theirs += 8) {
        uint64_t differ = (ours[0] ^ theirs[0]) | (ours[1] ^ theirs[1]) | (ours[2] ^ theirs[2]) | (ours[3] ^ theirs[3]) |
                          (ours[4] ^ theirs[4]) | (ours[5] ^ theirs[5]) | (ours[6] ^ theirs[6]) | (ours[7] ^ theirs[7]);

        lines |= (uint64_t)(differ != 0) << line;
    }
    return lines;
}

/* How the page is to travel. Its place among the copies is its own from here on, so that pages behind it see it as the other
 * end will; the copy itself is made in pages_write. */
static void choose_form(const uint8_t *bytes, struct page_copies *copies, struct event_page *head, uint64_t *lines)
{
    const uint8_t *copy = copies != NULL ? page_copies_find(copies, head->gpa / GUEST_PAGE_BYTES) : NULL;

    head->form = EVENT_PAGE_WHOLE;
    head->bytes = page_is_zero(bytes) ? 0 : GUEST_PAGE_BYTES;
    if (copy != NULL && head->bytes != 0) {
        unsigned count;

        *lines = changed_lines(bytes, copy);
        count = (unsigned)__builtin_popcountll(*lines);
        if (count <= EVENT_LINES_MAX) {
            head->form = EVENT_PAGE_LINES;
            head->bytes = (uint32_t)sizeof(*lines) + count * EVENT_LINE_BYTES;
        }
    }
    if (copies != NULL && copy == NULL)
        (void)page_copies_take(copies, head->gpa / GUEST_PAGE_BYTES);
}

bool pages_take(struct pages_batch *batch, const struct guest_memory *memory, struct page_copies *copies, uint64_t *marked,
                uint64_t *page)
{
    uint64_t pages = memory->bytes / GUEST_PAGE_BYTES;

    batch->count = 0;
    batch->bytes = 0;
    for (; *page < pages && batch->count < PAGES_PER_RECORD; (*page)++) {
        uint64_t *word = &marked[*page / 64];
        struct event_page *head = &batch->heads[batch->count];

        if (*word == 0) { /* skip to the end of an empty word; the loop adds the last one */
            *page |= 63;
            continue;
        }
        if (!(*word >> (*page % 64) & 1))
            continue;
        *word &= ~(UINT64_C(1) << (*page % 64));
        head->gpa = *page * GUEST_PAGE_BYTES;
        choose_form(memory->base + head->gpa, copies, head, &batch->lines[batch->count]);
        batch->count++;
        batch->bytes += sizeof(*head) + head->bytes;
    }
    return batch->count > 0;
}

void pages_write(const struct pages_batch *batch, const struct guest_memory *memory, struct page_copies *copies,
                 void *payload)
{
    uint8_t *at = payload;

    for (unsigned i = 0; i < batch->count; i++) {
        const struct event_page *head = &batch->heads[i];
        const uint8_t *page = memory->base + head->gpa;
        /* NULL: a page behind this one has its place. */
        uint8_t *copy = copies != NULL ? page_copies_find(copies, head->gpa / GUEST_PAGE_BYTES) : NULL;

        memcpy(at, head, sizeof(*head));
        at += sizeof(*head);
        if (head->form == EVENT_PAGE_WHOLE) {
            memcpy(at, page, head->bytes);
            if (copy != NULL)
                memcpy(copy, page, GUEST_PAGE_BYTES);
            at += head->bytes;
            continue;
        }
        memcpy(at, &batch->lines[i], sizeof(batch->lines[i]));
        at += sizeof(batch->lines[i]);
        for (uint64_t lines = batch->lines[i]; lines != 0; lines &= lines - 1) {
            size_t offset = (size_t)__builtin_ctzll(lines) * EVENT_LINE_BYTES;

            memcpy(at, page + offset, EVENT_LINE_BYTES);
            if (copy != NULL)
                memcpy(copy + offset, page + offset, EVENT_LINE_BYTES);
            at += EVENT_LINE_BYTES;
        }
    }
}

size_t pages_whole_bytes(const void *payload, size_t bytes)
{
    const uint8_t *at = payload, *end = at + bytes;
    size_t whole_bytes = 0;

    while (at < end) {
        const struct event_page *head = (const void *)at;

        whole_bytes += sizeof(*head) + (head->form == EVENT_PAGE_LINES ? GUEST_PAGE_BYTES : head->bytes);
        at += sizeof(*head) + head->bytes;
    }
    return whole_bytes;
}

static void copy_lines(uint8_t *copy, const uint8_t *at)
{
    uint64_t lines;

    memcpy(&lines, at, sizeof(lines));
    at += sizeof(lines);
    for (; lines != 0; lines &= lines - 1, at += EVENT_LINE_BYTES)
        memcpy(copy + (size_t)__builtin_ctzll(lines) * EVENT_LINE_BYTES, at, EVENT_LINE_BYTES);
}

int pages_make_whole(struct page_copies *copies, const void *payload, size_t bytes, void *out)
{
    const uint8_t *at = payload, *end = at + bytes;
    uint8_t *to = out;

    while (at < end) {
        const struct event_page *head = (const void *)at;
        struct event_page whole = { .gpa = head->gpa, .bytes = head->bytes, .form = EVENT_PAGE_WHOLE };
        uint64_t page = head->gpa / GUEST_PAGE_BYTES;
        uint8_t *copy;

        at += sizeof(*head);
        if (head->form == EVENT_PAGE_LINES) {
            copy = page_copies_find(copies, page);
            if (copy == NULL) {
                report_error("the log has changes of the page at 0x%llx, which it has not brought before",
                             (unsigned long long)head->gpa);
                return -EBADMSG;
            }
            copy_lines(copy, at);
            whole.bytes = GUEST_PAGE_BYTES;
        } else {
            copy = page_copies_take(copies, page);
            memcpy(copy, at, head->bytes);
            memset(copy + head->bytes, 0, GUEST_PAGE_BYTES - head->bytes);
        }
        at += head->bytes;
        memcpy(to, &whole, sizeof(whole));
        memcpy(to + sizeof(whole), copy, whole.bytes);
        to += sizeof(whole) + whole.bytes;
    }
    return 0;
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
