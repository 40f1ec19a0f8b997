/* Asks for places, claims, and connects anew when it must; see client.h. */
#include "witness/client.h"

#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* Soft-RoCE on a busy machine takes half a second to connect; a claim is repeated, so it need not wait long. */
#define SET_UP_NS (4 * NS_PER_S)
#define CLAIM_NS  (2 * NS_PER_S)

/* A generation begun or checked, and what is known of it. */
struct stake {
    uint64_t generation, pair; /* 0: none */
    /* For this generation alone, so that to ask for its place anew always means: without a verdict. */
    uint8_t member[WITNESS_MEMBER_BYTES];
    enum witness_verdict verdict; /* for good, unless WITNESS_UNDECIDED */
};

struct witness_client {
    struct sockaddr_storage address;
    const atomic_bool *closing;
    struct channel_secret secret;
    struct witness_hello hello;
    struct witness_welcome welcome;
    struct witness_wire *wire; /* NULL: not connected */
    uint32_t requests;
    struct stake stake;
    bool placed; /* the connection has the place of it: */
    struct witness_answer place;
};

static struct witness_limit limit_of(const struct witness_client *client, uint64_t ns)
{
    return (struct witness_limit){ .until_ns = clock_now_ns() + ns, .closing = client->closing };
}

int witness_limit_check(const struct witness_limit *limit, char *why)
{
    if (atomic_load(limit->closing)) {
        snprintf(why, WITNESS_WHY_BYTES, "we are ending");
        return -ECANCELED;
    }
    if (clock_now_ns() < limit->until_ns)
        return 0;
    snprintf(why, WITNESS_WHY_BYTES, "it does not answer in time");
    return -ETIMEDOUT;
}

static void disconnect(struct witness_client *client)
{
    witness_wire_close(client->wire);
    client->wire = NULL;
    client->placed = false;
}

static int refused(uint32_t status, char *why)
{
    snprintf(why, WITNESS_WHY_BYTES, "%s", witness_status_text(status));
    switch ((enum witness_status)status) {
    case WITNESS_BUSY:
    case WITNESS_DOUBTFUL: return -EAGAIN;
    case WITNESS_UNKNOWN_VM:
    case WITNESS_KEY: return -EACCES;
    case WITNESS_TABLE_FULL:
    case WITNESS_MEMBERS_FULL: return -ENOSPC;
    case WITNESS_UNKNOWN_GENERATION: return -ENOENT;
    case WITNESS_OTHER_PAIR: return -ESTALE;
    case WITNESS_STORAGE: return -EIO;
    case WITNESS_OK:
    case WITNESS_NOT_WITNESS: break;
    }
    return -EPROTO;
}

static int connect_once(struct witness_client *client, const struct witness_limit *limit, char *why)
{
    struct witness_welcome *welcome = &client->welcome;
    int rc;

    if (getrandom(client->hello.nonce, sizeof(client->hello.nonce), 0) != (ssize_t)sizeof(client->hello.nonce)) {
        snprintf(why, WITNESS_WHY_BYTES, "this host has no random numbers");
        return -EIO;
    }
    memset(welcome, 0, sizeof(*welcome));
    rc = witness_wire_open(&client->wire, (struct sockaddr *)&client->address, &client->hello, welcome, limit, why);
    if (rc != 0 && rc != -ECONNREFUSED)
        return rc;
    if (!witness_head_is(&welcome->head, WITNESS_WELCOME, sizeof(*welcome), sizeof(*welcome)))
        rc = refused(WITNESS_NOT_WITNESS, why);
    else if (welcome->status != WITNESS_OK || rc == -ECONNREFUSED)
        rc = refused(welcome->status, why);
    else if (!witness_proof_holds(&client->secret, &client->hello, NULL, NULL, welcome, sizeof(*welcome)))
        rc = refused(WITNESS_KEY, why);
    client->requests = 0;
    client->placed = false;
    if (rc != 0)
        disconnect(client);
    return rc;
}

