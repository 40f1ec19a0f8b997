/*
 * The arbiter as a witness (ftwitness): a claim is one compare-and-swap that this host's RDMA card makes in the third
 * host's memory. What is said and kept is witness/client.h's.
 */
#include "vmm/arbiter_kind.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "channel/address.h"
#include "witness/client.h"

_Static_assert(ARBITER_WHY_BYTES >= WITNESS_WHY_BYTES, "its reasons fit ours");

struct witness {
    struct witness_client *client;
    char where[128];
};

static void rdma_close(void *place)
{
    struct witness *witness = place;

    if (witness == NULL)
        return;
    witness_client_close(witness->client);
    free(witness);
}

static int secret_load(struct channel_secret *secret, const char *auth_dir)
{
    char path[4096];

    if (auth_dir == NULL) {
        report_error("--arbiter rdma: needs --arbiter-auth DIR with the file 'key' in it, the same as the witness's key "
                     "for this VM");
        return -EINVAL;
    }
    if (snprintf(path, sizeof(path), "%s/key", auth_dir) >= (int)sizeof(path)) {
        report_error("--arbiter-auth '%.60s...' is too long a path", auth_dir);
        return -ENAMETOOLONG;
    }
    return channel_secret_load(secret, path);
}

static int rdma_open(void **place, const char *where, const struct arbiter_options *options, const char *owner,
                     const atomic_bool *closing)
{
    struct witness *witness = calloc(1, sizeof(*witness));
    struct channel_secret secret = { 0 };
    struct sockaddr_storage address;
    char why[WITNESS_WHY_BYTES];
    socklen_t address_bytes;
    int rc = -ENOMEM;

    (void)owner; /* the client is a member of its own for each generation */
    if (witness == NULL)
        return rc;
    snprintf(witness->where, sizeof(witness->where), "rdma:%.120s", where);
    rc = address_resolve("rdma", where, false, &address, &address_bytes);
    if (rc == 0)
        rc = secret_load(&secret, options->auth_dir);
    if (rc == 0) {
        rc = witness_client_open(&witness->client, &address, options->vm, &secret, closing, why);
        if (rc < 0)
            report_error("the witness %s is of no use to VM '%s': %s", witness->where, options->vm, why);
    }
    channel_secret_wipe(&secret);
    if (rc < 0) {
        rdma_close(witness);
        return rc;
    }
    *place = witness;
    return 0;
}

static int rdma_begin(void *place, uint64_t *generation)
{
    struct witness *witness = place;
    char why[WITNESS_WHY_BYTES];
    int rc = witness_client_begin(witness->client, generation, why);

    if (rc < 0)
        report_error("the witness %s gives no new generation: %s", witness->where, why);
    return rc;
}

static int rdma_check(void *place, uint64_t generation)
{
    struct witness *witness = place;
    char why[WITNESS_WHY_BYTES];
    int rc = witness_client_check(witness->client, generation, why);

    if (rc < 0)
        report_error("the witness %s has no place in generation %llu for this host: %s%s", witness->where,
                     (unsigned long long)generation, why,
                     rc == -ENOENT ? "; both hosts must be given the same witness" : "");
    return rc;
}

static enum arbiter_verdict rdma_claim(void *place, uint64_t generation, char *why)
{
    struct witness *witness = place;

    (void)generation; /* the one last begun or checked, and the client knows it */
    switch (witness_client_claim(witness->client, why)) {
    case WITNESS_WON: return ARBITER_WON;
    case WITNESS_LOST: return ARBITER_LOST;
    case WITNESS_UNDECIDED: break;
    }
    return ARBITER_UNREACHABLE;
}

static int rdma_tend(void *place, char *why)
{
    struct witness *witness = place;

    return witness_client_tend(witness->client, why);
}

const struct arbiter_kind arbiter_rdma = {
    .prefix = "rdma:",
    .usage = "rdma:HOST:PORT, a witness",
    .open = rdma_open,
    .close = rdma_close,
    .begin = rdma_begin,
    .check = rdma_check,
    .claim = rdma_claim,
    .tend = rdma_tend,
};
