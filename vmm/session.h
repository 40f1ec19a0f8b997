/* One run of ftvmm: opens what the command needs, runs it, closes it. */
#ifndef FTVMM_VMM_SESSION_H
#define FTVMM_VMM_SESSION_H

#include "vmm/options.h"

/* The process's exit status (see ftvmm --help). Everything has been said in words. */
int session_run(const struct options *options);

#endif
