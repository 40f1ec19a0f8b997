/* See fake_witness.h. */
#include "tests/unit/witness/fake_witness.h"

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "witness/peer.h"
#include "witness/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum kind { SAY = 1, SWAP = 2 };

struct frame {
    uint32_t kind, bytes;
    union {
        struct witness_hello hello;
        struct witness_welcome welcome;
        struct witness_request request;
        struct witness_answer answer;
        struct {
            uint64_t address, compare, swap;
            uint32_t rkey;
        } swap;
        uint64_t found;
    };
};

/* ---- the witness ---- */

struct connection {
    struct connection *next;
    int fd;
    struct witness_peer peer;
    pthread_mutex_t lock; /* of what the NIC may reach */
    uint64_t *word;
    uint32_t rkey;
};

static struct {
    struct witness_table *table;
    struct connection *connections;
    pthread_mutex_t lock; /* of table and list: the witness has one CPU */
    struct fake_manners *manners;
    char keys[128];
} here = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void word_set(struct connection *connection, uint64_t *word, uint32_t rkey)
{
    pthread_mutex_lock(&connection->lock);
    connection->word = word;
    connection->rkey = rkey;
    pthread_mutex_unlock(&connection->lock);
}

static void word_revoke(void *context, const uint64_t *word)
{
    (void)context;
    for (struct connection *connection = here.connections; connection != NULL; connection = connection->next)
        if (connection->word == word)
            word_set(connection, NULL, 0);
}

static bool whole(int fd, void *data, size_t bytes, bool out)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t moved = out ? send(fd, (char *)data + done, bytes - done, MSG_NOSIGNAL) :
                              recv(fd, (char *)data + done, bytes - done, 0);

        if (moved <= 0)
            return false;
        done += (size_t)moved;
    }
    return true;
}

static bool swap(struct connection *connection, struct frame *frame)
{
    uint64_t expected = frame->swap.compare;
    bool allowed;

    pthread_mutex_lock(&connection->lock);
    allowed = connection->word != NULL && frame->swap.address == (uintptr_t)connection->word &&
              frame->swap.rkey == connection->rkey;
    if (allowed)
        __atomic_compare_exchange_n(connection->word, &expected, frame->swap.swap, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE);
    pthread_mutex_unlock(&connection->lock);
    atomic_fetch_add(&here.manners->swaps, 1);
    frame->found = expected;
    if (atomic_load(&here.manners->lose_swap_answers) > 0 &&
        atomic_fetch_sub(&here.manners->lose_swap_answers, 1) > 0)
        return false;
    return allowed;
}

static bool serve(struct connection *connection, struct frame *frame)
{
    struct witness_request request = frame->request;
    struct witness_answer *answer = &frame->answer;
    unsigned spoiled = atomic_load(&here.manners->spoil_byte);
    uint64_t *word;
    bool good;

    if (frame->kind == SWAP)
        return swap(connection, frame);
    atomic_fetch_add(&here.manners->requests, 1);
    pthread_mutex_lock(&here.lock);
    good = witness_peer_ask(&connection->peer, here.table, &request, frame->bytes, answer, &word, "fake");
    if (good) {
        uint32_t rkey = 0;

        good = getrandom(&rkey, sizeof(rkey), 0) == (ssize_t)sizeof(rkey);
        word_set(connection, word, rkey);
        answer->address = (uintptr_t)word;
        answer->rkey = word != NULL ? rkey : 0;
        good = good && witness_peer_seal(&connection->peer, answer) == 0;
    }
    pthread_mutex_unlock(&here.lock);
    if (spoiled > 0 && spoiled <= sizeof(*answer))
        ((uint8_t *)answer)[spoiled - 1] ^= 1;
    frame->bytes = sizeof(*answer);
    return good;
}

static void *connection_main(void *argument)
{
    struct connection *connection = argument;
    struct frame frame;
    bool good = whole(connection->fd, &frame, sizeof(frame), false);

    if (good) {
        good = witness_peer_meet(&connection->peer, &frame.hello, frame.bytes, here.keys, "fake") == WITNESS_OK;
        frame.welcome = connection->peer.welcome;
        good = whole(connection->fd, &frame, sizeof(frame), true) && good;
    }
    while (good && whole(connection->fd, &frame, sizeof(frame), false)) {
        while (atomic_load(&here.manners->silent))
            clock_sleep_ns(NS_PER_MS);
        good = serve(connection, &frame) && whole(connection->fd, &frame, sizeof(frame), true);
    }
    pthread_mutex_lock(&here.lock);
    for (struct connection **at = &here.connections; *at != NULL; at = &(*at)->next)
        if (*at == connection) {
            *at = connection->next;
            break;
        }
    pthread_mutex_unlock(&here.lock);
    close(connection->fd);
    witness_peer_close(&connection->peer);
    free(connection);
    return NULL;
}

static void witness_main(const struct fake_witness *witness, int listener, unsigned vms)
{
    char state[128];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(here.keys, sizeof(here.keys), "%s/keys", witness->directory);
    snprintf(state, sizeof(state), "%s/state", witness->directory);
    here.manners = witness->manners;
    if (witness_table_open(&here.table, state, vms, word_revoke, NULL) != 0)
        _exit(1);
    for (;;) {
        struct connection *connection = calloc(1, sizeof(*connection));
        pthread_t thread;
        int one = 1;

        connection->fd = accept(listener, NULL, NULL);
        setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        pthread_mutex_init(&connection->lock, NULL);
        pthread_mutex_lock(&here.lock);
        connection->next = here.connections;
        here.connections = connection;
        pthread_mutex_unlock(&here.lock);
        if (pthread_create(&thread, NULL, connection_main, connection) != 0)
            _exit(2);
        pthread_detach(thread);
    }
}

