/* XXH3 by the widest registers that this host's CPU has (twice as fast with AVX2); the digest is the same by all. */
#include "vmm/ram_digest.h"

#include <xxh_x86dispatch.h>

#include "vmm/guest_memory.h"

uint64_t page_digest(const uint8_t *page, uint64_t number)
{
    return XXH3_64bits_withSeed(page, GUEST_PAGE_BYTES, number);
}
