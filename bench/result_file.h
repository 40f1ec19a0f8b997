/* Results that ftbench has written, read again. */
#ifndef FTVMM_BENCH_RESULT_FILE_H
#define FTVMM_BENCH_RESULT_FILE_H

#include <stdbool.h>

#include <cjson/cJSON.h>

#include "bench/result.h"

/* The result in a file, to be deleted by the caller; NULL: it is none that this ftbench can read, and that was said. */
cJSON *result_file_read(const char *path);
/* The JSON of any file, alike. */
cJSON *result_file_json(const char *path);
/* The workload that a result is of ("channel"), or "?". Valid until the next call. */
const char *result_file_workload(const cJSON *result);
/* The metric of that name, or NULL. */
const cJSON *result_file_metric(const cJSON *result, const char *name);
/* A metric's values; false: it has none that can be used. */
bool result_file_values(const cJSON *metric, double values[VALUES_MAX], unsigned *count);
/* Text at a name, or "". */
const char *result_file_text(const cJSON *object, const char *name);
/* The number at a name, or `otherwise`. */
double result_file_number(const cJSON *object, const char *name, double otherwise);

#endif
