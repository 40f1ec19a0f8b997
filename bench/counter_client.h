/*
 * One TCP connection to redis with a pipeline of INCRs in flight. It never closes because of silence
 * shorter than the patience: TCP's own retransmission must find the service again after a failover.
 */
#ifndef FTVMM_BENCH_COUNTER_CLIENT_H
#define FTVMM_BENCH_COUNTER_CLIENT_H

#include <netdb.h>

#include <hiredis/hiredis.h>

#include "bench/counter.h"

enum client_state { CLIENT_CLOSED, CLIENT_CONNECTING, CLIENT_OPEN };

struct client {
    enum client_state state;
    int fd;
    unsigned number;
    struct counter_run *run;
    const struct addrinfo *address;
    const char *command; /* "INCR key" in redis' protocol */
    size_t command_bytes;
    redisReader *reader;
    uint64_t resume_ns;    /* closed, or told an error: nothing before this moment */
    uint64_t since_ns;     /* connecting, or waiting for a reply on this connection, since */
    uint64_t served_ns;    /* last reply on any connection of this client, or first request; 0: none yet */
    size_t unsent_bytes;   /* of the commands in flight, at their end */
    unsigned head, in_flight;
    struct {
        uint64_t sent_ns;
        int64_t floor; /* the ledger's max at that moment */
    } requests[COUNTER_PIPELINE_MAX];
    int64_t previous; /* last value */
    bool opened_once, error_told;
};

/* 0 or -ENOMEM. The pointers must outlive the client. */
int client_init(struct client *client, unsigned number, struct counter_run *run, const struct addrinfo *address,
                const char *command, size_t command_bytes);
void client_fini(struct client *client);

/* What the client wants to wait for (poll events), after doing what is due: connecting, filling the pipeline
 * unless `stopping`, giving up on what is too old. */
short client_prepare(struct client *client, uint64_t now_ns, bool stopping);
/* The socket is ready for `events`. */
void client_handle(struct client *client, short events);
/* The run ends: closes, and counts a wait that is still open and what was in flight as unknown. */
void client_finish(struct client *client, uint64_t now_ns);

#endif
