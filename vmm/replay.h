/* Where a replay stops: its state for people, and as files. */
#ifndef FTVMM_VMM_REPLAY_H
#define FTVMM_VMM_REPLAY_H

#include "vmm/lockstep.h"

/*
 * Makes the directory that a dump is to be written into; nobody else can read it. 0; or, said in words: -EEXIST (a
 * dump is never written over another), -ENOENT, -EACCES, ... Called before the replay, which may take long.
 */
int replay_dump_prepare(const char *directory);
/* Removes what replay_dump_prepare has made, if nothing was written into it. */
void replay_dump_forget(const char *directory);

/*
 * The replay stands where it was to stop. Says registers and digests if that is before the guest's end, and writes the
 * dump (docs/recordings.md) if `directory` is not NULL. 0; -ERANGE: the guest ended before --until; other -errno: said
 * in words. Machine thread, after lockstep_run.
 */
int replay_stopped(struct lockstep *ls, const char *directory);

/* The files of a dump: `ram` and `state.json`. `digest` is that of all RAM. 0 or -errno, said in words. */
int replay_dump_write(const char *directory, const struct machine *machine, const struct vcpu_state *vcpu,
                      uint64_t ram_digest);

#endif
