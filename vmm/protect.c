/* The protector's thread, and what the machine thread does for it; see protect.h. */
#include "vmm/protect.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "base/report.h"
#include "vmm/dirty.h"
#include "vmm/lockstep.h"
#include "vmm/pages.h"
#include "vmm/transfer.h"

/* A look whether there is something to do. */
#define LOOK_NS (20 * NS_PER_MS)
/* Between two attempts. */
#define RETRY_NS (2 * NS_PER_S)
/* Between two looks while the machine thread, the I/O thread or the ring is waited for. */
#define WAIT_NS (50 * NS_PER_US)
/* How long a backup that the fleet's agent has started is waited for; then another host is asked for. */
#define FLEET_JOIN_NS (30 * NS_PER_S)
/* The guest is called upon this often to leave what it is doing. */
#define CALL_NS NS_PER_MS
/* How long the guest may stand still until its disk requests have ended and its frames have left; then it runs on, and
 * another round is made. */
#define SETTLE_NS (200 * NS_PER_MS)
/* After so many rounds the guest is slowed, by so much more each round, so that it writes less than can be sent. */
#define PATIENT_ROUNDS   4
#define SLOWER_PERMILLE  150
#define SLOWEST_PERMILLE 900

/* What the machine thread is asked for, and how it went. */
enum turn {
    TURN_NONE,      /* nothing; or it is done */
    TURN_LEAVE,     /* leave the old channel, for good */
    TURN_FIRST,     /* all of RAM is to go out */
    TURN_AGAIN,     /* what has been written since is to go out; or, if it is little, send it and become the primary */
    TURN_COMMITTED, /* the machine thread's word: MACHINE is in the log; stop polling */
    TURN_RELEASED,  /* the protector's: it no longer touches the channel */
};

struct protector {
    struct lockstep *ls;
    struct protect_options options;
    pthread_t thread;
    bool started;

    pthread_mutex_t lock; /* wanted, address, why */
    bool wanted;
    char address[PROTECT_ADDRESS_BYTES];
    char why[PROTECT_WHY_BYTES];
    uint64_t asks, served; /* by protect_ask; the one that the attempt under way is for */
    _Atomic bool closing;
    bool give_up; /* channel_options.cancel */
    atomic_bool give_up_fleet; /* fleet_spare_options.cancel */
    struct fleet_spare *fleet; /* NULL: none. The protector's thread's */
    char host[FLEET_NAME_BYTES], host_address[FLEET_ADDRESS_BYTES]; /* under the lock */

    _Atomic int state;
    /* T1: whoever sets a turn releases all it has written; whoever sees it has acquired that. */
    _Atomic int turn;
    _Atomic int broken; /* protector: why the machine thread should give up the end of a transfer; 0: it need not */

    struct transfer transfer;
    uint64_t generation; /* begun, not yet that of a pair; 0: none */
    uint64_t heartbeat_due_ns;
    uint64_t tended_ns, healthy_since_ns; /* the last time, and since when often enough */
    uint64_t machine_lsn;
    double ns_per_byte;  /* of the transfer so far */
    _Atomic uint64_t attempts, completed, rounds, left_bytes, began_ns, took_ns, pause_ns;
    _Atomic uint64_t covered_bytes; /* RAM and disk that had gone out when the last round began */
};

const char *protect_state_name(enum protect_state state)
{
    static const char *const names[] = { "idle", "leaving", "seeking", "joining", "copying", "paused" };

    return names[state];
}

__attribute__((format(printf, 2, 3)))
static void say_why(struct protector *protector, const char *format, ...)
{
    va_list args;

    pthread_mutex_lock(&protector->lock);
    va_start(args, format);
    if (protector->served == protector->asks) /* who has asked meanwhile is told of his own attempt */
        vsnprintf(protector->why, sizeof(protector->why), format, args);
    va_end(args);
    pthread_mutex_unlock(&protector->lock);
}

/* Somebody has asked for another backup since the attempt began. */
static bool is_asked_anew(struct protector *protector)
{
    bool anew;

    pthread_mutex_lock(&protector->lock);
    anew = protector->served != protector->asks;
    pthread_mutex_unlock(&protector->lock);
    return anew;
}

