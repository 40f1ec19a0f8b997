/*
 * The black box of a backup (--keep-log): what it replays it also writes into files, so that the last minutes of a primary
 * that was lost can be replayed. The log is cut into parts that each can be replayed without the others: a part begins with
 * the guest's START, with a transfer, or with a base, which is the machine as this backup has it at some position.
 *
 * A base is taken while the guest runs: the machine thread copies some pages at each position, then those written since,
 * and when few are left the rest and the machine's state at once. Meanwhile records go on into the part before.
 *
 * The *machine* thread puts records and pages into a buffer in memory, one for each open part; the *writer*, a thread of
 * this module, opens, writes, names and deletes files. The machine thread never waits for it: where a buffer is full the
 * part ends with a word to the operator, and a new one begins when there is room.
 */
#ifndef FTVMM_VMM_KEPT_LOG_H
#define FTVMM_VMM_KEPT_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"

struct kept_log;
struct lockstep;

struct kept_log_options {
    const char *directory; /* NULL: no log is kept */
    uint64_t span_ns;      /* at least so much can be replayed */
    uint64_t bytes;        /* of files of this run, at most, and a buffer more */
};

struct kept_log_status {
    bool recording;      /* a part takes what is replayed */
    bool ended;          /* for good: this host is no backup any more, or its disk failed */
    uint64_t parts;      /* begun */
    uint64_t breaks;     /* parts that ended because the disk was too slow, or a part grew too large */
    uint64_t base_pages; /* written for bases */
    uint64_t part_bytes; /* of the present part */
};

/* Makes the directory if need be, and opens the first part. `hello`: of the pair. 0 or -errno, said in words. */
int kept_log_open(struct kept_log **out, struct lockstep *ls, const struct kept_log_options *options,
                  const struct channel_hello *hello);
/* Writes what is in the buffers. The machine thread has ended. Accepts NULL. */
void kept_log_close(struct kept_log *kept);

/* ---- machine thread; all accept NULL ---- */

/* This record has been applied, or followed, and is about to be consumed. */
void kept_log_record(struct kept_log *kept, const struct channel_record *record);
/* The machine's position is done: bases are taken here. 0 or -errno: the vCPU does not answer. */
int kept_log_stand(struct kept_log *kept);
/* The machine is not what the log makes of it any more: the part ends, and a new one begins from a base. */
void kept_log_break(struct kept_log *kept, const char *why);
/* No further record will come from a primary. */
void kept_log_end(struct kept_log *kept);

/* ---- any thread ---- */
void kept_log_get_status(const struct kept_log *kept, struct kept_log_status *out);

#endif
