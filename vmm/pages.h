/*
 * Guest pages in the log: what an EVENT_PAGES record is filled with, and how it is loaded. Which pages travel is said by
 * a bitmap, one bit a page; a page of zeroes travels as its number alone.
 */
#ifndef FTVMM_VMM_PAGES_H
#define FTVMM_VMM_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/event.h"
#include "vmm/guest_memory.h"

#define PAGES_PER_RECORD (CHANNEL_PAYLOAD_MAX_BYTES / (sizeof(struct event_page) + GUEST_PAGE_BYTES))

/* What goes into one record. */
struct pages_batch {
    unsigned count;
    size_t bytes; /* of the record's payload */
    uint64_t numbers[PAGES_PER_RECORD];
    bool zero[PAGES_PER_RECORD];
};

/* Words of a bitmap for all of the memory. */
static inline uint64_t pages_words(const struct guest_memory *memory)
{
    return (memory->bytes / GUEST_PAGE_BYTES + 63) / 64;
}

/* Takes the next marked pages from number *page on out of `marked`, and moves *page behind them. False: none is left. */
bool pages_take(struct pages_batch *batch, const struct guest_memory *memory, uint64_t *marked, uint64_t *page);
/* Fills in the record. A guest that writes meanwhile makes a page of two halves, and marks it. */
void pages_write(const struct pages_batch *batch, const struct guest_memory *memory, void *payload);
/* Loads the payload of a PAGES record that has passed event_check. 0; -EBADMSG, said in words: outside RAM. */
int pages_load(struct guest_memory *memory, const void *payload, size_t bytes);

#endif
