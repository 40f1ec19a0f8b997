/* Listens, connects, and carries the messages of joining over a stream socket. */
#include "channel/join_socket.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/link.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define SLICE_MS       20 /* how late a cancellation may be noticed */
#define RETRY_PAUSE_NS (20 * NS_PER_MS)

struct socket_pipe {
    int fd;
    const struct join_deadline *deadline;
    uint64_t give_up_ns; /* for this peer */
};

bool join_socket_wait(int fd, short events)
{
    struct pollfd ready = { .fd = fd, .events = events };

    return poll(&ready, 1, SLICE_MS) > 0;
}

/* After a call that did not come to anything (errno): a slice of waiting. 0: try again. */
static int pipe_wait(const struct socket_pipe *pipe, short events)
{
    int result = join_deadline_check(pipe->deadline);

    if (errno != EAGAIN && errno != EINTR)
        return -ECONNRESET;
    if (result == 0 && clock_now_ns() >= pipe->give_up_ns)
        result = -ECONNRESET;
    if (result == 0)
        join_socket_wait(pipe->fd, events);
    return result;
}

static int pipe_send(void *context, const void *message, size_t bytes)
{
    struct socket_pipe *pipe = context;
    size_t done = 0;
    int result = 0;

    while (done < bytes && result == 0) {
        ssize_t sent = send(pipe->fd, (const uint8_t *)message + done, bytes - done, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent > 0)
            done += (size_t)sent;
        else
            result = pipe_wait(pipe, POLLOUT);
    }
    return result;
}

static int pipe_read(struct socket_pipe *pipe, void *data, size_t bytes)
{
    size_t done = 0;
    int result = 0;

    while (done < bytes && result == 0) {
        ssize_t got = recv(pipe->fd, (uint8_t *)data + done, bytes - done, MSG_DONTWAIT);

        if (got > 0)
            done += (size_t)got;
        else
            result = got == 0 ? -ECONNRESET : pipe_wait(pipe, POLLIN);
    }
    return result;
}

static int pipe_receive(void *context, void *message, size_t *bytes)
{
    struct socket_pipe *pipe = context;
    struct handshake_head head;
    int result = pipe_read(pipe, &head, sizeof(head));

    if (result != 0)
        return result;
    if (head.magic != HANDSHAKE_MAGIC || head.bytes < sizeof(head) || head.bytes > HANDSHAKE_MAX_BYTES)
        return -EPROTO;
    memcpy(message, &head, sizeof(head));
    *bytes = head.bytes;
    return pipe_read(pipe, (uint8_t *)message + sizeof(head), head.bytes - sizeof(head));
}

static struct handshake handshake_over(struct socket_pipe *pipe, const struct join_socket *join, const char *peer)
{
    return (struct handshake){ .pipe = { .context = pipe, .send = pipe_send, .receive = pipe_receive },
                               .ours = join->ours, .secret = join->secret, .peer = peer, .session = join->session };
}

static uint64_t patience_ns(const struct join_socket *join)
{
    return join->patience_ns != 0 ? join->patience_ns : HANDSHAKE_PATIENCE_NS;
}

/* Unix: only processes of our own user. */
static bool same_user(const struct join_socket *join, int fd)
{
    struct ucred peer;
    socklen_t bytes = sizeof(peer);

    return join->address->sa_family != AF_UNIX ||
           (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid());
}

static void name_of(const struct sockaddr_storage *address, socklen_t bytes, const char *name, char text[96])
{
    char host[64], port[16];

    snprintf(text, 96, "%s", name);
    if (address->ss_family != AF_UNIX &&
        getnameinfo((const struct sockaddr *)address, bytes, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(text, 96, "tcp:%s:%s", host, port);
}

/* ---- the memory of shm ---- */

static int memory_send(int fd, int memory_fd)
{
    char byte = 0;
    struct iovec part = { .iov_base = &byte, .iov_len = 1 };
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                              .msg_controllen = sizeof(control) };

    control.head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                                     .cmsg_len = CMSG_LEN(sizeof(int)) };
    memcpy(CMSG_DATA(&control.head), &memory_fd, sizeof(int));
    return sendmsg(fd, &message, MSG_NOSIGNAL) == 1 ? 0 : -ECONNRESET;
}

