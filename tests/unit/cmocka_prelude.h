/* What cmocka wants included before itself, and a small generator so that random tests can be repeated. */
#ifndef FTVMM_TESTS_CMOCKA_PRELUDE_H
#define FTVMM_TESTS_CMOCKA_PRELUDE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TEST_SKIP 77 /* meson's exit code for "not run" */

/* The seed for this run: FTVMM_TEST_SEED, else a fixed one; printed either way. */
static inline uint64_t test_seed(const char *test)
{
    const char *given = getenv("FTVMM_TEST_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0) : UINT64_C(0x5eed2024);

    print_message("%s: repeat with FTVMM_TEST_SEED=0x%llx\n", test, (unsigned long long)seed);
    return seed;
}

/* splitmix64 (S. Vigna). */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

#endif
