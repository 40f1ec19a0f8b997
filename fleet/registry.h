/*
 * The fleet in etcd: who is there, and what is claimed of whom. All that hosts know of each other stands there, and
 * each change is a transaction.
 *
 *   ftvmm/.fleet/hosts/NAME   presence of a host, under its agent's lease: gone when the agent has not renewed it
 *   ftvmm/.fleet/claims/NAME  the ledger of that host: who has claimed room there. No lease: what runs there runs on
 *                             when the agent ends
 *
 * No VM's name begins with '.', so none of these is a key of the arbiter's, and etcd's user needs no other rights.
 *
 * A ledger is changed by whoever has read it, if nobody else has changed it since (mod_revision), and by a primary only
 * while the host's presence is the one that it has seen (create_revision). So of two that claim the same room one
 * fails, reads again, and sees that it is taken.
 *
 * Threads: one at a time.
 */
#ifndef FTVMM_FLEET_REGISTRY_H
#define FTVMM_FLEET_REGISTRY_H

#include <stdatomic.h>
#include <stdint.h>

#include "fleet/host.h"

#define FLEET_HOSTS_MAX 256u

struct fleet;

/* As etcd_client_open; talks to nobody yet. */
int fleet_open(struct fleet **out, const char *urls, const char *auth_dir, const char *auth_option,
               const atomic_bool *cancel);
void fleet_close(struct fleet *fleet); /* accepts NULL */

/* All below: 0 or -errno with the reason in `why`; -EHOSTUNREACH, -EACCES, -EPROTO: etcd_client_post. */

/* Names of the hosts that are present, and of those with a ledger only if `all`. At most FLEET_HOSTS_MAX, a valid name
 * each; *strange: how many keys were no names of hosts. */
int fleet_list(struct fleet *fleet, bool all, char names[][FLEET_NAME_BYTES], unsigned *count, unsigned *strange,
               char why[FLEET_WHY_BYTES]);
/* Both values of a host, as they are at one moment. -EBADMSG: one of them is none of ours. */
int fleet_read(struct fleet *fleet, const char *name, struct fleet_host *host, char why[FLEET_WHY_BYTES]);

/* Writes host->claims, if the ledger is as it was read; and, if `while_present`, the host's presence has not ended
 * since. -EAGAIN: it is not; read again. */
int fleet_write_ledger(struct fleet *fleet, const struct fleet_host *host, bool while_present,
                       char why[FLEET_WHY_BYTES]);

/* An agent's: a lease; its renewal (-ENOENT: it has run out); its end, and that of what it keeps. */
int fleet_lease_grant(struct fleet *fleet, unsigned seconds, int64_t *lease, char why[FLEET_WHY_BYTES]);
int fleet_lease_renew(struct fleet *fleet, int64_t lease, char why[FLEET_WHY_BYTES]);
int fleet_lease_revoke(struct fleet *fleet, int64_t lease, char why[FLEET_WHY_BYTES]);
/* Writes the presence of `host` under a lease, if etcd's is as it was read (presence_modified). -EAGAIN: it is not. */
int fleet_write_presence(struct fleet *fleet, const struct fleet_host *host, int64_t lease, char why[FLEET_WHY_BYTES]);

#endif
