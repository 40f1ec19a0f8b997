/* What is the channel's own in its result: the order of its tables, and what its JSON adds to the common frame. */
#ifndef FTVMM_BENCH_CHANNEL_RESULT_H
#define FTVMM_BENCH_CHANNEL_RESULT_H

#include "bench/channel_bench.h"

void channel_result_print(const struct bench_result *result, const struct bench_options *options, FILE *out);
/* To the files of the options. 0 or -errno, said. */
int channel_result_write(const struct bench_result *result, const struct bench_options *options);

#endif
