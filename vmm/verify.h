/*
 * Verification: the two machines are compared all the time. A chain over the general registers at every position travels
 * in the marks that are logged anyway (lockstep.h, register_chain); and at the end of every segment, a second or so, a
 * digest of all of RAM and the whole vCPU. With --verify also all registers at every position, and the digest of every
 * page written, so that the first difference is named with its place.
 *
 * The digest of RAM is the sum of its pages' digests, so that renewing those of the pages written suffices, and it does
 * not matter if one host counts a page as written that the other does not.
 */
#ifndef FTVMM_VMM_VERIFY_H
#define FTVMM_VMM_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"

struct lockstep;

/* Machine thread; the protector's while it sends RAM to a new backup. */
struct verify {
    bool each_position;       /* --verify */
    uint64_t *written_pages;  /* one bit a page: written since the last segment */
    uint64_t *page_digests;   /* of every page at the last segment */
    uint64_t *changed_positions; /* of every page: where its digest was last found to have changed; 0: at the start */
    uint64_t position;        /* at which digests are being renewed */
    uint64_t ram_digest;      /* sum of the digests */
    uint64_t segment_time_ns; /* virtual time of the last segment */
    uint64_t segment_cost_ns; /* what digesting the last segment took */
    bool collected;           /* backup: written pages of this segment are digested already */
    _Atomic uint64_t pages, spent_ns; /* digested so far, and the time that took; any thread reads */
};

/* Knows nothing of RAM yet: verify_all or verify_page for each page comes next. 0 or -ENOMEM. */
int verify_open(struct verify **out, const struct lockstep *ls, bool each_position);
void verify_close(struct verify *verify);

/* Digests all of RAM as it is now. */
void verify_all(struct verify *verify, const struct lockstep *ls);
/* The page with this number holds these bytes; NULL: zeroes. */
void verify_page(struct verify *verify, uint64_t page, const uint8_t *bytes);
/* All pages have been digested as they are now: a segment begins. */
void verify_begin(struct verify *verify, const struct lockstep *ls);

/* Digests what was written since the last segment, as the end of one does. 0 or -errno. */
int verify_renew(struct verify *verify, struct lockstep *ls);
/* Virtual time from one segment to the next: as asked for, or so long that digesting is a fiftieth of it, at most ten
 * times as long. */
uint64_t verify_segment_ns(const struct verify *verify, uint64_t asked_ns);
/* Primary, on arrival at a position. 0 or -errno. */
int verify_log(struct verify *verify, struct lockstep *ls);
/* Backup: 0 if what `record` says is so here too; -EILSEQ after naming the first difference. */
int verify_compare(struct verify *verify, struct lockstep *ls, const struct channel_record *record);

#endif
