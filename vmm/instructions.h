/* Counts the guest's instructions where the CPU's counters can be had, for what is measured per instruction. */
#ifndef FTVMM_VMM_INSTRUCTIONS_H
#define FTVMM_VMM_INSTRUCTIONS_H

#include <stdint.h>

/* Counts what the calling thread runs in guest mode from now on. A file descriptor; -1: not countable here (no counters, or
 * no right to them: perf_event_open(2)). */
int instructions_open(void);
/* So far; 0: not countable. Any thread. */
uint64_t instructions_read(int fd);

#endif
