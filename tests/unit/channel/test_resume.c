/*
 * A broken connection is joined again by itself, and the log goes on where the receiver's ends: cut again and again at
 * random moments under load, each end with the threads that it has in the product, every record arrives once, in order
 * and right, and what is acked is there. Who may not resume is refused.
 *
 * tcp: a relay sits between the ends, and cuts after a random number of bytes, in the middle of frames, of control
 * blocks and of the conversation that resumes. verbs, with FTVMM_TEST_VERBS=ADDRESS (an address of this host that is on
 * an RDMA device), and nothing else then: the queue pair of either end is put into error.
 *
 * FTVMM_TEST_SOAK=N makes N times as many cuts.
 */
#include "tests/unit/cmocka_prelude.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/join_socket.h"
#include "channel/link_verbs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CUTS
#define CUTS 400u
#endif
#define VERBS_CUTS  60u
#define RING_BYTES  (1u << 20)
#define BEAT_NS     (2 * NS_PER_MS)
#define LIMIT_NS    (120 * NS_PER_S) /* of one test */

static struct sockaddr_in receiver_at, relay_at;
static char verbs_address[96];
static int words_fd, real_stderr;
static bool words_kept;

static void words_begin(void)
{
    words_kept = true;
    assert_int_equal(ftruncate(words_fd, 0), 0);
    lseek(words_fd, 0, SEEK_SET);
    dup2(words_fd, STDERR_FILENO);
}

static const char *words_end(void)
{
    static char words[65536];
    ssize_t bytes;

    words_kept = false;
    dup2(real_stderr, STDERR_FILENO);
    bytes = pread(words_fd, words, sizeof(words) - 1, 0);
    words[bytes < 0 ? 0 : bytes] = '\0';
    return words;
}

/* Until it was said, by another thread perhaps. */
static void words_await(const char *what)
{
    uint64_t give_up_ns = clock_now_ns() + 10 * NS_PER_S;

    for (;;) {
        char words[65536];
        ssize_t bytes = pread(words_fd, words, sizeof(words) - 1, 0);

        words[bytes < 0 ? 0 : bytes] = '\0';
        if (strstr(words, what) != NULL)
            return;
        assert_true(clock_now_ns() < give_up_ns);
        clock_sleep_ns(NS_PER_MS);
    }
}

/* A test that ended amidst it has failed: shows what was said. */
static int words_show(void **state)
{
    (void)state;
    if (words_kept)
        fputs(words_end(), stderr);
    return 0;
}

static unsigned soak(void)
{
    const char *given = getenv("FTVMM_TEST_SOAK");

    return given != NULL && atoi(given) > 0 ? (unsigned)atoi(given) : 1;
}

/* ---- records: what seed and LSN make them ---- */

static uint64_t mix(uint64_t seed, uint64_t lsn)
{
    uint64_t state = seed ^ lsn * UINT64_C(0x9e3779b97f4a7c15);

    return test_random(&state);
}

static size_t size_of(uint64_t seed, uint64_t lsn)
{
    uint64_t random = mix(seed, lsn);

    return random % 101 == 0 ? (random >> 20) % (CHANNEL_PAYLOAD_MAX_BYTES + 1) : (random >> 20) % 700;
}

static bool is_right(uint64_t seed, const struct channel_record *record, uint64_t lsn)
{
    const uint8_t *payload = record->payload;

    if (record->lsn != lsn || record->position != lsn * 3 || record->kind != lsn % 7 ||
        record->bytes != size_of(seed, lsn))
        return false;
    for (uint32_t i = 0; i < record->bytes; i++)
        if (payload[i] != (uint8_t)(mix(seed, lsn) + i))
            return false;
    return true;
}

/* ---- the relay ---- */

struct relay {
    _Atomic bool stop;
    _Atomic bool cutting; /* not before the two have first joined: a sender whose grant is lost is no session's */
    _Atomic unsigned cuts;
    uint64_t random;
    int listener;
    pthread_t thread;
};

static int socket_at(const struct sockaddr_in *address, bool listens)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (listens) {
        assert_int_equal(bind(fd, (const struct sockaddr *)address, sizeof(*address)), 0);
        assert_int_equal(listen(fd, 8), 0);
    } else if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void close_hard(int fd, bool reset)
{
    struct linger now = { .l_onoff = 1, .l_linger = 0 };

    if (reset)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(fd);
}

