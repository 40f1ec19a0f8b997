/* The programs of `ftbench overhead`: what there is, and how each is driven in a guest. */
#ifndef FTVMM_BENCH_PROGRAM_H
#define FTVMM_BENCH_PROGRAM_H

#include "bench/guest_target.h"

enum program_runner { AGENT, REDIS_BENCHMARK, WRK };

struct program {
    const char *name, *unit, *words;
    unsigned amount; /* by default */
    enum program_runner runner;
    const char *detail; /* redis-benchmark: requests in flight on each connection. wrk: the path */
};

#define PROGRAMS 14
extern const struct program programs[PROGRAMS];

/* How they are driven; the port of a target is its agent's. */
struct program_settings {
    unsigned redis_port, http_port;
    uint64_t limit_ns; /* of each run */
};

/* What is not to be timed is done in the guest. 0; -EPROTO: the program cannot be run there or from here, and `why`
 * says what is missing; -errno, said. */
int program_prepare(const struct program *program, const struct program_settings *settings,
                    const struct guest_target *target, char *why, size_t size);
/* So much of it, to its end. 0, and how much was `done`, in the program's unit; or -errno, said. */
int program_run(const struct program *program, unsigned amount, const struct program_settings *settings,
                const struct guest_target *target, double *done);

#endif
