/* Says and checks the four messages. */
#include "channel/handshake.h"

#include "base/report.h"
#include "channel/record.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/random.h>

#define NONCE_BYTES 32u

/* ASK and ANSWER. The proof of an ASK is zero: its sender has not been challenged yet. */
struct hello_message {
    struct handshake_head head;
    uint32_t features;
    uint8_t ring_log2;
    uint8_t ack;      /* ASK: enum channel_ack that the sender wants */
    uint16_t refusal; /* ANSWER: enum join_refusal */
    uint8_t nonce[NONCE_BYTES];
    struct channel_hello hello;
    uint8_t proof[SECRET_PROOF_BYTES];
};
_Static_assert(sizeof(struct hello_message) == HANDSHAKE_MAX_BYTES, "part of the wire format");

struct proof_message {
    struct handshake_head head;
    uint32_t refusal; /* the sender may refuse, too: JOIN_KEY */
    uint32_t control_rkey;
    uint64_t control_address;
    uint64_t session; /* to be resumed; 0: none */
    uint8_t proof[SECRET_PROOF_BYTES];
};
_Static_assert(sizeof(struct proof_message) == 64, "part of the wire format");

struct grant_message {
    struct handshake_head head;
    uint32_t refusal;
    uint32_t ring_rkey;
    uint64_t ring_address;
    uint64_t control_address;
    struct handshake_log log;
    uint32_t control_rkey;
    uint32_t zero;
    uint8_t proof[SECRET_PROOF_BYTES];
};
_Static_assert(sizeof(struct grant_message) == 96, "part of the wire format");

struct handshake_head handshake_head_of(enum handshake_type type, size_t bytes)
{
    return (struct handshake_head){ .magic = HANDSHAKE_MAGIC, .version = WIRE_VERSION, .type = (uint8_t)type,
                                    .bytes = (uint16_t)bytes };
}

static int refused(struct handshake *h, enum join_refusal refusal, bool ours_is_receiver)
{
    h->refusal = refusal;
    if (refusal == JOIN_BUSY)
        return -EBUSY;
    join_report_refusal(refusal, h->peer, h->ours, &h->theirs, ours_is_receiver);
    return -EPROTO;
}

/* The proof over all that was said and `message`, whose proof is its last field, and zero meanwhile. */
static int prove(struct handshake *h, const void *message, size_t bytes, uint8_t proof[SECRET_PROOF_BYTES])
{
    uint8_t all[sizeof(h->said) + HANDSHAKE_MAX_BYTES];

    memcpy(all, h->said, h->said_bytes);
    memcpy(all + h->said_bytes, message, bytes);
    memset(all + h->said_bytes + bytes - SECRET_PROOF_BYTES, 0, SECRET_PROOF_BYTES);
    return secret_prove(h->secret, all, h->said_bytes + bytes, proof);
}

static void remember(struct handshake *h, const void *message, size_t bytes)
{
    memcpy(h->said + h->said_bytes, message, bytes);
    h->said_bytes += bytes;
}

/* Sends a message of ours, its last field filled with the proof if `proven`. */
static int say(struct handshake *h, void *message, size_t bytes, bool proven)
{
    int result = 0;

    if (proven)
        result = prove(h, message, bytes, (uint8_t *)message + bytes - SECRET_PROOF_BYTES);
    if (result != 0)
        return result;
    remember(h, message, bytes);
    return h->pipe.send(h->pipe.context, message, bytes);
}

