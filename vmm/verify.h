/*
 * Verification (--verify): the registers at every position, and all of RAM and the vCPU at the end of every
 * segment, travel in the log and are compared by the backup, which names the first difference.
 */
#ifndef FTVMM_VMM_VERIFY_H
#define FTVMM_VMM_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"

struct lockstep;

/* Machine thread only. */
struct verify {
    uint64_t *written_pages;  /* one bit a page: written since the last segment */
    uint64_t *page_digests;   /* of every page at the last segment */
    uint64_t ram_digest;      /* their sum */
    uint64_t segment_time_ns; /* virtual time of the last segment */
    bool collected;           /* backup: written pages of this segment are digested already */
};

/* Digests all of RAM as it is now. 0 or -ENOMEM. */
int verify_open(struct verify **out, const struct lockstep *ls);
void verify_close(struct verify *verify);

/* Primary, on arrival at a position. 0 or -errno. */
int verify_log(struct verify *verify, struct lockstep *ls);
/* Backup: 0 if what `record` says is so here too; -EILSEQ after naming the first difference. */
int verify_compare(struct verify *verify, struct lockstep *ls, const struct channel_record *record);

#endif