static bool is_wanted(struct protector *protector)
{
    bool wanted;

    pthread_mutex_lock(&protector->lock);
    wanted = protector->wanted && protector->address[0] != '\0';
    pthread_mutex_unlock(&protector->lock);
    return wanted;
}

/* Whether to stop waiting for a new backup. Under the lock. */
static void give_up(struct protector *protector, bool yes)
{
    __atomic_store_n(&protector->give_up, yes, __ATOMIC_RELAXED);
    atomic_store_explicit(&protector->give_up_fleet, yes, memory_order_relaxed);
}

/* The guest runs here, alone, and a backup is wanted. */
static bool may_go_on(struct protector *protector)
{
    const struct lockstep *ls = protector->ls;

    return !COUNT_GET(protector->closing) && is_wanted(protector) && lockstep_role_now(ls) == ROLE_ALONE &&
           COUNT_GET(ls->running) && !atomic_load_explicit(&ls->finished, memory_order_acquire) &&
           !COUNT_GET(ls->stop_requested);
}

static enum turn turn_now(const struct protector *protector)
{
    return (enum turn)atomic_load_explicit(&protector->turn, memory_order_acquire); /* T1 */
}

static void turn_set(struct protector *protector, enum turn turn)
{
    atomic_store_explicit(&protector->turn, (int)turn, memory_order_release); /* T1 */
}

static void state_set(struct protector *protector, enum protect_state state)
{
    COUNT_SET(protector->state, (int)state);
}

/* ---- the protector's thread ---- */

/* Keeps the new channel going. 0, or -errno: it cannot go on, and `why` says so. */
static int tend(struct protector *protector)
{
    const struct lockstep *ls = protector->ls;
    struct channel *channel = protector->transfer.channel;
    uint64_t now_ns = clock_now_ns(), seen_ns;

    (void)channel_poll(channel); /* broken is a hint */
    if (now_ns >= protector->heartbeat_due_ns) {
        channel_heartbeat(channel);
        protector->heartbeat_due_ns = now_ns + ls->options.heartbeat_ns;
    }
    /* Who was frozen himself, or kept waiting, has not looked; so he is in no state to judge. */
    if (now_ns > protector->tended_ns + ls->options.peer_timeout_ns / 2)
        protector->healthy_since_ns = now_ns;
    protector->tended_ns = now_ns;
    seen_ns = channel_peer_seen_ns(channel);
    if (now_ns > seen_ns + ls->options.peer_timeout_ns &&
        now_ns > protector->healthy_since_ns + ls->options.peer_timeout_ns / 2) {
        say_why(protector, "the new backup has fallen silent");
        return -ECONNRESET;
    }
    if (!may_go_on(protector)) {
        say_why(protector, "called off");
        return -ECANCELED;
    }
    return 0;
}

/* transfer.pause on the protector's thread. */
static int protector_pause(void *ctx, bool full)
{
    struct protector *protector = ctx;
    uint64_t rate = protector->options.rate_bytes_per_s, due_ns;
    int rc = tend(protector);

    if (full && rc == 0)
        clock_sleep_ns(WAIT_NS);
    due_ns = COUNT_GET(protector->began_ns);
    if (rate != 0)
        due_ns += (uint64_t)((double)COUNT_GET(protector->transfer.sent_bytes) / (double)rate * (double)NS_PER_S);
    while (rc == 0 && clock_now_ns() < due_ns) {
        clock_sleep_ns(WAIT_NS);
        rc = tend(protector);
    }
    return rc;
}

/* Hands the machine thread a turn and waits until it is done with it. `tended`: the new channel must be kept going. */
static int hand_turn(struct protector *protector, enum turn turn, bool tended)
{
    struct lockstep *ls = protector->ls;
    uint64_t call_ns = 0;
    enum turn now;

    COUNT_SET(protector->broken, 0);
    turn_set(protector, turn);
    while ((now = turn_now(protector)) == turn) {
        int rc = tended ? tend(protector) : may_go_on(protector) ? 0 : -ECANCELED;

        if (rc < 0)
            COUNT_SET(protector->broken, rc); /* it is the machine thread that ends the turn, unless it has gone */
        if (atomic_load_explicit(&ls->finished, memory_order_acquire))
            return -ECANCELED;
        if (clock_now_ns() > call_ns + CALL_NS) {
            lockstep_wake(ls);
            vcpu_kick(&ls->machine.vcpu);
            call_ns = clock_now_ns();
        }
        clock_sleep_ns(WAIT_NS);
    }
    if (now != TURN_COMMITTED)
        return COUNT_GET(protector->broken);
    turn_set(protector, TURN_RELEASED);
    while (turn_now(protector) != TURN_NONE) /* it becomes the primary now; the channel is no longer ours */
        clock_sleep_ns(WAIT_NS);
    return 1;
}

