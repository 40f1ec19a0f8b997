/* What an ftvmm serves at --metrics (ftvmm(1), METRICS), read at a moment. */
#ifndef FTVMM_BENCH_VMM_METRICS_H
#define FTVMM_BENCH_VMM_METRICS_H

#include <stdbool.h>
#include <stdint.h>

/* Zero-initialise; vmm_metrics_fini frees. */
struct vmm_metrics {
    char *text;
    uint64_t at_ns; /* clock_now_ns() when it was there */
};

/* Reads them from HOST:PORT, within ten seconds; what was there before is freed. 0 or -errno, said in words. */
int vmm_metrics_read(struct vmm_metrics *metrics, const char *address);
void vmm_metrics_fini(struct vmm_metrics *metrics);

/* The value of "name" or "name{label=\"x\"}", without "ftvmm_"; 0: there is none. */
double vmm_metrics_value(const struct vmm_metrics *metrics, const char *name);
/* The info metric has this label: "role=\"primary\"". */
bool vmm_metrics_is(const struct vmm_metrics *metrics, const char *label);

#endif
