/*
 * The arbiter as a witness: every arbiter's promises, and what a witness that dies, hangs, loses answers or lies may do to
 * them. The witness's desk and the hosts' side are the real ones; RDMA is played (fake_witness.h). Over soft-RoCE:
 * tests/lab/witness.sh.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/arbiter_conformance.h"
#include "tests/unit/words.h"
#include "tests/unit/witness/fake_witness.h"
#include "vmm/arbiter.h"

#define VM "web"

static struct fake_witness witness;
static char address[64];

static const char *auth(const char *vm)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/auth-%s", witness.directory, vm);
    return path;
}

static struct arbiter_options options_of(const char *vm)
{
    return (struct arbiter_options){ .address = address, .vm = vm, .auth_dir = auth(vm) };
}

static struct arbiter *opened(void)
{
    struct arbiter_options options = options_of(VM);
    struct arbiter *arbiter;

    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    return arbiter;
}

static int set_up(void **state)
{
    static const char *const vms[] = { VM, NULL };

    (void)state;
    fake_witness_open(&witness, vms);
    snprintf(address, sizeof(address), "rdma:127.0.0.1:%d", witness.port);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fake_witness_close(&witness);
    return 0;
}

struct pair {
    struct arbiter *primary, *backup;
    uint64_t generation;
};

static struct pair pair_open(void)
{
    struct pair pair = { .primary = opened(), .backup = opened() };

    assert_int_equal(arbiter_begin(pair.primary, &pair.generation), 0);
    assert_int_equal(arbiter_check(pair.backup, pair.generation), 0);
    return pair;
}

static void pair_close(struct pair *pair)
{
    arbiter_close(pair->primary);
    arbiter_close(pair->backup);
}

/* As it is: claims by hand show what a claim in a thread would meet. */
static void restart(void)
{
    fake_witness_kill(&witness);
    fake_witness_start(&witness, 64);
}

static void assert_unreachable(struct arbiter *arbiter, uint64_t generation, const char *why)
{
    uint64_t until_ns = clock_now_ns() + 10 * NS_PER_S;
    struct arbiter_status status;

    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE);
    do { /* what was the matter before may still stand there */
        enum arbiter_verdict verdict = arbiter_ask(arbiter, generation);

        assert_true(verdict == ARBITER_ASKING || verdict == ARBITER_UNREACHABLE);
        arbiter_get_status(arbiter, &status);
        if (clock_now_ns() > until_ns)
            fail_msg("'%s' does not tell of '%s'", status.why, why);
        clock_sleep_ns(NS_PER_MS);
    } while (strstr(status.why, why) == NULL);
}

/* ---- races ---- */

struct racer {
    struct arbiter *arbiter;
    uint64_t generation;
    unsigned rounds;
    enum arbiter_verdict verdict;
    pthread_barrier_t *gate;
};

static void *racer_main(void *argument)
{
    struct racer *racer = argument;

    for (unsigned round = 0; round < racer->rounds; round++) {
        pthread_barrier_wait(racer->gate); /* the generation is known to both */
        pthread_barrier_wait(racer->gate);
        racer->verdict = arbiter_claim(racer->arbiter, racer->generation);
        pthread_barrier_wait(racer->gate); /* the verdicts are */
    }
    return NULL;
}

static void arbiter_race_of_two_has_one_winner_5000_times(void **state)
{
    enum { ROUNDS = 5000 };
    pthread_barrier_t gate;
    struct racer racers[2];
    pthread_t threads[2];
    unsigned won[2] = { 0 };

    (void)state;
    assert_int_equal(pthread_barrier_init(&gate, NULL, 3), 0);
    for (int i = 0; i < 2; i++) {
        racers[i] = (struct racer){ .arbiter = opened(), .rounds = ROUNDS, .gate = &gate };
        assert_int_equal(pthread_create(&threads[i], NULL, racer_main, &racers[i]), 0);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        assert_int_equal(arbiter_begin(racers[round % 2].arbiter, &racers[0].generation), 0);
        racers[1].generation = racers[0].generation;
        assert_int_equal(racers[0].generation, round + 1);
        assert_int_equal(arbiter_check(racers[(round + 1) % 2].arbiter, racers[0].generation), 0);
        pthread_barrier_wait(&gate);
        pthread_barrier_wait(&gate);
        pthread_barrier_wait(&gate);
        assert_int_equal((racers[0].verdict == ARBITER_WON) + (racers[1].verdict == ARBITER_WON), 1);
        assert_int_equal((racers[0].verdict == ARBITER_LOST) + (racers[1].verdict == ARBITER_LOST), 1);
        won[racers[1].verdict == ARBITER_WON]++;
    }
    print_message("won %u and %u of %u\n", won[0], won[1], (unsigned)ROUNDS);
    assert_int_equal(won[0] + won[1], ROUNDS);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        arbiter_close(racers[i].arbiter);
    }
    pthread_barrier_destroy(&gate);
}