/* The old channel: nobody uses it when this returns 0. */
static int leave_old_channel(struct protector *protector)
{
    struct lockstep *ls = protector->ls;
    struct channel *old;
    int rc = 0;

    while (rc == 0 && ls->channel != NULL && !atomic_load_explicit(&ls->channel_left, memory_order_acquire)) {
        clock_sleep_ns(LOOK_NS);
        rc = may_go_on(protector) ? 0 : -ECANCELED;
    }
    if (rc == 0)
        rc = hand_turn(protector, TURN_LEAVE, false);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&ls->channel_lock);
    old = ls->channel;
    ls->channel = NULL;
    pthread_mutex_unlock(&ls->channel_lock);
    channel_close(old);
    fault_point("transfer-left");
    return 0;
}

static bool is_fleet(const char *address)
{
    return strncmp(address, FLEET_SPARE_PREFIX, strlen(FLEET_SPARE_PREFIX)) == 0;
}

static int fleet_open_now(struct protector *protector)
{
    protector->options.fleet.cancel = &protector->give_up_fleet;
    return fleet_spare_open(&protector->fleet, &protector->options.fleet);
}

/* Where the new backup is to be: as was said, or as the fleet says now. */
static int locate(struct protector *protector, char address[PROTECT_ADDRESS_BYTES], uint64_t *timeout_ns)
{
    char host[FLEET_NAME_BYTES], why[FLEET_WHY_BYTES];
    int rc;

    _Static_assert(PROTECT_ADDRESS_BYTES == FLEET_ADDRESS_BYTES, "an address of either fits");
    pthread_mutex_lock(&protector->lock);
    memcpy(address, protector->address, PROTECT_ADDRESS_BYTES);
    protector->served = protector->asks;
    give_up(protector, !protector->wanted || COUNT_GET(protector->closing));
    pthread_mutex_unlock(&protector->lock);
    *timeout_ns = UINT64_MAX;
    if (!is_fleet(address))
        return 0;
    if (protector->fleet == NULL && (protector->options.fleet.urls == NULL || fleet_open_now(protector) < 0)) {
        say_why(protector, protector->options.fleet.urls != NULL ? "the fleet cannot be asked: an error was said above" :
                "there is no fleet to ask for a spare: ftvmm was started without --fleet and --arbiter etcd:");
        return -EINVAL;
    }
    state_set(protector, PROTECT_SEEKING);
    *timeout_ns = FLEET_JOIN_NS;
    rc = fleet_spare_find(protector->fleet, address, host, why);
    if (rc < 0) {
        if (rc != -ECANCELED)
            say_why(protector, "%s", why);
        return rc;
    }
    report_info("the fleet gives host %s for a backup, at %s", host, address);
    pthread_mutex_lock(&protector->lock);
    memcpy(protector->host, host, sizeof(host));
    memcpy(protector->host_address, address, sizeof(protector->host_address));
    pthread_mutex_unlock(&protector->lock);
    return 0;
}

static int join(struct protector *protector)
{
    struct lockstep *ls = protector->ls;
    char address[PROTECT_ADDRESS_BYTES];
    struct channel_secret secret;
    struct channel_options options = {
        .address = address,
        .ring_bytes = protector->options.ring_bytes,
        .hello = protector->options.hello,
        .cancel = &protector->give_up,
        .ack = protector->options.ack,
    };
    int rc = locate(protector, address, &options.join_timeout_ns);

    if (rc < 0)
        return rc;
    state_set(protector, PROTECT_JOINING);
    if (protector->generation == 0) {
        rc = arbiter_begin(ls->arbiter, &protector->generation);
        if (rc < 0) {
            protector->generation = 0;
            say_why(protector, "the arbiter gives no new generation: %s", strerror(-rc));
            return rc;
        }
    }
    options.hello.generation = protector->generation;
    if (protector->options.key_path != NULL) {
        rc = channel_secret_load(&secret, protector->options.key_path);
        if (rc < 0) {
            say_why(protector, "the key file cannot be read");
            return rc;
        }
        options.secret = &secret;
    }
    rc = channel_open_sender(&protector->transfer.channel, &options);
    if (options.secret != NULL)
        channel_secret_wipe(&secret);
    if (rc < 0 && rc != -ECANCELED)
        say_why(protector, "'%s' does not join: %s", address, strerror(-rc));
    if (rc == 0)
        fault_point("transfer-joined");
    if (rc == 0)
        journal_note(&ls->journal, JOURNAL_JOINED, "a new backup, generation %llu, by %.60s",
                     (unsigned long long)protector->generation, address);
    return rc;
}

