/* The workload `ftbench guest`: what its parts share. guest.c makes the rounds, guest_result.c shows what came out. */
#ifndef FTVMM_BENCH_GUEST_H
#define FTVMM_BENCH_GUEST_H

#include "base/idle.h"
#include "bench/guest_target.h"

/* The steps of a request, in its order; each is a summary that ftvmm serves, or what is left. */
enum guest_step {
    STEP_INPUT_WAIT,
    STEP_GUEST,
    STEP_EXIT,
    STEP_APPEND,
    STEP_RELEASE, /* from there until acked and released; unprotected: until the I/O thread looked */
    STEP_SEND,
    STEP_OUTSIDE, /* the client's mean less all others: wire, network stacks, the client itself */
    GUEST_STEPS,
};

struct guest_step_name {
    const char *name, *words;
    const char *protected_summary, *unprotected_summary; /* without "ftvmm_"; NULL: there is none */
};
extern const struct guest_step_name guest_steps[GUEST_STEPS];

struct guest_options {
    struct guest_target targets[GUEST_SIDES]; /* protected, unprotected, other */
    const char *key, *note;
    unsigned connections, pipeline, rounds;
    uint64_t requests, warmup; /* of each round */
    uint64_t idle_ns;          /* watched before each round */
    uint64_t limit_ns;         /* of each round */
    uint64_t patience_ns, spin_ns, seed;
    struct result_files files;
};

void guest_result_print(const struct bench_result *result, const struct guest_options *options, FILE *out);
/* 0 or -errno, said. */
int guest_result_write(const struct bench_result *result, const struct guest_options *options);

#endif
