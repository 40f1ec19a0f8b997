/*
 * A primary's side of the fleet: finds a host for a new backup, claims room there, and waits until its agent has
 * started the backup. Whether it then joins is the caller's to see; who asks again is given another host, if there is
 * one.
 *
 * Threads: one at a time; the same one.
 */
#ifndef FTVMM_FLEET_SPARE_H
#define FTVMM_FLEET_SPARE_H

#include <stdatomic.h>
#include <stdint.h>

#include "fleet/host.h"

#define FLEET_SPARE_PREFIX "fleet:" /* --spare fleet:[NAME], NAME: of this host in the fleet, default its host name */

struct fleet_spare;

struct fleet_spare_options {
    const char *urls, *auth_dir, *auth_option; /* etcd_client_open */
    const char *own_host;                      /* NULL or empty: the host name; the boot id tells this host, too, then */
    const char *vm;
    uint32_t memory_mib;
    const char *lost_address;                  /* of the pair's other host, when this guest is alone; NULL: unknown */
    const char *own_address;                   /* where this guest's ftvmm listened as a backup; NULL: it never did */
    const atomic_bool *cancel;                 /* calls below return soon, -ECANCELED */
};

/* 0 or -errno, said in words. The strings must outlive it. */
int fleet_spare_open(struct fleet_spare **out, const struct fleet_spare_options *options);
void fleet_spare_close(struct fleet_spare *spare); /* accepts NULL */

/*
 * Blocks for some seconds, a host that does not answer included. 0: a backup listens at `address`, on `host`. Else
 * -errno, and `why`: -ENOENT no host can take it now; -ECANCELED; etcd's (etcd_client_post).
 * The host that was found last is not found again for half a minute: it is lost, or has not joined.
 */
int fleet_spare_find(struct fleet_spare *spare, char address[FLEET_ADDRESS_BYTES], char host[FLEET_NAME_BYTES],
                     char why[FLEET_WHY_BYTES]);

#endif
