/* What repetitions tell, and whether two sets of them differ beyond their noise. */
#ifndef FTVMM_BENCH_STATISTICS_H
#define FTVMM_BENCH_STATISTICS_H

#include <stdbool.h>

struct summary {
    double median, min, max;
};

/* `count` >= 1. The median of an even count is the mean of the two in the middle. */
struct summary statistics_summarize(const double *values, unsigned count);

/* The smallest of the values that at least a share of `quantile` (0 to 1) of them do not exceed. `count` >= 1. */
double statistics_quantile(const double *values, unsigned count, double quantile);

/* (max - min) / |median|, the noise in one number; 0 when the median is. */
double statistics_spread(const struct summary *summary);

enum change {
    CHANGE_NONE, /* within the noise */
    CHANGE_BETTER,
    CHANGE_WORSE,
};

/*
 * The rule: the ranges min..max of the repetitions do not overlap, and the medians differ by more than `tolerance`
 * (0.05: 5 %) of the old one.
 *
 * If both sets came from one distribution, n and n repetitions would stand wholly apart in 2 of (2n choose n) cases:
 * 1 in 1716 for seven (the extreme case of the rank-sum test). The tolerance is for what differs between two runs and
 * not within one: where memory happens to lie, a machine's clock speed that day.
 */
enum change statistics_compare(const double *before, unsigned before_count, const double *after, unsigned after_count,
                               bool lower_is_better, double tolerance);

#endif
