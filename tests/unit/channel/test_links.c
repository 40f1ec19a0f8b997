/*
 * What every link promises (conformance), then what only one of them does. shm, tcp and file run anywhere; verbs too
 * when FTVMM_TEST_VERBS=ADDRESS names an address of this host that is on an RDMA device.
 */
#include "base/clock.h"
#include "base/idle.h"
#include "base/report.h"
#include "channel/channel.h"
#include "channel/join.h"
#include "channel/link_verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define RING_BYTES (1u << 20)
#define LIMIT_NS   (20 * NS_PER_S) /* nothing here may take longer */

static char directory[64], shm_address[64], shm_seen_address[68], tcp_address[64], file_address[128], file_path[96], verbs_address[96], verbs_seen_address[100];
static char verbs_other_address[96];
static char words_path[96];
static int words_fd = -1, real_stderr = -1;

/* ---- what was said ---- */

static void words_begin(void)
{
    assert_int_equal(ftruncate(words_fd, 0), 0);
    lseek(words_fd, 0, SEEK_SET);
    fflush(stderr);
    dup2(words_fd, STDERR_FILENO);
}

static const char *words_end(void)
{
    static char words[16384];
    ssize_t bytes;

    dup2(real_stderr, STDERR_FILENO);
    bytes = pread(words_fd, words, sizeof(words) - 1, 0);
    words[bytes < 0 ? 0 : bytes] = '\0';
    return words;
}

static unsigned words_count(const char *words, const char *what)
{
    unsigned count = 0;

    for (const char *at = words; (at = strstr(at, what)) != NULL; at++)
        count++;
    return count;
}

/* ---- two ends ---- */

/* "+ADDRESS": with acks when seen. */
static struct channel_options options_of(const char *address)
{
    bool seen = address != NULL && address[0] == '+';
    struct channel_options options = { .address = address + seen, .ring_bytes = RING_BYTES, .join_timeout_ns = 5 * NS_PER_S,
                                       .hello = { .vm = "guest", .generation = 7, .digest = { 1, 2, 3 } },
                                       .ack = seen ? CHANNEL_ACK_SEEN : CHANNEL_ACK_PLACED };

    return options;
}

struct opening {
    struct channel_options options;
    struct channel *channel;
    int result;
};

static void *open_receiver(void *argument)
{
    struct opening *opening = argument;

    opening->result = channel_open_receiver(&opening->channel, &opening->options);
    return NULL;
}

/* Opens both; the results tell what came of it. */
static void open_both(struct opening *sender, struct opening *receiver)
{
    pthread_t thread;

    pthread_create(&thread, NULL, open_receiver, receiver);
    sender->result = channel_open_sender(&sender->channel, &sender->options);
    pthread_join(thread, NULL);
}

static void open_pair(const char *address, struct channel **sender, struct channel **receiver)
{
    struct opening s = { .options = options_of(address) }, r = { .options = options_of(address) };

    open_both(&s, &r);
    assert_int_equal(s.result, 0);
    assert_int_equal(r.result, 0);
    *sender = s.channel;
    *receiver = r.channel;
}

static size_t size_of(uint64_t lsn)
{
    return lsn % 509 == 0 ? CHANNEL_PAYLOAD_MAX_BYTES - lsn % 64 : lsn * 2654435761u % 300;
}

static void fill(uint8_t *payload, uint64_t lsn)
{
    size_t bytes = size_of(lsn);

    for (size_t i = 0; i < bytes; i++)
        payload[i] = (uint8_t)(lsn * 31 + i);
}

static bool is_right(const struct channel_record *record, uint64_t lsn)
{
    const uint8_t *payload = record->payload;

    if (record->lsn != lsn || record->bytes != size_of(lsn) || record->kind != lsn % 5 || record->position != lsn * 100)
        return false;
    for (size_t i = 0; i < record->bytes; i++) {
        if (payload[i] != (uint8_t)(lsn * 31 + i))
            return false;
    }
    return true;
}

/* 0, or the errno of reserve. */
static int put_by(struct channel *sender, uint64_t (*commit)(struct channel *sender))
{
    uint64_t lsn = channel_committed_lsn(sender) + 1;
    void *payload;
    int result = channel_reserve(sender, (uint16_t)(lsn % 5), lsn * 100, size_of(lsn), &payload);

    if (result != 0)
        return result;
    fill(payload, lsn);
    assert_int_equal(commit(sender), lsn);
    return 0;
}

static int put(struct channel *sender)
{
    return put_by(sender, channel_commit);
}

static bool pause_until(uint64_t deadline_ns)
{
    clock_sleep_ns(20 * NS_PER_US);
    return clock_now_ns() < deadline_ns;
}

/* Takes records until channel_next says something else than "none yet" or `last` is reached. */
static int drain(struct channel *receiver, uint64_t *lsn, uint64_t last, uint64_t limit_ns)
{
    uint64_t deadline_ns = clock_now_ns() + limit_ns, beat_ns = 0;
    int result = -EAGAIN;

    while (*lsn < last) {
        struct channel_record record;

        channel_poll(receiver);
        result = channel_next(receiver, &record);
        if (result == -EAGAIN) {
            if (clock_now_ns() - beat_ns > 2 * NS_PER_MS) {
                channel_heartbeat(receiver);
                beat_ns = clock_now_ns();
            }
            if (!pause_until(deadline_ns))
                return -ETIMEDOUT;
            continue;
        }
        if (result != 0)
            return result;
        if (!is_right(&record, *lsn + 1))
            return -EILSEQ;
        (*lsn)++;
        channel_consume(receiver);
    }
    return 0;
}

