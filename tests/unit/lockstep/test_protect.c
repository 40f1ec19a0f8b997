/*
 * One guest that outlives its hosts, again and again: real ftvmm processes, a real vCPU, a guest of a few bytes. Each host
 * in turn is killed or hands over, and the survivor is given a new backup while the guest runs on. Every backup compares
 * the registers at each position and all of RAM now and then, and at the end to the last byte; so a transfer that left
 * anything out, or took the pair apart, is found. argv[1]: ftvmm, argv[2]: ftctl.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/real_hosts.h"

#define HOSTS 7 /* one after the other, the first two begin as a pair */

static const char *ftvmm, *ftctl;
static unsigned seed;

static void a_guest_outlives_its_hosts(void **state)
{
    char arguments[160];
    struct host live, backup;
    uint64_t positions = 0, began_ns = clock_now_ns();

    (void)state;
    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-1", (int)getpid());
    backup = host_start(1, "backup", arguments);
    snprintf(arguments, sizeof(arguments), "--verify --spare none --backup shm:many-%d-1", (int)getpid());
    live = host_start(0, "primary", arguments);
    host_await(&live, "primary", true);
    for (unsigned number = 2; number < HOSTS; number++) {
        bool handed = number % 3 == 0;
        uint64_t now;

        clock_sleep_ns((uint64_t)(rand_r(&seed) % 300) * NS_PER_MS);
        if (handed) {
            cJSON *answer = host_ask(&live, "failover");

            if (!cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok")))
                host_fail(&live, "it does not hand over");
            cJSON_Delete(answer);
            assert_int_equal(WEXITSTATUS(host_end(&live)), 3);
        } else {
            kill(live.pid, SIGKILL);
            assert_int_equal(WTERMSIG(host_end(&live)), SIGKILL);
        }
        live = backup;
        host_await(&live, "alone", false);
        now = host_number(&live, "lockstep", "positions");
        assert_true(now > positions);
        positions = now;
        backup = host_protect(&live, number);
    }
    hosts_stop(&live, &backup);
    printf("a guest of %u hosts, %llu positions, %.1f s\n", HOSTS, (unsigned long long)positions,
           (double)(clock_now_ns() - began_ns) / (double)NS_PER_S);
}

/* A guest that was started alone gets its first backup, which is killed in the midst; then another, which is not. */
static void a_backup_that_dies_on_the_way_does_no_harm(void **state)
{
    struct host live = host_start(20, "run", ""), backup;
    char arguments[160];

    (void)state;
    host_await(&live, "alone", false);
    for (unsigned i = 0; i < 3; i++) {
        char words[96];
        cJSON *answer;

        snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-half%u", (int)getpid(), i);
        backup = host_start(21 + i, "backup", arguments);
        snprintf(words, sizeof(words), "protect shm:many-%d-half%u >/dev/null & sleep 0.%u", (int)getpid(), i, 1 + i);
        answer = host_ask(&live, words);
        kill(backup.pid, SIGKILL);
        (void)host_end(&backup);
        cJSON_Delete(answer);
        host_await(&live, "alone", false);
    }
    backup = host_protect(&live, 30);
    hosts_stop(&live, &backup);
}

/* The primary dies while its state is on the way: what has come is no guest, and nobody goes live. */
static void a_primary_that_dies_on_the_way_leaves_no_second_guest(void **state)
{
    struct host live = host_start(40, "run", "--transfer-rate 1"), backup;
    char arguments[160], words[96];

    (void)state;
    host_await(&live, "alone", false);
    host_await_number(&live, "lockstep", "positions", 2000); /* pages enough for some seconds */
    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-cut", (int)getpid());
    backup = host_start(41, "backup", arguments);
    snprintf(words, sizeof(words), "protect shm:many-%d-cut >/dev/null & true", (int)getpid());
    cJSON_Delete(host_ask(&live, words));
    host_await_number(&live, "protection", "sent_pages", 100);
    kill(live.pid, SIGKILL);
    (void)host_end(&live);
    assert_int_equal(WEXITSTATUS(host_end(&backup)), 1);
    assert_true(host_has_said(&backup, "it cannot go on here"));
}

/* A transfer at 1 MiB/s tells how far it is, is not faster, and is called off; the next one is not limited by it. */
static void a_transfer_is_seen_limited_and_called_off(void **state)
{
    struct host live = host_start(60, "run", "--transfer-rate 1"), backup;
    char arguments[160], words[96];
    uint64_t began_ns, sent;
    cJSON *answer;

    (void)state;
    host_await(&live, "alone", false);
    host_await_number(&live, "lockstep", "positions", 2000);
    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-slow", (int)getpid());
    backup = host_start(61, "backup", arguments);
    began_ns = clock_now_ns();
    snprintf(words, sizeof(words), "protect shm:many-%d-slow >/dev/null & true", (int)getpid());
    cJSON_Delete(host_ask(&live, words));
    host_await_number(&live, "protection", "sent_bytes", 1 << 20);
    host_await_number(&live, "protection", "percent", 1);
    host_await_number(&live, "protection", "eta_ms", 1);
    assert_int_equal(host_number(&live, "protection", "all_bytes"), 64 << 20);
    assert_in_range(host_number(&live, "protection", "percent"), 1, 100);
    assert_in_range(host_number(&live, "protection", "bytes_per_s"), 1, (1 << 20) + (1 << 18));
    sent = host_number(&live, "protection", "sent_bytes");
    /* And a record more, after which it pauses. */
    assert_true((double)sent <= (double)(clock_now_ns() - began_ns) / (double)NS_PER_S * (1 << 20) + (1 << 18));
    answer = host_ask(&live, "unprotect");
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok")));
    cJSON_Delete(answer);
    host_await(&live, "alone", false);
    assert_int_equal(WEXITSTATUS(host_end(&backup)), 1);
    assert_int_equal(host_number(&live, "protection", "completed"), 0);
    cJSON_Delete(host_ask(&live, "stop"));
    if (host_end(&live) != 0)
        host_fail(&live, "it did not stop in order");
}

static double healed_ms(const struct host *host)
{
    cJSON *answer = host_ask(host, "status");
    const cJSON *lockstep = cJSON_GetObjectItem(cJSON_GetObjectItem(answer, "status"), "lockstep");
    double ms = cJSON_GetNumberValue(cJSON_GetObjectItem(cJSON_GetObjectItem(lockstep, "last_divergence"), "healed_ms"));

    cJSON_Delete(answer);
    return ms;
}

/* Without --verify, too: the machine of a backup that differs is sent to it anew, while the guest runs on; and then that
 * backup is as good as any. What was found is saved. */
static void a_difference_is_found_and_healed(void **state)
{
    char arguments[160];
    struct host live, backup;
    const cJSON *first;
    cJSON *report;

    (void)state;
    snprintf(arguments, sizeof(arguments), "--listen shm:many-%d-heal", (int)getpid());
    backup = host_start(51, "backup", arguments);
    snprintf(arguments, sizeof(arguments), "--spare none --backup shm:many-%d-heal", (int)getpid());
    live = host_start(50, "primary", arguments);
    host_await(&live, "primary", true);
    host_await_number(&live, "lockstep", "positions", 300);
    for (unsigned times = 1; times <= 2; times++) {
        unsigned pages, since;

        host_spoil(times == 1 ? &backup : &live); /* the primary's is the one that counts, whatever it is */
        host_await_number(&backup, "lockstep", "healed", times);
        host_await_number(&live, "lockstep", "healed", times);
        host_await(&live, "primary", true);
        assert_true(host_has_said(&backup, "the machines differ"));
        assert_true(host_has_said(&live, "the backup is whole again"));
        report = host_difference(&backup, times);
        pages = (unsigned)cJSON_GetNumberValue(cJSON_GetObjectItem(report, "differing_count"));
        since = (unsigned)cJSON_GetNumberValue(cJSON_GetObjectItem(report, "changed_since_count"));
        printf("healed %u: %.0f ms after the primary heard of it, %u pages told\n", times, healed_ms(&live), pages);
        assert_true(pages + since > 100); /* 4096 were spoilt; the primary has written some of them since */
        assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(report, "outcome")), "healed");
        assert_non_null(cJSON_GetObjectItem(cJSON_GetObjectItem(report, "backup"), "vcpu"));
        assert_true(cJSON_GetArraySize(cJSON_GetObjectItem(report, "last_records")) > 1); /* START, MACHINE, and what followed */
        cJSON_Delete(report);
    }
    host_spoil_code(&backup); /* now the registers differ, and no --verify is there to say which */
    host_await_number(&backup, "lockstep", "healed", 3);
    host_await(&live, "primary", true);
    report = host_difference(&backup, 3);
    first = cJSON_GetObjectItem(report, "first_register");
    assert_non_null(cJSON_GetStringValue(cJSON_GetObjectItem(first, "name")));
    assert_true(cJSON_GetNumberValue(cJSON_GetObjectItem(first, "position")) <=
                cJSON_GetNumberValue(cJSON_GetObjectItem(report, "position")));
    cJSON_Delete(report);
    kill(live.pid, SIGKILL);
    assert_int_equal(WTERMSIG(host_end(&live)), SIGKILL);
    host_await(&backup, "alone", false);
    live = backup;
    backup = host_protect(&live, 53);
    hosts_stop(&live, &backup);
}

static int set_up(void **state)
{
    const char *given = getenv("FTVMM_TEST_SEED");

    (void)state;
    seed = given != NULL ? (unsigned)strtoul(given, NULL, 0) : (unsigned)clock_now_ns();
    printf("seed %u\n", seed);
    return hosts_open(ftvmm, ftctl);
}

static int tear_down(void **state)
{
    (void)state;
    return hosts_close();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_outlives_its_hosts),
        cmocka_unit_test(a_backup_that_dies_on_the_way_does_no_harm),
        cmocka_unit_test(a_primary_that_dies_on_the_way_leaves_no_second_guest),
        cmocka_unit_test(a_transfer_is_seen_limited_and_called_off),
        cmocka_unit_test(a_difference_is_found_and_healed),
    };

    if (argc != 3)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