static int memory_receive(struct socket_pipe *pipe, int *memory_fd)
{
    char byte;
    struct iovec part = { .iov_base = &byte, .iov_len = 1 };
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                              .msg_controllen = sizeof(control) };
    ssize_t got;
    int result;

    while ((got = recvmsg(pipe->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)) != 1) {
        result = got == 0 ? -ECONNRESET : pipe_wait(pipe, POLLIN);
        if (result != 0)
            return result;
    }
    if (CMSG_FIRSTHDR(&message) == NULL || control.head.cmsg_type != SCM_RIGHTS)
        return -ECONNRESET;
    memcpy(memory_fd, CMSG_DATA(&control.head), sizeof(int));
    return 0;
}

/* ---- receiver ---- */

static int receiver_open(struct join_socket *join)
{
    int family = join->address->sa_family, one = 1, result;

    join->listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (join->listener < 0) {
        result = -errno;
        report_error("%s: no socket: %s", join->name, strerror(-result));
        return result;
    }
    if (family != AF_UNIX) /* a connection of an earlier run may still be waiting to be forgotten */
        setsockopt(join->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(join->listener, join->address, join->address_bytes) != 0 || listen(join->listener, 4) != 0) {
        result = -errno;
        report_error("%s: cannot listen: %s%s", join->name, strerror(-result),
                     result == -EADDRINUSE    ? "; another receiver has this address; stop it or give another" :
                     result == -EADDRNOTAVAIL ? "; give an address of this host ('ip address' lists them)" :
                                                "");
        return result;
    }
    return 0;
}

