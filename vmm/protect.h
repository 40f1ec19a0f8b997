/*
 * The protector: gives a guest that runs alone a new backup, without stopping it. A thread of its own leaves the old
 * pair's channel, joins the new backup under a new generation, and sends RAM (and a mirrored disk) while the guest runs
 * on; what the guest writes meanwhile goes out again, round after round, until the rest is small enough. Then the machine
 * thread stops the guest at a position, sends the rest, and is a primary from there on. If anything fails before that, the
 * guest runs on alone, the new backup is not whole and can never go live, and the protector begins again.
 *
 * The channel's threads: until the rest is to be sent, the protector is its committing and its polling thread; for the
 * rest the machine thread commits; then the I/O thread polls. Each change is a turn that is handed over and acknowledged.
 */
#ifndef FTVMM_VMM_PROTECT_H
#define FTVMM_VMM_PROTECT_H

#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"
#include "fleet/spare.h"

struct lockstep;
struct protector;

#define PROTECT_ADDRESS_BYTES 256u
#define PROTECT_WHY_BYTES     256u

struct protect_options {
    const char *spare;          /* address of a host that is to be the backup whenever there is none, or "fleet:...": one
                                 * that etcd's fleet names then (fleet/spare.h); NULL: none yet */
    struct fleet_spare_options fleet; /* urls NULL: none. cancel is the protector's own */
    const char *key_path;       /* as for the first backup; NULL: none */
    uint64_t ring_bytes;
    enum channel_ack ack;
    struct channel_hello hello; /* all but the generation */
    uint64_t disk_identity;     /* of a shared disk, else 0 */
    uint64_t max_pause_ns;      /* the guest is stopped when the rest is expected to take no longer */
    uint64_t rate_bytes_per_s;  /* of the transfer while the guest runs; 0: as fast as can be */
};

enum protect_state {
    PROTECT_IDLE,    /* the guest has a backup, or nobody has said where a new one is */
    PROTECT_LEAVING, /* the old channel is being left */
    PROTECT_SEEKING, /* the fleet is asked for a host */
    PROTECT_JOINING, /* waiting for the new backup */
    PROTECT_COPYING, /* RAM and disk go out while the guest runs */
    PROTECT_PAUSED,  /* the guest stands still for the rest */
};

const char *protect_state_name(enum protect_state state);

/* Starts the thread, which waits until the guest runs alone. Copies `options`. 0 or -errno, said in words. */
int protect_open(struct protector **out, struct lockstep *ls, const struct protect_options *options);
/* Ends a transfer under way. Accepts NULL. The machine thread has finished. */
void protect_close(struct protector *protector);

/* ---- any thread ---- */

/* The backup is to be at `address`, from now on, also when that one is lost; NULL: where it was to be last. Of a guest
 * that has a backup, or is just being copied to one, nothing changes now. False: no address is known. */
bool protect_ask(struct protector *protector, const char *address);
/* No backup is wanted until somebody asks for one; a transfer under way ends, unless it is all but done. */
void protect_cancel(struct protector *protector);

struct protect_status {
    enum protect_state state;
    bool wanted;
    char address[PROTECT_ADDRESS_BYTES]; /* empty: none known */
    char host[FLEET_NAME_BYTES];         /* that the fleet has given last; empty: none */
    char host_address[FLEET_ADDRESS_BYTES];
    uint64_t attempts, completed;
    /* Of the transfer under way, or of the last one. */
    uint64_t rounds;
    uint64_t sent_pages, zero_pages, sent_blocks, sent_bytes;
    uint64_t all_bytes;        /* RAM and disk */
    uint64_t left_bytes;       /* of it, when the last round began */
    uint64_t left_now_bytes;   /* of that round; what the guest writes meanwhile comes on top */
    uint64_t bytes_per_s;      /* sent, so far; pages and blocks of zeros cost next to nothing */
    uint64_t eta_ns;           /* until that round is through, at the pace so far; 0: not known */
    uint64_t began_ns;         /* clock_now_ns() when the new backup had joined */
    uint64_t took_ns;          /* until the guest ran on protected; 0: not yet */
    uint64_t pause_ns;         /* how long the guest stood still for it */
    char why[PROTECT_WHY_BYTES]; /* why the last attempt failed; empty: it has not */
};
void protect_get_status(struct protector *protector, struct protect_status *out);

/* ---- machine thread, of a guest that is alone, between two positions or halted at one ---- */

/* Serves the protector, if it has a request. 0: nothing changed. 1: this instant has become the next position; and if the
 * role is the primary's, the guest has a backup from here on. -errno: the vCPU failed. */
int protect_serve(struct protector *protector);

#endif
