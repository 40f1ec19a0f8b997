/* Finding a spare; see spare.h. */
#include "fleet/spare.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"
#include "fleet/cpu.h"
#include "fleet/registry.h"

/* Longer than a lease may be (agent.h), so that a dead host's presence has gone before it would be asked again. */
#define AVOID_NS  (30 * NS_PER_S)
#define ANSWER_NS (10 * NS_PER_S) /* of an agent, which looks four times a second */
#define LOOK_NS   (100 * NS_PER_MS)
/* A backup that does not like its words ends at once, and its agent sees it within two looks. */
#define SETTLE_NS (600 * NS_PER_MS)
#define TRIES     16 /* of claims, in one call */

struct avoided {
    char name[FLEET_NAME_BYTES];
    uint64_t until_ns;
};

struct fleet_spare {
    struct fleet_spare_options options;
    struct fleet *fleet;
    char own_host[FLEET_NAME_BYTES], own_boot[40], cpu[64], microcode[24];
    char found[FLEET_NAME_BYTES]; /* last; empty: none yet */
    uint64_t lost_until_ns;       /* how long lost_address counts; 0: nobody has asked yet */
    struct avoided avoided[FLEET_HOSTS_MAX];
    unsigned avoided_count;
    struct fleet_host host, best; /* 2 x 55 KB */
    char names[FLEET_HOSTS_MAX][FLEET_NAME_BYTES];
};

int fleet_spare_open(struct fleet_spare **out, const struct fleet_spare_options *options)
{
    struct fleet_spare *spare = calloc(1, sizeof(*spare));
    const char *own = options->own_host;
    char host_name[256] = "";
    int rc;

    *out = NULL;
    if (spare == NULL)
        return -ENOMEM;
    spare->options = *options;
    if (own == NULL || *own == '\0') {
        (void)gethostname(host_name, sizeof(host_name) - 1);
        own = host_name;
    }
    if (!fleet_name_is_valid(own)) {
        report_error("'%s' is no name for a host of the fleet: %s; give this host's with --spare fleet:NAME", own,
                     FLEET_NAME_RULE);
        free(spare);
        return -EINVAL;
    }
    strcpy(spare->own_host, own);
    rc = own == host_name ? fleet_boot_read(spare->own_boot, sizeof(spare->own_boot)) : 0;
    if (rc == 0)
        rc = fleet_cpu_read(spare->cpu, sizeof(spare->cpu), spare->microcode, sizeof(spare->microcode));
    if (rc == 0)
        rc = fleet_open(&spare->fleet, options->urls, options->auth_dir, options->auth_option, options->cancel);
    if (rc < 0) {
        fleet_spare_close(spare);
        return rc;
    }
    *out = spare;
    return 0;
}

void fleet_spare_close(struct fleet_spare *spare)
{
    if (spare == NULL)
        return;
    fleet_close(spare->fleet);
    free(spare);
}

static bool is_cancelled(const struct fleet_spare *spare)
{
    return atomic_load(spare->options.cancel);
}

/* ---- hosts that are left out for a while ---- */

static void avoid(struct fleet_spare *spare, const char *name)
{
    uint64_t now_ns = clock_now_ns();
    struct avoided *place = NULL;

    for (unsigned i = 0; i < spare->avoided_count; i++)
        if (strcmp(spare->avoided[i].name, name) == 0 || spare->avoided[i].until_ns <= now_ns)
            place = &spare->avoided[i];
    if (place == NULL && spare->avoided_count < FLEET_HOSTS_MAX)
        place = &spare->avoided[spare->avoided_count++];
    if (place == NULL)
        return;
    snprintf(place->name, sizeof(place->name), "%s", name);
    place->until_ns = now_ns + AVOID_NS;
}

/* Why not now; NULL: there is no reason. */
static const char *is_avoided(const struct fleet_spare *spare, const struct fleet_host *host)
{
    const struct fleet_vm *vm = fleet_host_vm(host, spare->options.vm);
    const char *lost = spare->options.lost_address, *own = spare->options.own_address;
    uint64_t now_ns = clock_now_ns();

    if (vm != NULL && own != NULL && strcmp(vm->address, own) == 0)
        return "the guest runs there";
    if (vm != NULL && lost != NULL && now_ns < spare->lost_until_ns && strcmp(vm->address, lost) == 0)
        return "lost just now";
    for (unsigned i = 0; i < spare->avoided_count; i++)
        if (strcmp(spare->avoided[i].name, host->name) == 0 && spare->avoided[i].until_ns > now_ns)
            return "lost, or of no use, a moment ago";
    return NULL;
}

