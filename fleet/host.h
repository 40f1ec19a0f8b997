/*
 * A host of the fleet as etcd knows it: what it is and can hold, which VMs it could be a backup of, and who has claimed
 * room on it. Two JSON values, written and read here side by side; and the choice of a host for a VM. Knows no etcd.
 */
#ifndef FTVMM_FLEET_HOST_H
#define FTVMM_FLEET_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/vm_name.h"

struct cJSON;

#define FLEET_NAME_BYTES    64u /* of a host, with its end */
#define FLEET_NAME_RULE     "up to 63 letters, digits, '-', '_' and '.', no '.' in front"
#define FLEET_ADDRESS_BYTES 256u
#define FLEET_ID_BYTES      17u
#define FLEET_WHY_BYTES     256u
#define FLEET_VMS_MAX       64u
#define FLEET_CLAIMS_MAX    64u
#define FLEET_VALUE_BYTES   (20u << 10) /* no value of ours is longer; two fit into an answer that etcd_client takes */

struct fleet_vm {
    char name[VM_NAME_BYTES];
    char address[FLEET_ADDRESS_BYTES]; /* where its backup would listen: verbs:HOST:PORT */
    uint32_t memory_mib;
};

enum fleet_claim_state {
    FLEET_ASKED,   /* by a primary; its agent has not seen it yet */
    FLEET_STARTED, /* the backup listens, or has become the primary by now */
    FLEET_REFUSED, /* by the agent, or that backup has ended: `why`; takes no room any more */
};

struct fleet_claim {
    char vm[VM_NAME_BYTES];
    char id[FLEET_ID_BYTES];           /* of this claim and no other; 16 hex digits */
    char by[FLEET_NAME_BYTES];         /* host of the primary; empty: unknown */
    enum fleet_claim_state state;
    uint32_t memory_mib;
    char address[FLEET_ADDRESS_BYTES]; /* FLEET_STARTED */
    char why[FLEET_WHY_BYTES];         /* FLEET_REFUSED */
};

struct fleet_host {
    char name[FLEET_NAME_BYTES];
    /* Its presence: */
    bool present;
    char boot[40];       /* its kernel's boot id */
    char cpu[64];        /* vendor, family, model, stepping: must be equal */
    char microcode[24];  /* should be equal */
    uint32_t memory_mib; /* for guests, used or not */
    uint32_t guests;     /* how many at most, one CPU each */
    unsigned vm_count;
    struct fleet_vm vms[FLEET_VMS_MAX];
    /* Its ledger: */
    unsigned claim_count;
    struct fleet_claim claims[FLEET_CLAIMS_MAX];
    /* As they were read from etcd, 0: not there. */
    int64_t presence_created, presence_modified, ledger_modified;
};

/* Any thread. */
bool fleet_name_is_valid(const char *name);
bool fleet_address_is_valid(const char *address); /* a channel's: verbs:, tcp: or shm: and something printable */

/* Lists of host->vms and host->claims, as they stand in the values. */
struct cJSON *fleet_vms_json(const struct fleet_host *host);
struct cJSON *fleet_claims_json(const struct fleet_host *host);

/* The two values. The text is the caller's to free; NULL: no memory. */
char *fleet_presence_encode(const struct fleet_host *host);
char *fleet_ledger_encode(const struct fleet_host *host);
/* Into `host`, whatever the bytes are. 0; -EBADMSG, with the reason in `why`, and that part of `host` is empty. */
int fleet_presence_decode(struct fleet_host *host, const char *text, size_t bytes, char why[FLEET_WHY_BYTES]);
int fleet_ledger_decode(struct fleet_host *host, const char *text, size_t bytes, char why[FLEET_WHY_BYTES]);

/* Not found: NULL. */
const struct fleet_vm *fleet_host_vm(const struct fleet_host *host, const char *vm);
struct fleet_claim *fleet_host_claim(struct fleet_host *host, const char *id);
/* One more claim, all zero; NULL: no room for it. */
struct fleet_claim *fleet_host_add_claim(struct fleet_host *host);
void fleet_host_remove_claim(struct fleet_host *host, struct fleet_claim *claim);
/* What claims have not taken. */
uint32_t fleet_host_free_mib(const struct fleet_host *host);
uint32_t fleet_host_free_guests(const struct fleet_host *host);

const char *fleet_claim_state_name(enum fleet_claim_state state);

struct fleet_wish {
    const char *vm;
    uint32_t memory_mib;
    const char *cpu, *microcode; /* this host's */
    const char *own_host;
    const char *own_boot; /* boot id of the kernel here; NULL: names alone tell hosts apart */
};

/* Why `host` cannot be the backup's; NULL: it can, or has been claimed for it by `own_host` already. */
const char *fleet_host_unfit(const struct fleet_host *host, const struct fleet_wish *wish);
/* Whether `a` is to be preferred to `b`, both fit: microcode like ours, then most memory free, most guests, name. */
bool fleet_host_better(const struct fleet_host *a, const struct fleet_host *b, const struct fleet_wish *wish);

#endif
