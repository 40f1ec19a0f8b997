/* The agent's loop; see agent.h. One thread, one look after the other. */
#include "fleet/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"
#include "fleet/cpu.h"
#include "fleet/registry.h"

#define LOOK_NS   (250 * NS_PER_MS)
#define SAY_AGAIN_NS (60 * NS_PER_S)
/* How long a refusal stays for the primary to read. */
#define REFUSAL_NS (30 * NS_PER_S)

struct refusal {
    char id[FLEET_ID_BYTES];
    uint64_t until_ns;
};

struct agent {
    const struct agent_options *options;
    struct fleet *fleet;
    int lock_fd;
    int64_t lease;             /* 0: none */
    uint64_t renew_ns;         /* when it is due */
    int64_t presence_modified; /* as this agent has written it; 0: not yet */
    struct descriptions descriptions;
    struct fleet_host self;    /* what is to be written as presence */
    struct fleet_host host;    /* as it is in etcd */
    struct refusal refusals[FLEET_CLAIMS_MAX];
    struct fleet_claim living[FLEET_CLAIMS_MAX];
    unsigned living_count;
    uint64_t trouble_ns; /* when trouble that lasts was last said; 0: there is none */
};

/* ---- set-up ---- */

static uint64_t memory_available_mib(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    unsigned long long kib = 0;
    char line[256];

    while (file != NULL && fgets(line, sizeof(line), file) != NULL && sscanf(line, "MemAvailable: %llu", &kib) != 1)
        ;
    if (file != NULL)
        fclose(file);
    return kib >> 10;
}