/* One sender has connected. 0: joined. -EAGAIN: not this one. */
static int receiver_meet(struct join_socket *join, int fd, const char *from, enum join_refusal *last)
{
    struct socket_pipe pipe = { .fd = fd, .deadline = &join->deadline,
                                .give_up_ns = clock_now_ns() + patience_ns(join) };
    struct handshake h = handshake_over(&pipe, join, from);
    enum join_refusal refusal = JOIN_ACCEPTED;
    struct handshake_place nowhere;
    int one = 1, result;

    if (!same_user(join, fd)) {
        join_report_refusal(*last = JOIN_USER, from, join->ours, &h.theirs, true);
        return -EAGAIN;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* fails on unix, which has no delay */
    result = handshake_receiver_meet(&h, &nowhere);
    if (result == 0 && join->hold != NULL)
        refusal = join->hold(join->link, &join->log);
    if (result == 0)
        result = refusal != JOIN_ACCEPTED ?
                     handshake_receiver_refuse(&h, refusal) :
                     handshake_receiver_finish(&h, &(struct handshake_place){ 0 }, &join->log);
    if (result == 0 && join->memory_fd >= 0)
        result = memory_send(fd, join->memory_fd);
    if (result == 0) {
        join->peer = h.theirs.hello;
        join->ack = h.theirs.ack;
        join->fd = fd;
        return 0;
    }
    if (result == -EPROTO)
        *last = h.refusal;
    else if (result == -ECONNRESET)
        report_warning("%s: a sender began to join and left, or fell silent", from);
    else if (result != -EBUSY)
        return result;
    return -EAGAIN;
}

/* Meets one sender, if one waits. 0: joined. -EAGAIN: none, or not this one. */
static int receiver_accept(struct join_socket *join, enum join_refusal *last)
{
    struct sockaddr_storage address = { 0 };
    socklen_t bytes = sizeof(address);
    char from[96];
    int fd = accept4(join->listener, (struct sockaddr *)&address, &bytes, SOCK_CLOEXEC | SOCK_NONBLOCK), result;

    if (fd < 0)
        return -EAGAIN;
    name_of(&address, bytes, join->name, from);
    result = receiver_meet(join, fd, from, last);
    if (result != 0)
        close(fd);
    return result;
}

int join_socket_receive_again(struct join_socket *join)
{
    enum join_refusal last;

    return receiver_accept(join, &last);
}

int join_socket_receive_side(struct join_socket *join)
{
    enum join_refusal last = JOIN_ACCEPTED;
    int result = receiver_open(join);

    join->fd = -1;
    join->log = (struct handshake_log){ .key = link_random_key() };
    while (result == 0 && (result = join_deadline_check(&join->deadline)) == 0) {
        join_socket_wait(join->listener, POLLIN);
        result = receiver_accept(join, &last);
        if (result == 0)
            break;
        if (result == -EAGAIN)
            result = 0;
    }
    if (result == -ETIMEDOUT)
        report_error("%s: no sender joined in time%s", join->name,
                     last != JOIN_ACCEPTED ? "; the last one was refused, see above" :
                                             "; start it with this address");
    if (result == 0 && join->address->sa_family == AF_UNIX) {
        shutdown(join->listener, SHUT_RDWR); /* keeps the name, refuses callers */
    } else if (result != 0 && join->listener >= 0) {
        close(join->listener);
        join->listener = -1;
    }
    return result;
}

/* ---- sender ---- */

static const char *why_not(int error)
{
    switch (error) {
    case ECONNREFUSED: return "no receiver listens there; start it";
    case EHOSTUNREACH:
    case ENETUNREACH: return "there is no route to the host, or it is down";
    case ETIMEDOUT:
    case EINPROGRESS: return "the host does not answer (down, or a firewall in between)";
    default: return strerror(error);
    }
}

/* 0: connected. -EAGAIN: not yet, *why says it. */
static int sender_connect(struct join_socket *join, struct socket_pipe *pipe, const char **why)
{
    int error, one = 1, result;
    socklen_t bytes = sizeof(error);

    pipe->fd = socket(join->address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (pipe->fd < 0) {
        result = -errno;
        report_error("%s: no socket: %s", join->name, strerror(-result));
        return result;
    }
    setsockopt(pipe->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(pipe->fd, join->address, join->address_bytes) == 0)
        return 0;
    error = errno;
    *why = why_not(error);
    if (error != EINPROGRESS)
        return -EAGAIN;
    while (!join_socket_wait(pipe->fd, POLLOUT)) {
        result = join_deadline_check(&join->deadline);
        if (result != 0 || clock_now_ns() >= pipe->give_up_ns)
            return result != 0 ? result : -EAGAIN;
    }
    if (getsockopt(pipe->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0)
        error = errno;
    if (error == 0)
        return 0;
    *why = why_not(error);
    return -EAGAIN;
}

/* One try. 0; -EAGAIN: not yet; else final, said in words. */
static int sender_try(struct join_socket *join, const char **why)
{
    struct socket_pipe pipe = { .fd = -1, .deadline = &join->deadline,
                                .give_up_ns = clock_now_ns() +
                                              (join->connect_ns != 0 ? join->connect_ns : HANDSHAKE_PATIENCE_NS) };
    struct handshake h = handshake_over(&pipe, join, join->name);
    struct handshake_place nowhere;
    int result = sender_connect(join, &pipe, why);

    pipe.give_up_ns = clock_now_ns() + patience_ns(join);
    join->memory_fd = -1;
    if (result == 0 && !same_user(join, pipe.fd)) {
        join_report_refusal(JOIN_USER, join->name, join->ours, &h.theirs, false);
        result = -EPROTO;
    }
    if (result == 0) {
        *why = "its receiver left while joining, or does not answer (is it busy with another sender?)";
        result = handshake_sender_meet(&h);
        if (result == 0)
            result = handshake_sender_finish(&h, &(struct handshake_place){ 0 }, &nowhere, &join->log);
        if (result == 0 && join->address->sa_family == AF_UNIX)
            result = memory_receive(&pipe, &join->memory_fd);
        if (result == -EBUSY)
            *why = "its receiver has another sender";
        if (result == -ECONNRESET || result == -EBUSY)
            result = -EAGAIN;
    }
    if (result != 0) {
        if (pipe.fd >= 0)
            close(pipe.fd);
        return result;
    }
    join->peer = h.theirs.hello;
    join->ack = join->ours->ack;
    join->fd = pipe.fd;
    return 0;
}

int join_socket_send_again(struct join_socket *join)
{
    const char *why = ""; /* whoever asks again and again does not say it each time */

    return sender_try(join, &why);
}

int join_socket_send_side(struct join_socket *join)
{
    const char *why = "";
    int result;

    join->fd = join->listener = -1;
    for (;;) {
        result = sender_try(join, &why);
        if (result == 0)
            return 0;
        if (result == -EAGAIN)
            result = join_deadline_check(&join->deadline);
        if (result == -ETIMEDOUT)
            report_error("%s: could not join in time: %s", join->name, why);
        if (result != 0)
            return result;
        clock_sleep_ns(RETRY_PAUSE_NS);
    }
}
