/*
 * Copies of guest pages as they last travelled in a forced sync, alike at both ends of the log: of a page that travels again
 * only what has changed since needs to be sent. A guest that computes writes the same few pages between two forced syncs,
 * and little in each.
 *
 * Neither guest's page serves as a copy, since both guests run on. There is room for so many copies, each page has one place
 * among them, and the page that came last has it; so both ends forget alike, without a word.
 */
#ifndef FTVMM_VMM_PAGE_COPIES_H
#define FTVMM_VMM_PAGE_COPIES_H

#include <stdint.h>

/* 64 MiB, of which only what is used is ever touched. With 4096 places a guest that boots and computes, and writes a hundred
 * pages between two syncs, would find one in twenty without its copy. */
#define PAGE_COPIES_PLACES 16384u

struct page_copies;

/* None yet. 0 or -ENOMEM. */
int page_copies_open(struct page_copies **out);
void page_copies_close(struct page_copies *copies); /* accepts NULL */
/* No page has travelled: the log begins, or a transfer has made both machines equal. Accepts NULL. */
void page_copies_clear(struct page_copies *copies);

/* The copy of the page with this number; NULL: there is none. */
uint8_t *page_copies_find(struct page_copies *copies, uint64_t page);
/* A place for a copy of it, which the caller fills. */
uint8_t *page_copies_take(struct page_copies *copies, uint64_t page);

#endif