/* The directory is this agent's alone, and no other one's on this host. */
static int lock_run_dir(struct agent *agent)
{
    const char *dir = agent->options->owner.run_dir;
    char path[4096];
    struct stat status;

    (void)mkdir(dir, 0700);
    if (stat(dir, &status) != 0 || !S_ISDIR(status.st_mode) || (status.st_mode & 022) != 0 ||
        status.st_uid != geteuid()) {
        report_error("--run '%s' must be a directory of ours that nobody else can write: 'mkdir -m 700 %s'", dir, dir);
        return -EACCES;
    }
    snprintf(path, sizeof(path), "%s/ftagent.lock", dir);
    agent->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (agent->lock_fd >= 0 && flock(agent->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    report_error("another ftagent has '%s'; end it, or give this one another --run and --name", dir);
    return -EBUSY;
}

/* Trouble that lasts is said once a minute, and its end (`why` empty). */
static void say(struct agent *agent, const char *why)
{
    uint64_t now_ns = clock_now_ns();

    if (why[0] == '\0' && agent->trouble_ns != 0) {
        report_info("this host is in the fleet again");
        agent->trouble_ns = 0;
    } else if (why[0] != '\0' && (agent->trouble_ns == 0 || now_ns > agent->trouble_ns + SAY_AGAIN_NS)) {
        report_warning("%s; this host is no spare until that is over", why);
        agent->trouble_ns = now_ns;
    }
}

/* ---- presence ---- */

/* Reads the descriptions anew. True: the presence has changed. */
static bool describe(struct agent *agent, bool first)
{
    struct descriptions now;
    struct fleet_host *self = &agent->self;
    bool changed;

    if (descriptions_read(&now, agent->options->vms_dir, first) < 0) {
        descriptions_free(&now);
        return false; /* what it said before still holds */
    }
    changed = now.count != self->vm_count;
    for (unsigned i = 0; i < now.count; i++) {
        changed = changed || memcmp(&self->vms[i], &now.of[i].vm, sizeof(now.of[i].vm)) != 0;
        self->vms[i] = now.of[i].vm;
    }
    self->vm_count = now.count;
    if (now.bad > agent->descriptions.bad && !first)
        report_warning("a description in '%s' is bad; 'ftagent check' tells what of it", agent->options->vms_dir);
    descriptions_free(&agent->descriptions);
    agent->descriptions = now;
    return changed;
}

/*
 * Writes the presence, under a new lease if there is none. -EAGAIN: not now (said in `why`); -EBUSY: another host has
 * this name.
 */
static int appear(struct agent *agent, char why[FLEET_WHY_BYTES])
{
    struct fleet_host *host = &agent->host;
    int rc = fleet_read(agent->fleet, agent->self.name, host, why);

    if (rc == 0 && host->present && host->presence_modified != agent->presence_modified &&
        strcmp(host->boot, agent->self.boot) != 0) {
        snprintf(why, FLEET_WHY_BYTES,
                 "another host is in the fleet as '%s': give one of them another --name; a host that was restarted is "
                 "forgotten within %u s", agent->self.name, AGENT_LEASE_MAX_S);
        return -EBUSY;
    }
    if (rc == 0 && agent->lease == 0)
        rc = fleet_lease_grant(agent->fleet, agent->options->lease_s, &agent->lease, why);
    agent->self.presence_modified = host->presence_modified;
    if (rc == 0)
        rc = fleet_write_presence(agent->fleet, &agent->self, agent->lease, why);
    if (rc == 0)
        rc = fleet_read(agent->fleet, agent->self.name, host, why);
    if (rc == 0)
        agent->presence_modified = host->presence_modified;
    return rc;
}

/* Renews the lease and the presence when they are due. */
static int stay(struct agent *agent, char why[FLEET_WHY_BYTES])
{
    uint64_t now_ns = clock_now_ns();
    bool changed;
    int rc;

    if (now_ns < agent->renew_ns && agent->presence_modified != 0)
        return 0;
    changed = describe(agent, false);
    rc = agent->lease != 0 ? fleet_lease_renew(agent->fleet, agent->lease, why) : -ENOENT;
    if (rc == -ENOENT) /* it has run out, and the presence with it */
        agent->lease = agent->presence_modified = 0;
    if (rc == -ENOENT || (rc == 0 && (changed || agent->presence_modified == 0)))
        rc = appear(agent, why);
    if (rc == 0)
        agent->renew_ns = now_ns + agent->options->lease_s * NS_PER_S / 3;
    return rc;
}

/* ---- claims ---- */

static const struct fleet_claim *living(const struct agent *agent, const char *vm)
{
    for (unsigned i = 0; i < agent->living_count; i++)
        if (strcmp(agent->living[i].vm, vm) == 0)
            return &agent->living[i];
    return NULL;
}

static void refuse(struct fleet_claim *claim, const char *why)
{
    claim->state = FLEET_REFUSED;
    snprintf(claim->why, sizeof(claim->why), "%s", why);
}

/* Why not; NULL: it can be started. */
static const char *objection(const struct agent *agent, const struct fleet_claim *claim)
{
    const struct description *description = descriptions_find(&agent->descriptions, claim->vm);
    uint64_t taken_mib = 0, taken = 0;

    if (description == NULL)
        return "there is no description of this VM here";
    if (description->vm.memory_mib != claim->memory_mib)
        return "the description here gives the VM another memory_mib";
    if (living(agent, claim->vm) != NULL)
        return "a guest of this name runs here";
    for (unsigned i = 0; i < agent->host.claim_count; i++) {
        const struct fleet_claim *other = &agent->host.claims[i];

        if (other->state != FLEET_STARTED)
            continue;
        taken++;
        taken_mib += other->memory_mib;
        if (strcmp(other->vm, claim->vm) == 0)
            return "a backup of this VM is being started here";
    }
    if (taken >= agent->options->guests || taken_mib + claim->memory_mib > agent->options->memory_mib)
        return "there is no room left";
    if (memory_available_mib() < claim->memory_mib)
        return "the host itself has too little memory left";
    return NULL;
}

/* When a refusal may go; the first time it is seen it gets its time. */
static bool refusal_is_over(struct agent *agent, const struct fleet_claim *claim)
{
    uint64_t now_ns = clock_now_ns();
    struct refusal *place = NULL;

    for (unsigned i = 0; i < FLEET_CLAIMS_MAX; i++) {
        struct refusal *refusal = &agent->refusals[i];

        if (strcmp(refusal->id, claim->id) == 0)
            return now_ns >= refusal->until_ns;
        if (now_ns >= refusal->until_ns)
            place = refusal;
    }
    if (place == NULL)
        return true; /* more than can be: the oldest have had their time */
    strcpy(place->id, claim->id);
    place->until_ns = now_ns + REFUSAL_NS;
    return false;
}

/* What lives here has a claim, whatever has become of the ledger. */
static bool adopt(struct agent *agent)
{
    bool changed = false;

    for (unsigned i = 0; i < agent->living_count; i++) {
        const struct fleet_claim *here = &agent->living[i];
        struct fleet_claim *claim = fleet_host_claim(&agent->host, here->id);

        if (claim == NULL)
            claim = fleet_host_add_claim(&agent->host);
        else if (claim->state == FLEET_STARTED)
            continue;
        if (claim == NULL)
            continue; /* no room in the ledger: nobody can claim anything either */
        *claim = *here;
        changed = true;
        report_info("a guest of '%s' runs here, of an earlier start of this agent", here->vm);
    }
    return changed;
}

/* Brings the ledger and what runs here together. True: the ledger has changed. *start: the claims whose turn it is. */
static bool settle(struct agent *agent, bool start[FLEET_CLAIMS_MAX])
{
    struct fleet_host *host = &agent->host;
    bool changed;

    agent->living_count = backups_living(&agent->options->owner, agent->living);
    changed = adopt(agent);
    for (unsigned i = 0; i < host->claim_count;) {
        struct fleet_claim *claim = &host->claims[i];
        const struct fleet_claim *here = living(agent, claim->vm);

        if (claim->state == FLEET_REFUSED && refusal_is_over(agent, claim)) {
            fleet_host_remove_claim(host, claim);
            changed = true;
            continue;
        }
        if (claim->state == FLEET_STARTED && (here == NULL || strcmp(here->id, claim->id) != 0)) {
            report_info("the guest of '%s' here, for host %s, has ended; its room is free", claim->vm, claim->by);
            refuse(claim, "it has ended; its last words are in the log of this host's agent");
            changed = true;
        }
        i++;
    }
    for (unsigned i = 0; i < host->claim_count; i++) {
        struct fleet_claim *claim = &host->claims[i];
        const char *why;

        start[i] = false;
        if (claim->state != FLEET_ASKED)
            continue;
        why = objection(agent, claim);
        changed = true;
        if (why != NULL) {
            report_warning("no backup of '%s' for host %s: %s", claim->vm, claim->by, why);
            refuse(claim, why);
            continue;
        }
        claim->state = FLEET_STARTED;
        strcpy(claim->address, descriptions_find(&agent->descriptions, claim->vm)->vm.address);
        start[i] = true;
    }
    return changed;
}

static int serve(struct agent *agent, char why[FLEET_WHY_BYTES])
{
    struct fleet_host *host = &agent->host;
    bool start[FLEET_CLAIMS_MAX];
    int rc = fleet_read(agent->fleet, agent->self.name, host, why);

    if (rc < 0)
        return rc;
    if (!host->present) { /* the lease has run out, or somebody has removed the key */
        agent->presence_modified = 0;
        return 0;
    }
    if (host->presence_modified != agent->presence_modified) {
        snprintf(why, FLEET_WHY_BYTES, "another ftagent is in the fleet as '%s': give one of them another --name",
                 agent->self.name);
        return -EBUSY;
    }
    if (!settle(agent, start))
        return 0;
    rc = fleet_write_ledger(agent->fleet, host, true, why);
    if (rc < 0)
        return rc == -EAGAIN ? 0 : rc; /* it has changed meanwhile: the next look */
    /* Only now: the claim is this host's word, and one that was taken back before is not started. */
    for (unsigned i = 0; i < host->claim_count; i++)
        if (start[i])
            (void)backup_start(&agent->options->owner, descriptions_find(&agent->descriptions, host->claims[i].vm),
                               &host->claims[i]); /* what does not live is found at the next look */
    return 0;
}

/* ---- life ---- */

static void reap(void)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (WIFEXITED(status))
            report_info("process %d has ended with status %d", (int)pid, WEXITSTATUS(status));
        else
            report_warning("process %d was ended by signal %d", (int)pid, WTERMSIG(status));
    }
}

