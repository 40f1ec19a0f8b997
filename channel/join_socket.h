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
    int memory_fd; /* shm. Receiver, in: sent along with the grant, or -1. Sender, out: what came along, or -1 */
    /* Out; the receiver of the channel chooses the key. */
    struct channel_hello peer;
    uint8_t ack; /* the sender's enum channel_ack */
    uint64_t key;
    int fd;       /* connected, not blocking; the caller's */
    int listener; /* receiver. shm: takes nobody any more but holds the name; tcp: -1, closed */
};

/* Blocks until joined. 0, or -errno, said in words: -ETIMEDOUT, -ECANCELED, -EPROTO (sender), -EADDRINUSE, ... A
 * receiver goes on listening when a sender is refused. On failure nothing is left open. */
int join_socket_send_side(struct join_socket *join);
int join_socket_receive_side(struct join_socket *join);

/* A time slice of waiting: is there something to read (POLLIN) or room to write (POLLOUT)? */
bool join_socket_wait(int fd, short events);

#endif
