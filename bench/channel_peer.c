/* The two ends of a measurement: how they find each other, and how the one tells the other what comes next. */
#include "bench/channel_bench.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/report.h"

#define HELLO_MAGIC UINT64_C(0x31686362746674) /* "tftbch1" */
#define HELLO_VERSION 1u
/* Between two orders the leader may run perftest or write its report. */
#define ORDER_PATIENCE_NS (60 * NS_PER_S)
#define CONNECT_PAUSE_NS (50 * NS_PER_MS)

/* The first thing the leader says, and the peer answers. */
struct bench_hello {
    uint64_t magic;
    uint32_t version;
    uint32_t bytes; /* of struct answer: two builds that differ there do not understand each other */
    uint64_t ring_bytes;
    uint32_t link;
    uint32_t zero;
    struct machine machine;
};

/* ---- waiting ---- */

int bench_wait_beat(struct bench_wait *wait, uint64_t now_ns)
{
    struct pollfd other = { .fd = wait->socket, .events = POLLRDHUP };

    if (now_ns - wait->beat_ns < BENCH_BEAT_NS)
        return 0;
    wait->beat_ns = now_ns;
    if (wait->channel != NULL) {
        channel_heartbeat(wait->channel);
        if (channel_poll(wait->channel) != 0)
            return -EPIPE;
    }
    return poll(&other, 1, 0) > 0 ? -EPIPE : 0;
}

int bench_wait_slow(struct bench_wait *wait)
{
    uint64_t now_ns;

    idle_wait(&wait->idle, &wait->policy);
    now_ns = clock_now_ns();
    if (now_ns - wait->idle.since_ns > wait->patience_ns)
        return -ETIMEDOUT;
    return bench_wait_beat(wait, now_ns);
}

/* ---- memory of both ends ---- */

static struct bench_shared *shared_open(const struct bench_options *options)
{
    uint64_t head = (sizeof(struct bench_shared) + 4095) & ~UINT64_C(4095);
    uint64_t bytes = head + options->ring_bytes + yardstick_rte_ring_bytes(options->ring_bytes);
    struct bench_shared *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                                       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (shared == MAP_FAILED) {
        report_error("no memory for both ends to share: %llu bytes: %s; give a smaller --ring",
                     (unsigned long long)bytes, strerror(errno));
        return NULL;
    }
    shared->mapped_bytes = bytes;
    shared->ring = (uint8_t *)shared + head;
    shared->rte_ring = shared->ring + options->ring_bytes;
    return shared;
}

/* ---- orders ---- */

static int send_all(int socket, const void *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t sent = send(socket, data, bytes, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return errno == EAGAIN ? -ETIMEDOUT : -EPIPE;
        data = (const uint8_t *)data + sent;
        bytes -= (size_t)sent;
    }
    return 0;
}

static int receive_all(int socket, void *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t got = recv(socket, data, bytes, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 && errno == EAGAIN ? -ETIMEDOUT : -EPIPE;
        data = (uint8_t *)data + got;
        bytes -= (size_t)got;
    }
    return 0;
}

static void report_lost(int result)
{
    if (result == -ETIMEDOUT)
        report_error("the other end is silent; look whether it lives, or give more --patience");
    else
        report_error("the other end is gone; its own messages say why");
}

int bench_order(struct bench_end *end, const struct order *order)
{
    int result = send_all(end->socket, order, sizeof(*order));

    bench_wait_end(&end->wait);
    if (result != 0)
        report_lost(result);
    return result;
}

int bench_answer(struct bench_end *end, int ours)
{
    int result = receive_all(end->socket, &end->answer, sizeof(end->answer));

    if (result != 0) {
        report_lost(ours != 0 ? ours : result);
    } else if (end->answer.result != 0) {
        result = end->answer.result;
        if (result != -ENOENT)
            report_error("the other end could not do its part: %s", strerror(-result));
    } else if (ours != 0) {
        result = ours;
        report_lost(ours);
    }
    return result;
}

