/*
 * The backups that an agent has started on its host. Each holds a lock on a file, RUN/VM.backup, which it inherits and
 * which ends with it, so that an agent that was started anew knows which of them live, whatever process number they
 * have. An agent never ends one: by now it may be the primary. One that nobody joins ends by itself.
 */
#ifndef FTVMM_FLEET_BACKUP_H
#define FTVMM_FLEET_BACKUP_H

#include "fleet/description.h"

struct backup_owner {
    const char *run_dir;   /* ours alone */
    const char *ftvmm;     /* the program */
    const char *urls;      /* the fleet's, which it is to ask in its turn */
    const char *auth_dir;  /* NULL: none */
    const char *host;
    unsigned join_timeout_s;
};

/* Starts `ftvmm backup` for `claim`, of which state, address and memory are set. 0 or -errno, said in words. */
int backup_start(const struct backup_owner *owner, const struct description *description,
                 const struct fleet_claim *claim);
/* What of VM's backup is in its file, if it lives: into *claim, FLEET_STARTED. False: there is none that lives. */
bool backup_lives(const struct backup_owner *owner, const char *vm, struct fleet_claim *claim);
/* The same for all files in run_dir; returns how many, at most FLEET_CLAIMS_MAX. */
unsigned backups_living(const struct backup_owner *owner, struct fleet_claim claims[FLEET_CLAIMS_MAX]);

#endif
