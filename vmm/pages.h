/*
 * Guest pages in the log: what an EVENT_PAGES record is filled with, and how it is loaded. Which pages travel is said by
 * a bitmap, one bit a page; a page of zeroes travels as its number alone, and one of which the other end has a copy
 * (page_copies.h) as the words that have changed.
 */
#ifndef FTVMM_VMM_PAGES_H
#define FTVMM_VMM_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/event.h"
#include "vmm/guest_memory.h"
#include "vmm/page_copies.h"

/* What goes into one record. */
struct pages_batch {
    unsigned count;
    size_t bytes; /* of the record's payload */
    struct event_page heads[PAGES_PER_RECORD];
    uint64_t changed[PAGES_PER_RECORD][EVENT_STRETCHES]; /* words of those that travel as deltas */
};

/* Words of a bitmap for all of the memory. */
static inline uint64_t pages_words(const struct guest_memory *memory)
{
    return (memory->bytes / GUEST_PAGE_BYTES + 63) / 64;
}

/*
 * Takes the next marked pages from number *page on out of `marked`, and moves *page behind them. False: none is left.
 * `copies` are those that the other end has, too; NULL: it has none, and all pages travel whole.
 */
bool pages_take(struct pages_batch *batch, const struct guest_memory *memory, struct page_copies *copies, uint64_t *marked,
                uint64_t *page);
/*
 * Fills in the record, and brings the copies up to date. A guest that writes meanwhile makes a page of two halves, and
 * marks it; with copies it must stand still from pages_take on.
 */
void pages_write(const struct pages_batch *batch, const struct guest_memory *memory, struct page_copies *copies,
                 void *payload);

/* Bytes of a PAGES record that has passed event_check when all its pages are whole: CHANNEL_PAYLOAD_MAX_BYTES at most. */
size_t pages_whole_bytes(const void *payload, size_t bytes);
/*
 * Writes the payload of such a record to `out` with all its pages whole, and brings the copies up to date. 0; -EBADMSG, said
 * in words: there is no copy of a page that travels as a delta.
 */
int pages_make_whole(struct page_copies *copies, const void *payload, size_t bytes, void *out);

/* Loads the payload of such a record whose pages are all whole. 0; -EBADMSG, said in words: outside RAM. */
int pages_load(struct guest_memory *memory, const void *payload, size_t bytes);

#endif
