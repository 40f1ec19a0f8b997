/* The sockets that control.c listens on: who may reach them, and what becomes of those that dead processes left. */
#ifndef FTVMM_VMM_CONTROL_SOCKET_H
#define FTVMM_VMM_CONTROL_SOCKET_H

#include <stdbool.h>
#include <sys/stat.h>

/* A listening Unix socket. Zero-initialise, fd -1. */
struct control_socket {
    int fd;
    char path[108];
    struct stat made; /* the file, to tell whether it is still ours */
};

/* Is this directory a place for sockets of ours: there, ours, writable by nobody else? */
bool control_socket_directory_fits(const char *directory);

/*
 * Listens at `path`, mode 0600, non-blocking. A socket there that nobody listens on any more is replaced; one that
 * somebody does, or anything else than a socket, is left alone: -EADDRINUSE, -EEXIST. 0 or -errno, said in words.
 */
int control_socket_open(struct control_socket *socket, const char *path);
/* Removes the file too, if it is the one that was made. */
void control_socket_close(struct control_socket *socket);
/* Does the process at the other end belong to us or root? */
bool control_socket_peer_fits(int fd);

/* Listens on ADDRESS:PORT ([::1]:PORT), which must be a loopback address; `option` has
 * named it. The descriptor, or -errno, said in words. */
int control_loopback_listen(const char *option, const char *address);

#endif