/* Orders come from a socket: none may ask for what this end has not got. */
static bool can_obey(const struct bench_end *end, const struct order *order)
{
    bool needs_memory = order->kind == ORDER_LINE_ECHO || order->kind == ORDER_RTE_RING ||
                        (order->kind == ORDER_CHANNEL_RECEIVE && (order->flags & ORDER_STAMP) != 0);
    bool has_records = end->channel != NULL || (end->shared != NULL && end->receive.base != NULL);

    return (!needs_memory || end->shared != NULL) && (order->kind != ORDER_CHANNEL_RECEIVE || has_records) &&
           (order->kind != ORDER_CHANNEL_JOIN || !has_records) &&
           ((order->flags & ORDER_TELL) == 0 || end->channel != NULL);
}

static int obey(struct bench_end *end, const struct order *order)
{
    struct answer *answer = &end->answer;

    if (!can_obey(end, order))
        return -EPROTO;
    bench_wait_end(&end->wait);
    switch ((enum order_kind)order->kind) {
    case ORDER_CHANNEL_JOIN:
        return channel_end_join(end);
    case ORDER_CHANNEL_RECEIVE:
        return channel_end_receive(end, order, answer);
    case ORDER_CHANNEL_LEAVE:
        channel_end_leave(end);
        return 0;
    case ORDER_LINE_ECHO:
        return yardstick_line_peer(end, answer);
    case ORDER_RTE_RING:
        return yardstick_rte_ring_peer(end, order, answer);
    case ORDER_SOCKET_ECHO:
        return yardstick_socket_peer(end, order, answer);
    case ORDER_SOCKET_DRAIN:
        return yardstick_stream_peer(end, answer);
    case ORDER_BARE_WRITE:
        return yardstick_write_peer(end, answer);
    case ORDER_PERFTEST:
        return yardstick_perftest_peer(end, order, answer);
    case ORDER_QUIT:
        break;
    }
    return -EPROTO;
}

/* ---- an end ---- */

static void pin(int cpu)
{
    cpu_set_t set;

    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        report_warning("cannot run on CPU %d: %s; going on without", cpu, strerror(errno));
}

static void set_patience(int socket, uint64_t patience_ns)
{
    struct timeval patience = { .tv_sec = (time_t)(patience_ns / NS_PER_S),
                                .tv_usec = (suseconds_t)(patience_ns % NS_PER_S / NS_PER_US) };

    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
}

static int end_init(struct bench_end *end, const struct bench_options *options, bool is_leader, int socket)
{
    uint64_t state = options->seed;

    end->options = options;
    end->is_leader = is_leader;
    end->socket = socket;
    end->wait = (struct bench_wait){ .policy = options->idle, .patience_ns = options->patience_ns, .socket = socket };
    end->copy = malloc(2 * CHANNEL_PAYLOAD_MAX_BYTES);
    if (end->copy == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < 2 * CHANNEL_PAYLOAD_MAX_BYTES; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407); /* D. Knuth's MMIX */
        end->copy[i] = (uint8_t)(state >> 56);
    }
    /* An answer must come within our patience after the other end's own has run out. */
    set_patience(socket, is_leader ? 2 * options->patience_ns + options->join_ns : ORDER_PATIENCE_NS);
    return 0;
}

/* Both ends say who they are. */
static int greet(struct bench_end *end)
{
    struct bench_hello ours = { .magic = HELLO_MAGIC, .version = HELLO_VERSION, .bytes = sizeof(struct answer),
                                .ring_bytes = end->options->ring_bytes, .link = end->options->link };
    struct bench_hello theirs;
    int result;

    machine_describe(&ours.machine);
    result = send_all(end->socket, &ours, sizeof(ours));
    if (result == 0)
        result = receive_all(end->socket, &theirs, sizeof(theirs));
    if (result != 0) {
        report_lost(result);
        return result;
    }
    if (theirs.magic != HELLO_MAGIC || theirs.version != HELLO_VERSION || theirs.bytes != sizeof(struct answer) ||
        theirs.link != (uint32_t)end->options->link) {
        report_error("the other end is no `ftbench channel` of this build, or for another link; run the same ftbench "
                     "with the same address on both hosts");
        return -EPROTO;
    }
    end->ring_bytes = end->is_leader ? ours.ring_bytes : theirs.ring_bytes;
    end->peer_machine = theirs.machine;
    for (size_t i = 0; i < 3; i++) { /* it came from outside */
        char *text = i == 0 ? end->peer_machine.cpu : i == 1 ? end->peer_machine.kernel : end->peer_machine.rdma;

        text[sizeof(end->peer_machine.cpu) - 1] = '\0';
    }
    return 0;
}

