/*
 * kill -9 of either end at random moments, each end a process of its own: the survivor knows within its heartbeat
 * limit, and every record that was acked is in the receiver's ring, whole and in order.
 *
 * For any link, given by an address with a number in it; see `links` below. with FTVMM_TEST_VERBS=ADDRESS for
 * verbs alone, on an address of this host that is on an RDMA device. FTVMM_TEST_SOAK=N makes N times as many rounds.
 */
#include "base/clock.h"
#include "channel/channel.h"

#include "../cmocka_prelude.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS          200u
#define RING_BYTES      (1u << 20)
#define BEAT_NS         (2 * NS_PER_MS)
#define SILENCE_NS      (100 * NS_PER_MS) /* after which an end takes its peer for dead */
#define LAST_MOMENT_NS  (40 * NS_PER_MS)  /* after the first record */
#define LIMIT_NS        (20 * NS_PER_S)   /* of anything here */
#define CLOCK_GRAIN_NS  NS_PER_MS         /* between a look at the clock and what is done with it */
/* What was under way when its sender died is a sign of life when it comes: a socket's worth of records, or a write that
 * soft-RoCE's threads carry out. A busy machine lets them wait, unseen by either end; half of the rounds it does not. */
#define TRAVEL_NS       NS_PER_S
#define MEDIAN_MAX_NS   (SILENCE_NS * 3 / 2)

enum who { SENDER, RECEIVER };

/* What an end tells the test; outlives it. */
struct told {
    _Atomic uint64_t acked, delivered;
    _Atomic uint64_t hint_ns; /* when channel_poll first said that the link is down */
    _Atomic uint64_t knew_ns; /* when the silence had lasted SILENCE_NS */
    _Atomic uint64_t gap_ns;  /* the longest that this end stood still itself */
    _Atomic int result;       /* receiver: how the drain ended */
};

static char verbs_link[96];

/* ---- records: what the LSN makes them ---- */

static size_t size_of(uint64_t lsn)
{
    return lsn % 251 == 0 ? lsn * 977 % CHANNEL_PAYLOAD_MAX_BYTES : lsn * 2654435761u % 300;
}

static uint8_t byte_of(uint64_t lsn, size_t i)
{
    return (uint8_t)(lsn * 31 + i * 7);
}

static bool is_right(const struct channel_record *record, uint64_t lsn)
{
    if (record->lsn != lsn || record->bytes != size_of(lsn) || record->kind != lsn % 5 || record->position != lsn * 100)
        return false;
    for (size_t i = 0; i < record->bytes; i++)
        if (((const uint8_t *)record->payload)[i] != byte_of(lsn, i))
            return false;
    return true;
}

/* ---- one end ---- */

struct end {
    struct channel *channel;
    struct told *told;
    uint64_t looked_ns, beat_ns;
};

/* Heartbeats, hints, silence. False: the peer counts as dead. */
static bool end_lives(struct end *end)
{
    uint64_t now_ns = clock_now_ns();

    if (now_ns - end->looked_ns > atomic_load(&end->told->gap_ns))
        atomic_store(&end->told->gap_ns, now_ns - end->looked_ns);
    end->looked_ns = now_ns;
    if (now_ns - end->beat_ns < BEAT_NS)
        return true;
    end->beat_ns = now_ns;
    channel_heartbeat(end->channel);
    if (channel_poll(end->channel) != 0 && atomic_load(&end->told->hint_ns) == 0)
        atomic_store(&end->told->hint_ns, now_ns);
    /* Somebody who was seen a moment ago may be "later than now". */
    if ((int64_t)(now_ns - channel_peer_seen_ns(end->channel)) < (int64_t)SILENCE_NS)
        return true;
    atomic_store(&end->told->knew_ns, clock_now_ns());
    return false;
}

static int sender_main(struct end *end)
{
    uint64_t lsn = 1;

    while (end_lives(end)) {
        void *payload;

        if (channel_poll(end->channel) == 0 &&
            channel_reserve(end->channel, (uint16_t)(lsn % 5), lsn * 100, size_of(lsn), &payload) == 0) {
            for (size_t i = 0; i < size_of(lsn); i++)
                ((uint8_t *)payload)[i] = byte_of(lsn, i);
            lsn = channel_commit(end->channel) + 1;
        } else {
            clock_sleep_ns(50 * NS_PER_US);
        }
        atomic_store(&end->told->acked, channel_acked_lsn(end->channel));
    }
    for (int i = 0; i < 20; i++) { /* acks that come late would count, too */
        channel_poll(end->channel);
        atomic_store(&end->told->acked, channel_acked_lsn(end->channel));
        clock_sleep_ns(NS_PER_MS);
    }
    return 0;
}

