/*
 * What a host and its witness say to each other while a connection is set up: the witness's CPU is asked for a place,
 * and the claim itself needs none of it. docs/wire-format.md draws it.
 *
 *   HELLO    host      in rdma_cm's private data: which VM, a challenge
 *   WELCOME  witness   in rdma_cm's private data: its challenge, and the proof that it holds the VM's key; or why not
 *   REQUEST  host      a SEND: a new generation, or the place of one; with the proof that it holds the key
 *   ANSWER   witness   a SEND: address and rkey of the generation's word, what is in it while it is free, and what this
 *                      host would swap for that; or why not
 *
 * Each proof is an HMAC under the VM's key over HELLO, WELCOME, the request (in an answer) and the message itself, so
 * nothing can be said again in another connection or changed. A refusal in a WELCOME proves nothing, and decides
 * nothing either. Numbers are little-endian, as both hosts are.
 *
 * The word: 48 bits of a mark that this witness gives once, and the number of the member that has claimed it, 0 while
 * it is free.
 */
#ifndef FTVMM_WITNESS_PROTOCOL_H
#define FTVMM_WITNESS_PROTOCOL_H

#include "base/vm_name.h"
#include "channel/secret.h"

#include <stdint.h>

#define WITNESS_MAGIC        0x57545446u /* "FTTW" */
#define WITNESS_VERSION      1u
#define WITNESS_NONCE_BYTES  16u
#define WITNESS_MEMBER_BYTES 16u
#define WITNESS_MEMBERS      16u /* processes that may ask for one generation */

enum witness_type { /* on the wire: never renumber */
    WITNESS_HELLO = 1,
    WITNESS_WELCOME = 2,
    WITNESS_REQUEST = 3,
    WITNESS_ANSWER = 4,
};

enum witness_operation { /* on the wire: never renumber */
    WITNESS_BEGIN = 1, /* the next unused generation */
    WITNESS_FIND = 2,  /* the place of `generation`; of this `pair`, unless 0. Of 0, which is never: only a proof */
};

enum witness_status { /* on the wire: never renumber */
    WITNESS_OK = 0,
    WITNESS_NOT_WITNESS = 1,        /* another protocol, or another version of this one */
    WITNESS_BUSY = 2,               /* too many connections are being set up; come back */
    WITNESS_UNKNOWN_VM = 3,         /* it has no key of that name */
    WITNESS_KEY = 4,                /* a proof does not hold */
    WITNESS_TABLE_FULL = 5,         /* as many VMs as it may have */
    WITNESS_MEMBERS_FULL = 6,       /* WITNESS_MEMBERS have asked for this generation */
    WITNESS_UNKNOWN_GENERATION = 7, /* never begun, or so old that it is forgotten */
    WITNESS_OTHER_PAIR = 8,         /* that generation is another pair's */
    WITNESS_DOUBTFUL = 9,           /* it was restarted, and not all who might have won have come back */
    WITNESS_STORAGE = 10,           /* its state cannot be written */
};

struct witness_head {
    uint32_t magic;
    uint8_t version;
    uint8_t type; /* enum witness_type */
    uint16_t bytes;
};

/* As long as rdma_cm's private data of a request may be. */
struct witness_hello {
    struct witness_head head;
    char vm[VM_NAME_BYTES]; /* zero-padded */
    uint8_t nonce[WITNESS_NONCE_BYTES];
};
_Static_assert(sizeof(struct witness_hello) == 56, "part of the wire format");

struct witness_welcome {
    struct witness_head head;
    uint32_t status; /* enum witness_status; but for OK all behind it is zero */
    uint32_t zero;
    uint8_t nonce[WITNESS_NONCE_BYTES];
    uint8_t proof[SECRET_PROOF_BYTES];
};
_Static_assert(sizeof(struct witness_welcome) == 64, "part of the wire format");

struct witness_request {
    struct witness_head head;
    uint32_t operation; /* enum witness_operation */
    uint32_t number;    /* 1, 2, 3, ... in a connection */
    uint64_t generation;
    uint64_t pair;
    uint8_t member[WITNESS_MEMBER_BYTES]; /* random, one per process and opening */
    uint8_t proof[SECRET_PROOF_BYTES];
};
_Static_assert(sizeof(struct witness_request) == 80, "part of the wire format");

struct witness_answer {
    struct witness_head head;
    uint32_t status; /* enum witness_status; but for OK all but `zero` and the proof is zero */
    uint32_t rkey;
    uint64_t generation;
    uint64_t pair;    /* random, drawn when it was begun: this pair's, nobody else's */
    uint64_t address; /* of the word */
    uint64_t free;    /* what is in it before the first claim */
    uint64_t claim;   /* what this member swaps for that */
    uint8_t proof[SECRET_PROOF_BYTES];
};
_Static_assert(sizeof(struct witness_answer) == 88, "part of the wire format");

#define WITNESS_WORD_MEMBER UINT64_C(0xffff) /* part of a word: who has claimed it */

struct witness_head witness_head_of(enum witness_type type, size_t bytes);
/* Is it ours, of our version, of that type and length? `heard_bytes` have come. */
bool witness_head_is(const struct witness_head *head, enum witness_type type, size_t bytes, size_t heard_bytes);

/* A proof over all but the last SECRET_PROOF_BYTES of `message`. `before`: what was said before it, NULL for none, in
 * the order HELLO, WELCOME, REQUEST. 0 or -EIO, said in words. Any thread. */
int witness_prove(const struct channel_secret *secret, const struct witness_hello *hello,
                  const struct witness_welcome *welcome, const struct witness_request *request, const void *message,
                  size_t bytes, uint8_t proof[SECRET_PROOF_BYTES]);
/* Does the message's own proof, its last field, hold? */
bool witness_proof_holds(const struct channel_secret *secret, const struct witness_hello *hello,
                         const struct witness_welcome *welcome, const struct witness_request *request,
                         const void *message, size_t bytes);

/* What a refusal means to a host, and what mends it. Never NULL. */
const char *witness_status_text(uint32_t status);

#endif