/* Carries bytes both ways until so many have gone, or so much time. */
static void relay_carry(struct relay *relay, int a, int b, uint64_t bytes, uint64_t last_ns)
{
    static uint8_t data[65536];
    uint64_t end_ns = 0;

    while (bytes > 0 && (end_ns == 0 || clock_now_ns() < end_ns) && !atomic_load(&relay->stop)) {
        struct pollfd ready[2] = { { .fd = a, .events = POLLIN }, { .fd = b, .events = POLLIN } };

        if (end_ns == 0 && atomic_load(&relay->cutting))
            end_ns = clock_now_ns() + last_ns;
        if (poll(ready, 2, 5) <= 0)
            continue;
        for (int i = 0; i < 2 && bytes > 0; i++) {
            ssize_t got, gone = 0;

            if (ready[i].revents == 0)
                continue;
            got = recv(ready[i].fd, data, bytes < sizeof(data) ? bytes : sizeof(data), MSG_DONTWAIT);
            if (got <= 0)
                return;
            while (gone < got) {
                ssize_t sent = send(ready[1 - i].fd, data + gone, (size_t)(got - gone), MSG_NOSIGNAL);

                if (sent <= 0)
                    return;
                gone += sent;
            }
            bytes -= end_ns != 0 ? (uint64_t)got : 0;
        }
    }
}

static void *relay_main(void *argument)
{
    struct relay *relay = argument;

    while (!atomic_load(&relay->stop)) {
        struct pollfd ready = { .fd = relay->listener, .events = POLLIN };
        uint64_t how = test_random(&relay->random);
        uint64_t bytes = how % 4 == 0 ? test_random(&relay->random) % 900 : test_random(&relay->random) % 3000000;
        int a, b;

        if (poll(&ready, 1, 5) <= 0)
            continue;
        a = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC);
        b = socket_at(&receiver_at, false);
        if (b >= 0) {
            relay_carry(relay, a, b, bytes, test_random(&relay->random) % (60 * NS_PER_MS));
            atomic_fetch_add(&relay->cuts, 1);
        }
        /* One end knows before the other, or both at once; by a reset or an orderly end. */
        close_hard(how >> 8 & 1 ? a : b, how >> 9 & 1);
        if (how % 5 == 0)
            clock_sleep_ns((how >> 16) % (30 * NS_PER_MS));
        close_hard(how >> 8 & 1 ? b : a, how >> 10 & 1);
    }
    return NULL;
}

static void relay_open(struct relay *relay, uint64_t seed)
{
    *relay = (struct relay){ .random = seed, .listener = socket_at(&relay_at, true) };
    pthread_create(&relay->thread, NULL, relay_main, relay);
}

static void relay_close(struct relay *relay)
{
    atomic_store(&relay->stop, true);
    pthread_join(relay->thread, NULL);
    close(relay->listener);
}

/* ---- a pair, with the product's threads ---- */

struct pair {
    struct channel_options options[2]; /* sender's, receiver's */
    char addresses[2][64];
    struct channel *sender, *receiver;
    int results[2];
    uint64_t seed, records; /* to be committed; fewer once `enough` */
    _Atomic bool enough, stop;
    _Atomic bool out_of_order; /* of acks */
    _Atomic int commit_result;
    pthread_t threads[3];
    uint64_t delivered;
};

static void *commit_main(void *argument)
{
    struct pair *pair = argument;
    uint64_t lsn = 0;

    while (lsn < pair->records && !atomic_load(&pair->enough)) {
        size_t bytes = size_of(pair->seed, lsn + 1);
        void *payload;
        int result = channel_reserve(pair->sender, (uint16_t)((lsn + 1) % 7), (lsn + 1) * 3, bytes, &payload);

        if (result == -EAGAIN) {
            clock_sleep_ns(20 * NS_PER_US);
            continue;
        }
        if (result != 0) {
            atomic_store(&pair->commit_result, result);
            break;
        }
        for (size_t i = 0; i < bytes; i++)
            ((uint8_t *)payload)[i] = (uint8_t)(mix(pair->seed, lsn + 1) + i);
        lsn = channel_commit(pair->sender);
    }
    return NULL;
}