/* Slows a guest that writes faster than can be sent. */
static void slow_down(struct protector *protector)
{
    uint64_t rounds = COUNT_GET(protector->rounds);
    uint64_t permille = rounds <= PATIENT_ROUNDS ? 0 : (rounds - PATIENT_ROUNDS) * SLOWER_PERMILLE;

    COUNT_SET(protector->ls->pace_permille, (unsigned)(permille < SLOWEST_PERMILLE ? permille : SLOWEST_PERMILLE));
}

/* From START to MACHINE. 0: this host is the primary of a pair. */
static int copy(struct protector *protector)
{
    struct event_start start = { .transfer = 1, .disk_identity = protector->options.disk_identity,
                                 .verify = protector->ls->verify->each_position,
                                 .clock = (uint8_t)protector->ls->clock };
    struct transfer *transfer = &protector->transfer;
    int rc = transfer_start(transfer, &start);

    for (enum turn turn = TURN_FIRST; rc == 0; turn = TURN_AGAIN) {
        rc = hand_turn(protector, turn, true);
        if (rc != 0)
            break;
        fault_point("transfer-begun");
        COUNT_ADD(protector->rounds, 1);
        slow_down(protector);
        rc = transfer_round(transfer);
        fault_point("transfer-round");
        protector->ns_per_byte = (double)(clock_now_ns() - COUNT_GET(protector->began_ns)) /
                                 (double)COUNT_GET(transfer->sent_bytes);
    }
    COUNT_SET(protector->ls->pace_permille, 0);
    if (rc == -EPIPE)
        say_why(protector, "the link to the new backup is broken");
    return rc > 0 ? 0 : rc;
}

static int transfer_prepare(struct protector *protector)
{
    struct lockstep *ls = protector->ls;
    struct transfer *transfer = &protector->transfer;

    *transfer = (struct transfer){ .ls = ls, .channel = transfer->channel, .pause = protector_pause, .ctx = protector };
    transfer->pages = calloc(pages_words(&ls->machine.memory), sizeof(uint64_t));
    if (transfer->pages == NULL)
        return -ENOMEM;
    COUNT_SET(protector->rounds, 0);
    COUNT_SET(protector->took_ns, 0);
    COUNT_SET(protector->pause_ns, 0);
    COUNT_SET(protector->left_bytes, 0);
    COUNT_SET(protector->covered_bytes, 0);
    COUNT_SET(protector->began_ns, clock_now_ns());
    return ls->disk != NULL && disk_mode_of(ls->disk) == DISK_MIRRORED ? disk_track(ls->disk, true) : 0;
}

static int attempt(struct protector *protector)
{
    struct lockstep *ls = protector->ls;
    struct transfer *transfer = &protector->transfer;
    int rc;

    COUNT_ADD(protector->attempts, 1);
    pthread_mutex_lock(&protector->lock);
    protector->served = protector->asks;
    pthread_mutex_unlock(&protector->lock);
    transfer->channel = NULL;
    state_set(protector, PROTECT_LEAVING);
    rc = leave_old_channel(protector);
    if (rc == 0)
        rc = join(protector);
    if (rc == 0) {
        state_set(protector, PROTECT_COPYING);
        rc = transfer_prepare(protector);
        if (rc == 0)
            rc = copy(protector);
        if (ls->disk != NULL)
            disk_untrack(ls->disk);
        free(transfer->pages);
        transfer->pages = NULL;
        if (rc < 0) /* one that joined has asked the arbiter for this generation, and may never be heard of again */
            protector->generation = 0;
    }
    if (rc < 0)
        channel_close(transfer->channel);
    transfer->channel = NULL;
    state_set(protector, PROTECT_IDLE);
    return rc;
}