/* Who had claimed this host for us was the primary then. If it is first heard of now, it is what has been lost. */
static void avoid_the_old_primary(struct fleet_spare *spare)
{
    struct fleet_host *own = &spare->host;
    char why[FLEET_WHY_BYTES];

    if (fleet_read(spare->fleet, spare->own_host, own, why) < 0)
        return; /* no agent here, or none of ours: then it is not known */
    for (unsigned i = 0; i < own->claim_count; i++)
        if (strcmp(own->claims[i].vm, spare->options.vm) == 0 && own->claims[i].state == FLEET_STARTED &&
            own->claims[i].by[0] != '\0')
            avoid(spare, own->claims[i].by);
}

/* ---- choosing ---- */

static void add_reason(char why[FLEET_WHY_BYTES], const char *name, const char *reason)
{
    size_t used = strlen(why);

    snprintf(why + used, FLEET_WHY_BYTES - used, "; %.63s: %s", name, reason);
}

/* The best of all hosts into spare->best. -ENOENT: none will do. */
static int choose(struct fleet_spare *spare, char why[FLEET_WHY_BYTES])
{
    const struct fleet_wish wish = {
        .vm = spare->options.vm, .memory_mib = spare->options.memory_mib, .cpu = spare->cpu,
        .microcode = spare->microcode, .own_host = spare->own_host,
        .own_boot = spare->own_boot[0] != '\0' ? spare->own_boot : NULL,
    };
    unsigned count, strange;
    bool any = false;
    int rc = fleet_list(spare->fleet, false, spare->names, &count, &strange, why);

    if (rc < 0)
        return rc;
    snprintf(why, FLEET_WHY_BYTES, "no host of the fleet can take the backup (%u present)", count);
    for (unsigned i = 0; i < count; i++) {
        char this_why[FLEET_WHY_BYTES];
        const char *reason = this_why;

        if (is_cancelled(spare))
            return -ECANCELED;
        rc = fleet_read(spare->fleet, spare->names[i], &spare->host, this_why);
        if (rc == 0)
            reason = fleet_host_unfit(&spare->host, &wish);
        else if (rc == -EHOSTUNREACH || rc == -EACCES) { /* not of this host alone */
            memcpy(why, this_why, sizeof(this_why));
            return rc;
        }
        if (reason == NULL)
            reason = is_avoided(spare, &spare->host);
        if (reason != NULL)
            add_reason(why, spare->names[i], reason);
        else if (!any || fleet_host_better(&spare->host, &spare->best, &wish))
            spare->best = spare->host, any = true;
    }
    return any ? 0 : -ENOENT;
}

/* ---- claiming ---- */

static int make_id(char id[FLEET_ID_BYTES])
{
    uint64_t random;

    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return -EIO;
    snprintf(id, FLEET_ID_BYTES, "%016llx", (unsigned long long)random);
    return 0;
}

/* Ours at that host already, of an earlier attempt or of an answer that was lost; NULL: none. */
static const struct fleet_claim *claim_of_ours(const struct fleet_spare *spare, const struct fleet_host *host)
{
    for (unsigned i = 0; i < host->claim_count; i++)
        if (strcmp(host->claims[i].vm, spare->options.vm) == 0 && host->claims[i].state != FLEET_REFUSED &&
            strcmp(host->claims[i].by, spare->own_host) == 0)
            return &host->claims[i];
    return NULL;
}

/* Room at spare->best. -EAGAIN: somebody else was first, or that host is no longer present. */
static int claim(struct fleet_spare *spare, char id[FLEET_ID_BYTES], char why[FLEET_WHY_BYTES])
{
    const struct fleet_claim *ours = claim_of_ours(spare, &spare->best);
    struct fleet_claim *claim;
    int rc;

    if (ours != NULL) {
        memcpy(id, ours->id, FLEET_ID_BYTES);
        return 0;
    }
    rc = make_id(id);
    claim = fleet_host_add_claim(&spare->best);
    if (rc < 0 || claim == NULL)
        return rc < 0 ? rc : -EAGAIN;
    strcpy(claim->vm, spare->options.vm);
    strcpy(claim->id, id);
    strcpy(claim->by, spare->own_host);
    claim->state = FLEET_ASKED;
    claim->memory_mib = spare->options.memory_mib;
    return fleet_write_ledger(spare->fleet, &spare->best, true, why);
}