struct draining {
    struct channel *receiver;
    uint64_t lsn, last;
    int result;
    _Atomic bool done;
};

static void *drain_thread(void *argument)
{
    struct draining *draining = argument;

    draining->result = drain(draining->receiver, &draining->lsn, draining->last, LIMIT_NS);
    atomic_store(&draining->done, true);
    return NULL;
}

/* ---- conformance: shm, tcp, verbs ---- */

static void records_arrive_whole_and_in_order(void **state)
{
    const uint64_t records = strstr(*state, "verbs") != NULL ? 4000 : 20000; /* an emulated host is slow */
    struct channel *sender, *receiver;
    struct channel_statistics sent, received;
    struct draining draining;
    uint64_t deadline_ns = clock_now_ns() + LIMIT_NS, beat_ns = 0;
    pthread_t thread;

    open_pair(*state, &sender, &receiver);
    draining = (struct draining){ .receiver = receiver, .last = records };
    pthread_create(&thread, NULL, drain_thread, &draining);
    while (channel_committed_lsn(sender) < records || channel_acked_lsn(sender) < records ||
           channel_consumed_lsn(sender) < records) {
        bool alone = (records - channel_committed_lsn(sender)) % 3 != 1; /* not the last one: a poll must do */
        int result = channel_committed_lsn(sender) < records ?
                         put_by(sender, alone ? channel_commit : channel_commit_with_next) :
                         -EAGAIN;

        assert_true(result == 0 || result == -EAGAIN);
        assert_int_equal(channel_poll(sender), 0);
        assert_true(channel_acked_lsn(sender) <= channel_committed_lsn(sender));
        if (clock_now_ns() - beat_ns > 2 * NS_PER_MS) {
            channel_heartbeat(sender);
            if (atomic_load(&draining.done)) { /* nobody else uses the receiver now; its last credits are due */
                channel_poll(receiver);
                channel_heartbeat(receiver);
            }
            beat_ns = clock_now_ns();
        }
        if (result == -EAGAIN)
            assert_true(pause_until(deadline_ns));
    }
    pthread_join(thread, NULL);
    assert_int_equal(draining.result, 0);
    channel_heartbeat(receiver);
    assert_int_equal(channel_consumed_lsn(receiver), records);
    channel_get_statistics(sender, &sent);
    channel_get_statistics(receiver, &received);
    assert_int_equal(sent.records, records);
    assert_int_equal(received.records, records);
    assert_int_equal(sent.record_bytes, received.record_bytes);
    assert_true(sent.writes > 0);
    channel_close(sender);
    channel_close(receiver);
}

static void full_ring_says_again_until_the_receiver_consumes(void **state)
{
    struct channel *sender, *receiver;
    struct channel_statistics statistics;
    uint64_t deadline_ns = clock_now_ns() + LIMIT_NS, lsn = 0;
    void *payload;
    int result;

    open_pair(*state, &sender, &receiver);
    assert_int_equal(channel_reserve(sender, 0, 0, CHANNEL_PAYLOAD_MAX_BYTES + 1, &payload), -EMSGSIZE);
    while ((result = put(sender)) == 0)
        assert_int_equal(channel_poll(sender), 0);
    assert_int_equal(result, -EAGAIN);
    channel_get_statistics(sender, &statistics);
    assert_true(statistics.stalls > 0);
    assert_true(statistics.record_bytes <= RING_BYTES && statistics.record_bytes > RING_BYTES / 2);
    while (lsn < channel_committed_lsn(sender) && clock_now_ns() < deadline_ns) {
        assert_int_equal(channel_poll(sender), 0); /* what its socket had no room for */
        result = drain(receiver, &lsn, channel_committed_lsn(sender), NS_PER_MS);
        assert_true(result == 0 || result == -ETIMEDOUT);
    }
    assert_int_equal(lsn, channel_committed_lsn(sender));
    while ((result = put(sender)) == -EAGAIN && pause_until(deadline_ns)) {
        channel_heartbeat(receiver);
        channel_heartbeat(sender);
        assert_int_equal(channel_poll(sender), 0);
    }
    assert_int_equal(result, 0);
    channel_close(sender);
    channel_close(receiver);
}

static void heartbeats_show_life_and_silence(void **state)
{
    struct channel *sender, *receiver;
    uint64_t deadline_ns = clock_now_ns() + LIMIT_NS, seen_by_sender_ns, seen_by_receiver_ns;

    open_pair(*state, &sender, &receiver);
    seen_by_sender_ns = channel_peer_seen_ns(sender);
    seen_by_receiver_ns = channel_peer_seen_ns(receiver);
    while (channel_peer_seen_ns(sender) == seen_by_sender_ns || channel_peer_seen_ns(receiver) == seen_by_receiver_ns) {
        channel_heartbeat(sender);
        channel_poll(sender);
        channel_heartbeat(receiver);
        assert_true(pause_until(deadline_ns));
    }
    clock_sleep_ns(50 * NS_PER_MS); /* what was on its way arrives */
    channel_heartbeat(sender);
    channel_poll(sender);
    seen_by_sender_ns = channel_peer_seen_ns(sender);
    for (int i = 0; i < 20; i++) { /* the receiver is silent */
        channel_heartbeat(sender);
        channel_poll(sender);
        clock_sleep_ns(2 * NS_PER_MS);
    }
    assert_int_equal(channel_peer_seen_ns(sender), seen_by_sender_ns);
    assert_true(clock_now_ns() - seen_by_sender_ns >= 40 * NS_PER_MS);
    channel_close(sender);
    channel_close(receiver);
}

