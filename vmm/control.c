/*
 * The control thread: one poll(2) over the listening sockets and a fixed table of clients. A client is in one state at
 * a time; what it sends while it is answered waits in its own buffer, and beyond that in the kernel's. Each state that
 * depends on the client has an end in time.
 */
#include "vmm/control.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "base/report.h"
#include "vmm/control_request.h"
#include "vmm/control_socket.h"
#include "vmm/lockstep.h"
#include "vmm/metrics.h"
#include "vmm/status.h"

#define CLIENTS          8u
#define METRICS_CLIENTS  4u /* of their own, so that monitoring cannot lock the operator out */
#define OUT_MAX_BYTES    131072u/* the largest answer: JOURNAL_ENTRIES events */
#define CLIENT_LIMIT_NS  (10 * NS_PER_S) /* to say something whole, or to take what it asked for */
#define WATCH_MS         50  /* how late an outcome or an event may be told */
#define ROUND_MS         1000
#define CLOSING_LIMIT_NS (500 * NS_PER_MS) /* for the last words */
#define MORE_CLIENTS     "{\"ok\":false,\"error\":\"too many clients; try again when others are done\"}\n"

enum client_state {
    CLIENT_NONE,
    CLIENT_READING,
    CLIENT_WAITING,   /* for the outcome of its request */
    CLIENT_FOLLOWING, /* the journal */
    CLIENT_LEAVING,   /* as soon as it has taken what is to be said */
};

struct client {
    enum client_state state;
    int fd;
    bool wants_metrics;
    uint64_t limit_ns;
    struct control_request request;
    unsigned next_event;
    size_t in_bytes, out_bytes, out_sent;
    char in[CONTROL_REQUEST_MAX_BYTES];
    char out[OUT_MAX_BYTES];
};

struct control {
    struct control_target target;
    struct control_socket socket;
    int metrics_fd, stop_fd;
    pthread_t thread;
    bool thread_started;
    char *vm;
    struct client clients[CLIENTS + METRICS_CLIENTS]; /* operators', then metrics' */
};

static void client_close(struct client *client)
{
    close(client->fd);
    client->state = CLIENT_NONE;
    client->fd = -1;
}

/* Who has taken all of it may go on, or leaves. */
static void client_send(struct client *client)
{
    while (client->out_sent < client->out_bytes) {
        ssize_t sent = send(client->fd, client->out + client->out_sent, client->out_bytes - client->out_sent,
                            MSG_NOSIGNAL);

        if (sent < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (sent <= 0) {
            client_close(client);
            return;
        }
        client->out_sent += (size_t)sent;
    }
    client->out_sent = client->out_bytes = 0;
    if (client->state == CLIENT_LEAVING)
        client_close(client);
}

/* One JSON line, which it deletes. A client that has not taken so much before is dropped. */
static void client_say(struct client *client, cJSON *words)
{
    char *line = cJSON_PrintUnformatted(words);
    size_t bytes = line != NULL ? strlen(line) : 0;

    cJSON_Delete(words);
    if (line == NULL || bytes + 1 > sizeof(client->out) - client->out_bytes) {
        client_close(client);
    } else {
        memcpy(client->out + client->out_bytes, line, bytes);
        client->out_bytes += bytes;
        client->out[client->out_bytes++] = '\n';
        client_send(client);
    }
    cJSON_free(line);
}

static void client_refuse(struct client *client, const char *why)
{
    client->state = CLIENT_LEAVING;
    client_say(client, control_error("%s", why));
}

static void follow(struct control *control, struct client *client)
{
    const struct journal_entry *entry;

    while (client->state == CLIENT_FOLLOWING &&
           (entry = journal_read(&control->target.ls->journal, client->next_event)) != NULL) {
        cJSON *words = cJSON_CreateObject();

        cJSON_AddItemToObject(words, "event", control_event(entry));
        client->next_event++;
        client_say(client, words);
    }
}

/* The first line in its buffer. False: there is none. */
static bool client_take_line(struct control *control, struct client *client, uint64_t now_ns)
{
    char *end = memchr(client->in, '\n', client->in_bytes);
    size_t bytes;
    cJSON *answer;

    if (end == NULL)
        return false;
    bytes = (size_t)(end - client->in);
    answer = control_request_begin(&control->target, client->in, bytes, &client->request, now_ns);
    client->in_bytes -= bytes + 1;
    memmove(client->in, end + 1, client->in_bytes);
    client->limit_ns = now_ns + CLIENT_LIMIT_NS;
    if (answer == NULL) {
        client->state = CLIENT_WAITING;
        return true;
    }
    if (client->request.follow) {
        client->state = CLIENT_FOLLOWING;
        client->next_event = (unsigned)cJSON_GetArraySize(cJSON_GetObjectItem(answer, "events"));
    }
    client_say(client, answer);
    return true;
}

static void metrics_answer(struct control *control, struct client *client)
{
    static char text[METRICS_TEXT_MAX_BYTES]; /* control thread's own */
    unsigned code = metrics_request_check(client->in, client->in_bytes);
    cJSON *status = code == 200 ? status_build(control->target.vm, control->target.ls) : NULL;
    size_t bytes = status != NULL ? metrics_format(status, text, sizeof(text)) : 0;
    int head;

    cJSON_Delete(status);
    if (code == 200 && bytes == 0)
        code = 500;
    if (code != 200)
        bytes = (size_t)snprintf(text, sizeof(text), "metrics are at /metrics, by GET\n");
    head = snprintf(client->out, sizeof(client->out),
                    "HTTP/1.1 %u %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                    "Content-Length: %zu\r\nConnection: close\r\n\r\n", code,
                    code == 200 ? "OK" : code == 404 ? "Not Found" : code == 405 ? "Method Not Allowed" :
                    code == 500 ? "Internal Server Error" : "Bad Request", bytes);
    memcpy(client->out + head, text, bytes);
    client->out_bytes = (size_t)head + bytes;
    client->state = CLIENT_LEAVING;
    client_send(client);
}

static bool has_empty_line(const struct client *client)
{
    return memmem(client->in, client->in_bytes, "\r\n\r\n", 4) != NULL ||
           memmem(client->in, client->in_bytes, "\n\n", 2) != NULL;
}

static void client_read(struct control *control, struct client *client, uint64_t now_ns)
{
    ssize_t got = recv(client->fd, client->in + client->in_bytes, sizeof(client->in) - client->in_bytes, 0);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) { /* gone, perhaps in the midst of a line: nobody to tell */
        client_close(client);
        return;
    }
    client->in_bytes += (size_t)got;
    if (client->wants_metrics) {
        if (has_empty_line(client) || client->in_bytes == sizeof(client->in))
            metrics_answer(control, client);
        return;
    }
    while (client->state == CLIENT_READING && client->out_bytes == 0 && client_take_line(control, client, now_ns))
        ;
    if (client->state == CLIENT_READING && client->out_bytes == 0 && client->in_bytes == sizeof(client->in))
        client_refuse(client, "a request is at most 4095 bytes and a newline");
}

