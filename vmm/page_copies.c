/* A table of pages, each at the place that its number gives it; see page_copies.h. */
#include "vmm/page_copies.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/guest_memory.h"

struct page_copies {
    uint64_t owners[PAGE_COPIES_PLACES]; /* page number + 1; 0: nobody's */
    uint8_t pages[PAGE_COPIES_PLACES][GUEST_PAGE_BYTES];
};

int page_copies_open(struct page_copies **out)
{
    *out = calloc(1, sizeof(**out));
    return *out == NULL ? -ENOMEM : 0;
}

void page_copies_close(struct page_copies *copies)
{
    free(copies);
}

void page_copies_clear(struct page_copies *copies)
{
    if (copies != NULL)
        memset(copies->owners, 0, sizeof(copies->owners));
}

uint8_t *page_copies_find(struct page_copies *copies, uint64_t page)
{
    return copies->owners[page % PAGE_COPIES_PLACES] == page + 1 ? copies->pages[page % PAGE_COPIES_PLACES] : NULL;
}

uint8_t *page_copies_take(struct page_copies *copies, uint64_t page)
{
    copies->owners[page % PAGE_COPIES_PLACES] = page + 1;
    return copies->pages[page % PAGE_COPIES_PLACES];
}
