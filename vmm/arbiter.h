/*
 * The arbiter: one atomic test-and-set per VM and generation, at a place that both hosts reach by another way
 * than the rail. Whoever claims a generation first goes live alone; the other stops its guest. Silence of the
 * peer never suffices.
 *
 * Kinds, by address:  dir:PATH   a directory on shared storage with atomic link(2) (NFS, 9p, a cluster FS).
 *
 * Threads: one at a time. Calls block as long as the storage does.
 */
#ifndef FTVMM_VMM_ARBITER_H
#define FTVMM_VMM_ARBITER_H

#include <stdint.h>

struct arbiter;

/* Opens the arbiter at `address` for virtual machine `vm` (letters, digits, '-', '_', '.'). Says in words what
 * is wrong: not there, not writable, no such kind. 0 or -errno. */
int arbiter_open(struct arbiter **out, const char *address, const char *vm);
void arbiter_close(struct arbiter *arbiter); /* accepts NULL */

/* A new pair begins: takes the next unused generation. 0 or -errno, said in words. */
int arbiter_begin(struct arbiter *arbiter, uint64_t *generation);
/* Does our arbiter know of this generation? Tells a backup that it shares its primary's arbiter.
 * 0, or -ENOENT / -errno, said in words. */
int arbiter_check(struct arbiter *arbiter, uint64_t generation);

enum arbiter_verdict {
    ARBITER_WON,
    ARBITER_LOST,
    ARBITER_UNREACHABLE, /* nobody may go live on this; ask again */
};

/* Claims `generation`. Repeating it gives the same verdict: a claim once won stays won by this arbiter object. */
enum arbiter_verdict arbiter_claim(struct arbiter *arbiter, uint64_t generation);

#endif
