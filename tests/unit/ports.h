/*
 * TCP ports of loopback for a test's own servers. They lie below those that the kernel gives to whoever connects somewhere: a
 * port that it gave, and that was let go of for a server to take, may be another's by then.
 */
#ifndef FTVMM_TESTS_PORTS_H
#define FTVMM_TESTS_PORTS_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS_FIRST 20000u
#define PORTS_END   32000u

static inline bool port_is_free(unsigned port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool is_free = bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0;

    close(fd);
    return is_free;
}

/* The first of `count` free ports in a row, none of which this process has been given before. */
static inline unsigned ports_free(unsigned count)
{
    static unsigned next; /* processes that run side by side begin at other places */

    if (next == 0)
        next = PORTS_FIRST + (unsigned)getpid() * 16 % (PORTS_END - PORTS_FIRST);
    for (unsigned tried = 0, run = 0; tried < 2 * (PORTS_END - PORTS_FIRST); tried++) {
        if (next >= PORTS_END) {
            next = PORTS_FIRST;
            run = 0;
        }
        run = port_is_free(next++) ? run + 1 : 0;
        if (run == count)
            return next - count;
    }
    fail_msg("no %u free ports in a row between %u and %u", count, PORTS_FIRST, PORTS_END);
    return 0;
}

#endif