static void *protector_run(void *arg)
{
    struct protector *protector = arg;
    bool said = false;

    while (!COUNT_GET(protector->closing)) {
        int rc;

        if (!may_go_on(protector)) {
            clock_sleep_ns(LOOK_NS);
            continue;
        }
        rc = attempt(protector);
        if (rc == 0) {
            said = false;
            say_why(protector, "%s", "");
            COUNT_ADD(protector->completed, 1);
            continue;
        }
        if (rc == -ECANCELED || is_asked_anew(protector))
            continue;
        if (!said) {
            said = true;
            report_warning("the guest stays without protection for now: %s; it is tried again", protector->why);
        }
        for (uint64_t until_ns = clock_now_ns() + RETRY_NS;
             clock_now_ns() < until_ns && may_go_on(protector) && !is_asked_anew(protector);)
            clock_sleep_ns(LOOK_NS);
    }
    return NULL;
}

/* ---- the machine thread ---- */

/* transfer.pause on the machine thread. */
static int machine_pause(void *ctx, bool full)
{
    struct protector *protector = ctx;

    (void)primary_still_here(protector->ls);
    if (full)
        clock_sleep_ns(WAIT_NS);
    return COUNT_GET(protector->broken);
}

/* No frame and no disk request of the time without protection is under way any more. False: some still are. */
static bool settle(struct protector *protector)
{
    struct lockstep *ls = protector->ls;
    uint64_t limit_ns = clock_now_ns() + SETTLE_NS;

    while (!primary_all_has_left(ls)) {
        if (clock_now_ns() > limit_ns || COUNT_GET(protector->broken) != 0 || ls->failure)
            return false;
        (void)primary_take_inputs(ls); /* the disk's answers; nothing is logged, since nobody is there yet */
        (void)primary_still_here(ls);
        clock_sleep_ns(WAIT_NS);
    }
    return !ls->failure && !ls->machine.ended;
}

/* The new backup has all: from here on every input is logged to it. */
static void become_primary(struct protector *protector, uint64_t stopped_ns)
{
    struct lockstep *ls = protector->ls;

    machine_force_position(&ls->machine);
    time_pack_clear(&ls->times); /* of a log that has ended */
    turn_set(protector, TURN_COMMITTED);
    while (turn_now(protector) != TURN_RELEASED) /* it is in hand_turn, and looks again and again */
        clock_sleep_ns(WAIT_NS);
    pthread_mutex_lock(&ls->channel_lock);
    ls->channel = protector->transfer.channel;
    pthread_mutex_unlock(&ls->channel_lock);
    COUNT_SET(ls->generation, protector->generation);
    protector->generation = 0;
    COUNT_SET(ls->heal.asked, 0); /* the new channel has no word yet */
    COUNT_SET(ls->heal.answer, 0);
    ls->heal.begun = 0;
    COUNT_SET(ls->heal.found_ns, 0);
    COUNT_SET(ls->protected_lsn, protector->machine_lsn);
    COUNT_SET(ls->peer_lost, false);
    COUNT_SET(ls->unprotect_requested, false);
    COUNT_SET(ls->handover.overdue, false);
    COUNT_SET(ls->probe_wanted, false);
    COUNT_SET(ls->probe_lsn, 0);
    ls->output_pending = false;
    ls->logged_position = ls->machine.position;
    ls->logged_ns = clock_now_ns();
    forced_sync_begin(ls);
    /* R3: the I/O thread takes the channel over when it sees the role. Not before it has may the guest run on, or a frame
     * that waits for the new backup could leave with those that needed none. */
    atomic_store_explicit(&ls->role, ROLE_PRIMARY, memory_order_release);
    while (atomic_load_explicit(&ls->io_role, memory_order_acquire) != ROLE_PRIMARY) {
        (void)primary_still_here(ls);
        clock_sleep_ns(WAIT_NS);
    }
    COUNT_SET(protector->pause_ns, clock_now_ns() - stopped_ns);
    COUNT_SET(protector->took_ns, clock_now_ns() - COUNT_GET(protector->began_ns));
    turn_set(protector, TURN_NONE);
}

