/* The state of a running VM as JSON, for operators and scripts. */
#ifndef FTVMM_VMM_STATUS_H
#define FTVMM_VMM_STATUS_H

#include "vmm/lockstep.h"

struct cJSON;

/* The document, to be deleted by the caller; NULL: no memory. Any thread; little of it before ls->opened. */
struct cJSON *status_build(const char *vm, struct lockstep *ls);
/* Adds to `root` how a planned switch-over has gone, if there was one. Any thread. */
void status_add_handover(struct cJSON *root, struct lockstep *ls);

/* Writes `path` anew, atomically (a new file, renamed over it). Main thread. 0 or -errno. */
int status_write(const char *path, const char *vm, struct lockstep *ls);

#endif