/* Whenever the witness dies, and however often: never two winners, and one in the end unless a verdict is held back. */
static void arbiter_never_has_two_winners_however_often_the_witness_dies(void **state)
{
    uint64_t random = test_seed("deaths");
    unsigned none = 0, deaths = 0;

    (void)state;
    for (unsigned round = 0; round < 40; round++) {
        struct pair pair = pair_open();
        struct arbiter *hosts[2] = { pair.primary, pair.backup };
        unsigned wins = 0, losses = 0;
        bool done[2] = { false };

        for (unsigned step = 0; step < 8; step++) {
            uint64_t what = test_random(&random);
            unsigned host = (unsigned)(what >> 8) % 2;

            if (what % 4 == 0) {
                restart();
                deaths++;
            }
            if (what % 3 == 0)
                atomic_store(&witness.manners->lose_swap_answers, 1 + (int)(what >> 16) % 2);
            if (!done[host]) {
                enum arbiter_verdict verdict = arbiter_claim(hosts[host], pair.generation);

                done[host] = verdict != ARBITER_UNREACHABLE;
                wins += verdict == ARBITER_WON;
                losses += verdict == ARBITER_LOST;
            }
        }
        assert_true(wins <= 1);
        assert_true(losses <= 1);
        none += wins == 0;
        atomic_store(&witness.manners->lose_swap_answers, 0);
        if (wins == 0 && losses == 0) { /* both ask on: one of them gets it */
            enum arbiter_verdict one = arbiter_claim(hosts[0], pair.generation);
            enum arbiter_verdict other = arbiter_claim(hosts[1], pair.generation);

            if (one == ARBITER_UNREACHABLE)
                one = arbiter_claim(hosts[0], pair.generation);
            assert_true((one == ARBITER_WON && other == ARBITER_LOST) || (one == ARBITER_LOST && other == ARBITER_WON));
        }
        pair_close(&pair);
    }
    print_message("%u deaths; %u of 40 rounds without a winner at first\n", deaths, none);
    assert_true(deaths > 20 && none < 40);
}

/* ---- a witness that dies ---- */

static void arbiter_dead_between_begin_and_claim_decides_nothing(void **state)
{
    struct pair pair = pair_open();
    uint64_t next = 0;

    (void)state;
    fake_witness_kill(&witness);
    assert_unreachable(pair.primary, pair.generation, "nobody listens");
    assert_unreachable(pair.backup, pair.generation, "nobody listens");
    fake_witness_start(&witness, 64);
    /* It cannot know whether the other has won. */
    assert_unreachable(pair.primary, pair.generation, "restarted");
    assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_WON); /* both have come back, without a verdict */
    assert_int_equal(arbiter_claim(pair.primary, pair.generation), ARBITER_LOST);
    assert_int_equal(arbiter_begin(pair.primary, &next), 0);
    assert_int_equal(next, pair.generation + 1);
    pair_close(&pair);
}

static void arbiter_restarted_never_gives_a_second_win(void **state)
{
    struct pair pair = pair_open();

    (void)state;
    assert_int_equal(arbiter_claim(pair.primary, pair.generation), ARBITER_WON);
    for (int life = 0; life < 3; life++) {
        restart();
        for (int i = 0; i < 3; i++)
            assert_unreachable(pair.backup, pair.generation, "restarted");
        assert_int_equal(arbiter_claim(pair.primary, pair.generation), ARBITER_WON); /* keeps its verdict */
        assert_int_equal(arbiter_check(pair.primary, pair.generation), 0);
        assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_UNREACHABLE);
    }
    pair_close(&pair);
}

static void arbiter_loser_of_a_forgotten_claim_keeps_to_it(void **state)
{
    struct pair pair = pair_open();

    (void)state;
    atomic_store(&witness.manners->lose_swap_answers, 2);
    assert_int_equal(arbiter_claim(pair.primary, pair.generation), ARBITER_UNREACHABLE); /* it has won, and not heard */
    assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_LOST);
    restart();
    assert_unreachable(pair.primary, pair.generation, "restarted"); /* nobody goes live; but nobody twice */
    assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_LOST);
    assert_unreachable(pair.primary, pair.generation, "restarted");
    pair_close(&pair);
}

