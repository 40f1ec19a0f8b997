/* The memory of a ring: huge pages where there are free ones, else normal pages. */
#ifndef FTVMM_CHANNEL_RING_MEMORY_H
#define FTVMM_CHANNEL_RING_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Lines that two threads (or a NIC) write stay this far apart: two cache lines, because the adjacent-line
 * prefetcher of Intel CPUs pulls pairs (Intel 64 Optimization Reference Manual, 3.7.3). */
#define RING_LINE_BYTES 128

/* Maps `bytes` of zeroed, page-aligned, present memory. Says in words when it has to be normal pages
 * (`what` names the ring). NULL on -ENOMEM, said in words too. */
void *ring_memory_open(size_t bytes, const char *what);
/* The same as a file without a name, whose descriptor another process can be given: sealed, so that neither process can
 * take the other's memory away. Returns the descriptor, or -errno, said in words. */
int ring_memory_share(size_t bytes, const char *what);
/* Maps it. The length is as given to ring_memory_share. NULL: said in words. */
void *ring_memory_map(int fd, size_t bytes, const char *what);
/* What came from another process: is it such a file, of that length? */
bool ring_memory_fits(int fd, size_t bytes);
void ring_memory_close(void *memory, size_t bytes); /* accepts NULL */

#endif
