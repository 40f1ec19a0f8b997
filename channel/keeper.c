/* Starts, wakes and ends the keeper's thread, and leads a sender's through its states. */
#include "channel/keeper.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/link.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PAUSE_NS          (20 * NS_PER_MS) /* after a try in vain */
#define PAUSE_UNWANTED_NS (NS_PER_S / 2)   /* the same, after an error that was said in words */

int keeper_start(struct keeper *keeper, const struct join_side *agreed, const struct channel_secret *secret,
                 void *(*run)(void *link), void *link, const char *name)
{
    sigset_t all, before;
    int result;

    keeper->ours = *agreed;
    if (secret != NULL)
        keeper->secret = *secret;
    keeper->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    result = keeper->wake_fd < 0 ? -errno : 0;
    if (result == 0) {
        /* Signals are for the threads that wait for them. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        keeper->runs = true;
        result = -pthread_create(&keeper->thread, NULL, run, link);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (result != 0) {
            keeper->runs = false;
            close(keeper->wake_fd);
        }
    }
    if (result != 0) {
        report_error("%s: no thread to keep the connection: %s; are the limits of processes or files too low "
                     "('ulimit -u', 'ulimit -n')?", name, strerror(-result));
        channel_secret_wipe(&keeper->secret);
    }
    return result;
}

void keeper_stop(struct keeper *keeper)
{
    if (keeper->runs) {
        __atomic_store_n(&keeper->stop, true, __ATOMIC_RELAXED); /* see join_deadline_check */
        keeper_wake(keeper);
        pthread_join(keeper->thread, NULL);
        close(keeper->wake_fd);
        keeper->runs = false;
    }
    channel_secret_wipe(&keeper->secret);
}

bool keeper_wait(struct keeper *keeper, int fd)
{
    struct pollfd ready[2] = { { .fd = keeper->wake_fd, .events = POLLIN }, { .fd = fd, .events = POLLIN } };
    uint64_t count;

    while (poll(ready, 2, -1) < 0 && errno == EINTR)
        ;
    (void)!read(keeper->wake_fd, &count, sizeof(count)); /* does not block; whoever woke us said why elsewhere */
    return !__atomic_load_n(&keeper->stop, __ATOMIC_RELAXED);
}

void keeper_pause(struct keeper *keeper, uint64_t ns)
{
    for (uint64_t end_ns = clock_now_ns() + ns; clock_now_ns() < end_ns;) {
        if (__atomic_load_n(&keeper->stop, __ATOMIC_RELAXED)) /* see join_deadline_check */
            return;
        clock_sleep_ns(ns < 10 * NS_PER_MS ? ns : 10 * NS_PER_MS);
    }
}

void keeper_step(struct keeper *keeper, const struct keeper_work *work)
{
    bool down = atomic_load_explicit(&work->channel->down, memory_order_acquire); /* A9 in link.h */
    int result;

    switch (keeper_state(keeper)) {
    case KEEPER_ASKED:
        if (keeper->down_since_ns == 0)
            keeper->down_since_ns = clock_now_ns();
        result = work->join(work->channel);
        if (result == 0) {
            keeper_set(keeper, KEEPER_READY);
        } else if (result == -EPROTO) {
            link_break(work->channel, true);
            keeper_set(keeper, KEEPER_GONE);
        } else {
            keeper_pause(keeper, result == -EAGAIN ? PAUSE_NS : PAUSE_UNWANTED_NS);
            keeper_set(keeper, KEEPER_IDLE);
        }
        return;
    case KEEPER_TAKEN:
        work->drop(work->channel);
        if (!down)
            report_info("%s: the link is up again after %llu ms; the log goes on behind record %llu", work->name,
                        (unsigned long long)((clock_now_ns() - keeper->down_since_ns) / NS_PER_MS),
                        (unsigned long long)work->log->lsn);
        keeper->down_since_ns = 0;
        keeper_set(keeper, KEEPER_IDLE);
        return;
    case KEEPER_IDLE:
    case KEEPER_READY:
    case KEEPER_GONE:
        return;
    }
}

bool keeper_ask(struct keeper *keeper, bool closed)
{
    enum keeper_state state = keeper_state(keeper);

    if (state == KEEPER_IDLE && !closed) {
        keeper_set(keeper, KEEPER_ASKED);
        keeper_wake(keeper);
    }
    return state == KEEPER_READY;
}

void keeper_taken(struct keeper *keeper)
{
    keeper_set(keeper, KEEPER_TAKEN);
    keeper_wake(keeper);
}

const struct channel_secret *keeper_secret(const struct keeper *keeper)
{
    return keeper->secret.count > 0 ? &keeper->secret : NULL;
}

void keeper_wake(struct keeper *keeper)
{
    const uint64_t one = 1;

    /* It can fail only when it was woken 2^64 - 1 times and did not look. */
    if (keeper->runs && write(keeper->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        report_bug("channel: the keeper cannot be woken: %s", strerror(errno));
}
