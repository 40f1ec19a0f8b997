/*
 * The mirrored disk in a healing (heal.h): where the backup's copy may not be as the primary's, whatever has made it so.
 *
 * While the guest runs on, both hosts read their copies from end to end, stretch by stretch (disk.h), each on a thread of
 * this module, so that neither the guest nor the log waits for it. The primary logs its digests of a stretch (STRETCH); the
 * backup compares, and answers by the one word that it can tell (heal.h) which shares are not the same; those the primary
 * marks to be sent, and logs the next. What its guest writes from the beginning on it sends in any case, and the backup's
 * copy stands still: so what is not marked in the end is the same.
 *
 * Without a mirrored disk the primary's functions do nothing.
 */
#ifndef FTVMM_VMM_HEAL_DISK_H
#define FTVMM_VMM_HEAL_DISK_H

#include <stdint.h>

#include "vmm/event.h"

struct heal_disk;
struct lockstep;

/* ---- primary, machine thread ---- */

/* Begins, all over again if need be. 0 or -errno. */
int heal_disk_begin(struct lockstep *ls);
/* Goes on, if there is something to do. 1: all has been compared, and what may differ is marked. 0: not yet. -errno: it can
 * not be done, said in words, or what transfer_stretch returns. */
int heal_disk_serve(struct lockstep *ls);
/* Marks nothing any more. */
void heal_disk_drop(struct lockstep *ls);

/* ---- backup, machine thread ---- */

/* Has a stretch read here, compared and answered. 0; -EBADMSG, said in words: the primary may not ask that; -errno. */
int heal_disk_compare(struct lockstep *ls, const struct event_stretch *theirs);

/* The end, before the disk is closed: no other thread is left that uses it. */
void heal_disk_close(struct lockstep *ls);

#endif
