/*
 * The arbiter, whatever its kind: chooses it by the address, knows which generation may be claimed, and claims in a
 * thread of its own, so that who asks can go on with heartbeats while the place is slow.
 */
#include "vmm/arbiter_kind.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"
#include "base/vm_name.h"

#define RETRY_NS (200 * NS_PER_MS)
/* A claim that takes longer is as good as unanswered, for now. */
#define PATIENCE_NS NS_PER_S
/* What a claim under way gets to end when the arbiter is closed. */
#define CLOSE_NS (3 * NS_PER_S)
/* Between two looks whether a claim would get through, for kinds that can tell. */
#define TEND_NS (2 * NS_PER_S)

static const struct arbiter_kind *const kinds[] = { &arbiter_dir, &arbiter_etcd, &arbiter_rdma };

struct arbiter {
    const struct arbiter_kind *kind;
    void *place;
    pthread_mutex_t place_lock; /* who calls its kind; taken before `lock` */
    char owner[96];      /* host name, pid and a random token: nobody else's */
    uint64_t generation; /* begun or checked; 0: none */
    atomic_bool closing;
    pthread_t thread;
    bool thread_runs;

    /* -- under the lock -- */
    pthread_mutex_t lock;
    pthread_cond_t wake;       /* there is a claim to make, a place to tend, or closing is set */
    pthread_cond_t gone;       /* left is set */
    bool asking;               /* the thread has a claim to make, or makes it */
    bool left, abandoned;      /* the thread has ended; nobody will join it */
    uint64_t asked_ns, asks, ask_generation;
    enum arbiter_verdict verdict;
    char why[ARBITER_WHY_BYTES];
    char tend_why[ARBITER_WHY_BYTES]; /* why a claim would not get through; empty: it would, or nobody knows */
};

static int owner_make(char *owner, size_t bytes)
{
    char host[48] = "";
    uint64_t token[2];

    if (getrandom(token, sizeof(token), 0) != sizeof(token))
        return -EIO;
    gethostname(host, sizeof(host) - 1);
    snprintf(owner, bytes, "%s %d %016llx%016llx", host, (int)getpid(), (unsigned long long)token[0],
             (unsigned long long)token[1]);
    return 0;
}

static void arbiter_free(struct arbiter *arbiter)
{
    if (arbiter->place != NULL)
        arbiter->kind->close(arbiter->place);
    pthread_cond_destroy(&arbiter->gone);
    pthread_cond_destroy(&arbiter->wake);
    pthread_mutex_destroy(&arbiter->lock);
    pthread_mutex_destroy(&arbiter->place_lock);
    free(arbiter);
}

static enum arbiter_verdict claim(struct arbiter *arbiter, uint64_t generation, char why[ARBITER_WHY_BYTES])
{
    why[0] = '\0';
    if (generation != 0 && generation == arbiter->generation) {
        enum arbiter_verdict verdict;

        pthread_mutex_lock(&arbiter->place_lock);
        verdict = arbiter->kind->claim(arbiter->place, generation, why);
        pthread_mutex_unlock(&arbiter->place_lock);
        return verdict;
    }
    snprintf(why, ARBITER_WHY_BYTES, "generation %llu was neither begun nor checked here",
             (unsigned long long)generation);
    return ARBITER_UNREACHABLE;
}

/* Says when a claim would no longer get through, and when it would again. */
static void tend(struct arbiter *arbiter)
{
    char why[ARBITER_WHY_BYTES] = "";
    bool was_well;
    int rc;

    pthread_mutex_lock(&arbiter->place_lock);
    rc = arbiter->kind->tend(arbiter->place, why);
    pthread_mutex_unlock(&arbiter->place_lock);
    if (rc == -ECANCELED)
        return;
    pthread_mutex_lock(&arbiter->lock);
    was_well = arbiter->tend_why[0] == '\0';
    memcpy(arbiter->tend_why, rc < 0 ? why : "", rc < 0 ? sizeof(why) : 1);
    pthread_mutex_unlock(&arbiter->lock);
    if (rc < 0 && was_well)
        report_warning("the arbiter does not answer (%s); as long as that is so, no host could go on alone", why);
    else if (rc == 0 && !was_well)
        report_info("the arbiter answers again");
}

