/* The digest of one page of guest RAM, as SEGMENT and END records use it. */
#ifndef FTVMM_VMM_RAM_DIGEST_H
#define FTVMM_VMM_RAM_DIGEST_H

#include <stdint.h>

/* XXH3-64 of the page's contents, seeded with its number, so that a sum over pages is the digest of RAM and
 * two pages that changed places do not cancel out. */
uint64_t page_digest(const uint8_t *page, uint64_t number);

#endif