static void *sender_poll_main(void *argument)
{
    struct pair *pair = argument;
    uint64_t beat_ns = 0, acked = 0;

    while (!atomic_load(&pair->stop)) {
        uint64_t now_acked;

        channel_poll(pair->sender);
        now_acked = channel_acked_lsn(pair->sender);
        if (now_acked < acked || now_acked > channel_committed_lsn(pair->sender))
            atomic_store(&pair->out_of_order, true);
        acked = now_acked;
        if (clock_now_ns() - beat_ns > BEAT_NS) {
            channel_heartbeat(pair->sender);
            beat_ns = clock_now_ns();
        }
        clock_sleep_ns(10 * NS_PER_US);
    }
    return NULL;
}

static void *receiver_poll_main(void *argument)
{
    struct pair *pair = argument;
    uint64_t beat_ns = 0;

    while (!atomic_load(&pair->stop)) {
        channel_poll(pair->receiver);
        if (clock_now_ns() - beat_ns > BEAT_NS) {
            channel_heartbeat(pair->receiver);
            beat_ns = clock_now_ns();
        }
        clock_sleep_ns(10 * NS_PER_US);
    }
    return NULL;
}

static void *open_receiver(void *argument)
{
    struct pair *pair = argument;

    pair->results[1] = channel_open_receiver(&pair->receiver, &pair->options[1]);
    return NULL;
}

static void pair_open(struct pair *pair, const char *address, bool relayed, enum channel_ack ack, uint64_t seed,
                      const struct channel_secret *secret)
{
    pthread_t thread;

    *pair = (struct pair){ .seed = seed, .records = UINT64_MAX };
    for (int i = 0; i < 2; i++) {
        snprintf(pair->addresses[i], sizeof(pair->addresses[i]), "%s", address);
        if (address[0] == 't')
            snprintf(pair->addresses[i], sizeof(pair->addresses[i]), "tcp:127.0.0.1:%u",
                     ntohs(relayed && i == 0 ? relay_at.sin_port : receiver_at.sin_port));
        pair->options[i] = (struct channel_options){ .address = pair->addresses[i], .ring_bytes = RING_BYTES,
                                                     .join_timeout_ns = 20 * NS_PER_S, .ack = ack, .secret = secret,
                                                     .hello = { .vm = "guest", .generation = i == 0 ? 7 : 0 } };
    }
    pthread_create(&thread, NULL, open_receiver, pair);
    pair->results[0] = channel_open_sender(&pair->sender, &pair->options[0]);
    pthread_join(thread, NULL);
    assert_int_equal(pair->results[0], 0);
    assert_int_equal(pair->results[1], 0);
}

static void pair_start(struct pair *pair)
{
    pthread_create(&pair->threads[0], NULL, commit_main, pair);
    pthread_create(&pair->threads[1], NULL, sender_poll_main, pair);
    pthread_create(&pair->threads[2], NULL, receiver_poll_main, pair);
}

static void pair_stop(struct pair *pair)
{
    atomic_store(&pair->enough, true);
    atomic_store(&pair->stop, true);
    for (int i = 0; i < 3; i++)
        pthread_join(pair->threads[i], NULL);
}

static void pair_close(struct pair *pair)
{
    channel_close(pair->sender);
    channel_close(pair->receiver);
}

/* Takes what is there. 0, or what channel_next says else than "none yet". Now and then as slowly as a busy guest. */
static int pair_take(struct pair *pair)
{
    for (unsigned i = 0; i < 1000; i++) {
        struct channel_record record;
        int result = channel_next(pair->receiver, &record);

        if (result != 0)
            return result == -EAGAIN ? 0 : result;
        if (!is_right(pair->seed, &record, pair->delivered + 1))
            return -EILSEQ;
        if (pair->delivered % 1000 == 0)
            clock_sleep_ns(200 * NS_PER_US);
        channel_consume(pair->receiver);
        pair->delivered++;
    }
    return 0;
}

