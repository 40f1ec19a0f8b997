/* The arbiter's promise: of all that claim a generation exactly one wins, however they race; whatever the kind. */
#include "tests/unit/lockstep/arbiter_conformance.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"

#define ANSWER_NS (10 * NS_PER_S) /* an arbiter in good health on a busy machine */

static struct arbiter_options place;
static char vm[32];

static int set_up(void **state)
{
    static unsigned count;

    (void)state;
    snprintf(vm, sizeof(vm), "c%u", ++count);
    return 0;
}

static struct arbiter *open_as(const char *name)
{
    struct arbiter_options options = place;
    struct arbiter *arbiter;

    options.vm = name;
    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    return arbiter;
}

/* Both hosts of a pair, in the generation returned. */
static uint64_t pair_open(struct arbiter **primary, struct arbiter **backup)
{
    uint64_t generation = 0;

    *primary = open_as(vm);
    *backup = open_as(vm);
    assert_int_equal(arbiter_begin(*primary, &generation), 0);
    assert_true(generation > 0);
    assert_int_equal(arbiter_check(*backup, generation), 0);
    return generation;
}

static void pair_close(struct arbiter *primary, struct arbiter *backup)
{
    arbiter_close(primary);
    arbiter_close(backup);
}

static void arbiter_second_claim_loses_and_first_stays_won(void **state)
{
    struct arbiter *primary, *backup;

    (void)state;
    for (int backup_first = 0; backup_first < 2; backup_first++) {
        uint64_t generation = pair_open(&primary, &backup);
        struct arbiter *first = backup_first ? backup : primary, *second = backup_first ? primary : backup;

        assert_int_equal(arbiter_claim(first, generation), ARBITER_WON);
        assert_int_equal(arbiter_claim(second, generation), ARBITER_LOST);
        assert_int_equal(arbiter_claim(first, generation), ARBITER_WON);
        assert_int_equal(arbiter_claim(second, generation), ARBITER_LOST);
        pair_close(primary, backup);
    }
}

static void arbiter_claim_outlives_its_owner(void **state)
{
    struct arbiter *primary, *backup;
    uint64_t generation;

    (void)state;
    generation = pair_open(&primary, &backup);
    assert_int_equal(arbiter_claim(primary, generation), ARBITER_WON);
    arbiter_close(primary);
    assert_int_equal(arbiter_claim(backup, generation), ARBITER_LOST);
    primary = open_as(vm); /* the same process, started again, is somebody else */
    assert_int_equal(arbiter_check(primary, generation), 0);
    assert_int_equal(arbiter_claim(primary, generation), ARBITER_LOST);
    pair_close(primary, backup);
}

static void arbiter_generations_are_never_given_twice(void **state)
{
    struct arbiter *arbiter = open_as(vm);
    uint64_t first = 0, second = 0, third = 0;

    (void)state;
    assert_int_equal(arbiter_begin(arbiter, &first), 0);
    assert_int_equal(first, 1);
    assert_int_equal(arbiter_begin(arbiter, &second), 0);
    assert_true(second > first);
    assert_int_equal(arbiter_claim(arbiter, second), ARBITER_WON);
    arbiter_close(arbiter);
    arbiter = open_as(vm);
    assert_int_equal(arbiter_begin(arbiter, &third), 0);
    assert_true(third > second);
    assert_int_equal(arbiter_check(arbiter, third + 1), -ENOENT);
    arbiter_close(arbiter);
}

static void arbiter_late_claim_of_an_old_generation_never_wins_a_new_one(void **state)
{
    struct arbiter *old_primary, *old_backup, *primary, *backup;
    uint64_t old_generation, generation;

    (void)state;
    old_generation = pair_open(&old_primary, &old_backup);
    generation = pair_open(&primary, &backup);
    assert_true(generation > old_generation);
    assert_int_equal(arbiter_claim(old_primary, old_generation), ARBITER_WON);
    assert_int_equal(arbiter_claim(old_backup, old_generation), ARBITER_LOST);
    assert_int_equal(arbiter_claim(old_backup, generation), ARBITER_UNREACHABLE); /* not its own */
    assert_int_equal(arbiter_claim(old_primary, generation), ARBITER_UNREACHABLE);
    assert_int_equal(arbiter_claim(backup, generation), ARBITER_WON);
    assert_int_equal(arbiter_claim(primary, generation), ARBITER_LOST);
    assert_int_equal(arbiter_claim(old_backup, old_generation), ARBITER_LOST);
    pair_close(old_primary, old_backup);
    pair_close(primary, backup);
}