/* Waits until there is something to do, a while at most. True: time to tend the place. With the lock. */
static bool idle(struct arbiter *arbiter)
{
    struct timespec until;

    if (arbiter->kind->tend == NULL || arbiter->generation == 0) {
        pthread_cond_wait(&arbiter->wake, &arbiter->lock);
        return false;
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += TEND_NS / NS_PER_S;
    return pthread_cond_timedwait(&arbiter->wake, &arbiter->lock, &until) == ETIMEDOUT;
}

static void *asking_thread(void *arg)
{
    struct arbiter *arbiter = arg;
    char why[ARBITER_WHY_BYTES];
    bool abandoned;

    pthread_mutex_lock(&arbiter->lock);
    while (!atomic_load(&arbiter->closing)) {
        enum arbiter_verdict verdict;

        if (!arbiter->asking) {
            if (idle(arbiter)) {
                pthread_mutex_unlock(&arbiter->lock);
                tend(arbiter);
                pthread_mutex_lock(&arbiter->lock);
            }
            continue;
        }
        uint64_t generation = arbiter->ask_generation;
        pthread_mutex_unlock(&arbiter->lock);
        verdict = claim(arbiter, generation, why);
        pthread_mutex_lock(&arbiter->lock);
        arbiter->verdict = verdict;
        memcpy(arbiter->why, why, sizeof(why));
        arbiter->asking = false;
    }
    arbiter->left = true;
    pthread_cond_signal(&arbiter->gone);
    abandoned = arbiter->abandoned;
    pthread_mutex_unlock(&arbiter->lock);
    if (abandoned)
        arbiter_free(arbiter);
    return NULL;
}

/* Signals are for the main thread. */
static int thread_start(struct arbiter *arbiter)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = -pthread_create(&arbiter->thread, NULL, asking_thread, arbiter);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    arbiter->thread_runs = rc == 0;
    if (rc < 0)
        report_error("a thread for the arbiter does not start: %s", strerror(-rc));
    return rc;
}

static const struct arbiter_kind *kind_find(const char *address)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strncmp(address, kinds[i]->prefix, strlen(kinds[i]->prefix)) == 0 &&
            address[strlen(kinds[i]->prefix)] != '\0')
            return kinds[i];
    report_error("no arbiter '%s': this version knows %s, %s, and %s", address, kinds[0]->usage, kinds[1]->usage,
                 kinds[2]->usage);
    return NULL;
}

int arbiter_open(struct arbiter **out, const struct arbiter_options *options)
{
    const struct arbiter_kind *kind = kind_find(options->address);
    pthread_condattr_t monotonic;
    struct arbiter *arbiter;
    int rc;

    *out = NULL;
    if (kind == NULL)
        return -EINVAL;
    if (!vm_name_is_valid(options->vm)) {
        report_error("'%s' is no name for a virtual machine: use " VM_NAME_RULE, options->vm);
        return -EINVAL;
    }
    arbiter = calloc(1, sizeof(*arbiter));
    if (arbiter == NULL)
        return -ENOMEM;
    arbiter->kind = kind;
    arbiter->verdict = ARBITER_ASKING;
    pthread_mutex_init(&arbiter->place_lock, NULL);
    pthread_mutex_init(&arbiter->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&arbiter->wake, &monotonic);
    pthread_cond_init(&arbiter->gone, &monotonic);
    pthread_condattr_destroy(&monotonic);
    rc = owner_make(arbiter->owner, sizeof(arbiter->owner));
    if (rc == 0)
        rc = kind->open(&arbiter->place, options->address + strlen(kind->prefix), options, arbiter->owner,
                        &arbiter->closing);
    if (rc == 0)
        rc = thread_start(arbiter); /* now, not at a failover */
    if (rc < 0) {
        arbiter_close(arbiter);
        return rc;
    }
    *out = arbiter;
    return 0;
}

