/* Walks the guest's page tables; see guest_walk.h. */
#include "vmm/guest_walk.h"

#include <string.h>

#define PTE_LARGE   (UINT64_C(1) << 7)
#define PTE_ADDRESS UINT64_C(0x000ffffffffff000)

bool guest_walk(const struct guest_memory *memory, uint64_t cr3, uint64_t va, struct guest_access access, uint64_t *gpa)
{
    uint64_t table = cr3 & PTE_ADDRESS;

    if ((uint64_t)((int64_t)(va << 16) >> 16) != va)
        return false; /* not canonical */
    for (int shift = 39; shift >= 12; shift -= 9) {
        const void *at = guest_memory_at(memory, table + (va >> shift & 511) * 8, 8);
        uint64_t entry;

        if (at == NULL)
            return false;
        memcpy(&entry, at, sizeof(entry));
        if (!(entry & GUEST_PTE_PRESENT) || (entry & access.set) != access.set || (entry & access.clear) != 0)
            return false;
        bool large = entry & PTE_LARGE;
        if (shift == 12 || (large && shift != 39)) {
            uint64_t inside = (UINT64_C(1) << shift) - 1;

            *gpa = (entry & PTE_ADDRESS & ~inside) | (va & inside);
            return true;
        }
        if (large)
            return false; /* reserved in the top level */
        table = entry & PTE_ADDRESS;
    }
    return false;
}

size_t guest_read_virtual(const struct guest_memory *memory, uint64_t cr3, uint64_t va, struct guest_access access,
                          void *out, size_t bytes)
{
    size_t done = 0;

    while (done < bytes) {
        size_t chunk = GUEST_PAGE_BYTES - (va + done) % GUEST_PAGE_BYTES;
        uint64_t gpa;
        const void *at;

        if (chunk > bytes - done)
            chunk = bytes - done;
        if (!guest_walk(memory, cr3, va + done, access, &gpa) || (at = guest_memory_at(memory, gpa, chunk)) == NULL)
            break;
        memcpy((uint8_t *)out + done, at, chunk);
        done += chunk;
    }
    return done;
}