static void arbiter_names_do_not_mix(void **state)
{
    struct arbiter *one = open_as(vm), *other;
    char longer[40];
    uint64_t generation = 0;

    (void)state;
    snprintf(longer, sizeof(longer), "%s.1", vm);
    other = open_as(longer);
    assert_int_equal(arbiter_begin(one, &generation), 0);
    assert_int_equal(generation, 1);
    assert_int_equal(arbiter_begin(other, &generation), 0);
    assert_int_equal(generation, 1);
    assert_int_equal(arbiter_claim(one, 1), ARBITER_WON);
    assert_int_equal(arbiter_claim(other, 1), ARBITER_WON);
    arbiter_close(one);
    arbiter_close(other);
}

static enum arbiter_verdict ask_until_answered(struct arbiter *arbiter, uint64_t generation)
{
    uint64_t until_ns = clock_now_ns() + ANSWER_NS;
    enum arbiter_verdict verdict;

    while ((verdict = arbiter_ask(arbiter, generation)) == ARBITER_ASKING) {
        assert_true(clock_now_ns() < until_ns);
        clock_sleep_ns(NS_PER_MS);
    }
    return verdict;
}

static void arbiter_asked_without_waiting_says_the_same(void **state)
{
    struct arbiter *primary, *backup;
    struct arbiter_status status;
    uint64_t generation, asked_ns;

    (void)state;
    generation = pair_open(&primary, &backup);
    arbiter_get_status(primary, &status);
    assert_int_equal(status.asks, 0);
    asked_ns = clock_now_ns();
    assert_int_equal(ask_until_answered(primary, generation), ARBITER_WON);
    print_message("won after %llu ms\n", (unsigned long long)((clock_now_ns() - asked_ns) / NS_PER_MS));
    assert_int_equal(ask_until_answered(backup, generation), ARBITER_LOST);
    clock_sleep_ns(300 * NS_PER_MS);
    assert_int_equal(arbiter_ask(primary, generation), ARBITER_WON);
    assert_int_equal(arbiter_ask(backup, generation), ARBITER_LOST);
    arbiter_get_status(primary, &status);
    assert_int_equal(status.asks, 1); /* a verdict needs no second claim */
    assert_int_equal(status.verdict, ARBITER_WON);
    assert_string_equal(status.why, "");
    assert_int_equal(arbiter_claim(primary, generation), ARBITER_WON);
    pair_close(primary, backup);
}

static void arbiter_generation_neither_begun_nor_checked_is_not_decided(void **state)
{
    struct arbiter *primary, *backup, *stranger = open_as(vm);
    uint64_t generation;
    struct arbiter_status status;

    (void)state;
    generation = pair_open(&primary, &backup);
    assert_int_equal(arbiter_claim(stranger, generation), ARBITER_UNREACHABLE);
    assert_int_equal(ask_until_answered(stranger, generation), ARBITER_UNREACHABLE);
    arbiter_get_status(stranger, &status);
    assert_non_null(strstr(status.why, "neither begun nor checked"));
    assert_int_equal(arbiter_claim(stranger, 0), ARBITER_UNREACHABLE);
    assert_int_equal(arbiter_claim(backup, generation), ARBITER_WON);
    arbiter_close(stranger);
    pair_close(primary, backup);
}

static void arbiter_refuses_names_that_it_cannot_keep_apart(void **state)
{
    static const char *const names[] = { "", "../escape", "a/b", ".hidden", "a b",
                                         "0123456789012345678901234567890123" };
    struct arbiter_options options = place;
    struct arbiter *arbiter;

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        options.vm = names[i];
        assert_int_equal(arbiter_open(&arbiter, &options), -EINVAL);
        assert_null(arbiter);
    }
}

/* ---- races ----
 *
 * All in processes of their own, and before the tests above: what a process has opened of RDMA is of no use to those
 * that it forks.
 */

enum { ROUNDS_MAX = 256, RACERS_MAX = 8 };

struct race {
    uint64_t first;
    _Atomic unsigned arrived[ROUNDS_MAX], won[ROUNDS_MAX], lost[ROUNDS_MAX];
};

/* Begins all rounds. */
static int beginner_main(struct race *race, unsigned rounds)
{
    struct arbiter *arbiter = open_as(vm);
    uint64_t generation = 0;

    for (unsigned round = 0; round < rounds; round++) {
        if (arbiter_begin(arbiter, &generation) != 0)
            return 1;
        if (round == 0)
            race->first = generation;
        if (generation != race->first + round)
            return 2;
    }
    arbiter_close(arbiter);
    return 0;
}

