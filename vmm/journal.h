/*
 * The journal: what has become of this process's part of the pair, and when. A process lives through few of these
 * changes, so each keeps its place for good; noting one takes no lock, and any thread may do it.
 */
#ifndef FTVMM_VMM_JOURNAL_H
#define FTVMM_VMM_JOURNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define JOURNAL_ENTRIES      256u /* a new backup costs three or four; what comes beyond is not kept */
#define JOURNAL_DETAIL_BYTES 120u

enum journal_kind {
    JOURNAL_JOINED,      /* the two hosts have found each other */
    JOURNAL_PROTECTED,   /* primary: the backup's host acknowledges the log */
    JOURNAL_PEER_SILENT, /* no sign of life for the peer time-out */
    JOURNAL_FENCED,      /* backup: nothing of the primary's can land any more */
    JOURNAL_DECIDED,     /* the arbiter has answered */
    JOURNAL_LIVE,        /* the guest goes on here, alone */
    JOURNAL_DIVERGED,    /* the two machines were found to differ */
    JOURNAL_HEALED,      /* backup: its machine is the primary's again */
    JOURNAL_HANDOVER,    /* a planned switch-over has begun, or come to an end */
    JOURNAL_ENDED,       /* the guest runs here no more */
};

struct journal_entry {
    _Atomic bool whole;
    enum journal_kind kind;
    uint64_t at_ns;   /* clock_now_ns() */
    int64_t unix_ns;  /* since 1970 */
    char detail[JOURNAL_DETAIL_BYTES]; /* a sentence for people */
};

/* Zero-initialise. */
struct journal {
    _Atomic unsigned taken;
    struct journal_entry entries[JOURNAL_ENTRIES];
};

const char *journal_kind_name(enum journal_kind kind);

/* Notes a change, now. Any thread. */
__attribute__((format(printf, 3, 4)))
void journal_note(struct journal *journal, enum journal_kind kind, const char *format, ...);

/* The entry with this number (from 0), or NULL as long as there is none. Any thread; it never changes again. */
const struct journal_entry *journal_read(const struct journal *journal, unsigned number);

#endif
