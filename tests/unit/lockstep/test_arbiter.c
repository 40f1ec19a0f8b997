/* The arbiter's promise: of all that claim a generation exactly one wins, however they race. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/arbiter.h"

static char directory[] = "/tmp/ftvmm-arbiter-XXXXXX";
static char address[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(directory + sizeof(directory) - 7, "XXXXXX");
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(address, sizeof(address), "dir:%s", directory);
    return 0;
}

static int tear_down(void **state)
{
    char command[96];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command);
}

static void arbiter_second_claim_loses_and_first_stays_won(void **state)
{
    struct arbiter *first, *second;

    (void)state;
    assert_int_equal(arbiter_open(&first, address, "vm"), 0);
    assert_int_equal(arbiter_open(&second, address, "vm"), 0);
    assert_int_equal(arbiter_claim(first, 1), ARBITER_WON);
    assert_int_equal(arbiter_claim(second, 1), ARBITER_LOST);
    assert_int_equal(arbiter_claim(first, 1), ARBITER_WON);
    assert_int_equal(arbiter_claim(second, 2), ARBITER_WON);
    arbiter_close(first);
    arbiter_close(second);
}

static void arbiter_race_of_processes_has_one_winner(void **state)
{
    enum { RACERS = 8, ROUNDS = 40 };
    int winners[ROUNDS + 1] = { 0 };
    int pipes[2];
    uint8_t won;

    (void)state;
    assert_int_equal(pipe(pipes), 0);
    for (int racer = 0; racer < RACERS; racer++) {
        pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid == 0) {
            struct arbiter *arbiter;

            if (arbiter_open(&arbiter, address, "race") != 0)
                _exit(1);
            for (uint8_t round = 1; round <= ROUNDS; round++)
                if (arbiter_claim(arbiter, round) == ARBITER_WON && write(pipes[1], &round, 1) != 1)
                    _exit(1);
            _exit(0);
        }
    }
    close(pipes[1]);
    while (read(pipes[0], &won, 1) == 1)
        winners[won]++;
    close(pipes[0]);
    for (int racer = 0; racer < RACERS; racer++) {
        int status;

        assert_true(wait(&status) > 0);
        assert_int_equal(status, 0);
    }
    for (int round = 1; round <= ROUNDS; round++)
        assert_int_equal(winners[round], 1);
}

static void arbiter_generations_are_never_given_twice(void **state)
{
    struct arbiter *arbiter;
    uint64_t first = 0, second = 0;

    (void)state;
    assert_int_equal(arbiter_open(&arbiter, address, "vm"), 0);
    assert_int_equal(arbiter_begin(arbiter, &first), 0);
    assert_int_equal(arbiter_begin(arbiter, &second), 0);
    assert_true(second > first);
    assert_int_equal(arbiter_check(arbiter, second), 0);
    assert_int_equal(arbiter_check(arbiter, second + 1), -ENOENT);
    arbiter_close(arbiter);
}

static void arbiter_names_do_not_mix(void **state)
{
    struct arbiter *one, *other;
    uint64_t generation = 0;

    (void)state;
    assert_int_equal(arbiter_open(&one, address, "vm"), 0);
    assert_int_equal(arbiter_open(&other, address, "vm.1"), 0);
    assert_int_equal(arbiter_begin(one, &generation), 0);
    assert_int_equal(generation, 1);
    assert_int_equal(arbiter_begin(other, &generation), 0);
    assert_int_equal(generation, 1);
    assert_int_equal(arbiter_claim(one, 1), ARBITER_WON);
    assert_int_equal(arbiter_claim(other, 1), ARBITER_WON);
    arbiter_close(one);
    arbiter_close(other);
}

static void arbiter_refuses_what_it_cannot_trust(void **state)
{
    struct arbiter *arbiter;

    (void)state;
    assert_int_equal(arbiter_open(&arbiter, "dir:/nonexistent/ftvmm", "vm"), -ENOENT);
    assert_null(arbiter);
    assert_int_equal(arbiter_open(&arbiter, "etcd:localhost", "vm"), -EINVAL);
    assert_int_equal(arbiter_open(&arbiter, "dir:", "vm"), -EINVAL);
    assert_int_equal(arbiter_open(&arbiter, address, "../escape"), -EINVAL);
    assert_int_equal(arbiter_open(&arbiter, address, ""), -EINVAL);
}

static void arbiter_gone_storage_is_unreachable_not_lost(void **state)
{
    struct arbiter *arbiter;

    (void)state;
    assert_int_equal(arbiter_open(&arbiter, address, "vm"), 0);
    assert_int_equal(rmdir(directory), 0);
    assert_int_equal(arbiter_claim(arbiter, 1), ARBITER_UNREACHABLE);
    assert_int_equal(mkdir(directory, 0755), 0);
    arbiter_close(arbiter);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(arbiter_second_claim_loses_and_first_stays_won, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_race_of_processes_has_one_winner, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_generations_are_never_given_twice, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_names_do_not_mix, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_refuses_what_it_cannot_trust, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_gone_storage_is_unreachable_not_lost, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