/* Whoever it is, all claim each generation as nearly at once as the machine can. */
static int racer_main(struct race *race, unsigned rounds, unsigned racers)
{
    struct arbiter_options options = place;
    struct arbiter *arbiter;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    options.vm = vm;
    if (arbiter_open(&arbiter, &options) != 0)
        return 1;
    for (unsigned round = 0; round < rounds; round++) {
        uint64_t until_ns = clock_now_ns() + ANSWER_NS;
        enum arbiter_verdict verdict;

        if (arbiter_check(arbiter, race->first + round) != 0)
            return 2;
        atomic_fetch_add(&race->arrived[round], 1);
        while (atomic_load(&race->arrived[round]) < racers) {
            if (clock_now_ns() > until_ns)
                return 3;
            sched_yield();
        }
        while ((verdict = arbiter_claim(arbiter, race->first + round)) == ARBITER_UNREACHABLE && clock_now_ns() < until_ns)
            ; /* a deadline may pass on a busy machine: the claim is repeated, as it would be */
        if (verdict == ARBITER_UNREACHABLE)
            return 4;
        atomic_fetch_add(verdict == ARBITER_WON ? &race->won[round] : &race->lost[round], 1);
    }
    arbiter_close(arbiter);
    return 0;
}

static void await(pid_t pid)
{
    int status;

    assert_true(waitpid(pid, &status, 0) == pid);
    assert_int_equal(status, 0);
}

static void race(unsigned racers, unsigned rounds)
{
    struct race *race = mmap(NULL, sizeof(*race), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[RACERS_MAX], beginner;

    assert_true(race != MAP_FAILED);
    beginner = fork();
    assert_true(beginner >= 0);
    if (beginner == 0)
        _exit(beginner_main(race, rounds));
    await(beginner);
    for (unsigned racer = 0; racer < racers; racer++) {
        pids[racer] = fork();
        assert_true(pids[racer] >= 0);
        if (pids[racer] == 0)
            _exit(racer_main(race, rounds, racers));
    }
    for (unsigned racer = 0; racer < racers; racer++)
        await(pids[racer]);
    for (unsigned round = 0; round < rounds; round++) {
        assert_int_equal(atomic_load(&race->won[round]), 1);
        assert_int_equal(atomic_load(&race->lost[round]), racers - 1);
    }
    munmap(race, sizeof(*race));
}

static void arbiter_race_of_two_has_one_winner_200_times(void **state)
{
    (void)state;
    race(2, 200);
}

static void arbiter_race_of_many_has_one_winner(void **state)
{
    (void)state;
    race(RACERS_MAX, 20);
}

static void arbiter_race_for_generations_gives_each_once(void **state)
{
    enum { BEGINS = 10, BEGINNERS = 3 };
    _Atomic unsigned *given = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[BEGINNERS];

    (void)state;
    assert_true(given != MAP_FAILED);
    for (unsigned i = 0; i < BEGINNERS; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0) {
            struct arbiter *arbiter = open_as(vm);

            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (unsigned j = 0; j < BEGINS; j++) {
                uint64_t generation = 0;

                if (arbiter_begin(arbiter, &generation) != 0 || generation == 0 || generation > 1000)
                    _exit(1);
                atomic_fetch_add(&given[generation], 1);
            }
            arbiter_close(arbiter);
            _exit(0);
        }
    }
    for (unsigned i = 0; i < BEGINNERS; i++)
        await(pids[i]);
    for (unsigned generation = 1; generation <= BEGINS * BEGINNERS; generation++)
        assert_int_equal(atomic_load(&given[generation]), 1);
    munmap((void *)given, 4096);
}

int arbiter_conformance_run(const struct arbiter_options *options)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(arbiter_race_of_two_has_one_winner_200_times, set_up),
        cmocka_unit_test_setup(arbiter_race_of_many_has_one_winner, set_up),
        cmocka_unit_test_setup(arbiter_race_for_generations_gives_each_once, set_up),
        cmocka_unit_test_setup(arbiter_second_claim_loses_and_first_stays_won, set_up),
        cmocka_unit_test_setup(arbiter_claim_outlives_its_owner, set_up),
        cmocka_unit_test_setup(arbiter_generations_are_never_given_twice, set_up),
        cmocka_unit_test_setup(arbiter_late_claim_of_an_old_generation_never_wins_a_new_one, set_up),
        cmocka_unit_test_setup(arbiter_names_do_not_mix, set_up),
        cmocka_unit_test_setup(arbiter_asked_without_waiting_says_the_same, set_up),
        cmocka_unit_test_setup(arbiter_generation_neither_begun_nor_checked_is_not_decided, set_up),
        cmocka_unit_test_setup(arbiter_refuses_names_that_it_cannot_keep_apart, set_up),
    };

    place = *options;
    print_message("every promise, at %s\n", place.address);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
