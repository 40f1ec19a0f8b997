/*
 * A host's connection to its witness: messages to its CPU, compare-and-swap by its NIC. wire_verbs.c is the one over
 * RDMA; tests of what is above it bring another.
 *
 * `why` (WITNESS_WHY_BYTES) takes the reason of a failure, in words, without the witness's address. -ETIMEDOUT,
 * -ECANCELED, -ECONNREFUSED (with *welcome), or another -errno. After a failure only close is of use.
 * Threads: one at a time for one wire.
 */
#ifndef FTVMM_WITNESS_WIRE_H
#define FTVMM_WITNESS_WIRE_H

#include "witness/protocol.h"

#include <stdatomic.h>
#include <sys/socket.h>

#define WITNESS_WHY_BYTES 192

struct witness_wire;

struct witness_limit {
    uint64_t until_ns;          /* CLOCK_MONOTONIC */
    const atomic_bool *closing; /* once set: -ECANCELED soon */
};

/* 0, or why to go on waiting makes no sense. */
int witness_limit_check(const struct witness_limit *limit, char *why);

/* Connects, with `hello` for the witness; *welcome is what it said, not judged yet. */
int witness_wire_open(struct witness_wire **out, const struct sockaddr *address, const struct witness_hello *hello,
                      struct witness_welcome *welcome, const struct witness_limit *limit, char *why);
/* Accepts NULL. Nothing that was begun has an effect on this side any more. */
void witness_wire_close(struct witness_wire *wire);

/* Sends the request and waits for what comes back, not judged yet, *answer_bytes of it. */
int witness_wire_exchange(struct witness_wire *wire, const struct witness_request *request,
                          struct witness_answer *answer, size_t *answer_bytes, const struct witness_limit *limit,
                          char *why);

/* By the witness's NIC: if the word is `compare` it becomes `swap`. *found: what it was. On failure it may have
 * happened, or may happen yet. */
int witness_wire_compare_swap(struct witness_wire *wire, uint64_t address, uint32_t rkey, uint64_t compare,
                              uint64_t swap, uint64_t *found, const struct witness_limit *limit, char *why);

#endif
