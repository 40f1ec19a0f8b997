/* One pipelined connection; see counter_client.h. Replies are parsed by hiredis. */
#include "bench/counter_client.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"

#define CONNECT_MAX_NS (3 * NS_PER_S) /* then with a new SYN: the kernel's own retries get slower and slower */
#define RETRY_NS (100 * NS_PER_MS)
#define ERROR_PAUSE_NS (10 * NS_PER_MS)

int client_init(struct client *client, unsigned number, struct counter_run *run, const struct addrinfo *address,
                const char *command, size_t command_bytes)
{
    memset(client, 0, sizeof(*client));
    client->fd = -1;
    client->number = number;
    client->run = run;
    client->address = address;
    client->command = command;
    client->command_bytes = command_bytes;
    client->previous = run->ledger.start;
    client->reader = redisReaderCreate();
    return client->reader != NULL ? 0 : -ENOMEM;
}

void client_fini(struct client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    if (client->reader != NULL)
        redisReaderFree(client->reader);
    client->reader = NULL;
}

/* A gap may span several connections: what counts is when the client was served. */
static void note_gap(struct client *client, uint64_t now_ns)
{
    struct counter_gap *longest = &client->run->gap;

    if (client->served_ns == 0 || now_ns - client->served_ns <= longest->end_ns - longest->begin_ns)
        return;
    longest->begin_ns = client->served_ns;
    longest->end_ns = now_ns;
    longest->connection = client->number;
}

static void abandon(struct client *client)
{
    client->run->ledger.unknown += client->in_flight;
    client->in_flight = 0;
    client->unsent_bytes = 0;
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    client->state = CLIENT_CLOSED;
}

void client_finish(struct client *client, uint64_t now_ns)
{
    if (client->in_flight > 0 || client->state != CLIENT_OPEN)
        note_gap(client, now_ns);
    abandon(client);
}

/* The connection is over, and the next try comes a little later. */
static void lose(struct client *client, uint64_t now_ns, const char *why)
{
    if (client->state == CLIENT_OPEN)
        report_warning("connection %u: %s; %u increments in flight have an unknown fate", client->number, why,
                       client->in_flight);
    abandon(client);
    client->resume_ns = now_ns + RETRY_NS;
}

static void set_options(const struct client *client)
{
    unsigned patience_ms = (unsigned)(client->run->options->patience_ns / NS_PER_MS);
    int one = 1;

    (void)setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    (void)setsockopt(client->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience_ms, sizeof(patience_ms));
}

static void begin_connecting(struct client *client, uint64_t now_ns)
{
    const struct addrinfo *address = client->address;

    client->since_ns = now_ns;
    client->fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0) {
        lose(client, now_ns, strerror(errno));
        return;
    }
    set_options(client);
    client->state = CLIENT_CONNECTING;
    if (connect(client->fd, address->ai_addr, address->ai_addrlen) != 0 && errno != EINPROGRESS)
        lose(client, now_ns, strerror(errno));
}

static void end_connecting(struct client *client, uint64_t now_ns)
{
    int error = 0;
    socklen_t bytes = sizeof(error);

    if (getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0 || error != 0) {
        lose(client, now_ns, strerror(error));
        return;
    }
    redisReaderFree(client->reader); /* half a reply of the old connection may be in it */
    client->reader = redisReaderCreate();
    if (client->reader == NULL)
        report_bug("no memory for a reply parser");
    client->state = CLIENT_OPEN;
    if (client->opened_once)
        client->run->reconnects++;
    client->opened_once = true;
}

/* Sends what is not sent yet. All commands are the same bytes, so their end is known without a buffer. */
static void flush(struct client *client, uint64_t now_ns)
{
    char bytes[16384];

    while (client->unsent_bytes > 0) {
        size_t phase = (client->command_bytes - client->unsent_bytes % client->command_bytes) % client->command_bytes;
        size_t ready = client->unsent_bytes < sizeof(bytes) ? client->unsent_bytes : sizeof(bytes);
        ssize_t sent;

        for (size_t i = 0; i < ready; i++)
            bytes[i] = client->command[(phase + i) % client->command_bytes];
        sent = send(client->fd, bytes, ready, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN && errno != EINTR)
                lose(client, now_ns, strerror(errno));
            return;
        }
        client->unsent_bytes -= (size_t)sent;
    }
}

