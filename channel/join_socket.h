/* Joining over a stream socket: how the links that have one (tcp; shm, for its beginning) come together. */
#ifndef FTVMM_CHANNEL_JOIN_SOCKET_H
#define FTVMM_CHANNEL_JOIN_SOCKET_H

#include "channel/handshake.h"

#include <sys/socket.h>

struct join_socket {
    /* In. */
    const char *name;                    /* the link's address, for messages */
    const struct sockaddr *address;
    socklen_t address_bytes;
    const struct join_side *ours;
    const struct channel_secret *secret;
    struct join_deadline deadline;
    uint64_t connect_ns, patience_ns; /* of one try: to connect, then to say all; 0: HANDSHAKE_PATIENCE_NS */
    int memory_fd; /* shm. Receiver, in: sent along with the grant, or -1. Sender, out: what came along, or -1 */
    /* In, to resume; else 0. Receiver: `hold` gives the old connection up and fills `log`, or says why not. */
    uint64_t session;
    enum join_refusal (*hold)(void *link, struct handshake_log *log);
    void *link;
    /* Out. The receiver fills it in when the two first join: it chooses the key. */
    struct handshake_log log;
    struct channel_hello peer;
    uint8_t ack;  /* the sender's enum channel_ack */
    int fd;       /* connected, not blocking; the caller's */
    int listener; /* receiver's, the caller's. shm: takes nobody any more but holds the name */
};

/* Blocks until joined. 0, or -errno, said in words: -ETIMEDOUT, -ECANCELED, -EPROTO (sender), -EADDRINUSE, ... A
 * receiver goes on listening when a sender is refused. On failure nothing is left open. */
int join_socket_send_side(struct join_socket *join);
int join_socket_receive_side(struct join_socket *join);

/* To resume: one try. 0: `fd` and `log`; -EAGAIN: it came to nothing, perhaps another time; -EPROTO and others, said in
 * words: it never will. Receiver: takes one who waits at `listener`; all that is not 0 is -EAGAIN or -ECANCELED. */
int join_socket_send_again(struct join_socket *join);
int join_socket_receive_again(struct join_socket *join);

/* A time slice of waiting: is there something to read (POLLIN) or room to write (POLLOUT)? */
bool join_socket_wait(int fd, short events);

#endif