/* Waits for the message of that type and length; what it contains is not judged yet. */
static int hear(struct handshake *h, void *message, enum handshake_type type, size_t bytes, bool ours_is_receiver)
{
    uint8_t heard[HANDSHAKE_MAX_BYTES] = { 0 };
    struct handshake_head head;
    size_t heard_bytes = 0;
    int result = h->pipe.receive(h->pipe.context, heard, &heard_bytes);

    if (result == -EPROTO)
        return refused(h, JOIN_NOT_FTVMM, ours_is_receiver);
    if (result != 0)
        return result;
    memcpy(&head, heard, sizeof(head));
    if (heard_bytes < sizeof(head) || head.magic != HANDSHAKE_MAGIC)
        return refused(h, JOIN_NOT_FTVMM, ours_is_receiver);
    h->theirs.version = head.version;
    if (head.version != WIRE_VERSION)
        return refused(h, JOIN_VERSION, ours_is_receiver);
    if (head.type != type || head.bytes != bytes || heard_bytes != bytes)
        return refused(h, JOIN_NOT_FTVMM, ours_is_receiver);
    memcpy(message, heard, bytes);
    return 0;
}

/* Does the message's proof hold? Then it becomes part of what was said. */
static int judge(struct handshake *h, const void *message, size_t bytes, bool *holds)
{
    uint8_t proof[SECRET_PROOF_BYTES];
    int result = prove(h, message, bytes, proof);

    if (result != 0)
        return result;
    *holds = secret_proofs_equal(proof, (const uint8_t *)message + bytes - SECRET_PROOF_BYTES);
    remember(h, message, bytes);
    return 0;
}

static int hello_of(const struct join_side *side, enum handshake_type type, struct hello_message *message)
{
    *message = (struct hello_message){ .head = handshake_head_of(type, sizeof(*message)), .features = side->features,
                                       .ring_log2 = (uint8_t)__builtin_ctzll(side->ring_bytes), .ack = side->ack,
                                       .hello = side->hello };
    return getrandom(message->nonce, sizeof(message->nonce), 0) == (ssize_t)sizeof(message->nonce) ? 0 : -EIO;
}

static bool hello_read(const struct hello_message *message, struct join_side *side)
{
    if (message->ring_log2 > 62 || message->ack > CHANNEL_ACK_SEEN)
        return false;
    side->features = message->features;
    side->ring_bytes = UINT64_C(1) << message->ring_log2;
    side->ack = message->ack;
    side->hello = message->hello;
    return true;
}

/* ---- sender ---- */

int handshake_sender_meet(struct handshake *h)
{
    struct hello_message ask, answer;
    enum join_refusal refusal;
    bool proven;
    int result = hello_of(h->ours, HANDSHAKE_ASK, &ask);

    h->said_bytes = 0;
    if (result == 0)
        result = say(h, &ask, sizeof(ask), false);
    if (result == 0)
        result = hear(h, &answer, HANDSHAKE_ANSWER, sizeof(answer), false);
    if (result != 0)
        return result;
    if (!hello_read(&answer, &h->theirs))
        return refused(h, JOIN_NOT_FTVMM, false);
    refusal = answer.refusal != JOIN_ACCEPTED ? (enum join_refusal)answer.refusal : join_compare(h->ours, &h->theirs);
    if (refusal != JOIN_ACCEPTED)
        return refused(h, refusal, false);
    result = judge(h, &answer, sizeof(answer), &proven);
    if (result != 0)
        return result;
    if (!proven) {
        struct proof_message no = { .head = handshake_head_of(HANDSHAKE_PROOF, sizeof(no)), .refusal = JOIN_KEY };

        say(h, &no, sizeof(no), false); /* so that the other side can say it, too; nothing depends on it */
        return refused(h, JOIN_KEY, false);
    }
    return 0;
}

int handshake_sender_finish(struct handshake *h, const struct handshake_place *ours, struct handshake_place *theirs,
                            struct handshake_log *log)
{
    struct proof_message proof = { .head = handshake_head_of(HANDSHAKE_PROOF, sizeof(proof)),
                                   .control_rkey = ours->control_rkey, .control_address = ours->control_address,
                                   .session = h->session };
    struct grant_message grant;
    bool proven;
    int result = say(h, &proof, sizeof(proof), true);

