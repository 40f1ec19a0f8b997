/*
 * The one interface of all links, and what they have in common. `struct channel` is the first member of each
 * link's own structure. A link is chosen in channel.c by the address.
 *
 * What a link promises, in the same words for each, stands at the head of its file.
 */
#ifndef FTVMM_CHANNEL_LINK_H
#define FTVMM_CHANNEL_LINK_H

#include "channel/channel.h"
#include "channel/lag.h"
#include "channel/receive_ring.h"
#include "channel/send_ring.h"

#include <stdalign.h>
#include <stdatomic.h>

struct link_operations {
    /* ---- sender, committing thread ---- */
    uint64_t (*commit)(struct channel *channel); /* send.committed has grown: make it travel. Returns the last LSN */
    bool posts; /* what is published in the ring (send_ring_publish) travels by the next commit or poll */
    void (*make_room)(struct channel *channel); /* the ring is full: help, if the link can. May be NULL */
    /* ---- receiver, one thread; as in channel.h ---- */
    int (*next)(struct channel *channel, struct channel_record *record);
    void (*consume)(struct channel *channel);
    int (*fence)(struct channel *channel);
    /* ---- polling thread ---- */
    int (*poll)(struct channel *channel);
    void (*heartbeat)(struct channel *channel);
    /* ---- any, alone. Accepts a half-built object; frees it ---- */
    void (*close)(struct channel *channel);
};

struct channel {
    const struct link_operations *operations;
    bool is_sender;
    struct channel_hello peer;
    struct send_ring send;       /* sender */
    struct receive_ring receive; /* receiver; not of a file, which has no ring */
    enum channel_ack ack;        /* what acked means here; tcp: SEEN always */
    /* Receiver, if ack is SEEN; the polling thread's. Goes through the ring ahead of the receiving thread. */
    struct receive_ring ahead;
    struct ring_credit ahead_credit; /* how far it is */
    struct ring_credit *credit;  /* of the one ring in use; what channel_consumed_lsn reads */
    struct ring_credit own_credit; /* where it lies, unless the link puts it elsewhere */
    /*
     * The lone atomics. The orders of their uses, where nothing else is said there:
     *   A1  acked_lsn, release, by one thread of the link's choice (SEEN: polling); A2 acquire in channel_acked_lsn.
     *       What a caller does on the strength of an ack comes after what made it one.
     *   A3  send.committed_lsn, release in send_ring_close; A4 acquire. Who knows an LSN sees what its committer did.
     *   A5  credit->lsn, release in receive_ring_consume and where a link copies it; A6 acquire. Consumed: applied.
     *   A7  peer_seen_ns, release, polling thread; A8 acquire. A time; nothing is read on the strength of it.
     *   A9  down, acquire and release, stored after closed: who sees down finds closed. Read relaxed it is a hint:
     *       whoever sees it late makes one more call in vain, of a socket or queue that says the same, or looks again
     *       under the turn.
     *   Counts are relaxed: of different moments.
     */
    alignas(RING_LINE_BYTES) _Atomic uint64_t acked_lsn;
    _Atomic uint64_t peer_seen_ns;
    _Atomic uint64_t writes;
    _Atomic uint64_t torn;
    _Atomic uint64_t damaged;
    _Atomic uint64_t resumes;
    _Atomic uint64_t word; /* the receiver's for the sender: its own, or as last heard */
    _Atomic bool down;   /* the connection is broken: a hint */
    _Atomic bool closed; /* and for good: nothing brings it back */
    struct lag_marks lag; /* sender */
};

/* Each fills *out or returns -errno, having said why. options->address without its "verbs:" etc. is `rest`. */
int link_verbs_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender);
int link_tcp_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender);
int link_shm_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender);
int link_file_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender);
/* A receiver that compares no hello. */
int link_file_open_any(struct channel **out, const char *path);

/* A count with one writer. */
static inline void link_count(_Atomic uint64_t *count, uint64_t more)
{
    atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + more, memory_order_relaxed);
}

/* The link is down, `for_good` or until it is resumed. True: it was up, and the caller says why. Any thread. */
static inline bool link_break(struct channel *channel, bool for_good)
{
    if (for_good)
        atomic_store_explicit(&channel->closed, true, memory_order_release);
    return !atomic_exchange_explicit(&channel->down, true, memory_order_acq_rel); /* A9 */
}

/* A new connection is in place; with the turn. */
static inline void link_mend(struct channel *channel)
{
    link_count(&channel->resumes, 1);
    atomic_store_explicit(&channel->down, false, memory_order_release);
}

/* Sender, polling thread, of a link that is down: is what the receiver says it holds possible? It can be: the record
 * due next begins at `index` in our ring, and all from there to the last one is in it. */
bool link_resume_fits(const struct channel *channel, uint64_t index, uint64_t lsn);

/* Receiver, while nothing can land in the ring: up to where whole records lie there. Any thread. */
void link_held(const struct channel *channel, uint64_t *index, uint64_t *lsn);

/* Receiver, when joined: makes the ring's reading side, and the one that looks ahead. */
static inline void link_receive_init(struct channel *channel, const void *ring, uint64_t ring_bytes, uint64_t key,
                                     enum channel_ack ack)
{
    channel->ack = ack;
    receive_ring_init(&channel->receive, ring, ring_bytes, key, channel->credit);
    receive_ring_init(&channel->ahead, ring, ring_bytes, key, &channel->ahead_credit);
}

/* Receiver, polling thread: looks at what has arrived (before the index `end`; UINT64_MAX when unknown) and was not
 * seen. FRAME_COMPLETE: something new was, and the sender should hear of it; else the state of the frame that is due.
 * Bounded. */
enum frame_state link_look_ahead(struct channel *channel, uint64_t end);

/* Receiver: index up to which the sender may overwrite: consumed, and if we look ahead, seen. */
static inline uint64_t link_free_bytes(const struct channel *channel)
{
    /* Acquire, pairs with R1 in receive_ring.c: the frames were read before. */
    uint64_t consumed = atomic_load_explicit(&channel->credit->bytes, memory_order_acquire);
    uint64_t seen = channel->ack != CHANNEL_ACK_SEEN ?
                        consumed :
                        atomic_load_explicit(&channel->ahead_credit.bytes, memory_order_acquire);

    return seen < consumed ? seen : consumed;
}

/* Zeroed memory for a link's structure, aligned to RING_LINE_BYTES; free() it. NULL: none. */
void *link_allocate(size_t bytes);

/* A random number that a peer or guest cannot know; never 0. */
uint64_t link_random_key(void);

#endif
