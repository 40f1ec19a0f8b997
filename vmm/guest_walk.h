/* The guest's page tables, walked without a trace: KVM's own walk sets accessed bits. Four levels, as 64-bit Linux has. */
#ifndef FTVMM_VMM_GUEST_WALK_H
#define FTVMM_VMM_GUEST_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/guest_memory.h"

#define GUEST_PTE_PRESENT    (UINT64_C(1) << 0)
#define GUEST_PTE_USER       (UINT64_C(1) << 2)
#define GUEST_PTE_NO_EXECUTE (UINT64_C(1) << 63)

/* Which entries of the tables will do: those with all bits of `set`, and none of `clear`. */
struct guest_access {
    uint64_t set, clear;
};

/* From virtual address to physical. False: not mapped for this access, or a table outside RAM. */
bool guest_walk(const struct guest_memory *memory, uint64_t cr3, uint64_t va, struct guest_access access, uint64_t *gpa);
/* Reads up to `bytes`, page by page; returns how many could be read. */
size_t guest_read_virtual(const struct guest_memory *memory, uint64_t cr3, uint64_t va, struct guest_access access,
                          void *out, size_t bytes);

#endif