static void the_receivers_word_reaches_the_sender_and_a_later_one_takes_its_place(void **state)
{
    static const uint64_t words[] = { 0, 0x1234567890abcdef, 1, UINT64_MAX };
    struct channel *sender, *receiver;

    open_pair(*state, &sender, &receiver);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        uint64_t until_ns = clock_now_ns() + 20 * NS_PER_S;

        channel_tell(receiver, words[i]);
        while (channel_told(sender) != words[i]) {
            assert_true(clock_now_ns() < until_ns);
            channel_heartbeat(receiver);
            channel_heartbeat(sender);
            (void)channel_poll(receiver);
            (void)channel_poll(sender);
            clock_sleep_ns(NS_PER_MS);
        }
        assert_int_equal(channel_told(receiver), words[i]); /* the sender's own heartbeats leave it alone */
    }
    channel_close(sender);
    channel_close(receiver);
}

/* A polling thread of the product (vmm/io_thread.c) with nothing to do. */
struct idling {
    struct channel *channel;
    _Atomic bool *both_done;
    unsigned beats;  /* of the peer's, noticed */
    uint64_t cpu_ns, wall_ns;
    _Atomic bool done;
};

#define IDLE_BEATS 40

static void *idle_thread(void *argument)
{
    static const struct idle_policy policy = { .spin_ns = 0, .sleep_ns = 50 * NS_PER_US };
    struct idling *idling = argument;
    struct idle idle = { 0 };
    uint64_t begin_ns = clock_now_ns(), beat_ns = 0, seen_ns = channel_peer_seen_ns(idling->channel);
    struct timespec cpu;

    while (!atomic_load(idling->both_done) && clock_now_ns() - begin_ns < LIMIT_NS) {
        uint64_t now_ns = clock_now_ns();

        channel_poll(idling->channel);
        if (now_ns - beat_ns >= 5 * NS_PER_MS) {
            channel_heartbeat(idling->channel);
            beat_ns = now_ns;
        }
        idling->beats += channel_peer_seen_ns(idling->channel) != seen_ns;
        seen_ns = channel_peer_seen_ns(idling->channel);
        if (idling->beats >= IDLE_BEATS)
            atomic_store(&idling->done, true);
        idle_wait(&idle, &policy);
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    idling->cpu_ns = (uint64_t)cpu.tv_sec * NS_PER_S + (uint64_t)cpu.tv_nsec;
    idling->wall_ns = clock_now_ns() - begin_ns;
    return NULL;
}

static void idle_pair_costs_little_and_its_heartbeats_flow(void **state)
{
    struct channel *sender, *receiver;
    _Atomic bool both_done = false;
    struct idling ends[2] = { { .both_done = &both_done }, { .both_done = &both_done } };
    uint64_t deadline_ns = clock_now_ns() + LIMIT_NS;
    pthread_t threads[2];

    open_pair(*state, &sender, &receiver);
    ends[0].channel = sender;
    ends[1].channel = receiver;
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, idle_thread, &ends[i]);
    while (!(atomic_load(&ends[0].done) && atomic_load(&ends[1].done)) && pause_until(deadline_ns))
        clock_sleep_ns(10 * NS_PER_MS);
    atomic_store(&both_done, true);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        print_message("idle %s: %.1f %% of a CPU, %u signs of life in %llu ms\n", i == 0 ? "sender" : "receiver",
                      100 * (double)ends[i].cpu_ns / (double)ends[i].wall_ns, ends[i].beats,
                      (unsigned long long)(ends[i].wall_ns / NS_PER_MS));
        assert_true(ends[i].beats >= IDLE_BEATS);
        /* It sleeps between its looks. How long they take is the machine's: an emulated one needs a third. */
        assert_true(ends[i].cpu_ns < ends[i].wall_ns / 2);
    }
    channel_close(sender);
    channel_close(receiver);
}

static void receiver_takes_over_the_generation(void **state)
{
    struct opening s = { .options = options_of(*state) }, r = { .options = options_of(*state) };

    r.options.hello.generation = 0;
    open_both(&s, &r);
    assert_true(s.result == 0 && r.result == 0);
    assert_int_equal(channel_peer(r.channel)->generation, 7);
    assert_int_equal(channel_peer(s.channel)->generation, 7);
    assert_string_equal(channel_peer(r.channel)->vm, "guest");
    assert_string_equal(channel_peer(s.channel)->vm, "guest");
    channel_close(s.channel);
    channel_close(r.channel);
}

static void misfits_are_refused_in_words_on_both_sides_and_a_good_sender_still_joins(void **state)
{
    static const char *const said[] = { "virtual machine", "generation", "digest", "ring" };
    struct opening r = { .options = options_of(*state) }, s;
    const char *words;
    pthread_t thread;

    words_begin();
    pthread_create(&thread, NULL, open_receiver, &r);
    for (int misfit = 0; misfit < 5; misfit++) {
        s = (struct opening){ .options = options_of(*state) };
        if (misfit == 0)
            snprintf(s.options.hello.vm, sizeof(s.options.hello.vm), "another");
        else if (misfit == 1)
            s.options.hello.generation = 8;
        else if (misfit == 2)
            s.options.hello.digest[15] = 1;
        else if (misfit == 3)
            s.options.ring_bytes = 2 * RING_BYTES;
        s.result = channel_open_sender(&s.channel, &s.options);
        if (misfit < 4 && s.result != -EPROTO)
            break;
    }
    pthread_join(thread, NULL);
    words = words_end();
    assert_int_equal(s.result, 0);
    assert_int_equal(r.result, 0);
    assert_int_equal(words_count(words, "sender refused"), 4);
    assert_int_equal(words_count(words, "receiver refuses us"), 4);
    for (unsigned i = 0; i < 4; i++)
        assert_true(words_count(words, said[i]) >= 2);
    channel_close(s.channel);
    channel_close(r.channel);
}