void fake_witness_start(struct fake_witness *witness, unsigned vms)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                   .sin_port = htons((uint16_t)witness->port) };
    socklen_t bytes = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 64), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &bytes), 0);
    witness->port = ntohs(address.sin_port);
    fflush(NULL);
    witness->pid = fork();
    assert_true(witness->pid >= 0);
    if (witness->pid == 0) {
        witness_main(witness, listener, vms);
        _exit(0);
    }
    close(listener);
}

void fake_witness_key(struct fake_witness *witness, const char *vm)
{
    char command[512];

    snprintf(command, sizeof(command),
             "umask 077; cd %s && mkdir -p auth-%s && head -c 32 /dev/urandom >keys/%s && cp keys/%s auth-%s/key",
             witness->directory, vm, vm, vm, vm);
    assert_int_equal(system(command), 0);
}

void fake_witness_open(struct fake_witness *witness, const char *const *vms)
{
    char command[192];

    memset(witness, 0, sizeof(*witness));
    /* In memory: the file is written anew for every generation and member. */
    snprintf(witness->directory, sizeof(witness->directory), "/dev/shm/ftvmm-witness-XXXXXX");
    assert_non_null(mkdtemp(witness->directory));
    snprintf(command, sizeof(command), "umask 077; mkdir %s/keys %s/state", witness->directory, witness->directory);
    assert_int_equal(system(command), 0);
    for (; *vms != NULL; vms++)
        fake_witness_key(witness, *vms);
    witness->manners = mmap(NULL, sizeof(*witness->manners), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(witness->manners != MAP_FAILED);
    fake_witness_start(witness, 64);
}

void fake_witness_kill(struct fake_witness *witness)
{
    if (witness->pid > 0) {
        kill(witness->pid, SIGKILL);
        waitpid(witness->pid, NULL, 0);
    }
    witness->pid = 0;
}

void fake_witness_close(struct fake_witness *witness)
{
    char command[128];

    fake_witness_kill(witness);
    munmap(witness->manners, sizeof(*witness->manners));
    snprintf(command, sizeof(command), "rm -rf '%s'", witness->directory);
    assert_int_equal(system(command), 0);
}

/* ---- the hosts' end ---- */

struct witness_wire {
    int fd;
};

static int broken(char *why)
{
    snprintf(why, WITNESS_WHY_BYTES, "the connection broke");
    return -ECONNRESET;
}

/* Says the frame and waits for the one that answers it. */
static int wire_talk(struct witness_wire *wire, struct frame *frame, const struct witness_limit *limit, char *why)
{
    size_t done = 0;

    if (send(wire->fd, frame, sizeof(*frame), MSG_NOSIGNAL) != (ssize_t)sizeof(*frame))
        return broken(why);
    while (done < sizeof(*frame)) {
        struct pollfd ready = { .fd = wire->fd, .events = POLLIN };
        int rc = witness_limit_check(limit, why);
        ssize_t got;

        if (rc != 0)
            return rc;
        if (poll(&ready, 1, 5) <= 0)
            continue;
        got = recv(wire->fd, (char *)frame + done, sizeof(*frame) - done, MSG_DONTWAIT);
        if (got <= 0)
            return broken(why);
        done += (size_t)got;
    }
    return 0;
}

int witness_wire_open(struct witness_wire **out, const struct sockaddr *address, const struct witness_hello *hello,
                      struct witness_welcome *welcome, const struct witness_limit *limit, char *why)
{
    struct witness_wire *wire = calloc(1, sizeof(*wire));
    struct frame frame = { .kind = SAY, .bytes = sizeof(*hello), .hello = *hello };
    int rc, one = 1;

    *out = NULL;
    wire->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(wire->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(wire->fd, address, sizeof(struct sockaddr_in)) != 0) {
        snprintf(why, WITNESS_WHY_BYTES, "the host is there, but nobody listens on that port");
        rc = -EHOSTUNREACH;
    } else {
        rc = wire_talk(wire, &frame, limit, why);
    }
    if (rc == 0) {
        *welcome = frame.welcome;
        rc = welcome->status != WITNESS_OK ? -ECONNREFUSED : 0;
    }
    if (rc == 0)
        *out = wire;
    else
        witness_wire_close(wire);
    return rc;
}

void witness_wire_close(struct witness_wire *wire)
{
    if (wire != NULL)
        close(wire->fd);
    free(wire);
}

int witness_wire_exchange(struct witness_wire *wire, const struct witness_request *request,
                          struct witness_answer *answer, size_t *answer_bytes, const struct witness_limit *limit,
                          char *why)
{
    struct frame frame = { .kind = SAY, .bytes = sizeof(*request), .request = *request };
    int rc = wire_talk(wire, &frame, limit, why);

    *answer = frame.answer;
    *answer_bytes = frame.bytes;
    return rc;
}

int witness_wire_compare_swap(struct witness_wire *wire, uint64_t address, uint32_t rkey, uint64_t compare,
                              uint64_t swap_in, uint64_t *found, const struct witness_limit *limit, char *why)
{
    struct frame frame = { .kind = SWAP,
                           .swap = { .address = address, .compare = compare, .swap = swap_in, .rkey = rkey } };
    int rc = wire_talk(wire, &frame, limit, why);

    *found = frame.found;
    return rc;
}
