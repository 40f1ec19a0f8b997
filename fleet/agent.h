/*
 * The agent of a host: keeps its presence in etcd, answers claims on it, starts backups for them, and takes claims back
 * when those have ended. It decides about its own host only; nobody coordinates agents but etcd.
 */
#ifndef FTVMM_FLEET_AGENT_H
#define FTVMM_FLEET_AGENT_H

#include <stdatomic.h>
#include <stdint.h>

#include "fleet/backup.h"

#define AGENT_LEASE_MIN_S 2u
#define AGENT_LEASE_MAX_S 20u /* less than a lost host is left out for (spare.c) */

struct agent_options {
    struct backup_owner owner;
    const char *vms_dir;
    uint32_t memory_mib, guests;
    unsigned lease_s;
    atomic_bool *stop; /* set by whoever wants the agent to end; its requests to etcd end soon, too */
};

/* Until `stop`, 0; or -errno, said in words: another agent has this name, no right to the directories. */
int agent_run(const struct agent_options *options);

#endif