static void waiting_ends_at_the_time_out_and_when_cancelled(void **state)
{
    struct channel_options options = options_of(*state);
    struct channel *channel = NULL;
    bool cancel = true;
    uint64_t begin_ns = clock_now_ns();

    words_begin();
    options.join_timeout_ns = 200 * NS_PER_MS;
    assert_int_equal(channel_open_receiver(&channel, &options), -ETIMEDOUT);
    assert_int_equal(channel_open_sender(&channel, &options), -ETIMEDOUT);
    options.join_timeout_ns = UINT64_MAX;
    options.cancel = &cancel;
    assert_int_equal(channel_open_receiver(&channel, &options), -ECANCELED);
    assert_int_equal(channel_open_sender(&channel, &options), -ECANCELED);
    assert_null(channel);
    words_end();
    assert_true(clock_now_ns() - begin_ns < 4 * NS_PER_S);
}

/* The sender runs in a process of its own and tells here what it holds acks for. */
struct shared {
    _Atomic uint64_t acked;
    _Atomic bool stop;
    _Atomic int ended; /* the errno that made it stop */
};

/* A program of its own, not only a fork: uverbs takes no command from a process that did not open the device
 * itself, and librdmacm keeps devices open. */
static pid_t process_new(const char *role, const char *address, int shared_fd)
{
    char fd_text[16];
    pid_t pid = fork();

    if (pid == 0) {
        snprintf(fd_text, sizeof(fd_text), "%d", shared_fd);
        execl("/proc/self/exe", "test_links", role, address, fd_text, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static struct shared *shared_new(int *fd)
{
    struct shared *shared;

    *fd = memfd_create("shared", 0);
    assert_int_equal(ftruncate(*fd, sizeof(*shared)), 0);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    assert_true(shared != MAP_FAILED);
    return shared;
}

static void shared_delete(struct shared *shared, int fd)
{
    munmap(shared, sizeof(*shared));
    close(fd);
}

static int sender_main(const char *address, struct shared *shared)
{
    struct channel_options options = options_of(address);
    struct channel *sender = NULL;
    uint64_t beat_ns = 0;
    int result = channel_open_sender(&sender, &options);

    while (result == 0 || result == -EAGAIN) {
        int polled = channel_poll(sender);

        atomic_store(&shared->acked, channel_acked_lsn(sender));
        if (polled != 0) {
            result = polled;
            break;
        }
        if (clock_now_ns() - beat_ns > 2 * NS_PER_MS) {
            channel_heartbeat(sender);
            beat_ns = clock_now_ns();
        }
        result = put(sender);
        if (result == -EAGAIN)
            clock_sleep_ns(50 * NS_PER_US);
    }
    for (int i = 0; sender != NULL && i < 20; i++) { /* acks that come late would count, too */
        channel_poll(sender);
        atomic_store(&shared->acked, channel_acked_lsn(sender));
        clock_sleep_ns(NS_PER_MS);
    }
    atomic_store(&shared->ended, result);
    channel_close(sender);
    return 0;
}

static int receiver_main(const char *address)
{
    struct channel_options options = options_of(address);
    struct channel *receiver;
    uint64_t lsn = 0;

    if (channel_open_receiver(&receiver, &options) == 0)
        drain(receiver, &lsn, UINT64_MAX, LIMIT_NS);
    return 1;
}

static void every_acked_record_survives_the_senders_sigkill(void **state)
{
    for (uint64_t round = 0; round < 5; round++) {
        int fd;
        struct shared *shared = shared_new(&fd);
        struct channel_options options = options_of(*state);
        struct channel *receiver;
        uint64_t lsn = 0;
        pid_t pid = process_new("sender", *state, fd);

        assert_int_equal(channel_open_receiver(&receiver, &options), 0);
        assert_int_equal(drain(receiver, &lsn, 300 + 777 * round, LIMIT_NS), 0);
        while (atomic_load(&shared->acked) == 0)
            assert_int_equal(drain(receiver, &lsn, lsn + 1, LIMIT_NS), 0);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        assert_int_equal(channel_fence(receiver), 0);
        assert_int_equal(channel_fence(receiver), 0);
        assert_int_equal(drain(receiver, &lsn, UINT64_MAX, LIMIT_NS), -ENODATA);
        assert_true(lsn >= atomic_load(&shared->acked));
        assert_int_equal(drain(receiver, &lsn, UINT64_MAX, LIMIT_NS), -ENODATA);
        channel_close(receiver);
        shared_delete(shared, fd);
    }
}

static void fence_shuts_a_living_sender_out_and_loses_no_acked_record(void **state)
{
    for (uint64_t round = 0; round < 5; round++) {
        int fd;
        struct shared *shared = shared_new(&fd);
        struct channel_options options = options_of(*state);
        struct channel *receiver;
        uint64_t lsn = 0, delivered;
        pid_t pid = process_new("sender", *state, fd);

        assert_int_equal(channel_open_receiver(&receiver, &options), 0);
        assert_int_equal(drain(receiver, &lsn, 200 + 555 * round, LIMIT_NS), 0);
        assert_int_equal(channel_fence(receiver), 0);
        assert_int_equal(drain(receiver, &lsn, UINT64_MAX, LIMIT_NS), -ENODATA);
        delivered = lsn;
        waitpid(pid, NULL, 0); /* it notices: -EPIPE */
        assert_int_equal(atomic_load(&shared->ended), -EPIPE);
        assert_true(delivered >= atomic_load(&shared->acked));
        assert_int_equal(drain(receiver, &lsn, UINT64_MAX, LIMIT_NS), -ENODATA);
        channel_close(receiver);
        shared_delete(shared, fd);
    }
}

static void receivers_death_is_a_hint_to_the_sender(void **state)
{
    int fd;
    struct shared *shared = shared_new(&fd);
    pid_t receiver = process_new("receiver", *state, fd);
    pid_t sender = process_new("sender", *state, fd);

    for (uint64_t deadline_ns = clock_now_ns() + LIMIT_NS; atomic_load(&shared->acked) < 100;)
        assert_true(pause_until(deadline_ns));
    kill(receiver, SIGKILL);
    waitpid(receiver, NULL, 0);
    waitpid(sender, NULL, 0);
    assert_int_equal(atomic_load(&shared->ended), -EPIPE);
    shared_delete(shared, fd);
}

/* ---- shm alone ---- */

static void shm_name_is_one_receivers_alone_and_free_again_after_its_death(void **state)
{
    struct channel_options options = options_of(*state);
    struct opening s = { .options = options_of(*state) }, r = { .options = options_of(*state) };
    struct channel *channel;
    int fd;
    struct shared *shared = shared_new(&fd);
    pid_t pid = process_new("receiver", *state, fd);

    words_begin();
    assert_int_equal(channel_open_sender(&channel, &options), 0); /* it has a sender now, and keeps the name */
    assert_int_equal(channel_open_receiver(&r.channel, &r.options), -EADDRINUSE);
    assert_non_null(strstr(words_end(), "another receiver has this address"));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    words_begin();
    options.join_timeout_ns = 100 * NS_PER_MS;
    assert_int_equal(channel_open_sender(&s.channel, &options), -ETIMEDOUT);
    assert_non_null(strstr(words_end(), "no receiver listens there"));
    open_both(&s, &r);
    assert_true(s.result == 0 && r.result == 0);
    channel_close(s.channel);
    channel_close(r.channel);
    channel_close(channel);
    shared_delete(shared, fd);
}

static void shm_damage_stops_the_receiver_for_good(void **state)
{
    struct channel *sender, *receiver;
    struct channel_record record;
    void *payload;

    open_pair(*state, &sender, &receiver);
    assert_int_equal(put(sender), 0);
    assert_int_equal(channel_reserve(sender, 0, 0, 100, &payload), 0);
    memset(payload, 1, 100);
    assert_int_equal(channel_commit(sender), 2);
    ((uint8_t *)payload)[50] ^= 0x10;
    assert_int_equal(put(sender), 0);
    assert_int_equal(channel_next(receiver, &record), 0);
    channel_consume(receiver);
    words_begin();
    assert_int_equal(channel_next(receiver, &record), -EBADMSG);
    assert_non_null(strstr(words_end(), "record 2 is damaged"));
    ((uint8_t *)payload)[50] ^= 0x10;
    assert_int_equal(channel_next(receiver, &record), -EBADMSG);
    channel_close(sender);
    channel_close(receiver);
}

/* ---- verbs alone ---- */

/* The key of another ring, with the place of ours, then of that one. The device refuses it, and says so; what was to be
 * written is written to its own ring as soon as the two have joined again. */
static void verbs_foreign_rkey_is_refused_in_words_without_keys(void **state)
{
    for (int with_place = 0; with_place < 2; with_place++) {
        uint64_t deadline_ns = clock_now_ns() + LIMIT_NS, lsn = 0, beat_ns = 0;
        int fd;
        struct shared *shared = shared_new(&fd);
        pid_t pid = process_new("receiver", verbs_other_address, fd); /* in one process all rings are of one domain */
        struct channel_options options = options_of(verbs_other_address);
        struct channel *other, *sender, *receiver;
        struct channel_record record;
        struct channel_statistics statistics;
        struct verbs_link *link;
        const char *words;
        char key[24];

        assert_int_equal(channel_open_sender(&other, &options), 0);
        open_pair(*state, &sender, &receiver);
        link = (struct verbs_link *)sender;
        for (int i = 0; i < 2; i++)
            link->ring_writes[i].wr.rdma.rkey = ((struct verbs_link *)other)->now.peer.ring_rkey;
        if (with_place)
            link->now.peer.ring_address = ((struct verbs_link *)other)->now.peer.ring_address;
        words_begin();
        assert_int_equal(put(sender), 0);
        while (channel_poll(sender) == 0)
            assert_true(pause_until(deadline_ns));
        assert_int_equal(channel_acked_lsn(sender), 0);
        assert_int_equal(channel_next(receiver, &record), -EAGAIN);
        while (lsn < 1) {
            channel_poll(sender);
            if (clock_now_ns() - beat_ns > 2 * NS_PER_MS) {
                channel_heartbeat(sender);
                beat_ns = clock_now_ns();
            }
            assert_true(drain(receiver, &lsn, 1, NS_PER_MS) != -EILSEQ && pause_until(deadline_ns));
        }
        words = words_end();
        assert_non_null(strstr(words, "remote access error"));
        snprintf(key, sizeof(key), "%llu", (unsigned long long)link->key);
        assert_null(strstr(words, key));
        snprintf(key, sizeof(key), "%llx", (unsigned long long)link->key);
        assert_null(strstr(words, key));
        channel_get_statistics(receiver, &statistics);
        assert_true(statistics.resumes >= 1 && statistics.damaged == 0);
        channel_close(sender);
        channel_close(receiver);
        /* The other ring has got nothing: its first record is its own, and right. */
        assert_int_equal(put(other), 0);
        while (channel_consumed_lsn(other) < 1) {
            assert_int_equal(channel_poll(other), 0);
            channel_heartbeat(other);
            clock_sleep_ns(2 * NS_PER_MS);
            assert_true(pause_until(deadline_ns));
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        channel_close(other);
        shared_delete(shared, fd);
    }
}

/* ---- file alone ---- */

static void write_log(uint64_t records)
{
    struct channel_options options = options_of(file_address);
    struct channel *sender;

    assert_int_equal(channel_open_sender(&sender, &options), 0);
    for (uint64_t lsn = 1; lsn <= records; lsn++) {
        assert_int_equal(put(sender), 0);
        assert_int_equal(channel_acked_lsn(sender), lsn);
        assert_int_equal(channel_poll(sender), 0);
    }
    channel_close(sender);
}

/* Reads all of the log: how many records, and how it ended (or could not be opened). */
static int read_log(uint64_t *records)
{
    struct channel_options options = options_of(file_address);
    struct channel *receiver;
    int result = channel_open_receiver(&receiver, &options);

    *records = 0;
    if (result != 0)
        return result;
    result = drain(receiver, records, UINT64_MAX, LIMIT_NS);
    assert_int_equal(drain(receiver, records, UINT64_MAX, LIMIT_NS), result); /* and stays so */
    assert_int_equal(channel_consumed_lsn(receiver), *records);
    channel_close(receiver);
    return result;
}

static void file_holds_every_record(void **state)
{
    static const uint64_t counts[] = { 0, 1, 2, 508, 509, 30000 };
    uint64_t records;

    (void)state;
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        write_log(counts[i]);
        assert_int_equal(read_log(&records), -ENODATA);
        assert_int_equal(records, counts[i]);
    }
}

static void file_is_on_disk_100_ms_after_the_commit(void **state)
{
    struct channel_options options = options_of(file_address);
    struct channel *sender;
    struct stat status;
    uint64_t deadline_ns = clock_now_ns() + LIMIT_NS, records;

    (void)state;
    assert_int_equal(channel_open_sender(&sender, &options), 0);
    assert_int_equal(put(sender), 0);
    do {
        assert_int_equal(channel_poll(sender), 0);
        assert_int_equal(stat(file_path, &status), 0);
        assert_true(pause_until(deadline_ns));
    } while (status.st_size <= 128);
    assert_int_equal(read_log(&records), -ENODATA); /* read while it is being written */
    assert_int_equal(records, 1);
    words_begin();
    assert_int_equal(channel_open_sender(&(struct channel *){ NULL }, &options), -EBUSY);
    words_end();
    channel_close(sender);
}

/* Who commits never waits for the disk, if so asked: it finds the buffer full until the polling thread has written. */
static void file_that_its_poller_writes_gets_full(void **state)
{
    struct channel_options options = options_of(file_address);
    uint64_t records = 0, read;
    struct channel *sender;
    struct stat status;
    int result;

    (void)state;
    options.file_poller_writes = true;
    options.ring_bytes = 1u << 20;
    assert_int_equal(channel_open_sender(&sender, &options), 0);
    while ((result = put(sender)) == 0)
        records++;
    assert_int_equal(result, -EAGAIN);
    assert_true(records > 1000);
    assert_int_equal(stat(file_path, &status), 0);
    assert_int_equal(status.st_size, 128);
    assert_int_equal(channel_poll(sender), 0);
    assert_int_equal(put(sender), 0);
    records++;
    channel_close(sender);
    assert_int_equal(read_log(&read), -ENODATA);
    assert_int_equal(read, records);
}

static void file_cut_off_anywhere_gives_the_records_before_and_says_so(void **state)
{
    struct stat status;
    uint64_t records, before = 50;

    (void)state;
    write_log(50);
    assert_int_equal(stat(file_path, &status), 0);
    for (off_t bytes = status.st_size - 1; bytes > 128; bytes -= bytes % 64 == 0 ? 1 : bytes % 64 == 1 ? 1 : 31) {
        int result;

        assert_int_equal(truncate(file_path, bytes), 0);
        words_begin();
        result = read_log(&records);
        if (result != -ENODATA || records > before)
            fail_msg("cut at %lld: %d, %llu records: %s", (long long)bytes, result, (unsigned long long)records,
                     words_end());
        before = records;
        if (bytes % 64 != 0)
            assert_non_null(strstr(words_end(), "cut off at offset"));
        else
            words_end();
    }
    assert_int_equal(before, 0);
    assert_int_equal(truncate(file_path, 127), 0);
    words_begin();
    assert_int_equal(read_log(&records), -EPROTO);
    assert_non_null(strstr(words_end(), "no log of ftvmm"));
}

static void file_damaged_anywhere_is_noticed(void **state)
{
    struct stat status;
    uint64_t records;
    int fd;

    (void)state;
    write_log(20);
    assert_int_equal(stat(file_path, &status), 0);
    fd = open(file_path, O_RDWR);
    for (off_t at = 0; at < status.st_size; at++) {
        uint8_t byte;
        int result;

        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x20;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        words_begin();
        result = read_log(&records);
        if (!((result == -EBADMSG || (result == -EPROTO && at < 128)) && records < 20))
            fail_msg("byte %lld changed: %d, %llu records: %s", (long long)at, result, (unsigned long long)records,
                     words_end());
        if (at >= 128)
            assert_non_null(strstr(words_end(), "damaged at offset"));
        else
            words_end();
        byte ^= 0x20;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
    assert_int_equal(read_log(&records), -ENODATA);
    assert_int_equal(records, 20);
}

static void file_of_another_machine_is_refused(void **state)
{
    struct channel_options options = options_of(file_address);
    struct channel *receiver;
    uint32_t version = 99;
    int fd;

    (void)state;
    write_log(1);
    words_begin();
    options.hello.vm[0] = 'h';
    assert_int_equal(channel_open_receiver(&receiver, &options), -EPROTO);
    options = options_of(file_address);
    options.hello.generation = 9;
    assert_int_equal(channel_open_receiver(&receiver, &options), -EPROTO);
    options.hello.generation = 0;
    assert_int_equal(channel_open_receiver(&receiver, &options), 0);
    assert_int_equal(channel_peer(receiver)->generation, 7);
    channel_close(receiver);
    options.hello.digest[3] ^= 1;
    assert_int_equal(channel_open_receiver(&receiver, &options), -EPROTO);
    fd = open(file_path, O_RDWR);
    assert_int_equal(pwrite(fd, &version, sizeof(version), 8), (ssize_t)sizeof(version));
    close(fd);
    options = options_of(file_address);
    assert_int_equal(channel_open_receiver(&receiver, &options), -EPROTO);
    options.address = "file:/nonexistent/log";
    assert_int_equal(channel_open_receiver(&receiver, &options), -ENOENT);
    assert_int_equal(channel_open_sender(&receiver, &options), -ENOENT);
    assert_non_null(strstr(words_end(), "it speaks version 99"));
}

static void file_of_any_machine_opens_for_who_only_looks(void **state)
{
    struct channel_options options = options_of(file_address);
    struct channel_record record;
    struct channel *log;
    uint64_t records = 0;
    uint32_t version = 99;
    int fd;

    (void)state;
    write_log(30);
    assert_int_equal(channel_open_log(&log, file_path), 0);
    assert_string_equal(channel_peer(log)->vm, options.hello.vm);
    assert_int_equal(channel_peer(log)->generation, options.hello.generation);
    assert_memory_equal(channel_peer(log)->digest, options.hello.digest, sizeof(options.hello.digest));
    while (channel_next(log, &record) == 0) {
        assert_int_equal(record.lsn, ++records);
        channel_consume(log);
    }
    assert_int_equal(records, 30);
    channel_close(log);
    fd = open(file_path, O_RDWR);
    assert_int_equal(pwrite(fd, &version, sizeof(version), 8), (ssize_t)sizeof(version));
    close(fd);
    words_begin();
    assert_int_equal(channel_open_log(&log, file_path), -EPROTO);
    assert_null(log);
    assert_int_equal(channel_open_log(&log, "/nonexistent/log"), -ENOENT);
    assert_non_null(strstr(words_end(), "it speaks version 99"));
}

static void file_on_a_full_disk_breaks_the_link_in_words(void **state)
{
    struct channel_options options = options_of("file:/dev/full");
    struct channel *sender = NULL;

    (void)state;
    words_begin();
    assert_int_not_equal(channel_open_sender(&sender, &options), 0);
    assert_non_null(strstr(words_end(), "cannot write the log"));
}

/* ---- addresses ---- */

static void bad_options_are_refused_in_words(void **state)
{
    static const char *const addresses[] = { "", "udp:1.2.3.4:5", "shm:", "tcp:", "tcp:host", "tcp:127.0.0.1:0", "verbs:", "verbs:host",
                                             "verbs:127.0.0.1:0", "verbs:127.0.0.1:70000", "verbs:127.0.0.1:x",
                                             "verbs::5", NULL };
    static const size_t rings[] = { 0, 4096, (1u << 20) + 4096, 3u << 20, SIZE_MAX };
    struct channel *channel;

    (void)state;
    for (unsigned i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
        struct channel_options options = options_of(addresses[i]);

        words_begin();
        assert_int_equal(channel_open_sender(&channel, &options), -EINVAL);
        assert_int_equal(channel_open_receiver(&channel, &options), -EINVAL);
        assert_int_equal(words_count(words_end(), "address '"), 2);
    }
    for (unsigned i = 0; i < sizeof(rings) / sizeof(rings[0]); i++) {
        struct channel_options options = options_of("shm:x");

        options.ring_bytes = rings[i];
        words_begin();
        assert_int_equal(channel_open_sender(&channel, &options), -EINVAL);
        assert_non_null(strstr(words_end(), "power of two"));
    }
    channel_close(NULL);
}

static void address_without_rdma_gives_a_sentence_with_the_remedy(void **state)
{
    struct channel_options options = options_of("verbs:127.0.0.1:18515");
    struct channel *channel = NULL;
    const char *words;

    (void)state;
    options.join_timeout_ns = 200 * NS_PER_MS;
    words_begin();
    assert_int_equal(channel_open_receiver(&channel, &options), -ENODEV);
    if (verbs_address[0] == '\0') /* a host with rxe may reach its own 127.0.0.1 through it */
        assert_int_equal(channel_open_sender(&channel, &options), -ENODEV);
    words = words_end();
    assert_non_null(strstr(words, "rdma link add rxe0 type rxe netdev IFACE"));
    assert_non_null(strstr(words, "shm:"));
    assert_null(channel);
}

#define CONFORMANCE(address)                                                                                           \
    { #address ": records arrive whole and in order", records_arrive_whole_and_in_order, NULL, NULL, address },        \
    { #address ": full ring says again", full_ring_says_again_until_the_receiver_consumes, NULL, NULL, address },      \
    { #address ": heartbeats show life and silence", heartbeats_show_life_and_silence, NULL, NULL, address },          \
    { #address ": the receiver's word", the_receivers_word_reaches_the_sender_and_a_later_one_takes_its_place, NULL,    \
      NULL, address },                                                                                                 \
    { #address ": idle pair costs little", idle_pair_costs_little_and_its_heartbeats_flow, NULL, NULL, address },      \
    { #address ": receiver takes over the generation", receiver_takes_over_the_generation, NULL, NULL, address },      \
    { #address ": misfits are refused in words on both sides",                                                         \
      misfits_are_refused_in_words_on_both_sides_and_a_good_sender_still_joins, NULL, NULL, address },                 \
    { #address ": waiting ends at the time-out and when cancelled",                                                    \
      waiting_ends_at_the_time_out_and_when_cancelled, NULL, NULL, address },                                          \
    { #address ": every acked record survives the sender's SIGKILL",                                                   \
      every_acked_record_survives_the_senders_sigkill, NULL, NULL, address },                                          \
    { #address ": fence shuts a living sender out", fence_shuts_a_living_sender_out_and_loses_no_acked_record, NULL,   \
      NULL, address },                                                                                                 \
    { #address ": receiver's death is a hint to the sender", receivers_death_is_a_hint_to_the_sender, NULL, NULL,      \
      address }

int main(int argc, char **argv)
{
    const struct CMUnitTest anywhere[] = {
        cmocka_unit_test(bad_options_are_refused_in_words),
        cmocka_unit_test(address_without_rdma_gives_a_sentence_with_the_remedy),
        cmocka_unit_test(file_holds_every_record),
        cmocka_unit_test(file_is_on_disk_100_ms_after_the_commit),
        cmocka_unit_test(file_that_its_poller_writes_gets_full),
        cmocka_unit_test(file_cut_off_anywhere_gives_the_records_before_and_says_so),
        cmocka_unit_test(file_damaged_anywhere_is_noticed),
        cmocka_unit_test(file_of_another_machine_is_refused),
        cmocka_unit_test(file_of_any_machine_opens_for_who_only_looks),
        cmocka_unit_test(file_on_a_full_disk_breaks_the_link_in_words),
        CONFORMANCE(shm_address),
        CONFORMANCE(shm_seen_address),
        CONFORMANCE(tcp_address),
        cmocka_unit_test_prestate(shm_name_is_one_receivers_alone_and_free_again_after_its_death, shm_address),
        cmocka_unit_test_prestate(shm_damage_stops_the_receiver_for_good, shm_address),
    };
    const struct CMUnitTest verbs[] = {
        CONFORMANCE(verbs_address),
        CONFORMANCE(verbs_seen_address),
        cmocka_unit_test_prestate(verbs_foreign_rkey_is_refused_in_words_without_keys, verbs_address),
    };
    const char *rdma = getenv("FTVMM_TEST_VERBS");
    int failed;

    if (argc == 4) { /* process_new */
        struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0);

        if (shared == MAP_FAILED)
            return 99;
        return strcmp(argv[1], "sender") == 0 ? sender_main(argv[2], shared) : receiver_main(argv[2]);
    }
    snprintf(directory, sizeof(directory), "/tmp/ftvmm-links-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return 99;
    snprintf(words_path, sizeof(words_path), "%s/words", directory);
    snprintf(file_path, sizeof(file_path), "%s/log", directory);
    snprintf(file_address, sizeof(file_address), "file:%s", file_path);
    snprintf(shm_address, sizeof(shm_address), "shm:test-links-%d", (int)getpid());
    words_fd = open(words_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    real_stderr = dup(STDERR_FILENO);
    /* A port of our own, below those that the kernel gives to clients. */
    snprintf(tcp_address, sizeof(tcp_address), "tcp:127.0.0.1:%d", 20000 + (int)getpid() % 10000);
    if (rdma != NULL)
        snprintf(verbs_address, sizeof(verbs_address), "verbs:%s:18515", rdma);
    if (rdma != NULL)
        snprintf(verbs_other_address, sizeof(verbs_other_address), "verbs:%s:18516", rdma);
    snprintf(shm_seen_address, sizeof(shm_seen_address), "+%s", shm_address);
    snprintf(verbs_seen_address, sizeof(verbs_seen_address), "+%s", verbs_address);
    failed = cmocka_run_group_tests_name("anywhere", anywhere, NULL, NULL);
    if (rdma != NULL)
        failed += cmocka_run_group_tests_name("verbs", verbs, NULL, NULL);
    else
        printf("verbs conformance skipped: FTVMM_TEST_VERBS does not name an address on an RDMA device\n");
    unlink(words_path);
    unlink(file_path);
    rmdir(directory);
    return failed;
}
