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

/* Which words of the page are not as in its copy, stretch by stretch. Returns the bytes of the delta. */
static uint32_t find_changed(const uint8_t *page, const uint8_t *copy, uint64_t changed[EVENT_STRETCHES])
{
    const uint64_t *ours = (const void *)page, *theirs = (const void *)copy;
    uint32_t words = 1;

    for (unsigned stretch = 0; stretch < EVENT_STRETCHES; stretch++, ours += 64, theirs += 64) {
        uint64_t bits = 0;

        if (memcmp(ours, theirs, 512) != 0) /* most are equal, and this is quicker */
            for (unsigned i = 0; i < 64; i++)
                bits |= (uint64_t)(ours[i] != theirs[i]) << i;
        changed[stretch] = bits;
        words += bits != 0 ? 1 + (uint32_t)__builtin_popcountll(bits) : 0;
    }
    return 8 * words;
}

/* How the page is to travel. Its place among the copies is its own from here on, so that pages behind it see it as the other
 * end will; the copy itself is made in pages_write. */
static void choose_form(const uint8_t *bytes, struct page_copies *copies, struct event_page *head,
                        uint64_t changed[EVENT_STRETCHES])
{
    const uint8_t *copy = copies != NULL ? page_copies_find(copies, head->gpa / GUEST_PAGE_BYTES) : NULL;

    head->form = EVENT_PAGE_WHOLE;
    head->bytes = page_is_zero(bytes) ? 0 : GUEST_PAGE_BYTES;
    if (copy != NULL && head->bytes != 0) {
        uint32_t delta_bytes = find_changed(bytes, copy, changed);

        if (delta_bytes <= EVENT_DELTA_BYTES_MAX) {
            head->form = EVENT_PAGE_DELTA;
            head->bytes = delta_bytes;
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
        choose_form(memory->base + head->gpa, copies, head, batch->changed[batch->count]);
        batch->count++;
        batch->bytes += sizeof(*head) + head->bytes;
    }
    return batch->count > 0;
}

/* Of the page, which is the copy afterwards; there may be none. */
static void write_delta(const uint8_t *page, uint8_t *copy, const uint64_t changed[EVENT_STRETCHES], void *at)
{
    const uint64_t *from = (const void *)page;
    uint64_t *word = (uint64_t *)at + 1, *to = (void *)copy, stretches = 0;

    for (unsigned i = 0; i < EVENT_STRETCHES; i++)
        if (changed[i] != 0) {
            stretches |= UINT64_C(1) << i;
            *word++ = changed[i];
        }
    *(uint64_t *)at = stretches;
    for (unsigned i = 0; i < EVENT_STRETCHES; i++)
        for (uint64_t bits = changed[i]; bits != 0; bits &= bits - 1) {
            size_t place = 64 * i + (size_t)__builtin_ctzll(bits);

            *word++ = from[place];
            if (to != NULL)
                to[place] = from[place];
        }
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
        if (head->form == EVENT_PAGE_DELTA) {
            write_delta(page, copy, batch->changed[i], at);
        } else {
            memcpy(at, page, head->bytes);
            if (copy != NULL)
                memcpy(copy, page, GUEST_PAGE_BYTES);
        }
        at += head->bytes;
    }
}

size_t pages_whole_bytes(const void *payload, size_t bytes)
{
    const uint8_t *at = payload, *end = at + bytes;
    size_t whole_bytes = 0;

    while (at < end) {
        const struct event_page *head = (const void *)at;

        whole_bytes += sizeof(*head) + (head->form == EVENT_PAGE_DELTA ? GUEST_PAGE_BYTES : head->bytes);
        at += sizeof(*head) + head->bytes;
    }
    return whole_bytes;
}

static void apply_delta(uint8_t *copy, const void *delta)
{
    const uint64_t *changed = (const uint64_t *)delta + 1;
    uint64_t stretches = *(const uint64_t *)delta, *to = (void *)copy;
    const uint64_t *word = changed + __builtin_popcountll(stretches);

    for (; stretches != 0; stretches &= stretches - 1)
        for (uint64_t bits = *changed++; bits != 0; bits &= bits - 1)
            to[64 * __builtin_ctzll(stretches) + __builtin_ctzll(bits)] = *word++;
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
        if (head->form == EVENT_PAGE_DELTA) {
            copy = page_copies_find(copies, page);
            if (copy == NULL) {
                report_error("the log has changes of the page at 0x%llx, which it has not brought before",
                             (unsigned long long)head->gpa);
                return -EBADMSG;
            }
            apply_delta(copy, at);
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
