/* Finds the redis server that a counter lives on, and reads the counter over a connection of its own. */
#include "bench/counter_client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"

int counter_read_value(const struct counter_options *options, int64_t *value, char *why, size_t size)
{
    struct timeval timeout = { .tv_sec = 3 };
    redisContext *context = redisConnectWithTimeout(options->host, (int)options->port, timeout);
    redisReply *reply = NULL;
    int error = -EHOSTUNREACH;

    if (context != NULL && context->err == 0) {
        redisSetTimeout(context, timeout);
        reply = redisCommand(context, "GET %s", options->key);
    }
    if (reply == NULL) {
        snprintf(why, size, "%s", context == NULL ? "no memory" : context->errstr);
    } else if (reply->type == REDIS_REPLY_NIL) {
        *value = 0;
        error = 0;
    } else if (reply->type == REDIS_REPLY_STRING) {
        char *end;

        errno = 0;
        *value = strtoll(reply->str, &end, 10);
        error = end != reply->str && *end == '\0' && errno == 0 ? 0 : -EPROTO;
        snprintf(why, size, "the key holds '%.40s', which is no number", reply->str);
    } else {
        snprintf(why, size, "%s", reply->type == REDIS_REPLY_ERROR ? reply->str : "not redis' answer to GET");
        if (strncmp(why, "LOADING", 7) != 0)
            error = -EPROTO;
    }
    if (reply != NULL)
        freeReplyObject(reply);
    if (context != NULL)
        redisFree(context);
    return error;
}

int counter_resolve(const struct counter_options *options, struct addrinfo **out)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
    char port[8];
    int error;

    snprintf(port, sizeof(port), "%u", options->port);
    error = getaddrinfo(options->host, port, &hints, out);
    if (error != 0)
        report_error("the host '%s' is unknown: %s", options->host, gai_strerror(error));
    return error == 0 ? 0 : -EHOSTUNREACH;
}