static int agent_open(struct agent *agent)
{
    const struct agent_options *options = agent->options;
    struct fleet_host *self = &agent->self;
    int rc = lock_run_dir(agent);

    snprintf(self->name, sizeof(self->name), "%s", options->owner.host);
    self->memory_mib = options->memory_mib;
    self->guests = options->guests;
    if (rc == 0)
        rc = fleet_cpu_read(self->cpu, sizeof(self->cpu), self->microcode, sizeof(self->microcode));
    if (rc == 0)
        rc = fleet_boot_read(self->boot, sizeof(self->boot));
    if (rc == 0)
        rc = descriptions_read(&agent->descriptions, options->vms_dir, true);
    descriptions_free(&agent->descriptions);
    if (rc == 0) {
        (void)describe(agent, false);
        rc = fleet_open(&agent->fleet, options->owner.urls, options->owner.auth_dir, "--fleet-auth", options->stop);
    }
    return rc;
}

static void agent_close(struct agent *agent)
{
    char why[FLEET_WHY_BYTES];

    atomic_store(agent->options->stop, false); /* one more request may be made */
    if (agent->lease != 0 && agent->fleet != NULL)
        (void)fleet_lease_revoke(agent->fleet, agent->lease, why); /* else it runs out */
    atomic_store(agent->options->stop, true);
    fleet_close(agent->fleet);
    descriptions_free(&agent->descriptions);
    if (agent->lock_fd >= 0)
        close(agent->lock_fd);
    free(agent);
}

