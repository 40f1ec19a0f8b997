/* Makes and removes the sockets of control_socket.h. */
#include "vmm/control_socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"

#define BACKLOG       16
#define LOCK_TRIES    50
#define LOCK_PAUSE_NS (20 * NS_PER_MS)

bool control_socket_directory_fits(const char *directory)
{
    struct stat found;

    return lstat(directory, &found) == 0 && S_ISDIR(found.st_mode) && found.st_uid == geteuid() &&
           (found.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/* Two processes that find the same dead socket must not remove each other's new one: one at a time in a directory. */
static int lock_directory(const char *path, int *fd)
{
    char directory[sizeof(((struct control_socket *)0)->path)];
    char *slash;

    snprintf(directory, sizeof(directory), "%s", path);
    slash = strrchr(directory, '/');
    if (slash == NULL)
        strcpy(directory, ".");
    else
        slash[slash == directory ? 1 : 0] = '\0';
    *fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0)
        return -errno;
    for (unsigned i = 0; i < LOCK_TRIES; i++) {
        if (flock(*fd, LOCK_EX | LOCK_NB) == 0)
            return 0;
        clock_sleep_ns(LOCK_PAUSE_NS);
    }
    close(*fd);
    *fd = -1;
    return -EBUSY;
}

/* Removes a socket that nobody listens on. 0: the place is free. */
static int clear_place(const struct sockaddr_un *address)
{
    struct stat found;
    int fd, error;

    if (lstat(address->sun_path, &found) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(found.st_mode)) {
        report_error("the control socket cannot be '%s': a file that is no socket is there; remove it, or give another "
                     "--control", address->sun_path);
        return -EEXIST;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    error = connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? errno : 0;
    close(fd);
    if (error == 0 || error == EAGAIN) { /* EAGAIN: so many wait to be accepted that somebody must be there */
        report_error("the control socket '%s' belongs to another ftvmm that runs; give this one another --name or "
                     "--control", address->sun_path);
        return -EADDRINUSE;
    }
    if (error != ECONNREFUSED) {
        report_error("a control socket is at '%s' already, and cannot be asked whether its process lives: %s",
                     address->sun_path, strerror(error));
        return -error;
    }
    return unlink(address->sun_path) < 0 ? -errno : 0;
}

int control_socket_open(struct control_socket *made, const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int lock_fd = -1, rc;

    made->fd = -1;
    if (strlen(path) >= sizeof(address.sun_path) || *path == '\0') {
        report_error("'%s' is no path for a control socket: it takes 1 to %zu bytes", path,
                     sizeof(address.sun_path) - 1);
        return -ENAMETOOLONG;
    }
    strcpy(address.sun_path, path);
    strcpy(made->path, path);
    rc = lock_directory(path, &lock_fd);
    if (rc < 0) {
        report_error("the directory of the control socket '%s' cannot be used: %s", path, strerror(-rc));
        return rc;
    }
    rc = clear_place(&address);
    if (rc < 0)
        goto out;
    made->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The mode is that of the descriptor when it is bound (unix(7), Linux), so that it is never another. */
    if (made->fd < 0 || fchmod(made->fd, S_IRUSR | S_IWUSR) < 0 ||
        bind(made->fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        lstat(path, &made->made) < 0 || listen(made->fd, BACKLOG) < 0) {
        rc = -errno;
        report_error("the control socket '%s' cannot be made: %s", path, strerror(-rc));
        control_socket_close(made);
    }
out:
    close(lock_fd);
    return rc;
}

void control_socket_close(struct control_socket *made)
{
    struct stat found;

    if (made->fd < 0)
        return;
    if (lstat(made->path, &found) == 0 && found.st_dev == made->made.st_dev && found.st_ino == made->made.st_ino)
        unlink(made->path);
    close(made->fd);
    made->fd = -1;
}

bool control_socket_peer_fits(int fd)
{
    struct ucred peer;
    socklen_t bytes = sizeof(peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && (peer.uid == geteuid() || peer.uid == 0);
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

int control_loopback_listen(const char *option, const char *text)
{
    const struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                                    .ai_socktype = SOCK_STREAM };
    char host[64], *port;
    struct addrinfo *found = NULL;
    size_t length;
    int fd = -1, rc = 0, one = 1;

    snprintf(host, sizeof(host), "%s", text);
    port = strrchr(host, ':');
    /* getaddrinfo takes a port modulo 65536 */
    if (port == NULL || port == host || port[1] == '\0' || strlen(text) >= sizeof(host) ||
        strtoul(port + 1, NULL, 10) > 65535) {
        report_error("%s takes a loopback address and a port, 127.0.0.1:9101, not '%s'", option, text);
        return -EINVAL;
    }
    *port++ = '\0';
    length = strlen(host);
    if (host[0] == '[' && host[length - 1] == ']') {
        host[length - 1] = '\0';
        memmove(host, host + 1, length - 1);
    }
    if (getaddrinfo(host, port, &hints, &found) != 0 || !is_loopback(found->ai_addr)) {
        report_error("%s takes a loopback address and a port (127.0.0.1:9101), not '%s': everybody who reaches "
                     "it can read it; forward it by other means if others shall", option, text);
        rc = -EINVAL;
        goto out;
    }
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        rc = -errno;
        report_error("%s cannot be served at '%s': %s", option + strspn(option, "-"), text, strerror(-rc));
        if (fd >= 0)
            close(fd);
    }
out:
    if (found != NULL)
        freeaddrinfo(found);
    return rc < 0 ? rc : fd;
}
