/* Medians, ranges, and the rule of `ftbench compare`. */
#include "bench/statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"

#define VALUES_MAX 1024

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

static void sort(const double *values, unsigned count, double sorted[VALUES_MAX])
{
    if (count == 0 || count > VALUES_MAX)
        report_bug("statistics of %u values", count);
    memcpy(sorted, values, count * sizeof(*values));
    qsort(sorted, count, sizeof(*sorted), by_size);
}

double statistics_quantile(const double *values, unsigned count, double quantile)
{
    double sorted[VALUES_MAX];
    unsigned rank;

    sort(values, count, sorted);
    rank = (unsigned)ceil(quantile * count);
    return sorted[rank > 0 ? rank - 1 : 0];
}

struct summary statistics_summarize(const double *values, unsigned count)
{
    double sorted[VALUES_MAX];

    sort(values, count, sorted);
    return (struct summary){ .median = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2, .min = sorted[0],
                             .max = sorted[count - 1] };
}

double statistics_spread(const struct summary *summary)
{
    return summary->median != 0 ? (summary->max - summary->min) / fabs(summary->median) : 0;
}

enum change statistics_compare(const double *before, unsigned before_count, const double *after, unsigned after_count,
                               bool lower_is_better, double tolerance)
{
    struct summary old = statistics_summarize(before, before_count), new = statistics_summarize(after, after_count);
    bool apart = new.min > old.max || new.max < old.min;

    if (!apart || fabs(new.median - old.median) <= tolerance * fabs(old.median))
        return CHANGE_NONE;
    return (new.median < old.median) == lower_is_better ? CHANGE_BETTER : CHANGE_WORSE;
}
