/*
 * The keeper: one thread per end of a link whose connection can be joined again (tcp, verbs). It does what blocks, with
 * the messages of handshake.h, while the other threads go on; asleep as long as the connection holds.
 *
 * Receiver: the keeper listens, and lets in nobody but the sender of its own session. Sender: while the link is down,
 * each channel_poll asks for one try, if none is going on: so nothing is tried for a channel that nobody looks after
 * any more. A try that succeeds leaves a new connection, which the polling thread takes in exchange for the old one.
 *
 * What must be known to join again is kept here for the channel's life, the shared key among it, and nowhere else.
 */
#ifndef FTVMM_CHANNEL_KEEPER_H
#define FTVMM_CHANNEL_KEEPER_H

#include "channel/handshake.h"

#include <pthread.h>
#include <stdatomic.h>

/* How long one resuming conversation may take, on either end. Shorter than when the two first join: while it lasts
 * nobody else is heard, and the time that the peer may be silent runs. */
#define KEEPER_PATIENCE_NS NS_PER_S

struct channel;

enum keeper_state { /* of a sender's; each step has one thread that takes it */
    KEEPER_IDLE,  /* -> ASKED: polling thread */
    KEEPER_ASKED, /* -> READY, IDLE (in vain) or GONE: keeper */
    KEEPER_READY, /* a new connection is there. -> TAKEN: polling thread */
    KEEPER_TAKEN, /* the old one is to be done away with. -> IDLE: keeper */
    KEEPER_GONE,  /* the receiver does not want us any more */
};

struct keeper {
    struct join_side ours; /* as the two agreed when they first joined. Constant */
    bool stop;             /* of struct join_deadline: read and written with __atomic */
    bool runs;
    int wake_fd;
    pthread_t thread;
    struct channel_secret secret; /* count 0: none */
    uint64_t down_since_ns;       /* keeper; 0: it is up */
    _Atomic int state;            /* enum keeper_state; a store releases what was done before it, a load acquires */
};

/* When joined: starts the thread, with all signals blocked. `agreed` is what both ends said of themselves. `secret`:
 * NULL, or copied. 0 or -errno, said in words with `name` in front. */
int keeper_start(struct keeper *keeper, const struct join_side *agreed, const struct channel_secret *secret,
                 void *(*run)(void *link), void *link, const char *name);
/* Ends the thread, which leaves what it is waiting for, and wipes the secret. Accepts one that was zeroed, and never
 * started. Any thread but its own. */
void keeper_stop(struct keeper *keeper);

/* ---- keeper ---- */

/* Sleeps until woken, or `fd` (-1: none) has something to read. False: the channel is being closed. */
bool keeper_wait(struct keeper *keeper, int fd);
/* A pause that ends early when the channel is closed. */
void keeper_pause(struct keeper *keeper, uint64_t ns);
/* A sender's keeper, when woken: takes the step that is its own. `join` makes a new connection, in one try: 0; -EPROTO:
 * the receiver wants no more; -EAGAIN; other errors, said in words. `drop` does away with the old one. `log`: what the
 * receiver holds, as the new connection was told; `name` is for messages. */
struct keeper_work {
    struct channel *channel;
    const char *name;
    const struct handshake_log *log;
    int (*join)(void *link);
    void (*drop)(void *link);
};
void keeper_step(struct keeper *keeper, const struct keeper_work *work);
/* NULL: none. */
const struct channel_secret *keeper_secret(const struct keeper *keeper);

/* ---- any thread ---- */

void keeper_wake(struct keeper *keeper);
/* Sender, polling thread, while the link is down. True: a new connection is there, to be taken; keeper_taken then. */
bool keeper_ask(struct keeper *keeper, bool closed);
void keeper_taken(struct keeper *keeper);

/* K1 acquire, pairs with K2 release: what the keeper, or who takes its connection, has written before it let go. */
static inline enum keeper_state keeper_state(const struct keeper *keeper)
{
    return (enum keeper_state)atomic_load_explicit(&keeper->state, memory_order_acquire); /* K1 */
}

static inline void keeper_set(struct keeper *keeper, enum keeper_state state)
{
    atomic_store_explicit(&keeper->state, state, memory_order_release); /* K2 */
}

#endif