/* Unasked, hosts notice that the witness has died, and come back when it has; after that either may die. */
static void arbiter_idle_finds_its_witness_again(void **state)
{
    struct pair pair = pair_open();
    struct arbiter *const hosts[] = { pair.primary, pair.backup };
    struct arbiter_status status;
    uint64_t until_ns;

    (void)state;
    arbiter_get_status(pair.backup, &status);
    assert_int_equal(status.verdict, ARBITER_ASKING);
    fake_witness_kill(&witness);
    until_ns = clock_now_ns() + 20 * NS_PER_S;
    for (unsigned i = 0; i < 2; i++) {
        do {
            assert_true(clock_now_ns() < until_ns);
            clock_sleep_ns(10 * NS_PER_MS);
            arbiter_get_status(hosts[i], &status);
        } while (status.verdict != ARBITER_UNREACHABLE);
        assert_non_null(strstr(status.why, "nobody listens"));
        assert_int_equal(status.asks, 0);
    }
    fake_witness_start(&witness, 64);
    for (unsigned i = 0; i < 2; i++)
        do {
            assert_true(clock_now_ns() < until_ns);
            clock_sleep_ns(10 * NS_PER_MS);
            arbiter_get_status(hosts[i], &status);
        } while (status.verdict != ARBITER_ASKING);
    arbiter_close(pair.primary);
    assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_WON);
    arbiter_close(pair.backup);
}

/* ---- a witness that is ill ---- */

static void arbiter_claim_whose_answer_was_lost_is_recognised(void **state)
{
    struct pair pair = pair_open();

    (void)state;
    atomic_store(&witness.manners->lose_swap_answers, 1);
    assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_WON);
    assert_int_equal(atomic_load(&witness.manners->swaps), 2);
    assert_int_equal(arbiter_claim(pair.primary, pair.generation), ARBITER_LOST);
    atomic_store(&witness.manners->swaps, 0);
    assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_WON);
    assert_int_equal(atomic_load(&witness.manners->swaps), 0); /* a verdict is not asked for again */
    pair_close(&pair);
}

static void arbiter_that_hangs_is_not_waited_for(void **state)
{
    struct pair pair = pair_open();
    uint64_t began_ns = clock_now_ns(), longest_ns = 0;
    enum arbiter_verdict verdict;

    (void)state;
    atomic_store(&witness.manners->silent, true);
    do {
        uint64_t before_ns = clock_now_ns();

        verdict = arbiter_ask(pair.backup, pair.generation);
        if (clock_now_ns() - before_ns > longest_ns)
            longest_ns = clock_now_ns() - before_ns;
        clock_sleep_ns(NS_PER_MS);
        assert_true(clock_now_ns() - began_ns < 10 * NS_PER_S);
    } while (verdict == ARBITER_ASKING);
    assert_int_equal(verdict, ARBITER_UNREACHABLE);
    print_message("longest call %llu us\n", (unsigned long long)(longest_ns / NS_PER_US));
    began_ns = clock_now_ns();
    pair_close(&pair);
    assert_true(clock_now_ns() - began_ns < 2 * NS_PER_S);
}

/* Whoever changes a bit of what the witness says decides nothing. */
static void arbiter_answer_that_is_not_proven_decides_nothing(void **state)
{
    struct arbiter *arbiter = opened();
    uint64_t generation;

    (void)state;
    for (unsigned byte = 1; byte <= 88; byte++) {
        atomic_store(&witness.manners->spoil_byte, byte);
        words_begin();
        assert_true(arbiter_begin(arbiter, &generation) < 0);
        words_end();
    }
    atomic_store(&witness.manners->spoil_byte, 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_WON);
    arbiter_close(arbiter);
}

/* A begin that fails leaves the pair that runs as it is. */
static void arbiter_begin_refused_keeps_the_old_generation(void **state)
{
    struct pair pair = pair_open();
    uint64_t other;

    (void)state;
    atomic_store(&witness.manners->spoil_byte, 1);
    words_begin();
    assert_true(arbiter_begin(pair.primary, &other) < 0);
    words_end();
    atomic_store(&witness.manners->spoil_byte, 0);
    assert_int_equal(arbiter_claim(pair.primary, pair.generation), ARBITER_WON);
    assert_int_equal(arbiter_claim(pair.backup, pair.generation), ARBITER_LOST);
    pair_close(&pair);
}

/* ---- refusals ---- */

static void refused(const struct arbiter_options *options, int error, const char *word, const char *other)
{
    struct arbiter *arbiter;
    const char *said;
    int rc;

    words_begin();
    rc = arbiter_open(&arbiter, options);
    said = words_end();
    assert_int_equal(rc, error);
    assert_null(arbiter);
    if (strstr(said, word) == NULL || strstr(said, other) == NULL)
        fail_msg("'%s' does not tell of '%s' and '%s'", said, word, other);
}