    if (result == 0)
        result = hear(h, &grant, HANDSHAKE_GRANT, sizeof(grant), false);
    if (result != 0)
        return result;
    if (grant.refusal != JOIN_ACCEPTED)
        return refused(h, (enum join_refusal)grant.refusal, false);
    result = judge(h, &grant, sizeof(grant), &proven);
    if (result == 0 && !proven)
        return refused(h, JOIN_KEY, false);
    if (h->session != 0 && grant.log.key != h->session)
        return refused(h, JOIN_SESSION, false);
    *theirs = (struct handshake_place){ .ring_address = grant.ring_address, .ring_rkey = grant.ring_rkey,
                                        .control_address = grant.control_address, .control_rkey = grant.control_rkey };
    *log = grant.log;
    if (h->theirs.hello.generation == 0)
        h->theirs.hello.generation = h->ours->hello.generation;
    return result;
}

/* ---- receiver ---- */

int handshake_receiver_refuse(struct handshake *h, enum join_refusal refusal)
{
    struct grant_message no = { .head = handshake_head_of(HANDSHAKE_GRANT, sizeof(no)), .refusal = refusal };

    say(h, &no, sizeof(no), false); /* a peer that has left meanwhile needs no reason */
    return refused(h, refusal, true);
}

static int refuse_answer(struct handshake *h, struct hello_message *answer, enum join_refusal refusal)
{
    answer->refusal = (uint16_t)refusal;
    say(h, answer, sizeof(*answer), false); /* a peer that has left meanwhile needs no reason */
    return refused(h, refusal, true);
}

int handshake_receiver_meet(struct handshake *h, struct handshake_place *theirs)
{
    struct hello_message ask, answer;
    struct proof_message proof;
    enum join_refusal refusal = JOIN_ACCEPTED;
    bool proven;
    int result = hello_of(h->ours, HANDSHAKE_ANSWER, &answer);

    h->said_bytes = 0;
    h->refusal = JOIN_ACCEPTED;
    if (result == 0)
        result = hear(h, &ask, HANDSHAKE_ASK, sizeof(ask), true);
    if (result == -EPROTO && h->refusal == JOIN_VERSION) { /* ours is of no use to it but for the reason */
        answer.refusal = JOIN_VERSION;
        say(h, &answer, sizeof(answer), false);
    }
    if (result != 0)
        return result;
    if (!hello_read(&ask, &h->theirs))
        return refused(h, JOIN_NOT_FTVMM, true);
    remember(h, &ask, sizeof(ask));
    refusal = join_compare(&h->theirs, h->ours);
    if (refusal != JOIN_ACCEPTED)
        return refuse_answer(h, &answer, refusal);
    result = say(h, &answer, sizeof(answer), true);
    if (result == 0)
        result = hear(h, &proof, HANDSHAKE_PROOF, sizeof(proof), true);
    if (result != 0)
        return result;
    if (proof.refusal != JOIN_ACCEPTED)
        return refused(h, (enum join_refusal)proof.refusal, true);
    result = judge(h, &proof, sizeof(proof), &proven);
    if (result != 0)
        return result;
    if (!proven)
        return handshake_receiver_refuse(h, JOIN_KEY);
    if (proof.session != h->session)
        return handshake_receiver_refuse(h, proof.session == 0 ? JOIN_BUSY : JOIN_SESSION);
    if (h->session != 0 && h->theirs.ack != h->ours->ack) /* nobody changes that on the way */
        return handshake_receiver_refuse(h, JOIN_SESSION);
    *theirs = (struct handshake_place){ .control_address = proof.control_address, .control_rkey = proof.control_rkey };
    return 0;
}

int handshake_receiver_finish(struct handshake *h, const struct handshake_place *ours, const struct handshake_log *log)
{
    struct grant_message grant = { .head = handshake_head_of(HANDSHAKE_GRANT, sizeof(grant)),
                                   .ring_rkey = ours->ring_rkey, .ring_address = ours->ring_address,
                                   .control_address = ours->control_address, .control_rkey = ours->control_rkey,
                                   .log = *log };

    return say(h, &grant, sizeof(grant), true);
}
