/* Keeps the books on a shared counter; see ledger.h. */
#include "bench/ledger.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define SEEN_BYTES (LEDGER_VALUES / 8)

int ledger_init(struct ledger *ledger, int64_t start)
{
    memset(ledger, 0, sizeof(*ledger));
    ledger->start = start;
    ledger->max = start;
    ledger->seen = mmap(NULL, SEEN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ledger->seen == MAP_FAILED) {
        ledger->seen = NULL;
        return -errno;
    }
    return 0;
}

void ledger_fini(struct ledger *ledger)
{
    if (ledger->seen != NULL)
        munmap(ledger->seen, SEEN_BYTES);
    ledger->seen = NULL;
}

/* True if the value was handed out before, by us or before the run. */
static bool mark_seen(struct ledger *ledger, int64_t value)
{
    uint64_t index = (uint64_t)value - (uint64_t)ledger->start - 1, bit = UINT64_C(1) << (index % 64);
    bool before;

    if (value <= ledger->start)
        return true;
    if (index >= LEDGER_VALUES)
        return false; /* cannot be checked; only a counter that somebody else moves jumps so far: surplus */
    before = (ledger->seen[index / 64] & bit) != 0;
    ledger->seen[index / 64] |= bit;
    return before;
}

void ledger_ack(struct ledger *ledger, int64_t value, int64_t floor, int64_t previous, bool after_mark)
{
    ledger->acked++;
    if (after_mark)
        ledger->acked_after_mark++;
    else
        ledger->acked_before_mark++;
    if (mark_seen(ledger, value))
        ledger->duplicated++;
    if (value <= floor || value <= previous)
        ledger->out_of_order++;
    if (value > ledger->max)
        ledger->max = value;
}

/* Distinct acknowledged values above `final`. */
static uint64_t seen_above(const struct ledger *ledger, int64_t final)
{
    uint64_t first = final > ledger->start ? (uint64_t)final - (uint64_t)ledger->start : 0;
    uint64_t end = (uint64_t)ledger->max - (uint64_t)ledger->start, count = 0;

    if (end > LEDGER_VALUES)
        end = LEDGER_VALUES;
    for (uint64_t i = first; i < end; i++)
        count += ledger->seen[i / 64] >> (i % 64) & 1;
    return count;
}

struct verdict ledger_judge(const struct ledger *ledger, int64_t final)
{
    struct verdict verdict = { .final = final, .lost = seen_above(ledger, final) };
    uint64_t grown = final > ledger->start ? (uint64_t)final - (uint64_t)ledger->start : 0;

    /* a counter that fell back and was counted up again hides its loss from the values */
    if (ledger->acked > grown && ledger->acked - grown > verdict.lost)
        verdict.lost = ledger->acked - grown;
    if (grown > ledger->acked + ledger->unknown)
        verdict.surplus = grown - ledger->acked - ledger->unknown;
    verdict.clean = verdict.lost == 0 && verdict.surplus == 0 && ledger->duplicated == 0 && ledger->out_of_order == 0;
    return verdict;
}