static void fill_pipeline(struct client *client, uint64_t now_ns)
{
    while (client->in_flight < client->run->options->pipeline) {
        unsigned slot = (client->head + client->in_flight) % COUNTER_PIPELINE_MAX;

        if (client->in_flight == 0)
            client->since_ns = now_ns;
        if (client->served_ns == 0)
            client->served_ns = now_ns;
        client->requests[slot].sent_ns = now_ns;
        client->requests[slot].floor = client->run->ledger.max;
        client->in_flight++;
        client->unsent_bytes += client->command_bytes;
        client->run->ledger.sent++;
    }
    flush(client, now_ns);
}

short client_prepare(struct client *client, uint64_t now_ns, bool stopping)
{
    if (client->state == CLIENT_CLOSED && !stopping && now_ns >= client->resume_ns)
        begin_connecting(client, now_ns);
    if (client->state == CLIENT_CONNECTING && now_ns - client->since_ns > CONNECT_MAX_NS)
        lose(client, now_ns, "no answer to the connection request");
    if (client->state == CLIENT_OPEN && client->in_flight > 0 &&
        now_ns - client->since_ns > client->run->options->patience_ns)
        lose(client, now_ns, "silent for longer than --patience");
    if (client->state == CLIENT_OPEN && !stopping && now_ns >= client->resume_ns)
        fill_pipeline(client, now_ns);
    switch (client->state) {
    case CLIENT_CLOSED:
        return 0;
    case CLIENT_CONNECTING:
        return POLLOUT;
    case CLIENT_OPEN:
        return (short)(POLLIN | (client->unsent_bytes > 0 ? POLLOUT : 0));
    }
    return 0;
}

static void take_reply(struct client *client, const redisReply *reply, uint64_t now_ns)
{
    struct counter_run *run = client->run;
    unsigned slot = client->head;

    note_gap(client, now_ns);
    client->head = (client->head + 1) % COUNTER_PIPELINE_MAX;
    client->in_flight--;
    client->since_ns = now_ns;
    client->served_ns = now_ns;
    if (reply->type != REDIS_REPLY_INTEGER) {
        run->ledger.errors++;
        client->resume_ns = now_ns + ERROR_PAUSE_NS;
        if (!client->error_told)
            report_warning("connection %u: the service answers '%s'", client->number,
                           reply->type == REDIS_REPLY_ERROR ? reply->str : "something that is no number");
        client->error_told = true;
        return;
    }
    ledger_ack(&run->ledger, reply->integer, client->requests[slot].floor, client->previous, run->mark_ns != 0);
    client->previous = reply->integer;
    histogram_record(&run->latency_ns, now_ns - client->requests[slot].sent_ns);
    run->end_ns = now_ns;
    if (run->acked_per_second != NULL && (now_ns - run->begin_ns) / NS_PER_S < run->seconds)
        run->acked_per_second[(now_ns - run->begin_ns) / NS_PER_S]++;
}

static void receive(struct client *client, uint64_t now_ns)
{
    char bytes[16384];
    ssize_t got = recv(client->fd, bytes, sizeof(bytes), 0);
    void *reply = NULL;

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        lose(client, now_ns, got == 0 ? "closed by the service" : strerror(errno));
        return;
    }
    if (redisReaderFeed(client->reader, bytes, (size_t)got) != REDIS_OK)
        report_bug("no memory for a reply");
    for (;;) {
        if (redisReaderGetReply(client->reader, &reply) != REDIS_OK) {
            lose(client, now_ns, "the answer is not redis' protocol");
            return;
        }
        if (reply == NULL)
            return;
        if (client->in_flight == 0) {
            freeReplyObject(reply);
            lose(client, now_ns, "an answer that nobody asked for");
            return;
        }
        take_reply(client, reply, now_ns);
        freeReplyObject(reply);
    }
}

void client_handle(struct client *client, short events)
{
    uint64_t now_ns = clock_now_ns();

    if (events == 0)
        return;
    if (client->state == CLIENT_CONNECTING) {
        end_connecting(client, now_ns);
        return;
    }
    if (client->state == CLIENT_OPEN && (events & POLLOUT) != 0)
        flush(client, now_ns);
    if (client->state == CLIENT_OPEN && (events & (POLLIN | POLLHUP | POLLERR)) != 0)
        receive(client, now_ns);
}
