/*
 * A host that speaks with the witness, as the witness sees it: who may ask, and what is answered. Knows no network.
 *
 * Threads: one at a time, with the table.
 */
#ifndef FTVMM_WITNESS_PEER_H
#define FTVMM_WITNESS_PEER_H

#include "witness/table.h"

struct witness_peer {
    char vm[VM_NAME_BYTES];
    bool proven;
    uint32_t requests;
    struct channel_secret secret;
    struct witness_hello hello;
    struct witness_welcome welcome;
    struct witness_request request;
};

/*
 * A host has come, with `hello_bytes` of private data, perhaps padded. Looks for its VM's key, the file of that name in
 * the directory `keys`. Fills peer->welcome, which is to be said in any case: with WITNESS_OK accept, else reject it.
 * `from` names it in reports.
 */
enum witness_status witness_peer_meet(struct witness_peer *peer, const void *hello, size_t hello_bytes,
                                      const char *keys, const char *from);

/*
 * It has sent a message. False: it is no request of one who holds the key; close, and answer nothing. Else *answer is
 * what to say once `address` and `rkey` are in, and *word what it may reach from now on, in place of what it might
 * before; NULL: nothing.
 */
bool witness_peer_ask(struct witness_peer *peer, struct witness_table *table, const void *message, size_t bytes,
                      struct witness_answer *answer, uint64_t **word, const char *from);
/* Proves the answer. 0 or -EIO, said in words. */
int witness_peer_seal(struct witness_peer *peer, struct witness_answer *answer);

/* Forgets the key. Accepts one that was never met, all zero. */
void witness_peer_close(struct witness_peer *peer);

#endif