/* Goes on until all that was committed is delivered, acked and known to be consumed. */
static void pair_finish(struct pair *pair, uint64_t give_up_ns)
{
    atomic_store(&pair->enough, true);
    pthread_join(pair->threads[0], NULL);
    while (pair->delivered < channel_committed_lsn(pair->sender) ||
           channel_acked_lsn(pair->sender) < pair->delivered || channel_consumed_lsn(pair->sender) < pair->delivered) {
        assert_int_equal(pair_take(pair), 0);
        if (clock_now_ns() > give_up_ns)
            fail_msg("committed %llu, delivered %llu, acked %llu, consumed %llu",
                     (unsigned long long)channel_committed_lsn(pair->sender), (unsigned long long)pair->delivered,
                     (unsigned long long)channel_acked_lsn(pair->sender),
                     (unsigned long long)channel_consumed_lsn(pair->sender));
        clock_sleep_ns(20 * NS_PER_US);
    }
    atomic_store(&pair->stop, true);
    for (int i = 1; i < 3; i++)
        pthread_join(pair->threads[i], NULL);
    assert_int_equal(atomic_load(&pair->commit_result), 0);
    assert_false(atomic_load(&pair->out_of_order));
}

/* ---- tcp ---- */

static void print_outcome(const struct pair *pair, unsigned cuts)
{
    struct channel_statistics sent, received;

    channel_get_statistics(pair->sender, &sent);
    channel_get_statistics(pair->receiver, &received);
    print_message("%u cuts, %llu resumes, %llu records delivered, %llu acked\n", cuts, (unsigned long long)sent.resumes,
                  (unsigned long long)pair->delivered, (unsigned long long)channel_acked_lsn(pair->sender));
    assert_true(sent.resumes > 0);
    /* An end that was granted and never heard of it tries again. */
    assert_true(received.resumes >= sent.resumes);
    assert_int_equal(received.records, pair->delivered);
    assert_int_equal(received.damaged, 0);
}

static void every_record_arrives_once_in_order_however_often_it_is_cut(void **state)
{
    struct channel_secret secret = { .count = 32, .bytes = "the secret of the two ends here" };
    uint64_t seed = test_seed(__func__), give_up_ns = clock_now_ns() + LIMIT_NS;
    unsigned cuts = CUTS * soak();
    struct relay relay;
    struct pair pair;

    (void)state;
    words_begin();
    relay_open(&relay, test_random(&seed));
    pair_open(&pair, "tcp", true, CHANNEL_ACK_SEEN, test_random(&seed), &secret);
    pair_start(&pair);
    atomic_store(&relay.cutting, true);
    while (atomic_load(&relay.cuts) < cuts && clock_now_ns() < give_up_ns) {
        assert_int_equal(pair_take(&pair), 0);
        clock_sleep_ns(20 * NS_PER_US);
    }
    pair_finish(&pair, give_up_ns);
    relay_close(&relay);
    assert_non_null(strstr(words_end(), "the link is up again"));
    print_outcome(&pair, atomic_load(&relay.cuts));
    pair_close(&pair);
}

static void fence_at_any_moment_wins_and_what_was_acked_is_there(void **state)
{
    uint64_t seed = test_seed(__func__);
    uint64_t took_ns = 0;
    unsigned rounds = CUTS / 10 * soak(), refused = 0;

    (void)state;
    for (unsigned round = 0; round < rounds; round++) {
        uint64_t give_up_ns = clock_now_ns() + LIMIT_NS, end_ns, begin_ns, tail;
        struct channel_record record;
        struct relay relay;
        struct pair pair;
        int result = 0;

        words_begin();
        relay_open(&relay, test_random(&seed));
        pair_open(&pair, "tcp", true, CHANNEL_ACK_SEEN, test_random(&seed), NULL);
        pair_start(&pair);
        atomic_store(&relay.cutting, true);
        end_ns = clock_now_ns() + test_random(&seed) % (80 * NS_PER_MS);
        while (clock_now_ns() < end_ns) {
            assert_int_equal(pair_take(&pair), 0);
            clock_sleep_ns(20 * NS_PER_US);
        }
        begin_ns = clock_now_ns();
        assert_int_equal(channel_fence(pair.receiver), 0);
        took_ns = clock_now_ns() - begin_ns > took_ns ? clock_now_ns() - begin_ns : took_ns;
        while (result == 0)
            result = pair_take(&pair);
        assert_int_equal(result, -ENODATA);
        tail = pair.delivered;
        end_ns = clock_now_ns() + 30 * NS_PER_MS; /* the sender goes on trying */
        while (clock_now_ns() < end_ns)
            assert_int_equal(channel_next(pair.receiver, &record), -ENODATA);
        while (atomic_load(&pair.commit_result) == 0 && round % 8 == 0) { /* until it hears that it may not */
            assert_true(clock_now_ns() < give_up_ns);
            clock_sleep_ns(NS_PER_MS);
        }
        pair_stop(&pair);
        assert_true(channel_acked_lsn(pair.sender) <= tail);
        assert_true(round % 8 != 0 || atomic_load(&pair.commit_result) == -EPIPE);
        relay_close(&relay);
        pair_close(&pair);
        refused += strstr(words_end(), "takes nothing more") != NULL;
    }
    assert_true(refused > 0);
    print_message("%u fences, the longest took %llu us; %u late senders refused in words\n", rounds,
                  (unsigned long long)(took_ns / NS_PER_US), refused);
}

