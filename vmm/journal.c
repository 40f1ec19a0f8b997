/* Notes and reads changes of state; see journal.h. */
#include "vmm/journal.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "base/clock.h"

const char *journal_kind_name(enum journal_kind kind)
{
    switch (kind) {
    case JOURNAL_JOINED: return "joined";
    case JOURNAL_PROTECTED: return "protected";
    case JOURNAL_PEER_SILENT: return "peer-silent";
    case JOURNAL_FENCED: return "fenced";
    case JOURNAL_DECIDED: return "decided";
    case JOURNAL_LIVE: return "live";
    case JOURNAL_DIVERGED: return "diverged";
    case JOURNAL_HEALED: return "healed";
    case JOURNAL_HANDOVER: return "handover";
    case JOURNAL_ENDED: return "ended";
    }
    return "unknown";
}

void journal_note(struct journal *journal, enum journal_kind kind, const char *format, ...)
{
    /* relaxed: the place is ours alone; J1 publishes what is put there */
    unsigned number = atomic_fetch_add_explicit(&journal->taken, 1, memory_order_relaxed);
    struct journal_entry *entry;
    struct timespec now;
    va_list args;

    if (number >= JOURNAL_ENTRIES)
        return;
    entry = &journal->entries[number];
    clock_gettime(CLOCK_REALTIME, &now);
    entry->kind = kind;
    entry->at_ns = clock_now_ns();
    entry->unix_ns = now.tv_sec * (int64_t)NS_PER_S + now.tv_nsec;
    va_start(args, format);
    vsnprintf(entry->detail, sizeof(entry->detail), format, args);
    va_end(args);
    /* J1 pairs J2: the entry before its mark. */
    atomic_store_explicit(&entry->whole, true, memory_order_release);
}

const struct journal_entry *journal_read(const struct journal *journal, unsigned number)
{
    if (number >= JOURNAL_ENTRIES)
        return NULL;
    /* J2 pairs J1. */
    if (!atomic_load_explicit(&journal->entries[number].whole, memory_order_acquire))
        return NULL;
    return &journal->entries[number];
}
