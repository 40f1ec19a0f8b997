/*
 * A guest with the clock `step` that outlives its hosts, which are real ftvmm processes: it computes for seconds between
 * exits, so that what is asked of it meanwhile is done at places (place.h). Each new backup learns the clock from the
 * transfer, one takes the guest over at a place, one when its primary is killed, and the last finds it equal to the last
 * byte. argv[1]: ftvmm, argv[2]: ftctl.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/real_hosts.h"

static const char *ftvmm, *ftctl;

static void expect_clock(const struct host *host)
{
    cJSON *answer = host_ask(host, "status");
    const cJSON *lockstep = cJSON_GetObjectItem(cJSON_GetObjectItem(answer, "status"), "lockstep");
    const char *clock = cJSON_GetStringValue(cJSON_GetObjectItem(lockstep, "clock"));

    if (clock == NULL || strcmp(clock, "step") != 0)
        host_fail(host, "its guest's clock is another");
    cJSON_Delete(answer);
}

static void a_stepped_guest_outlives_its_hosts(void **state)
{
    struct host first = host_start(0, "run", "--clock step"), second, third, last;
    cJSON *answer;

    (void)state;
    host_await(&first, "alone", false);
    second = host_protect(&first, 1);
    expect_clock(&second);
    host_await_number(&second, "lockstep", "places", 3); /* found there */
    answer = host_ask(&first, "failover");
    if (!cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok")))
        host_fail(&first, "it does not hand over");
    cJSON_Delete(answer);
    assert_int_equal(WEXITSTATUS(host_end(&first)), 3);
    host_await(&second, "alone", false);
    third = host_protect(&second, 2);
    host_await_number(&third, "lockstep", "places", 3);
    kill(second.pid, SIGKILL);
    assert_int_equal(WTERMSIG(host_end(&second)), SIGKILL);
    host_await(&third, "alone", false);
    expect_clock(&third);
    last = host_protect(&third, 3);
    host_await_number(&last, "lockstep", "places", 3);
    cJSON_Delete(host_ask(&third, "stop"));
    if (host_end(&third) != 0)
        host_fail(&third, "it did not stop in order");
    if (host_end(&last) != 0 || !host_has_said(&last, "equal to the primary's to the last byte"))
        host_fail(&last, "it has not found the guest equal");
}

/* A host that is told another clock than the log has says so, and what to do. */
static void a_backup_does_not_take_another_clock(void **state)
{
    struct host first, second;
    char arguments[96];

    (void)state;
    snprintf(arguments, sizeof(arguments), "--clock exits --listen shm:clock-%d", (int)getpid());
    second = host_start(11, "backup", arguments);
    snprintf(arguments, sizeof(arguments), "--clock step --spare none --backup shm:clock-%d", (int)getpid());
    first = host_start(10, "primary", arguments);
    if (WEXITSTATUS(host_end(&second)) != 1 || !host_has_said(&second, "the log's clock is step, and --clock exits"))
        host_fail(&second, "it has taken a clock that it was not told");
    cJSON_Delete(host_ask(&first, "stop"));
    kill(first.pid, SIGTERM);
    (void)host_end(&first);
}

/* There is none here, or it is asked for and used: both are right, and both are said. */
static void a_pmu_is_used_or_its_lack_is_said(void **state)
{
    struct host host = host_start(20, "run", "--clock pmu --stop-after 1");
    int status = host_end(&host);

    (void)state;
    if (WEXITSTATUS(status) == 0 ? !host_has_said(&host, "the guest's clock is pmu: ")
                                 : !host_has_said(&host, "the clock pmu cannot be had: "))
        host_fail(&host, "it does not say what its clock is");
    assert_in_range(WEXITSTATUS(status), 0, 1);
}

static int set_up(void **state)
{
    (void)state;
    hosts_arguments = "--peer-timeout 4000"; /* a step takes 100 us and more where there is much else to do */
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
        cmocka_unit_test(a_stepped_guest_outlives_its_hosts),
        cmocka_unit_test(a_backup_does_not_take_another_clock),
        cmocka_unit_test(a_pmu_is_used_or_its_lack_is_said),
    };

    if (argc != 3)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
