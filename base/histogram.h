/*
 * Latency histogram: log-linear buckets, about 1.6 % wide, from 1 ns to 292 years, in a fixed 30 KB.
 * The bucket scheme is HdrHistogram's (G. Tene) with six sub-bucket bits; Debian ships no C library of it.
 */
#ifndef FTVMM_BASE_HISTOGRAM_H
#define FTVMM_BASE_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_SUB_BITS 6
#define HISTOGRAM_BUCKETS ((64 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS)

/* One writer; readers on other threads see each count whole but not all of them at one moment. */
struct histogram {
    uint64_t samples;
    uint64_t max;
    uint64_t sum; /* of all values, so that a mean over a stretch of time can be told */
    uint64_t counts[HISTOGRAM_BUCKETS];
};

void histogram_record(struct histogram *h, uint64_t value);
/* Adds all samples of `more`. */
void histogram_merge(struct histogram *h, const struct histogram *more);

/* The value (upper edge of its bucket, never above max) that `percentile` (0 to 100) of the samples
 * do not exceed; 0 when there are none. */
uint64_t histogram_percentile(const struct histogram *h, double percentile);

#endif
