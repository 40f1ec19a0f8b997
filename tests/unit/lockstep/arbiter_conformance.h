/* What every kind of arbiter promises (vmm/arbiter.h), as one test for all kinds. */
#ifndef FTVMM_TESTS_ARBITER_CONFORMANCE_H
#define FTVMM_TESTS_ARBITER_CONFORMANCE_H

#include "vmm/arbiter.h"

/* `options` without a name: each test has a VM of its own there, never heard of before, "c1", "c2", ..., or two, the other
 * being "c1.1", "c2.1", ... Returns how many tests failed. */
#define ARBITER_CONFORMANCE_TESTS 11
int arbiter_conformance_run(const struct arbiter_options *options);

#endif
