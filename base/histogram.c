/* Log-linear latency histogram; see histogram.h. */
#include "base/histogram.h"

static unsigned bucket_of(uint64_t value)
{
    unsigned shift;

    if (value < (1u << HISTOGRAM_SUB_BITS))
        return (unsigned)value;
    shift = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    return ((shift + 1) << HISTOGRAM_SUB_BITS) + (unsigned)((value >> shift) & ((1u << HISTOGRAM_SUB_BITS) - 1));
}

static uint64_t bucket_top(unsigned bucket)
{
    unsigned shift;
    uint64_t sub;

    if (bucket < (1u << HISTOGRAM_SUB_BITS))
        return bucket;
    shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
    sub = (bucket & ((1u << HISTOGRAM_SUB_BITS) - 1)) | (1u << HISTOGRAM_SUB_BITS);
    return ((sub + 1) << shift) - 1;
}

void histogram_record(struct histogram *h, uint64_t value)
{
    h->counts[bucket_of(value)]++;
    h->samples++;
    h->sum += value;
    if (value > h->max)
        h->max = value;
}

void histogram_merge(struct histogram *h, const struct histogram *more)
{
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        h->counts[i] += more->counts[i];
    h->samples += more->samples;
    h->sum += more->sum;
    if (more->max > h->max)
        h->max = more->max;
}

uint64_t histogram_percentile(const struct histogram *h, double percentile)
{
    uint64_t rank = (uint64_t)((double)h->samples * percentile / 100.0 + 0.5);
    uint64_t seen = 0;

    if (h->samples == 0)
        return 0;
    if (rank < 1)
        rank = 1;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->counts[i];
        if (seen >= rank) {
            uint64_t top = bucket_top(i);
            return top < h->max ? top : h->max;
        }
    }
    return h->max;
}