/* False: it hangs in a claim. It frees what it uses when it comes back, if ever. */
static bool thread_end(struct arbiter *arbiter)
{
    pthread_t thread = arbiter->thread;
    struct timespec until;
    bool left;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CLOSE_NS / NS_PER_S;
    pthread_mutex_lock(&arbiter->lock);
    atomic_store(&arbiter->closing, true);
    pthread_cond_signal(&arbiter->wake);
    while (!arbiter->left && pthread_cond_timedwait(&arbiter->gone, &arbiter->lock, &until) == 0)
        ;
    left = arbiter->left;
    arbiter->abandoned = !left;
    pthread_mutex_unlock(&arbiter->lock);
    if (left)
        pthread_join(thread, NULL);
    else
        pthread_detach(thread);
    return left;
}

void arbiter_close(struct arbiter *arbiter)
{
    if (arbiter == NULL)
        return;
    if (arbiter->thread_runs && !thread_end(arbiter))
        return;
    arbiter_free(arbiter);
}

static void generation_known(struct arbiter *arbiter, uint64_t generation)
{
    pthread_mutex_lock(&arbiter->lock);
    arbiter->generation = generation;
    arbiter->verdict = ARBITER_ASKING;
    arbiter->asked_ns = 0;
    pthread_cond_signal(&arbiter->wake); /* from now on there is a place to tend */
    pthread_mutex_unlock(&arbiter->lock);
}

int arbiter_begin(struct arbiter *arbiter, uint64_t *generation)
{
    int rc;

    pthread_mutex_lock(&arbiter->place_lock);
    rc = arbiter->kind->begin(arbiter->place, generation);
    pthread_mutex_unlock(&arbiter->place_lock);
    if (rc == 0)
        generation_known(arbiter, *generation);
    return rc;
}

int arbiter_check(struct arbiter *arbiter, uint64_t generation)
{
    int rc;

    pthread_mutex_lock(&arbiter->place_lock);
    rc = arbiter->kind->check(arbiter->place, generation);
    pthread_mutex_unlock(&arbiter->place_lock);
    generation_known(arbiter, rc == 0 ? generation : 0);
    return rc;
}

enum arbiter_verdict arbiter_claim(struct arbiter *arbiter, uint64_t generation)
{
    char why[ARBITER_WHY_BYTES];

    return claim(arbiter, generation, why);
}

enum arbiter_verdict arbiter_ask(struct arbiter *arbiter, uint64_t generation)
{
    uint64_t now_ns = clock_now_ns();
    enum arbiter_verdict verdict;

    pthread_mutex_lock(&arbiter->lock);
    if (!arbiter->asking && arbiter->verdict != ARBITER_WON && arbiter->verdict != ARBITER_LOST &&
        now_ns >= arbiter->asked_ns + RETRY_NS) {
        arbiter->asking = true;
        arbiter->asked_ns = now_ns;
        arbiter->asks++;
        arbiter->ask_generation = generation;
        pthread_cond_signal(&arbiter->wake);
    }
    if (arbiter->asking && arbiter->verdict == ARBITER_ASKING && now_ns >= arbiter->asked_ns + PATIENCE_NS) {
        arbiter->verdict = ARBITER_UNREACHABLE; /* until the answer comes */
        snprintf(arbiter->why, sizeof(arbiter->why), "the claim hangs");
    }
    verdict = arbiter->verdict;
    pthread_mutex_unlock(&arbiter->lock);
    return verdict;
}

void arbiter_get_status(struct arbiter *arbiter, struct arbiter_status *status)
{
    pthread_mutex_lock(&arbiter->lock);
    *status = (struct arbiter_status){ .asks = arbiter->asks, .asking = arbiter->asking, .verdict = arbiter->verdict };
    if (arbiter->asking)
        status->asking_ns = clock_now_ns() - arbiter->asked_ns;
    if (arbiter->verdict == ARBITER_UNREACHABLE)
        memcpy(status->why, arbiter->why, sizeof(status->why));
    if (arbiter->verdict == ARBITER_ASKING && !arbiter->asking && arbiter->tend_why[0] != '\0') {
        status->verdict = ARBITER_UNREACHABLE;
        memcpy(status->why, arbiter->tend_why, sizeof(status->why));
    }
    pthread_mutex_unlock(&arbiter->lock);
}