/* What the passing of time brings. */
static void client_tick(struct control *control, struct client *client, uint64_t now_ns, bool closing)
{
    cJSON *answer;

    switch (client->state) {
    case CLIENT_NONE: return;
    case CLIENT_WAITING:
        answer = control_request_outcome(&control->target, &client->request, now_ns, closing);
        if (answer == NULL)
            return;
        client->state = CLIENT_READING;
        client->limit_ns = now_ns + CLIENT_LIMIT_NS;
        client_say(client, answer);
        return;
    case CLIENT_FOLLOWING:
        follow(control, client);
        return;
    case CLIENT_READING:
    case CLIENT_LEAVING:
        if (now_ns < client->limit_ns)
            return;
        if (client->state == CLIENT_LEAVING || client->wants_metrics || client->out_bytes > 0)
            client_close(client);
        else
            client_refuse(client, "nothing whole was asked for 10 s");
        client->limit_ns = now_ns + NS_PER_S; /* to take that */
    }
}

static void accept_client(struct control *control, int listener, bool wants_metrics, uint64_t now_ns)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    unsigned first = wants_metrics ? CLIENTS : 0, count = wants_metrics ? METRICS_CLIENTS : CLIENTS;

    if (fd < 0)
        return;
    if (!wants_metrics && !control_socket_peer_fits(fd)) {
        static const char words[] = "{\"ok\":false,\"error\":\"only root and the user that ftvmm runs as may ask\"}\n";

        (void)!send(fd, words, strlen(words), MSG_NOSIGNAL);
        close(fd);
        return;
    }
    for (unsigned i = first; i < first + count; i++) {
        struct client *client = &control->clients[i];

        if (client->state != CLIENT_NONE)
            continue;
        client->state = CLIENT_READING;
        client->fd = fd;
        client->wants_metrics = wants_metrics;
        client->limit_ns = now_ns + CLIENT_LIMIT_NS;
        client->in_bytes = client->out_bytes = client->out_sent = 0;
        return;
    }
    if (!wants_metrics)
        (void)!send(fd, MORE_CLIENTS, strlen(MORE_CLIENTS), MSG_NOSIGNAL);
    close(fd);
}

