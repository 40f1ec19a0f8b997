/* Who may ask, and what is answered; see peer.h. */
#include "witness/peer.h"

#include "base/report.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

static enum witness_status meet(struct witness_peer *peer, const void *data, size_t bytes, const char *keys,
                                const char *from)
{
    struct witness_hello *hello = &peer->hello;
    char path[512];
    struct stat status;

    if (bytes < sizeof(*hello) || data == NULL)
        return WITNESS_NOT_WITNESS;
    memcpy(hello, data, sizeof(*hello));
    if (!witness_head_is(&hello->head, WITNESS_HELLO, sizeof(*hello), bytes))
        return WITNESS_NOT_WITNESS;
    memcpy(peer->vm, hello->vm, sizeof(peer->vm));
    peer->vm[sizeof(peer->vm) - 1] = '\0';
    if (!vm_name_is_valid(peer->vm))
        return WITNESS_UNKNOWN_VM;
    snprintf(path, sizeof(path), "%s/%s", keys, peer->vm);
    if (stat(path, &status) != 0) {
        report_warning("%s: refused: there is no key '%s' for a VM of its name", from, path);
        return WITNESS_UNKNOWN_VM;
    }
    if (channel_secret_load(&peer->secret, path) != 0) /* says why */
        return WITNESS_UNKNOWN_VM;
    return WITNESS_OK;
}

enum witness_status witness_peer_meet(struct witness_peer *peer, const void *hello, size_t hello_bytes,
                                      const char *keys, const char *from)
{
    struct witness_welcome *welcome = &peer->welcome;
    enum witness_status status;

    memset(peer, 0, sizeof(*peer));
    status = meet(peer, hello, hello_bytes, keys, from);
    *welcome = (struct witness_welcome){ .head = witness_head_of(WITNESS_WELCOME, sizeof(*welcome)) };
    if (status == WITNESS_OK &&
        (getrandom(welcome->nonce, sizeof(welcome->nonce), 0) != (ssize_t)sizeof(welcome->nonce) ||
         witness_prove(&peer->secret, &peer->hello, NULL, NULL, welcome, sizeof(*welcome), welcome->proof) != 0))
        status = WITNESS_BUSY;
    if (status == WITNESS_NOT_WITNESS)
        report_warning("%s: refused: it does not speak our version of the witness's protocol", from);
    welcome->status = status;
    if (status != WITNESS_OK)
        memset(welcome->nonce, 0, sizeof(welcome->nonce) + sizeof(welcome->proof));
    return status;
}

bool witness_peer_ask(struct witness_peer *peer, struct witness_table *table, const void *message, size_t bytes,
                      struct witness_answer *answer, uint64_t **word, const char *from)
{
    struct witness_request *request = &peer->request;
    struct witness_place place = { 0 };
    enum witness_status status;

    *word = NULL;
    *answer = (struct witness_answer){ .head = witness_head_of(WITNESS_ANSWER, sizeof(*answer)) };
    if (bytes != sizeof(*request))
        goto nonsense;
    memcpy(request, message, sizeof(*request));
    if (!witness_head_is(&request->head, WITNESS_REQUEST, sizeof(*request), bytes) ||
        request->number != peer->requests + 1)
        goto nonsense;
    if (!witness_proof_holds(&peer->secret, &peer->hello, &peer->welcome, NULL, request, sizeof(*request))) {
        report_warning("%s: refused: it does not hold the key of VM '%s'; copy one key file to all three hosts", from,
                       peer->vm);
        return false;
    }
    peer->requests++;
    peer->proven = true;
    switch (request->operation) {
    case WITNESS_BEGIN: status = witness_table_begin(table, peer->vm, request->member, &place); break;
    case WITNESS_FIND:
        status = witness_table_find(table, peer->vm, request->generation, request->pair, request->member, &place);
        break;
    default: goto nonsense;
    }
    answer->status = status;
    if (status == WITNESS_OK) {
        answer->generation = place.generation;
        answer->pair = place.pair;
        answer->free = place.free;
        answer->claim = place.claim;
        *word = place.word;
    }
    return true;

nonsense:
    report_warning("%s: refused: what it sends is no request to a witness", from);
    return false;
}

int witness_peer_seal(struct witness_peer *peer, struct witness_answer *answer)
{
    return witness_prove(&peer->secret, &peer->hello, &peer->welcome, &peer->request, answer, sizeof(*answer),
                         answer->proof);
}

void witness_peer_close(struct witness_peer *peer)
{
    channel_secret_wipe(&peer->secret);
    peer->proven = false;
}