/* One look. -EBUSY: this agent must end. */
static int look(struct agent *agent, uint64_t *name_limit_ns)
{
    char why[FLEET_WHY_BYTES] = "";
    bool had_name = agent->presence_modified != 0;
    int rc = stay(agent, why);

    reap();
    if (rc == -EBUSY && !had_name && clock_now_ns() < *name_limit_ns) { /* this host's, before it was restarted? */
        say(agent, why);
        return 0;
    }
    if (rc == 0) {
        if (!had_name)
            report_info("host '%s' is in the fleet: %u MiB for %u guests, %u VMs described, CPU %s", agent->self.name,
                        agent->self.memory_mib, agent->self.guests, agent->self.vm_count, agent->self.cpu);
        rc = serve(agent, why);
    }
    if (rc == -EBUSY) {
        report_error("%s", why);
        return rc;
    }
    if (!atomic_load(agent->options->stop))
        say(agent, rc < 0 ? why : "");
    *name_limit_ns = rc == 0 ? clock_now_ns() + 2 * AGENT_LEASE_MAX_S * NS_PER_S : *name_limit_ns;
    return 0;
}

int agent_run(const struct agent_options *options)
{
    struct agent *agent = calloc(1, sizeof(*agent));
    uint64_t name_limit_ns = clock_now_ns() + 2 * AGENT_LEASE_MAX_S * NS_PER_S;
    int rc;

    if (agent == NULL)
        return -ENOMEM;
    agent->options = options;
    agent->lock_fd = -1;
    rc = agent_open(agent);
    while (rc == 0 && !atomic_load(options->stop)) {
        rc = look(agent, &name_limit_ns);
        if (rc == 0 && !atomic_load(options->stop))
            clock_sleep_ns(LOOK_NS);
    }
    if (rc == 0)
        report_info("host '%s' leaves the fleet; guests here run on", options->owner.host);
    agent_close(agent);
    return rc;
}