/* One look at everybody, after at most `wait_ms`. True: stop was asked for. */
static bool look(struct control *control, int wait_ms)
{
    struct pollfd fds[3 + CLIENTS + METRICS_CLIENTS] = {
        { .fd = control->stop_fd, .events = POLLIN },
        { .fd = control->socket.fd, .events = POLLIN },
        { .fd = control->metrics_fd, .events = POLLIN },
    };
    uint64_t now_ns;

    for (unsigned i = 0; i < CLIENTS + METRICS_CLIENTS; i++) {
        const struct client *client = &control->clients[i];

        fds[3 + i].fd = client->state == CLIENT_NONE ? -1 : client->fd;
        /* Who has an answer to take is not read from; who follows or waits is watched for its going only. */
        fds[3 + i].events = client->out_bytes > 0 ? POLLOUT : client->state == CLIENT_READING ? POLLIN : 0;
    }
    if (poll(fds, sizeof(fds) / sizeof(fds[0]), wait_ms) < 0)
        return false;
    now_ns = clock_now_ns();
    for (unsigned i = 0; i < CLIENTS + METRICS_CLIENTS; i++) {
        struct client *client = &control->clients[i];
        short seen = fds[3 + i].revents;

        if (client->state == CLIENT_NONE || seen == 0)
            continue;
        if (seen & POLLOUT)
            client_send(client);
        else if (seen & POLLIN)
            client_read(control, client, now_ns);
        else
            client_close(client);
    }
    if (fds[1].revents & POLLIN)
        accept_client(control, control->socket.fd, false, now_ns);
    if (fds[2].revents & POLLIN)
        accept_client(control, control->metrics_fd, true, now_ns);
    return fds[0].revents != 0;
}

/* Lines that arrived with the one just answered. */
static void take_waiting_lines(struct control *control, struct client *client, uint64_t now_ns)
{
    while (client->state == CLIENT_READING && !client->wants_metrics && client->out_bytes == 0 &&
           client_take_line(control, client, now_ns))
        ;
}

static bool tick(struct control *control, bool closing)
{
    uint64_t now_ns = clock_now_ns();
    bool watching = false;

    for (unsigned i = 0; i < CLIENTS + METRICS_CLIENTS; i++) {
        struct client *client = &control->clients[i];

        client_tick(control, client, now_ns, closing);
        take_waiting_lines(control, client, now_ns);
        watching |= client->state == CLIENT_WAITING || client->state == CLIENT_FOLLOWING;
    }
    return watching;
}

static bool all_is_said(const struct control *control)
{
    for (unsigned i = 0; i < CLIENTS + METRICS_CLIENTS; i++)
        if (control->clients[i].state != CLIENT_NONE && control->clients[i].out_bytes > 0)
            return false;
    return true;
}

static void *control_run(void *arg)
{
    struct control *control = arg;
    bool watching = false, stop = false;
    uint64_t closing_ns;

    while (!stop) {
        stop = look(control, watching ? WATCH_MS : ROUND_MS);
        watching = tick(control, false);
    }
    (void)tick(control, true);
    closing_ns = clock_now_ns() + CLOSING_LIMIT_NS;
    while (!all_is_said(control) && clock_now_ns() < closing_ns)
        (void)look(control, 1);
    return NULL;
}

static int open_listeners(struct control *control, const struct control_options *options)
{
    char path[sizeof(control->socket.path)];
    int rc = 0;

    if (options->path == NULL) {
        /* Nobody asked for it: what is in the way is said, and no reason to do without the guest. */
        snprintf(path, sizeof(path), "%s/%s.sock", CONTROL_DIRECTORY, options->vm);
        if (strchr(options->vm, '/') == NULL && control_socket_directory_fits(CONTROL_DIRECTORY) &&
            control_socket_open(&control->socket, path) < 0)
            report_warning("going on without a control socket");
    } else if (strcmp(options->path, "none") != 0) {
        rc = control_socket_open(&control->socket, options->path);
    }
    if (rc == 0 && options->metrics != NULL) {
        rc = control_loopback_listen("--metrics", options->metrics);
        control->metrics_fd = rc < 0 ? -1 : rc;
    }
    return rc < 0 ? rc : 0;
}

int control_open(struct control **out, const struct control_options *options)
{
    struct control *control = calloc(1, sizeof(*control));
    int rc;

    *out = NULL;
    if (control == NULL)
        return -ENOMEM;
    control->socket.fd = control->metrics_fd = control->stop_fd = -1;
    control->vm = strdup(options->vm);
    control->target = (struct control_target){
        .vm = control->vm, .ls = options->ls, .joining_cancelled = options->joining_cancelled
    };
    rc = control->vm == NULL ? -ENOMEM : open_listeners(control, options);
    if (rc < 0 || (control->socket.fd < 0 && control->metrics_fd < 0))
        goto fail;
    control->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = control->stop_fd < 0 ? -errno : -pthread_create(&control->thread, NULL, control_run, control);
    if (rc < 0)
        goto fail;
    control->thread_started = true;
    *out = control;
    return 0;
fail:
    control_close(control);
    return rc;
}

void control_close(struct control *control)
{
    uint64_t one = 1;

    if (control == NULL)
        return;
    if (control->thread_started) {
        (void)!write(control->stop_fd, &one, sizeof(one));
        pthread_join(control->thread, NULL);
    }
    for (unsigned i = 0; i < CLIENTS + METRICS_CLIENTS; i++)
        if (control->clients[i].state != CLIENT_NONE)
            client_close(&control->clients[i]);
    control_socket_close(&control->socket);
    if (control->metrics_fd >= 0)
        close(control->metrics_fd);
    if (control->stop_fd >= 0)
        close(control->stop_fd);
    free(control->vm);
    free(control);
}