static int connected(struct witness_client *client, char *why)
{
    struct witness_limit limit = limit_of(client, SET_UP_NS);

    return client->wire != NULL ? 0 : connect_once(client, &limit, why);
}

/* Asks for a place; with it the claim can be made. */
static int ask_once(struct witness_client *client, enum witness_operation operation, char *why)
{
    struct witness_limit limit = limit_of(client, SET_UP_NS);
    struct witness_request request = { .head = witness_head_of(WITNESS_REQUEST, sizeof(request)),
                                       .operation = operation, .number = client->requests + 1 };
    struct witness_answer *answer = &client->place;
    size_t bytes = 0;
    int rc;

    if (operation == WITNESS_FIND) {
        request.generation = client->stake.generation;
        request.pair = client->stake.pair;
    }
    memcpy(request.member, client->stake.member, sizeof(request.member));
    rc = witness_prove(&client->secret, &client->hello, &client->welcome, NULL, &request, sizeof(request),
                       request.proof);
    client->placed = false;
    client->requests++;
    memset(answer, 0, sizeof(*answer));
    if (rc == 0)
        rc = witness_wire_exchange(client->wire, &request, answer, &bytes, &limit, why);
    if (rc == 0 && (bytes != sizeof(*answer) ||
                    !witness_head_is(&answer->head, WITNESS_ANSWER, sizeof(*answer), bytes)))
        rc = refused(WITNESS_NOT_WITNESS, why);
    else if (rc == 0 && !witness_proof_holds(&client->secret, &client->hello, &client->welcome, &request, answer,
                                             sizeof(*answer)))
        rc = refused(WITNESS_KEY, why);
    if (rc != 0) {
        disconnect(client);
        return rc;
    }
    if (answer->status != WITNESS_OK)
        return refused(answer->status, why);
    client->placed = true;
    return 0;
}

/* The connection may have died long ago without our knowing: a second try, with a new one. */
static int ask(struct witness_client *client, enum witness_operation operation, char *why)
{
    bool was_connected = client->wire != NULL;
    int rc = connected(client, why);

    if (rc == 0)
        rc = ask_once(client, operation, why);
    if (rc != 0 && client->wire == NULL && was_connected && !atomic_load(client->closing)) {
        rc = connected(client, why);
        if (rc == 0)
            rc = ask_once(client, operation, why);
    }
    return rc;
}

int witness_client_open(struct witness_client **out, const struct sockaddr_storage *address, const char *vm,
                        const struct channel_secret *secret, const atomic_bool *closing, char *why)
{
    struct witness_client *client = calloc(1, sizeof(*client));
    int rc = -ENOMEM;

    *out = NULL;
    snprintf(why, WITNESS_WHY_BYTES, "no memory");
    if (client == NULL)
        return rc;
    client->address = *address;
    client->closing = closing;
    client->secret = *secret;
    client->stake.verdict = WITNESS_UNDECIDED;
    client->hello.head = witness_head_of(WITNESS_HELLO, sizeof(client->hello));
    snprintf(client->hello.vm, sizeof(client->hello.vm), "%s", vm);
    rc = connected(client, why);
    if (rc == 0)
        rc = ask_once(client, WITNESS_FIND, why); /* of generation 0: so that the witness knows us, and waits */
    if (rc == -ENOENT)
        rc = 0;
    if (rc != 0) {
        witness_client_close(client);
        return rc;
    }
    *out = client;
    return 0;
}

void witness_client_close(struct witness_client *client)
{
    if (client == NULL)
        return;
    disconnect(client);
    channel_secret_wipe(&client->secret);
    free(client);
}

