/* The state of a running VM as JSON, for operators and scripts. */
#ifndef FTVMM_VMM_STATUS_H
#define FTVMM_VMM_STATUS_H

#include "vmm/lockstep.h"

/* Writes `path` anew, atomically (a new file, renamed over it). Main thread. 0 or -errno. */
int status_write(const char *path, const char *vm, const struct lockstep *ls);

#endif