/* Takes what is there. 0: nothing more at present. */
static int take(struct end *end)
{
    for (;;) {
        struct channel_record record;
        int result = channel_next(end->channel, &record);

        if (result != 0)
            return result == -EAGAIN ? 0 : result;
        if (!is_right(&record, atomic_load(&end->told->delivered) + 1))
            return -EILSEQ;
        channel_consume(end->channel);
        atomic_fetch_add(&end->told->delivered, 1);
        if (!atomic_load(&end->told->knew_ns) && !end_lives(end))
            return 0;
    }
}

static int receiver_main(struct end *end)
{
    uint64_t give_up_ns = clock_now_ns() + LIMIT_NS;
    int result = 0;

    while (result == 0 && atomic_load(&end->told->knew_ns) == 0 && end_lives(end)) {
        result = take(end);
        clock_sleep_ns(20 * NS_PER_US);
    }
    if (result == 0)
        result = channel_fence(end->channel);
    while (result == 0 && clock_now_ns() < give_up_ns)
        result = take(end);
    atomic_store(&end->told->result, result);
    return 0;
}

static int end_main(const char *role, const char *address, int fd)
{
    struct channel_options options = { .address = address, .ring_bytes = RING_BYTES, .join_timeout_ns = LIMIT_NS,
                                       .hello = { .vm = "guest", .generation = 7 } };
    struct told *told = mmap(NULL, 2 * sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    enum who who = strcmp(role, "sender") == 0 ? SENDER : RECEIVER;
    struct end end = { .told = told == MAP_FAILED ? NULL : &told[who] };
    int result;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (told == MAP_FAILED)
        return 99;
    result = who == SENDER ? channel_open_sender(&end.channel, &options) :
                             channel_open_receiver(&end.channel, &options);
    if (result != 0)
        return 98;
    end.looked_ns = clock_now_ns();
    result = who == SENDER ? sender_main(&end) : receiver_main(&end);
    channel_close(end.channel);
    return result;
}

/* A program of its own, not only a fork: uverbs takes no command from a process that did not open the device
 * itself. Its words are not the test's. */
static pid_t end_new(enum who who, const char *address, int fd)
{
    char fd_text[16];
    pid_t pid = fork();

    if (pid == 0) {
        snprintf(fd_text, sizeof(fd_text), "%d", fd);
        if (freopen("/dev/null", "w", stderr) != NULL)
            execl("/proc/self/exe", "test_kill", who == SENDER ? "sender" : "receiver", address, fd_text,
                  (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* ---- the rounds ---- */

/* Waits for a process, at most LIMIT_NS; kills it then. Its status. */
static int end_await(pid_t pid)
{
    uint64_t give_up_ns = clock_now_ns() + LIMIT_NS;
    int status = 0;

    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (clock_now_ns() > give_up_ns)
            kill(pid, SIGKILL);
        clock_sleep_ns(200 * NS_PER_US);
    }
    return status;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void survivor_knows_and_has_all_that_was_acked(void **state)
{
    const char *format = *state, *soak = getenv("FTVMM_TEST_SOAK");
    uint64_t seed = test_seed(format), rounds = ROUNDS * (soak != NULL && atoi(soak) > 0 ? (uint64_t)atoi(soak) : 1);
    uint64_t *took_ns = calloc(rounds, sizeof(*took_ns)), records = 0, early = 0, timed = 0, hints = 0;

    for (uint64_t round = 0; round < rounds; round++) {
        enum who victim = test_random(&seed) % 2 == 0 ? SENDER : RECEIVER, survivor = 1 - victim;
        uint64_t moment_ns = test_random(&seed) % LAST_MOMENT_NS, give_up_ns = clock_now_ns() + LIMIT_NS, dead_ns;
        int fd = memfd_create("told", 0), status;
        struct told *told;
        char address[128];
        pid_t pids[2];

        assert_int_equal(ftruncate(fd, 2 * sizeof(*told)), 0);
        told = mmap(NULL, 2 * sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_true(told != MAP_FAILED);
        /* Another number each round: a dead end's port or name may take a while to be free. */
        snprintf(address, sizeof(address), format, 20000 + (unsigned)((uint64_t)getpid() * 977 + round) % 12000);
        pids[RECEIVER] = end_new(RECEIVER, address, fd);
        pids[SENDER] = end_new(SENDER, address, fd);
        while (atomic_load(&told[RECEIVER].delivered) == 0 && atomic_load(&told[RECEIVER].knew_ns) == 0 &&
               clock_now_ns() < give_up_ns)
            clock_sleep_ns(100 * NS_PER_US);
        clock_sleep_ns(moment_ns);
        kill(pids[victim], SIGKILL);
        end_await(pids[victim]);
        dead_ns = clock_now_ns();
        status = end_await(pids[survivor]);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail_msg("round %llu: the survivor (%s) ended with status 0x%x", (unsigned long long)round,
                     survivor == SENDER ? "sender" : "receiver", (unsigned)status);
        assert_true(atomic_load(&told[RECEIVER].delivered) > 0 || atomic_load(&told[RECEIVER].knew_ns) != 0);
        if (survivor == RECEIVER) {
            if (atomic_load(&told[RECEIVER].result) != -ENODATA ||
                atomic_load(&told[RECEIVER].delivered) < atomic_load(&told[SENDER].acked))
                fail_msg("round %llu: drained with %d; acked %llu, delivered %llu", (unsigned long long)round,
                         atomic_load(&told[RECEIVER].result), (unsigned long long)atomic_load(&told[SENDER].acked),
                         (unsigned long long)atomic_load(&told[RECEIVER].delivered));
        }
        records += atomic_load(&told[RECEIVER].delivered);
        hints += atomic_load(&told[survivor].hint_ns) != 0;
        if (atomic_load(&told[survivor].knew_ns) < dead_ns) {
            early++; /* this machine stood still: silence is not death; what was acked had to be there all the same */
        } else {
            uint64_t took = atomic_load(&told[survivor].knew_ns) - dead_ns;
            uint64_t travel_ns = strncmp(format, "shm", 3) == 0 ? 0 : TRAVEL_NS;

            /* Each of both, seeing the last sign and finding the silence long enough, is up to a beat late. */
            if (took > SILENCE_NS + 2 * (BEAT_NS + atomic_load(&told[survivor].gap_ns)) + CLOCK_GRAIN_NS +
                           travel_ns)
                fail_msg("round %llu: the survivor knew after %llu us, having stood still for %llu us at most",
                         (unsigned long long)round, (unsigned long long)(took / NS_PER_US),
                         (unsigned long long)(atomic_load(&told[survivor].gap_ns) / NS_PER_US));
            took_ns[timed++] = took;
        }
        munmap(told, 2 * sizeof(*told));
        close(fd);
    }
    qsort(took_ns, timed, sizeof(*took_ns), compare);
    assert_true(timed > rounds / 2);
    assert_true(took_ns[timed / 2] < MEDIAN_MAX_NS);
    print_message("%llu deaths, %llu records; known after %llu ms (median), %llu ms (longest) of %llu; %llu hints, "
                  "%llu false alarms\n", (unsigned long long)rounds, (unsigned long long)records,
                  (unsigned long long)(took_ns[timed / 2] / NS_PER_MS),
                  (unsigned long long)(took_ns[timed - 1] / NS_PER_MS), SILENCE_NS / NS_PER_MS + 0ull,
                  (unsigned long long)hints, (unsigned long long)early);
    free(took_ns);
}

int main(int argc, char **argv)
{
    /* %u: a number that changes from round to round; 20000 to 31999, so that it may be a port. */
    static char shm_link[] = "shm:test-kill-%u", tcp_link[] = "tcp:127.0.0.1:%u";
    const char *rdma = getenv("FTVMM_TEST_VERBS");
    const struct CMUnitTest links[] = {
        { "shm: kill -9 of either end", survivor_knows_and_has_all_that_was_acked, NULL, NULL, shm_link },
        { "tcp: kill -9 of either end", survivor_knows_and_has_all_that_was_acked, NULL, NULL, tcp_link },
    };
    const struct CMUnitTest verbs[] = {
        { "verbs: kill -9 of either end", survivor_knows_and_has_all_that_was_acked, NULL, NULL, verbs_link },
    };

    if (argc == 4) /* end_new */
        return end_main(argv[1], argv[2], atoi(argv[3]));
    if (rdma == NULL)
        return cmocka_run_group_tests_name("links", links, NULL, NULL);
    snprintf(verbs_link, sizeof(verbs_link), "verbs:%s:%%u", rdma);
    return cmocka_run_group_tests_name("verbs", verbs, NULL, NULL);
}