/* ---- who may resume ---- */

static int resume_by_hand(uint64_t session, const struct channel_secret *secret, enum channel_ack ack)
{
    struct channel_options options = { .address = "by hand", .ring_bytes = RING_BYTES, .secret = secret, .ack = ack,
                                       .hello = { .vm = "guest", .generation = 7 } };
    struct join_side ours = join_side_of(&options);
    struct join_socket join = { .name = "tcp:by-hand", .address = (const struct sockaddr *)&receiver_at,
                                .address_bytes = sizeof(receiver_at), .ours = &ours, .secret = secret,
                                .deadline = { .at_ns = clock_now_ns() + 5 * NS_PER_S }, .session = session,
                                .memory_fd = -1 };
    int result = join_socket_send_again(&join);

    if (result == 0)
        close(join.fd);
    return result;
}

static void nobody_resumes_but_the_sessions_own_sender(void **state)
{
    struct channel_secret secret = { .count = 32, .bytes = "the secret of the two ends here" };
    struct channel_secret other = { .count = 32, .bytes = "another secret, of somebody else" };
    uint64_t session, give_up_ns = clock_now_ns() + LIMIT_NS;
    struct channel_statistics statistics;
    struct pair pair;
    const char *words;

    (void)state;
    words_begin();
    pair_open(&pair, "tcp", false, CHANNEL_ACK_SEEN, 1, &secret);
    pair_start(&pair);
    session = pair.receiver->receive.key;
    assert_int_equal(resume_by_hand(session ^ 1, &secret, CHANNEL_ACK_SEEN), -EPROTO);
    words_await("sender refused: the broken connection that was to be resumed is not one of ours");
    words_await("receiver refuses us: the broken connection that was to be resumed is not one of its");
    assert_int_equal(resume_by_hand(session, &secret, CHANNEL_ACK_PLACED), -EPROTO);
    assert_int_equal(resume_by_hand(session, &other, CHANNEL_ACK_SEEN), -EPROTO);
    words_await("sender refused: it does not hold the same key");
    assert_int_equal(resume_by_hand(session, NULL, CHANNEL_ACK_SEEN), -EPROTO);
    words_await("sender refused: this end has a shared key");
    words_end();
    words_begin();
    assert_int_equal(resume_by_hand(0, &secret, CHANNEL_ACK_SEEN), -EAGAIN); /* a new one: there is one already */
    assert_null(strstr(words_end(), "error"));
    /* None of them has disturbed the pair. */
    channel_get_statistics(pair.receiver, &statistics);
    assert_int_equal(statistics.resumes, 0);
    assert_int_equal(channel_poll(pair.receiver), 0);
    /* Who holds the key and knows the session is its sender; the one that was there takes it back. */
    words_begin();
    assert_int_equal(resume_by_hand(session, &secret, CHANNEL_ACK_SEEN), 0);
    pair_finish(&pair, give_up_ns);
    channel_get_statistics(pair.sender, &statistics);
    assert_true(statistics.resumes > 0);
    assert_int_equal(channel_fence(pair.receiver), 0);
    assert_int_equal(resume_by_hand(session, &secret, CHANNEL_ACK_SEEN), -EPROTO);
    words_await("its sender asks to resume it");
    words_await("sender refused: the receiver has fenced this sender off");
    words = words_end();
    assert_null(memmem(words, strlen(words), secret.bytes, 8));
    pair_close(&pair);
}

