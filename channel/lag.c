/* Makes, thins out and forgets the marks; see lag.h. */
#include "channel/lag.h"

static uint64_t newest_at(const struct lag_marks *lag)
{
    return (lag->first + lag->count - 1) % LAG_MARKS;
}

/* Drops every second mark; its records pass to the next one, as if committed later. The newest stays. */
static void thin_out(struct lag_marks *lag)
{
    for (unsigned i = 0; i < LAG_MARKS / 2; i++)
        lag->marks[(lag->first + i) % LAG_MARKS] = lag->marks[(lag->first + 2 * i + 1) % LAG_MARKS];
    lag->count = LAG_MARKS / 2;
}

static void mark(struct lag_marks *lag, uint64_t lsn, uint64_t now_ns)
{
    if (lag->count == LAG_MARKS)
        thin_out(lag);
    lag->count++;
    lag->marks[newest_at(lag)].lsn = lsn;
    lag->marks[newest_at(lag)].at_ns = now_ns;
}

void lag_marks_update(struct lag_marks *lag, uint64_t committed_lsn, uint64_t consumed_lsn, uint64_t now_ns)
{
    while (lag->count > 0 && lag->marks[lag->first].lsn <= consumed_lsn) {
        lag->first = (lag->first + 1) % LAG_MARKS;
        lag->count--;
    }
    if (lag->count == 0) {
        if (committed_lsn > consumed_lsn)
            mark(lag, committed_lsn, now_ns);
    } else if (committed_lsn > lag->marks[newest_at(lag)].lsn) {
        uint64_t apart_ns = (now_ns - lag->marks[lag->first].at_ns) / LAG_PARTS;

        if (now_ns - lag->marks[newest_at(lag)].at_ns >= (apart_ns > LAG_MARK_NS ? apart_ns : LAG_MARK_NS))
            mark(lag, committed_lsn, now_ns);
    }
    /* relaxed: a lone value that nothing is read on the strength of */
    atomic_store_explicit(&lag->oldest_ns, lag->count > 0 ? lag->marks[lag->first].at_ns : 0, memory_order_relaxed);
}
