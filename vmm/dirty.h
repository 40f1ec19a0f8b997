/* Which pages were written, and since when: the forced sync and the verification each have their own "since". */
#ifndef FTVMM_VMM_DIRTY_H
#define FTVMM_VMM_DIRTY_H

struct lockstep;

/*
 * Reads and clears KVM's dirty log and the VMM's own, and adds the pages to those of the next forced sync and
 * of the next segment. Machine thread, vCPU out of the guest. 0 or -errno.
 */
int dirty_collect(struct lockstep *ls);

#endif
