/* What a kind of arbiter has to bring; arbiter.c does the rest. The promises are those of arbiter.h. */
#ifndef FTVMM_VMM_ARBITER_KIND_H
#define FTVMM_VMM_ARBITER_KIND_H

#include <stdatomic.h>

#include "vmm/arbiter.h"

/* One thread at a time calls these for one place. */
struct arbiter_kind {
    const char *prefix; /* of the address, with its colon */
    const char *usage;  /* of the whole address */
    /*
     * `where` is the address without the prefix; the name of the VM is sound. `owner` is one line without its end that
     * nobody else has; it and `closing` live as long as the place. Once `closing` is set a call should return soon.
     */
    int (*open)(void **place, const char *where, const struct arbiter_options *options, const char *owner,
                const atomic_bool *closing);
    void (*close)(void *place); /* accepts NULL */
    int (*begin)(void *place, uint64_t *generation);
    int (*check)(void *place, uint64_t generation);
    /* Only of the generation last begun or checked. Says into `why` (ARBITER_WHY_BYTES) what is unreachable. */
    enum arbiter_verdict (*claim)(void *place, uint64_t generation, char *why);
    /* NULL, or: called now and then between claims. 0, or -errno with `why` as above: a claim would not get through. */
    int (*tend)(void *place, char *why);
};

extern const struct arbiter_kind arbiter_dir, arbiter_etcd, arbiter_rdma;

#endif
