/* `ftvmm check`: what this host has, what it lacks, and the command that mends it. */
#ifndef FTVMM_VMM_CHECK_H
#define FTVMM_VMM_CHECK_H

#include "vmm/options.h"

/* Prints a line for each thing looked at; 0 if all that a pair over RDMA needs is there, else 1. */
int check_run(const struct options *options);

#endif
