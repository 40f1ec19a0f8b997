/* Which RDMA devices can make a claim, or keep a witness's word: those with atomic operations. */
#ifndef FTVMM_WITNESS_DEVICE_H
#define FTVMM_WITNESS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

struct ibv_context;

/* Asks and answers compare-and-swap (IBV_ATOMIC_HCA will do: only NICs of one device write a word that is given out). */
bool witness_device_has_atomics(struct ibv_context *device);
/* The names of this host's that do, with blanks between them; empty if there is none. Any thread. */
void witness_devices_with_atomics(char *names, size_t bytes);

#endif
