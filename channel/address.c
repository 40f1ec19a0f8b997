/* Reads HOST:PORT. */
#include "channel/address.h"

#include "base/report.h"

#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

int address_resolve(const char *link, const char *text, bool passive, struct sockaddr_storage *address,
                    socklen_t *bytes)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = passive ? AI_PASSIVE : 0 }, *found = NULL;
    const char *colon = strrchr(text, ':');
    char host[256];
    size_t length = colon == NULL ? 0 : (size_t)(colon - text);
    char *end;
    long port = colon == NULL ? 0 : strtol(colon + 1, &end, 10);
    int result;

    if (length == 0 || length >= sizeof(host) || *end != '\0' || port < 1 || port > 65535) {
        report_error("address '%s:%s': give %s:HOST:PORT with a port from 1 to 65535", link, text, link);
        return -EINVAL;
    }
    if (text[0] == '[' && text[length - 1] == ']') {
        text++;
        length -= 2;
    }
    memcpy(host, text, length);
    host[length] = '\0';
    result = getaddrinfo(host, colon + 1, &hints, &found);
    if (result != 0) {
        report_error("%s:%s: the host's name has no address: %s", link, host, gai_strerror(result));
        return -EHOSTUNREACH;
    }
    memset(address, 0, sizeof(*address));
    memcpy(address, found->ai_addr, found->ai_addrlen);
    *bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}
