/*
 * A host's side of a witness: keeps a connection, and with it the place of one generation, so that a claim is one
 * compare-and-swap that the witness's CPU has no part in.
 *
 * A claim whose answer was lost is repeated and finds its own number in the word. When the connection is lost, the
 * place is asked for anew; a witness that was restarted gives it when both hosts have come back (table.h). Who has a
 * verdict keeps it, and asks no more.
 *
 * `why`: WITNESS_WHY_BYTES, in words. Threads: one at a time for one client.
 */
#ifndef FTVMM_WITNESS_CLIENT_H
#define FTVMM_WITNESS_CLIENT_H

#include "witness/wire.h"

struct witness_client;

/* Connects, and proves that both hold `secret`, of which it keeps a copy. `address` is for sockets, `closing` lives as
 * long as the client. 0 or -errno with `why`. */
int witness_client_open(struct witness_client **out, const struct sockaddr_storage *address, const char *vm,
                        const struct channel_secret *secret, const atomic_bool *closing, char *why);
/* Accepts NULL. */
void witness_client_close(struct witness_client *client);

/* 0 or -errno with `why`. */
int witness_client_begin(struct witness_client *client, uint64_t *generation, char *why);
/* The same; -ENOENT: it is not known there, -EAGAIN: the witness was restarted and waits for the other host. */
int witness_client_check(struct witness_client *client, uint64_t generation, char *why);

enum witness_verdict {
    WITNESS_WON,
    WITNESS_LOST,
    WITNESS_UNDECIDED, /* `why` says why */
};

/* Claims the generation last begun or checked. */
enum witness_verdict witness_client_claim(struct witness_client *client, char *why);

/* To be called now and then while nothing is claimed: looks, by a compare-and-swap that changes nothing, whether a
 * claim would get through; if not, connects anew. 0; -errno with `why`: a claim would not get through. */
int witness_client_tend(struct witness_client *client, char *why);

#endif
