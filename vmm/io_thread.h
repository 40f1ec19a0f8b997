/* The I/O thread: polls the network port and the channel, and judges whether the peer and the vCPU are alive. */
#ifndef FTVMM_VMM_IO_THREAD_H
#define FTVMM_VMM_IO_THREAD_H

#include "vmm/lockstep.h"

/* Polls until the machine thread has finished and what may leave has left. Argument and result for
 * pthread_create: a struct lockstep, NULL. */
void *io_thread_run(void *ls);

#endif