static int serve(struct bench_end *end)
{
    int result = greet(end);

    while (result == 0) {
        struct order order;

        result = receive_all(end->socket, &order, sizeof(order));
        if (result != 0) {
            report_lost(result);
            break;
        }
        if (order.kind == ORDER_QUIT)
            break;
        memset(&end->answer, 0, sizeof(end->answer));
        result = obey(end, &order);
        end->answer.result = result;
        if (send_all(end->socket, &end->answer, sizeof(end->answer)) != 0 && result == 0)
            result = -EPIPE;
        if (result == -ENOENT) /* perftest is missing: everything else goes on */
            result = 0;
    }
    channel_end_leave(end);
    close(end->socket);
    free(end->copy);
    return result;
}

/* ---- how they find each other ---- */

static void no_delay(int socket, uint64_t patience_ns)
{
    unsigned patience_ms = (unsigned)(patience_ns / NS_PER_MS);
    int on = 1;

    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience_ms, sizeof(patience_ms));
}

/* The socket for orders: of the leader, connected; of the peer, listening. */
static int order_socket(const struct bench_options *options, bool listening, int *out)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = listening ? AI_PASSIVE : 0 }, *found = NULL;
    uint64_t until_ns = clock_now_ns() + options->join_ns;
    char port[8];
    int result, on = 1;

    snprintf(port, sizeof(port), "%u", options->port + 1);
    result = getaddrinfo(options->host, port, &hints, &found);
    if (result != 0) {
        report_error("the host '%s' is unknown: %s", options->host, gai_strerror(result));
        return -EHOSTUNREACH;
    }
    for (;;) {
        int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

        result = fd < 0 ? -errno : 0;
        if (result == 0 && listening) {
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
            if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0)
                result = -errno;
        } else if (result == 0) {
            no_delay(fd, options->join_ns);
            if (connect(fd, found->ai_addr, found->ai_addrlen) != 0)
                result = -errno;
        }
        if (result == 0) {
            *out = fd;
            break;
        }
        if (fd >= 0)
            close(fd);
        if (listening || clock_now_ns() >= until_ns)
            break;
        clock_sleep_ns(CONNECT_PAUSE_NS);
    }
    freeaddrinfo(found);
    if (result != 0 && listening)
        report_error("cannot listen on %s port %s: %s; give an address of this host and a port whose next three are "
                     "free", options->host, port, strerror(-result));
    else if (result != 0)
        report_error("cannot connect to %s port %s: %s; start `ftbench channel --receive %s` there first",
                     options->host, port, strerror(-result), options->address);
    return result;
}

static int accept_leader(const struct bench_options *options, int listener, int *out)
{
    struct pollfd ready = { .fd = listener, .events = POLLIN };
    int count = poll(&ready, 1, (int)(options->join_ns / NS_PER_MS));

    *out = count > 0 ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
    if (*out < 0) {
        report_error("no leader came within %.0f s; run `ftbench channel %s` on the other host, or give more "
                     "--join-timeout", (double)options->join_ns / (double)NS_PER_S, options->address);
        return -ETIMEDOUT;
    }
    no_delay(*out, options->patience_ns);
    return 0;
}

int bench_serve(const struct bench_options *options)
{
    struct bench_end *end = calloc(1, sizeof(*end));
    int listener = -1, socket = -1, result;

    if (end == NULL)
        return -ENOMEM;
    result = order_socket(options, true, &listener);
    if (result == 0) {
        report_info("waiting for `ftbench channel %s`", options->address);
        result = accept_leader(options, listener, &socket);
        close(listener);
    }
    if (result == 0)
        result = end_init(end, options, false, socket);
    if (result == 0) {
        pin(options->cpus[1]);
        result = serve(end);
    }
    free(end);
    return result;
}