static void receiver_started_anew_is_not_resumed_into(void **state)
{
    uint64_t give_up_ns = clock_now_ns() + LIMIT_NS;
    struct channel_options options;
    struct pair pair;
    const char *words;

    (void)state;
    pair_open(&pair, "tcp", false, CHANNEL_ACK_SEEN, 1, NULL);
    channel_close(pair.receiver); /* as if it had died; the sender tries on */
    options = pair.options[1];
    options.join_timeout_ns = 2 * NS_PER_S;
    words_begin();
    pair.options[1] = options;
    pthread_create(&pair.threads[0], NULL, open_receiver, &pair);
    while (channel_reserve(pair.sender, 0, 0, 8, &(void *){ NULL }) != -EPIPE) {
        channel_poll(pair.sender);
        channel_heartbeat(pair.sender);
        assert_true(clock_now_ns() < give_up_ns);
        clock_sleep_ns(NS_PER_MS);
    }
    pthread_join(pair.threads[0], NULL);
    words = words_end();
    assert_int_equal(pair.results[1], -ETIMEDOUT);
    assert_non_null(strstr(words, "not one of ours"));
    assert_int_equal(channel_poll(pair.sender), -EPIPE);
    channel_close(pair.sender);
}

/* ---- a network that is away for a while, in a name space of our own ---- */

static void loopback_set(bool up)
{
    struct ifreq request = { .ifr_name = "lo", .ifr_flags = (short)(up ? IFF_UP : 0) };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        _exit(TEST_SKIP);
    close(fd);
}

/* How long the ends are apart beyond the time that the network was away, at most; in ms. */
static int flap_main(void)
{
    uint64_t seed = 5, longest_ns = 0;
    struct pair pair;

    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
        return TEST_SKIP;
    loopback_set(true);
    pair_open(&pair, "tcp", false, CHANNEL_ACK_SEEN, 1, NULL);
    pair_start(&pair);
    for (unsigned i = 0; i < 6; i++) {
        uint64_t away_ns = (100 + i * 130) * NS_PER_MS, end_ns, again_ns, acked;

        loopback_set(false);
        end_ns = clock_now_ns() + away_ns - test_random(&seed) % NS_PER_MS;
        while (clock_now_ns() < end_ns) {
            if (pair_take(&pair) != 0)
                return 1;
            clock_sleep_ns(20 * NS_PER_US);
        }
        loopback_set(true);
        again_ns = clock_now_ns();
        acked = channel_acked_lsn(pair.sender);
        while (channel_acked_lsn(pair.sender) == acked) {
            int result = pair_take(&pair);

            if (result != 0 || clock_now_ns() - again_ns > 5 * NS_PER_S) {
                report_error("no ack since the network is back: %s", strerror(result != 0 ? -result : ETIMEDOUT));
                return 2;
            }
            clock_sleep_ns(20 * NS_PER_US);
        }
        longest_ns = clock_now_ns() - again_ns > longest_ns ? clock_now_ns() - again_ns : longest_ns;
        fprintf(stdout, "network away for %llu ms: acks came %llu ms after it was back\n",
                (unsigned long long)(away_ns / NS_PER_MS),
                (unsigned long long)((clock_now_ns() - again_ns) / NS_PER_MS));
    }
    fflush(stdout);
    pair_finish(&pair, clock_now_ns() + LIMIT_NS);
    pair_close(&pair);
    return longest_ns < NS_PER_S ? 0 : 3;
}

static void network_that_was_away_is_used_as_soon_as_it_is_back(void **state)
{
    int status = 0;
    pid_t pid;

    (void)state;
    fflush(stdout);
    words_begin();
    pid = fork();
    if (pid == 0)
        _exit(flap_main());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == TEST_SKIP) {
        words_end();
        skip(); /* no name spaces here */
    }
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_non_null(strstr(words_end(), "the link is up again"));
}

/* ---- verbs ---- */

