/* HOST:PORT, as verbs:, tcp: and rdma: have it. */
#ifndef FTVMM_CHANNEL_ADDRESS_H
#define FTVMM_CHANNEL_ADDRESS_H

#include <stdbool.h>
#include <sys/socket.h>

/* "HOST:PORT" or "[HOST]:PORT", a name or a number, port 1 to 65535. `link` ("verbs", "tcp", "rdma") is for messages;
 * `passive`: to listen on. 0; -EINVAL, -EHOSTUNREACH, said in words. */
int address_resolve(const char *link, const char *text, bool passive, struct sockaddr_storage *address,
                    socklen_t *bytes);

#endif
