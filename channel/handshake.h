/*
 * The conversation in which two ends join: four messages over any link, by which each end proves to the other that
 * it holds the shared key, compares what both must agree on, and learns where it may write. docs/wire-format.md
 * draws it.
 *
 * Each proof is an HMAC under the key over everything that was said so far, the message itself included. So it is
 * bound to the name of the VM, its generation, both random challenges, and the addresses and rkeys of the rings; none
 * of it can be said again, in another order, by the other role, or with one bit changed. The receiver tells where its
 * ring is, and makes it writable, only after the sender's proof.
 *
 * A broken connection is resumed by the same conversation. The key of the frames, drawn when the two first joined,
 * names the session: the sender's proof says which one it wants to go on with, and the receiver's grant how much of its
 * log is there. So only who was, or is allowed to be, this session's sender can make the receiver give its old
 * connection up.
 *
 * Without a key the same is said, and the proofs protect against accidents only.
 */
#ifndef FTVMM_CHANNEL_HANDSHAKE_H
#define FTVMM_CHANNEL_HANDSHAKE_H

#include "channel/join.h"
#include "channel/secret.h"

#define HANDSHAKE_MAX_BYTES       136u /* longest message */
#define HANDSHAKE_HEAD_BYTES      8u
#define HANDSHAKE_SENDER_SAYS     2u /* messages */
#define HANDSHAKE_RECEIVER_SAYS   2u
#define HANDSHAKE_PATIENCE_NS     (5 * NS_PER_S) /* for a peer that has begun to join and falls silent */

enum handshake_type { /* on the wire: never renumber */
    HANDSHAKE_CONNECT = 0, /* a head alone: the link's own first word, where it has one */
    HANDSHAKE_ASK = 1,
    HANDSHAKE_ANSWER = 2,
    HANDSHAKE_PROOF = 3,
    HANDSHAKE_GRANT = 4,
};

/* Begins every message; keeps its places in all versions. */
struct handshake_head {
    uint32_t magic; /* HANDSHAKE_MAGIC */
    uint8_t version;
    uint8_t type;   /* enum handshake_type */
    uint16_t bytes; /* of the message, this head included */
};
_Static_assert(sizeof(struct handshake_head) == HANDSHAKE_HEAD_BYTES, "the head is part of the wire format");
#define HANDSHAKE_MAGIC 0x56545446u /* "FTTV" */

/* A head of ours. */
struct handshake_head handshake_head_of(enum handshake_type type, size_t bytes);

/* Carries whole messages. Each function gives 0, or: -ETIMEDOUT, -ECANCELED: of our own waiting; -ECONNRESET: the peer
 * is gone, or silent for too long; others. */
struct handshake_pipe {
    void *context;
    int (*send)(void *context, const void *message, size_t bytes);
    /* Waits for one message of at most HANDSHAKE_MAX_BYTES. Longer, or no head: -EPROTO. */
    int (*receive)(void *context, void *message, size_t *bytes);
};

/* Where the peer may write; all zero for links that do not write by themselves. */
struct handshake_place {
    uint64_t ring_address, control_address; /* sender: control only */
    uint32_t ring_rkey, control_rkey;
};

/* The log, as the receiver tells of it. */
struct handshake_log {
    uint64_t key;        /* of the frames; never 0. It names the session */
    uint64_t index, lsn; /* up to which the receiver holds whole records; 0 when the two first join */
};

struct handshake {
    /* In. */
    struct handshake_pipe pipe;
    const struct join_side *ours;
    const struct channel_secret *secret; /* NULL: none */
    const char *peer;                    /* for messages */
    uint64_t session;                    /* the one that is to be resumed; 0: the two first join */
    /* Out. */
    struct join_side theirs;
    enum join_refusal refusal; /* why it failed with -EPROTO, if it was that */
    /* Its own. */
    size_t said_bytes;
    uint8_t said[4 * HANDSHAKE_MAX_BYTES];
};

/* Each: 0; -EPROTO: the ends do not belong together, said in words on both sides; -EBUSY: a sender wants to join a
 * receiver that has one, said by neither; what the pipe gives; -EIO.
 *
 * Sender: meet (the receiver has proven itself), then finish, with where the receiver may write its control block. */
int handshake_sender_meet(struct handshake *h);
int handshake_sender_finish(struct handshake *h, const struct handshake_place *ours, struct handshake_place *theirs,
                            struct handshake_log *log);
/* Receiver: meet (the sender has proven itself, and *theirs is where it wants its control block), then finish, or
 * refuse, which gives -EPROTO. */
int handshake_receiver_meet(struct handshake *h, struct handshake_place *theirs);
int handshake_receiver_finish(struct handshake *h, const struct handshake_place *ours,
                              const struct handshake_log *log);
int handshake_receiver_refuse(struct handshake *h, enum join_refusal refusal);

#endif