/* Puts the queue pair of an end into error. With its turn: the connection is not being replaced. */
static bool verbs_cut(struct channel *channel)
{
    struct verbs_link *link = (struct verbs_link *)channel;
    struct ibv_qp_attr attributes = { .qp_state = IBV_QPS_ERR };
    bool cut = false;

    while (!post_turn_take(&link->turn))
        sched_yield();
    if (link->now.id != NULL && !atomic_load(&channel->down))
        cut = ibv_modify_qp(link->now.id->qp, &attributes, IBV_QP_STATE) == 0;
    post_turn_give(&link->turn);
    return cut;
}

static void verbs_is_resumed(const char *name, enum channel_ack ack)
{
    uint64_t seed = test_seed(name), give_up_ns = clock_now_ns() + 2 * LIMIT_NS;
    unsigned cuts = 0, wanted = VERBS_CUTS * soak();
    struct pair pair;

    words_begin();
    pair_open(&pair, verbs_address, false, ack, test_random(&seed), NULL);
    pair_start(&pair);
    while (cuts < wanted) {
        uint64_t moment_ns = clock_now_ns() + test_random(&seed) % (60 * NS_PER_MS);

        while (clock_now_ns() < moment_ns) {
            assert_int_equal(pair_take(&pair), 0);
            clock_sleep_ns(20 * NS_PER_US);
        }
        cuts += verbs_cut(test_random(&seed) % 2 == 0 ? pair.sender : pair.receiver);
        assert_true(clock_now_ns() < give_up_ns);
    }
    pair_finish(&pair, give_up_ns);
    words_end();
    print_outcome(&pair, cuts);
    /* And a fence, perhaps amidst a resume. */
    verbs_cut(pair.sender);
    channel_poll(pair.sender);
    assert_int_equal(channel_fence(pair.receiver), 0);
    words_begin();
    while (channel_reserve(pair.sender, 0, 0, 8, &(void *){ NULL }) != -EPIPE) {
        channel_poll(pair.sender);
        channel_heartbeat(pair.sender);
        assert_true(clock_now_ns() < give_up_ns);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_non_null(strstr(words_end(), "takes nothing more"));
    pair_close(&pair);
}

static void verbs_placed_is_resumed(void **state)
{
    (void)state;
    verbs_is_resumed(__func__, CHANNEL_ACK_PLACED);
}

static void verbs_seen_is_resumed(void **state)
{
    (void)state;
    verbs_is_resumed(__func__, CHANNEL_ACK_SEEN);
}

int main(void)
{
    const struct CMUnitTest tcp[] = {
        cmocka_unit_test_teardown(network_that_was_away_is_used_as_soon_as_it_is_back, words_show),
        cmocka_unit_test_teardown(every_record_arrives_once_in_order_however_often_it_is_cut, words_show),
        cmocka_unit_test_teardown(fence_at_any_moment_wins_and_what_was_acked_is_there, words_show),
        cmocka_unit_test_teardown(nobody_resumes_but_the_sessions_own_sender, words_show),
        cmocka_unit_test_teardown(receiver_started_anew_is_not_resumed_into, words_show),
    };
    const struct CMUnitTest verbs[] = {
        cmocka_unit_test_teardown(verbs_placed_is_resumed, words_show),
        cmocka_unit_test_teardown(verbs_seen_is_resumed, words_show),
    };
    const char *rdma = getenv("FTVMM_TEST_VERBS");
    unsigned port = 10000 + (unsigned)getpid() % 10000 * 2;

    words_fd = memfd_create("words", 0);
    fcntl(words_fd, F_SETFL, O_APPEND); /* the offset of a memfd is not locked: two threads would write to one place */
    real_stderr = dup(STDERR_FILENO);
    receiver_at = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) },
                                        .sin_port = htons((uint16_t)port) };
    relay_at = receiver_at;
    relay_at.sin_port = htons((uint16_t)(port + 1));
    if (rdma == NULL)
        return cmocka_run_group_tests_name("tcp", tcp, NULL, NULL);
    snprintf(verbs_address, sizeof(verbs_address), "verbs:%s:18516", rdma);
    return cmocka_run_group_tests_name("verbs", verbs, NULL, NULL);
}