/* The guest stands still: sends the rest and becomes the primary, or not, if something comes between. */
static int finish(struct protector *protector)
{
    struct lockstep *ls = protector->ls;
    struct transfer *transfer = &protector->transfer;
    uint64_t began_ns = clock_now_ns();
    int rc;

    if (!settle(protector))
        return ls->failure;
    fault_point("transfer-paused");
    rc = dirty_collect(ls);
    if (rc < 0)
        return rc;
    transfer->pause = machine_pause;
    rc = transfer_round(transfer);
    if (rc == 0)
        rc = transfer_machine(transfer, &protector->machine_lsn);
    transfer->pause = protector_pause;
    if (rc < 0) { /* the guest runs on as it was; what was sent is of no use to anybody */
        COUNT_SET(protector->broken, rc);
        return 0;
    }
    fault_point("transfer-logged");
    ls->transfer_pages = NULL;
    verify_begin(ls->verify, ls);
    become_primary(protector, began_ns);
    fault_point("transfer-done");
    report_info("protected again, generation %llu: %llu MiB sent in %llu rounds and %llu ms; the guest stood still for "
                "%.1f ms", (unsigned long long)COUNT_GET(ls->generation),
                (unsigned long long)(COUNT_GET(transfer->sent_bytes) >> 20),
                (unsigned long long)COUNT_GET(protector->rounds),
                (unsigned long long)(COUNT_GET(protector->took_ns) / NS_PER_MS),
                (double)COUNT_GET(protector->pause_ns) / (double)NS_PER_MS);
    return 0;
}

/* RAM and disk that have gone out, whatever they took on the way. */
static uint64_t covered_bytes(const struct transfer *transfer)
{
    return (COUNT_GET(transfer->sent_pages) + COUNT_GET(transfer->zero_pages)) * GUEST_PAGE_BYTES +
           COUNT_GET(transfer->sent_blocks) * DISK_BLOCK_BYTES;
}

/* What is left is little, says the speed so far. */
static bool is_little(const struct protector *protector, uint64_t left_bytes)
{
    return (double)left_bytes * protector->ns_per_byte <= (double)protector->options.max_pause_ns;
}

int protect_serve(struct protector *protector)
{
    struct lockstep *ls = protector->ls;
    struct transfer *transfer = &protector->transfer;
    enum turn turn = turn_now(protector);
    int rc, forced = 0;

    if (turn != TURN_LEAVE && turn != TURN_FIRST && turn != TURN_AGAIN)
        return 0;
    if (turn != TURN_LEAVE && COUNT_GET(protector->broken) == 0) {
        ls->transfer_pages = transfer->pages; /* for as long as the turn is ours */
        rc = dirty_collect(ls);
        if (rc < 0)
            return rc;
        if (turn == TURN_FIRST) /* how many pages there are is a multiple of 64 (machine.c) */
            memset(transfer->pages, 0xFF, pages_words(&ls->machine.memory) * sizeof(uint64_t));
        COUNT_SET(protector->left_bytes, transfer_left_bytes(transfer));
        COUNT_SET(protector->covered_bytes, covered_bytes(transfer));
        bool ready = turn == TURN_AGAIN && !ls->machine.ended && is_little(protector, COUNT_GET(protector->left_bytes));
        if (ready) {
            rc = vcpu_complete(&ls->machine.vcpu);
            if (rc < 0)
                return rc;
        }
        if (ready && !ls->machine.vcpu.exit_waits) { /* else it is in the midst of an instruction: another time */
            state_set(protector, PROTECT_PAUSED);
            rc = finish(protector);
            if (rc < 0)
                return rc;
            if (lockstep_role_now(ls) == ROLE_PRIMARY)
                return 1; /* the position has been made, and the turn is the protector's */
            state_set(protector, PROTECT_COPYING);
            machine_force_position(&ls->machine); /* what settle took in may have raised an interrupt */
            forced = 1;
        }
        ls->transfer_pages = NULL;
    }
    turn_set(protector, TURN_NONE);
    return forced;
}

/* ---- set-up, and what others ask ---- */

