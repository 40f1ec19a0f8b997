/* What every kind of arbiter promises (vmm/arbiter.h), as one test for all kinds. */
#ifndef FTVMM_TESTS_ARBITER_CONFORMANCE_H
#define FTVMM_TESTS_ARBITER_CONFORMANCE_H

#include "vmm/arbiter.h"

/* `options` without a name: each test has VMs of its own there. Returns how many tests failed. */
int arbiter_conformance_run(const struct arbiter_options *options);

#endif