/* A claim that its agent has not turned into a backup. Whoever changes the ledger meanwhile makes this try in vain; a
 * few are made, and what stays is found by the agent, whose backup ends if nobody joins it. */
static void give_back(struct fleet_spare *spare, const char *name, const char *id)
{
    char why[FLEET_WHY_BYTES];
    int rc = -EAGAIN;

    for (unsigned i = 0; i < 4 && rc == -EAGAIN; i++) {
        struct fleet_claim *claim;

        rc = fleet_read(spare->fleet, name, &spare->host, why);
        claim = rc == 0 ? fleet_host_claim(&spare->host, id) : NULL;
        if (claim == NULL || claim->state == FLEET_STARTED)
            return;
        fleet_host_remove_claim(&spare->host, claim);
        rc = fleet_write_ledger(spare->fleet, &spare->host, false, why);
    }
}

/* Until the agent of spare->best has answered. -ENOENT: not with a backup, and `why`. */
static int await(struct fleet_spare *spare, const char *id, char address[FLEET_ADDRESS_BYTES],
                 char why[FLEET_WHY_BYTES])
{
    uint64_t limit_ns = clock_now_ns() + ANSWER_NS, started_ns = 0;
    struct fleet_host *host = &spare->host;

    while (clock_now_ns() < limit_ns) {
        char this_why[FLEET_WHY_BYTES];
        int rc = is_cancelled(spare) ? -ECANCELED : fleet_read(spare->fleet, spare->best.name, host, this_why);
        const struct fleet_claim *claim = rc == 0 ? fleet_host_claim(host, id) : NULL;

        if (rc == -ECANCELED)
            return rc;
        if (claim != NULL && claim->state == FLEET_STARTED && started_ns == 0)
            started_ns = clock_now_ns();
        if (claim != NULL && claim->state == FLEET_STARTED && clock_now_ns() >= started_ns + SETTLE_NS) {
            memcpy(address, claim->address, FLEET_ADDRESS_BYTES);
            return 0;
        }
        if (rc == 0 && (claim == NULL || claim->state == FLEET_REFUSED || !host->present)) {
            snprintf(why, FLEET_WHY_BYTES, "host %s gives no backup: %.150s", spare->best.name,
                     claim == NULL ? "the claim was removed" : !host->present ? "its agent has gone" : claim->why);
            return -ENOENT;
        }
        clock_sleep_ns(LOOK_NS);
    }
    snprintf(why, FLEET_WHY_BYTES, "the agent of host %s does not answer", spare->best.name);
    return -ENOENT; /* nor etcd, perhaps: then the next choice says so */
}

int fleet_spare_find(struct fleet_spare *spare, char address[FLEET_ADDRESS_BYTES], char host[FLEET_NAME_BYTES],
                     char why[FLEET_WHY_BYTES])
{
    char id[FLEET_ID_BYTES], refused[FLEET_WHY_BYTES] = "";
    int rc;

    if (spare->lost_until_ns == 0) {
        spare->lost_until_ns = clock_now_ns() + AVOID_NS;
        avoid_the_old_primary(spare);
    }
    if (spare->found[0] != '\0')
        avoid(spare, spare->found);
    spare->found[0] = '\0';
    for (unsigned tries = 0; tries < TRIES; tries++) {
        rc = is_cancelled(spare) ? -ECANCELED : choose(spare, why);
        if (rc == -ENOENT && refused[0] != '\0')
            memcpy(why, refused, sizeof(refused)); /* tells more */
        if (rc < 0)
            return rc;
        rc = claim(spare, id, why);
        if (rc == -EAGAIN)
            continue;
        if (rc < 0)
            return rc;
        strcpy(host, spare->best.name);
        rc = await(spare, id, address, why);
        if (rc == 0) {
            strcpy(spare->found, host);
            return 0;
        }
        if (rc == -ECANCELED)
            return rc; /* etcd is not asked any more; the backup that nobody joins ends by itself */
        memcpy(refused, why, sizeof(refused));
        give_back(spare, host, id);
        avoid(spare, host);
    }
    snprintf(why, FLEET_WHY_BYTES, "others claim the same hosts all the time");
    return -ENOENT;
}