static void arbiter_refuses_with_a_sentence(void **state)
{
    struct arbiter_options options = options_of(VM);
    char path[160];

    (void)state;
    options.auth_dir = NULL;
    refused(&options, -EINVAL, "--arbiter-auth", "key");
    options.auth_dir = "/nonexistent";
    refused(&options, -ENOENT, "/nonexistent/key", "umask 077");
    options = options_of(VM);
    options.address = "rdma:127.0.0.1";
    refused(&options, -EINVAL, "127.0.0.1", "HOST:PORT");
    options.address = "rdma:127.0.0.1:0";
    refused(&options, -EINVAL, "127.0.0.1:0", "HOST:PORT");
    options.address = address;
    options.vm = "nobody";
    refused(&options, -EACCES, "nobody", "--keys");
    fake_witness_key(&witness, "other");
    options = options_of("other");
    options.vm = VM;
    refused(&options, -EACCES, "same key", "rdma:127.0.0.1");
    snprintf(path, sizeof(path), "%s/key", auth(VM));
    options = options_of(VM);
    assert_int_equal(chmod(path, 0644), 0);
    refused(&options, -EACCES, path, "chmod 600");
    assert_int_equal(chmod(path, 0600), 0);
    fake_witness_kill(&witness);
    refused(&options, -EHOSTUNREACH, address, "nobody listens");
}

/* A backup may wait for its primary for long before it asks for anything: the witness should know whom it keeps. */
static void arbiter_opened_has_proven_itself(void **state)
{
    struct arbiter *arbiter = opened();
    uint64_t generation;

    (void)state;
    assert_int_equal(atomic_load(&witness.manners->requests), 1);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    assert_int_equal(generation, 1);
    arbiter_close(arbiter);
}

static void arbiter_of_a_full_witness_is_refused(void **state)
{
    struct arbiter_options options;
    struct arbiter *arbiter;
    uint64_t generation;
    const char *said;

    (void)state;
    fake_witness_kill(&witness);
    fake_witness_start(&witness, 1);
    fake_witness_key(&witness, "second");
    arbiter = opened();
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    arbiter_close(arbiter);
    options = options_of("second");
    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    words_begin();
    assert_int_equal(arbiter_begin(arbiter, &generation), -ENOSPC);
    said = words_end();
    assert_non_null(strstr(said, "--vms"));
    arbiter_close(arbiter);
}

static void arbiter_backup_at_another_witness_is_told(void **state)
{
    struct pair pair = pair_open();
    struct arbiter *stranger = opened();
    const char *said;

    (void)state;
    words_begin();
    assert_int_equal(arbiter_check(stranger, pair.generation + 7), -ENOENT);
    said = words_end();
    assert_non_null(strstr(said, "same witness"));
    assert_int_equal(arbiter_claim(stranger, pair.generation + 7), ARBITER_UNREACHABLE);
    arbiter_close(stranger);
    pair_close(&pair);
}

/* ---- every kind's promises ---- */

static int conformance(void)
{
    static const char *const vms[] = { "c1", NULL };
    struct arbiter_options options = { 0 };
    char command[256];
    int failed;

    /* One key for all of its names. */
    fake_witness_open(&witness, vms);
    snprintf(command, sizeof(command), "cd %s/keys && for i in $(seq %d); do cp c1 c$i.1; [ $i = 1 ] || cp c1 c$i; done",
             witness.directory, ARBITER_CONFORMANCE_TESTS);
    if (system(command) != 0)
        return 1;
    snprintf(address, sizeof(address), "rdma:127.0.0.1:%d", witness.port);
    options.address = address;
    options.auth_dir = auth("c1");
    failed = arbiter_conformance_run(&options);
    fake_witness_close(&witness);
    return failed;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(arbiter_race_of_two_has_one_winner_5000_times, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_never_has_two_winners_however_often_the_witness_dies, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_dead_between_begin_and_claim_decides_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_restarted_never_gives_a_second_win, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_loser_of_a_forgotten_claim_keeps_to_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_idle_finds_its_witness_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_claim_whose_answer_was_lost_is_recognised, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_that_hangs_is_not_waited_for, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_answer_that_is_not_proven_decides_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_begin_refused_keeps_the_old_generation, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_refuses_with_a_sentence, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_opened_has_proven_itself, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_of_a_full_witness_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_backup_at_another_witness_is_told, set_up, tear_down),
    };
    int failed;

    signal(SIGPIPE, SIG_IGN);
    failed = conformance();
    return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