int protect_open(struct protector **out, struct lockstep *ls, const struct protect_options *options)
{
    struct protector *protector = calloc(1, sizeof(*protector));
    sigset_t all, before;
    int rc;

    *out = NULL;
    if (protector == NULL)
        return -ENOMEM;
    protector->ls = ls;
    protector->options = *options;
    protector->transfer.ls = ls;
    pthread_mutex_init(&protector->lock, NULL);
    if (options->spare != NULL) {
        snprintf(protector->address, sizeof(protector->address), "%s", options->spare);
        protector->wanted = true;
    }
    if (options->spare != NULL && is_fleet(options->spare)) { /* what is wrong is said at the start */
        rc = fleet_open_now(protector);
        if (rc < 0) {
            free(protector);
            return rc;
        }
    }
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = -pthread_create(&protector->thread, NULL, protector_run, protector);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc < 0) {
        report_error("a thread for protection does not start: %s", strerror(-rc));
        fleet_spare_close(protector->fleet);
        free(protector);
        return rc;
    }
    *out = protector;
    return 0;
}

void protect_close(struct protector *protector)
{
    if (protector == NULL)
        return;
    pthread_mutex_lock(&protector->lock);
    COUNT_SET(protector->closing, true);
    give_up(protector, true);
    pthread_mutex_unlock(&protector->lock);
    pthread_join(protector->thread, NULL);
    fleet_spare_close(protector->fleet);
    pthread_mutex_destroy(&protector->lock);
    free(protector);
}

bool protect_ask(struct protector *protector, const char *address)
{
    bool known;

    pthread_mutex_lock(&protector->lock);
    if (address != NULL)
        snprintf(protector->address, sizeof(protector->address), "%s", address);
    known = protector->address[0] != '\0';
    protector->wanted = known;
    protector->why[0] = '\0';
    protector->asks++;
    give_up(protector, true); /* of waiting at another address */
    pthread_mutex_unlock(&protector->lock);
    return known;
}

void protect_cancel(struct protector *protector)
{
    pthread_mutex_lock(&protector->lock);
    protector->wanted = false;
    give_up(protector, true);
    pthread_mutex_unlock(&protector->lock);
}

/* How far the round under way is, and how fast. */
static void progress(const struct protector *protector, struct protect_status *out)
{
    uint64_t covered = covered_bytes(&protector->transfer), before = COUNT_GET(protector->covered_bytes);
    uint64_t in_round = covered > before ? covered - before : 0, now_ns = clock_now_ns();
    uint64_t since_ns = now_ns > out->began_ns ? now_ns - out->began_ns : 0;

    out->all_bytes = transfer_all_bytes(&protector->transfer);
    out->left_now_bytes = out->left_bytes > in_round ? out->left_bytes - in_round : 0;
    if (out->began_ns == 0 || since_ns == 0 || out->took_ns != 0)
        return;
    out->bytes_per_s = (uint64_t)((double)out->sent_bytes * (double)NS_PER_S / (double)since_ns);
    if (covered > 0)
        out->eta_ns = (uint64_t)((double)out->left_now_bytes * (double)since_ns / (double)covered);
}

void protect_get_status(struct protector *protector, struct protect_status *out)
{
    const struct transfer *transfer = &protector->transfer;

    *out = (struct protect_status){
        .state = (enum protect_state)COUNT_GET(protector->state),
        .attempts = COUNT_GET(protector->attempts),
        .completed = COUNT_GET(protector->completed),
        .rounds = COUNT_GET(protector->rounds),
        .sent_pages = COUNT_GET(transfer->sent_pages),
        .zero_pages = COUNT_GET(transfer->zero_pages),
        .sent_blocks = COUNT_GET(transfer->sent_blocks),
        .sent_bytes = COUNT_GET(transfer->sent_bytes),
        .left_bytes = COUNT_GET(protector->left_bytes),
        .began_ns = COUNT_GET(protector->began_ns),
        .took_ns = COUNT_GET(protector->took_ns),
        .pause_ns = COUNT_GET(protector->pause_ns),
    };
    progress(protector, out);
    pthread_mutex_lock(&protector->lock);
    out->wanted = protector->wanted;
    memcpy(out->address, protector->address, sizeof(out->address));
    memcpy(out->host, protector->host, sizeof(out->host));
    memcpy(out->host_address, protector->host_address, sizeof(out->host_address));
    memcpy(out->why, protector->why, sizeof(out->why));
    pthread_mutex_unlock(&protector->lock);
}