/* A peer of our own: what the thread or the child runs with. */
struct own_peer {
    const struct bench_options *options;
    struct bench_shared *shared;
    int socket;
};

static int own_peer_run(const struct own_peer *peer)
{
    struct bench_end *end = calloc(1, sizeof(*end));
    int result = end == NULL ? -ENOMEM : end_init(end, peer->options, false, peer->socket);

    if (result == 0) {
        pin(peer->options->cpus[1]);
        end->shared = peer->shared;
        result = serve(end);
    }
    free(end);
    return result;
}

static void *own_peer_thread(void *argument)
{
    own_peer_run(argument);
    free(argument);
    return NULL;
}

/* The socket between a leader and a peer of its own: TCP where a raw TCP socket is the yardstick. */
static int own_sockets(const struct bench_options *options, int pair[2])
{
    int listener, result;

    if (options->link == LINK_RING || options->link == LINK_SHM)
        return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0 ? -errno : 0;
    result = order_socket(options, true, &listener);
    if (result != 0)
        return result;
    result = order_socket(options, false, &pair[0]);
    if (result == 0)
        result = accept_leader(options, listener, &pair[1]);
    close(listener);
    if (result == 0)
        no_delay(pair[0], options->patience_ns);
    return result;
}

static int own_peer_start(struct bench_end *end, const struct bench_options *options, int pair[2])
{
    struct own_peer *peer = malloc(sizeof(*peer));
    int result;

    if (peer == NULL)
        return -ENOMEM;
    *peer = (struct own_peer){ options, end->shared, pair[1] };
    if (options->link == LINK_RING) {
        result = -pthread_create(&end->thread, NULL, own_peer_thread, peer);
        end->has_thread = result == 0;
        if (result != 0)
            free(peer);
        return result;
    }
    end->child = fork();
    if (end->child == 0) {
        /* It ends when our socket does, and clears away what it has made; so the terminal's signals are for us. */
        signal(SIGINT, SIG_IGN);
        close(pair[0]);
        _exit(own_peer_run(peer) == 0 ? 0 : 1);
    }
    free(peer);
    close(pair[1]);
    return end->child < 0 ? -errno : 0;
}

int bench_lead(const struct bench_options *options, struct bench_end *end)
{
    int pair[2] = { -1, -1 }, result;

    memset(end, 0, sizeof(*end));
    end->socket = -1;
    if (options->fork) {
        end->shared = shared_open(options);
        result = end->shared == NULL ? -ENOMEM : own_sockets(options, pair);
        if (result == 0)
            result = own_peer_start(end, options, pair);
        if (result != 0) {
            report_error("cannot start the other end: %s", strerror(-result));
            close(pair[0]);
            close(pair[1]);
        }
    } else {
        result = order_socket(options, false, &pair[0]);
        if (result == 0)
            no_delay(pair[0], options->patience_ns);
    }
    if (result == 0)
        result = end_init(end, options, true, pair[0]);
    if (result == 0) {
        pin(options->cpus[0]);
        result = greet(end);
    }
    return result;
}

void bench_leave(struct bench_end *end)
{
    const struct order quit = { .kind = ORDER_QUIT };

    if (end->socket >= 0) {
        send_all(end->socket, &quit, sizeof(quit));
        close(end->socket);
    }
    if (end->has_thread)
        pthread_join(end->thread, NULL); /* each of its waits ends, at the latest with our socket */
    if (end->child > 0) {
        uint64_t until_ns = clock_now_ns() + end->options->patience_ns;
        pid_t gone = 0;
        int status = 0;

        while ((gone = waitpid(end->child, &status, WNOHANG)) == 0 && clock_now_ns() < until_ns)
            clock_sleep_ns(5 * NS_PER_MS);
        if (gone == 0) {
            report_warning("the other end does not end by itself; it is killed");
            kill(end->child, SIGKILL);
            waitpid(end->child, &status, 0);
        }
    }
    if (end->shared != NULL)
        munmap(end->shared, end->shared->mapped_bytes);
    free(end->copy);
    end->copy = NULL;
    end->shared = NULL;
}
