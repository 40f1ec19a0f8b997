/* What ftbench's workloads read from their command lines, and the sentences about what cannot be read. */
#ifndef FTVMM_BENCH_ARGUMENTS_H
#define FTVMM_BENCH_ARGUMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/result.h"

/* The options --json, --csv and --svg, which workloads with a result have in common; above any workload's own. */
enum { ARGUMENT_JSON = 1000, ARGUMENT_CSV, ARGUMENT_SVG };
#define ARGUMENT_FILES                                                                                                 \
    { "json", required_argument, NULL, ARGUMENT_JSON }, { "csv", required_argument, NULL, ARGUMENT_CSV },              \
    { "svg", required_argument, NULL, ARGUMENT_SVG }

/* Takes one of them; false: `option` is another. */
bool argument_file(int option, const char *value, struct result_files *files);
/* All words of the command line were options; false: one was not, and that was said. */
bool argument_none_left(int argc, char **argv, const char *workload);

/* Each reads the value `text` of the option --NAME. false: it is wrong, and that was said. */

/* A whole number from min to max. */
bool argument_number(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out);
/* The same for an unsigned; max fits one. */
bool argument_unsigned(const char *name, const char *text, unsigned min, unsigned max, unsigned *out);
/* A number from min to max, with or without a fraction; `unit` is for the sentence. */
bool argument_real(const char *name, const char *text, double min, double max, const char *unit, double *out);
/* A number of seconds from 0.1 to 86400, in ns. */
bool argument_seconds(const char *name, const char *text, uint64_t *out_ns);
/* "N,N,..." of at most `room` whole numbers, each a multiple of `multiple_of`. */
bool argument_list(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t multiple_of, uint32_t *out,
                   unsigned room, unsigned *count);

#endif
