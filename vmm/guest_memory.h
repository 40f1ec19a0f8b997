/* Guest RAM as the VMM sees it: one contiguous range from guest physical address 0. */
#ifndef FTVMM_VMM_GUEST_MEMORY_H
#define FTVMM_VMM_GUEST_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define GUEST_PAGE_BYTES 4096u

/* `base` is the host mapping; `dirty` (may be NULL) has one bit a page for pages that the VMM itself
 * wrote (KVM's own dirty log does not see those). Owned by the machine. vCPU thread only. */
struct guest_memory {
    uint8_t *base;
    uint64_t bytes;
    uint64_t *dirty;
};

/* Host address of [gpa, gpa+bytes), or NULL if any of it lies outside RAM. Never trust a guest's
 * address without it. */
static inline void *guest_memory_at(const struct guest_memory *memory, uint64_t gpa, uint64_t bytes)
{
    if (gpa > memory->bytes || bytes > memory->bytes - gpa)
        return NULL;
    return memory->base + gpa;
}

/* Notes that the VMM wrote [gpa, gpa+bytes), which lies inside RAM. */
static inline void guest_memory_mark(struct guest_memory *memory, uint64_t gpa, uint64_t bytes)
{
    if (memory->dirty == NULL || bytes == 0)
        return;
    for (uint64_t page = gpa / GUEST_PAGE_BYTES; page <= (gpa + bytes - 1) / GUEST_PAGE_BYTES; page++)
        memory->dirty[page / 64] |= UINT64_C(1) << (page % 64);
}

#endif