/* Asks for a place in another generation. If none is to be had the old stake remains. */
static int stake_begin(struct witness_client *client, uint64_t generation, char *why)
{
    struct stake old = client->stake;
    int rc;

    client->stake = (struct stake){ .generation = generation, .verdict = WITNESS_UNDECIDED };
    client->placed = false;
    if (getrandom(client->stake.member, WITNESS_MEMBER_BYTES, 0) == (ssize_t)WITNESS_MEMBER_BYTES) {
        rc = ask(client, generation == 0 ? WITNESS_BEGIN : WITNESS_FIND, why);
    } else {
        snprintf(why, WITNESS_WHY_BYTES, "this host has no random numbers");
        rc = -EIO;
    }
    if (rc == 0) {
        client->stake.generation = client->place.generation;
        client->stake.pair = client->place.pair;
    } else {
        client->stake = old;
        client->placed = false;
    }
    return rc;
}

int witness_client_begin(struct witness_client *client, uint64_t *generation, char *why)
{
    int rc = stake_begin(client, 0, why);

    if (rc == 0)
        *generation = client->stake.generation;
    return rc;
}

int witness_client_check(struct witness_client *client, uint64_t generation, char *why)
{
    if (generation == 0) {
        snprintf(why, WITNESS_WHY_BYTES, "there is no generation 0");
        return -ENOENT;
    }
    /* One that is ours already keeps its verdict, if there is one. */
    return generation == client->stake.generation ? 0 : stake_begin(client, generation, why);
}

/* What the word says. */
static enum witness_verdict judge(const struct witness_answer *place, uint64_t found, char *why)
{
    if (found == place->free || found == place->claim)
        return WITNESS_WON;
    if ((found & ~WITNESS_WORD_MEMBER) == place->free)
        return WITNESS_LOST;
    snprintf(why, WITNESS_WHY_BYTES, "the word there is no longer this pair's");
    return WITNESS_UNDECIDED;
}

static enum witness_verdict claim_once(struct witness_client *client, char *why)
{
    const struct witness_answer *place = &client->place;
    struct witness_limit limit;
    enum witness_verdict verdict;
    uint64_t found = 0;

    if (!client->placed && ask(client, WITNESS_FIND, why) != 0)
        return WITNESS_UNDECIDED;
    limit = limit_of(client, CLAIM_NS);
    if (witness_wire_compare_swap(client->wire, place->address, place->rkey, place->free, place->claim, &found, &limit,
                                  why) != 0) {
        disconnect(client);
        return WITNESS_UNDECIDED;
    }
    verdict = judge(place, found, why);
    if (verdict == WITNESS_UNDECIDED)
        disconnect(client);
    return verdict;
}

enum witness_verdict witness_client_claim(struct witness_client *client, char *why)
{
    if (client->stake.verdict != WITNESS_UNDECIDED)
        return client->stake.verdict;
    if (client->stake.generation == 0) {
        snprintf(why, WITNESS_WHY_BYTES, "no generation was begun or checked");
        return WITNESS_UNDECIDED;
    }
    client->stake.verdict = claim_once(client, why);
    /* A connection that had died without our knowing gets a second try, with a new one. */
    if (client->stake.verdict == WITNESS_UNDECIDED && client->wire == NULL && !atomic_load(client->closing))
        client->stake.verdict = claim_once(client, why);
    return client->stake.verdict;
}

int witness_client_tend(struct witness_client *client, char *why)
{
    const struct witness_answer *place = &client->place;
    struct witness_limit limit;
    uint64_t found = 0;
    int rc = 0;

    if (client->stake.generation == 0 || client->stake.verdict != WITNESS_UNDECIDED)
        return 0;
    if (client->placed) {
        limit = limit_of(client, CLAIM_NS);
        rc = witness_wire_compare_swap(client->wire, place->address, place->rkey, place->claim, place->claim, &found,
                                       &limit, why);
        if (rc == 0 && (found & ~WITNESS_WORD_MEMBER) == place->free)
            return 0;
        disconnect(client);
    }
    return ask(client, WITNESS_FIND, why);
}
