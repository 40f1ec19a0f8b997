/*
 * The fleet as it is: a real etcd server, agents as processes, primaries' searches side by side; and in the end a real
 * guest that loses host after host and finds the next one in etcd by itself. argv[1]: ftvmm, [2]: ftctl, [3]: ftagent.
 */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/fleet/agents.h"
#include "tests/unit/lockstep/etcd_cluster.h"
#include "tests/unit/lockstep/real_hosts.h"

static const char *ftvmm, *ftctl, *ftagent;
static struct etcd_cluster cluster;

/* ---- tests ---- */

static void two_vms_race_for_one_slot(void **state)
{
    struct agent agent = agent_named("race");

    (void)state;
    agent_describe(&agent, "red", "shm:red", "");
    agent_describe(&agent, "blue", "shm:blue", "");
    agent_start(&agent, "64", agents_sleeper);
    await_host("race", true, 64);
    for (unsigned round = 0; round < 5; round++) {
        static const char *const vms[] = { "red", "blue" };
        pid_t pids[2];
        int winner = -1, pipe_fds[2];

        assert_int_equal(pipe(pipe_fds), 0);
        for (unsigned i = 0; i < 2; i++) {
            pids[i] = fork();
            assert_true(pids[i] >= 0);
            if (pids[i] == 0) { /* both begin when the pipe's last writer has closed it */
                struct fleet_spare *spare = search(vms[i], i == 0 ? "host-red" : "host-blue");
                char byte;
                int rc;

                close(pipe_fds[1]);
                rc = (int)read(pipe_fds[0], &byte, 1);
                rc = fleet_spare_find(spare, found_address, found, found_why);
                _exit(rc == 0 && strcmp(found_address + 4, vms[i]) == 0 ? 0 : rc == -ENOENT ? 1 : 2);
            }
        }
        close(pipe_fds[0]);
        close(pipe_fds[1]);
        for (unsigned i = 0; i < 2; i++) {
            int status;

            assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
            assert_true(WIFEXITED(status));
            assert_in_range(WEXITSTATUS(status), 0, 1);
            if (WEXITSTATUS(status) == 0) {
                assert_int_equal(winner, -1);
                winner = (int)i;
            }
        }
        assert_true(winner >= 0);
        await_host("race", true, 0);
        backup_kill(&agent, vms[winner]);
        await_host("race", true, 64);
    }
    agent_kill(&agent, SIGTERM, 0);
    await_host("race", false, -1); /* at once: the lease has been given back */
}

static void a_dead_agent_is_not_chosen(void **state)
{
    struct agent one = agent_named("one"), two = agent_named("two");

    (void)state;
    agent_describe(&one, "web", "shm:web-one", "");
    agent_describe(&two, "web", "shm:web-two", "");
    agent_start(&one, "256", agents_sleeper); /* the roomier one */
    agent_start(&two, "128", agents_sleeper);
    await_host("one", true, 256);
    await_host("two", true, 128);
    agent_kill(&one, SIGKILL, -SIGKILL);
    await_host("one", false, -1); /* its lease has run out */
    found_is(find("web", "here"), "two");
    assert_string_equal(found_address, "shm:web-two");
    /* One whose agent stands still is present for a while: it is asked in vain, and another is found. */
    agent_start(&one, "256", agents_sleeper);
    await_host("one", true, 256);
    backup_kill(&two, "web");
    await_host("two", true, 128);
    kill(one.pid, SIGSTOP);
    found_is(find("web", "here"), "two");
    kill(one.pid, SIGCONT);
    await_host("one", true, 256); /* back under a new lease, and it has started nothing */
    assert_int_equal(backup_pid(&one, "web"), 0);
    backup_kill(&two, "web");
    agent_kill(&one, SIGTERM, 0);
    agent_kill(&two, SIGTERM, 0);
}

static void an_agent_that_starts_anew_knows_its_guests(void **state)
{
    struct agent agent = agent_named("again");
    pid_t pid;

    (void)state;
    agent_describe(&agent, "web", "shm:web-again", "");
    agent_start(&agent, "128", agents_sleeper);
    await_host("again", true, 128);
    found_is(find("web", "here"), "again");
    await_host("again", true, 64);
    pid = backup_await(&agent, "web");
    agent_kill(&agent, SIGKILL, -SIGKILL);
    agent_start(&agent, "128", agents_sleeper); /* before its lease has run out, too */
    await_host("again", true, 64);
    assert_int_equal(backup_pid(&agent, "web"), pid);
    assert_int_equal(kill(pid, 0), 0);
    /* A ledger that was emptied meanwhile is filled again from what lives here. */
    etcd_control(&cluster, "etcdctl del ftvmm/.fleet/claims/again");
    await_host("again", true, 64);
    /* What has ended while nobody looked is found out. */
    agent_kill(&agent, SIGKILL, -SIGKILL);
    assert_int_equal(kill(pid, SIGKILL), 0);
    agent_start(&agent, "128", agents_sleeper);
    await_host("again", true, 128);
    agent_kill(&agent, SIGTERM, 0);
}

/* Another agent with the name of one that is there does not get in, and the second with its directories neither. */
static void one_name_is_one_agents(void **state)
{
    struct agent agent = agent_named("name"), same = agent;
    int status;

    (void)state;
    agent_start(&agent, "128", agents_sleeper);
    await_host("name", true, 128);
    agent_start(&same, "128", agents_sleeper);
    assert_int_equal(waitpid(same.pid, &status, 0), same.pid);
    assert_int_equal(WEXITSTATUS(status), 1);
    await_host("name", true, 128);
    agent_kill(&agent, SIGTERM, 0);
}

static void garbage_in_etcd_is_said_and_passed_over(void **state)
{
    struct agent agent = agent_named("clean");
    cJSON *fleet;

    (void)state;
    etcd_control(&cluster, "etcdctl put ftvmm/.fleet/hosts/garbage '{{{'; etcdctl put ftvmm/.fleet/hosts/empty ''; "
                           "etcdctl put 'ftvmm/.fleet/hosts/a b' x; etcdctl put ftvmm/.fleet/hosts/a/b x; "
                           "head -c 200000 /dev/zero | tr '\\0' y | etcdctl put ftvmm/.fleet/hosts/huge; "
                           "head -c 300 /dev/urandom | etcdctl put ftvmm/.fleet/claims/noise");
    agent_describe(&agent, "web", "shm:web-clean", "");
    agent_start(&agent, "128", agents_sleeper);
    await_host("clean", true, 128);
    fleet = fleet_status();
    for (unsigned i = 0; i < 4; i++) {
        static const char *const bad[] = { "garbage", "empty", "huge", "noise" };
        const char *error = cJSON_GetStringValue(cJSON_GetObjectItem(host_of(fleet, bad[i]), "error"));

        assert_non_null(error);
        assert_true(strlen(error) > 20);
    }
    assert_int_equal((int)cJSON_GetNumberValue(cJSON_GetObjectItem(fleet, "strange_keys")), 2);
    cJSON_Delete(fleet);
    found_is(find("web", "here"), "clean");
    backup_kill(&agent, "web");
    await_host("clean", true, 128);
    /* Its own ledger: it does nothing until that is mended, and is no spare meanwhile. */
    etcd_control(&cluster, "etcdctl put ftvmm/.fleet/claims/clean 'rubbish'");
    assert_int_equal(find("web", "here"), -ENOENT);
    assert_non_null(strstr(found_why, "none of ours"));
    etcd_control(&cluster, "etcdctl del --prefix ftvmm/.fleet/claims/; etcdctl del ftvmm/.fleet/hosts/garbage; "
                           "etcdctl del ftvmm/.fleet/hosts/huge");
    await_host("clean", true, 128);
    found_is(find("web", "here"), "clean");
    backup_kill(&agent, "web");
    agent_kill(&agent, SIGTERM, 0);
}

static void why_not_is_said(void **state)
{
    struct agent agent = agent_named("small");

    (void)state;
    agent_describe(&agent, "web", "shm:web-small", "");
    agent_start(&agent, "128", "/nonexistent/ftvmm"); /* it starts nothing, whatever it is asked for */
    await_host("small", true, 128);
    assert_int_equal(find("db", "here"), -ENOENT);
    assert_non_null(strstr(found_why, "no description of this VM"));
    assert_int_equal(find("web", "small"), -ENOENT);
    assert_non_null(strstr(found_why, "the guest runs there"));
    assert_int_equal(find("web", "here"), -ENOENT);
    assert_non_null(strstr(found_why, "it has ended"));
    await_host("small", true, 128);
    agent_kill(&agent, SIGTERM, 0);
    assert_int_equal(find("web", "here"), -ENOENT);
    etcd_member_kill(&cluster, 0);
    assert_int_equal(find("web", "here"), -EHOSTUNREACH);
    etcd_member_start(&cluster, 0);
    etcd_member_wait(&cluster, 0);
}

/* What the operator does wrong. */
static void wrong_use_is_said(void **state)
{
    static const struct {
        const char *arguments, *words;
        int status;
    } cases[] = {
        { "", "a command is missing", 2 },
        { "fly", "there is no command", 2 },
        { "run", "needs --fleet and --memory", 2 },
        { "run --fleet http://127.0.0.1:1 --memory 63", "--memory takes MiB", 2 },
        { "run --fleet http://127.0.0.1:1 --memory 64 --name a/b", "letters, digits", 2 },
        { "run --fleet http://127.0.0.1:1 --memory 64 --lease 60", "2 to 20", 2 },
        { "run --fleet http://127.0.0.1:1 --memory 64 --guests 0", "1 to 64", 2 },
        { "run --fleet http://127.0.0.1:1 --memory 64 --run /proc/nothing", "must be a directory of ours", 1 },
        { "run --fleet http://127.0.0.1:1 --memory 64 --run DIR --vms /nonexistent", "should be a directory", 1 },
        { "run --fleet 127.0.0.1 --memory 64 --run DIR --vms DIR", "etcd endpoint '127.0.0.1'", 1 },
        { "status", "needs --fleet", 2 },
        { "status --fleet http://127.0.0.1:1", "does not tell of the fleet", 1 },
        { "status --fleet http://127.0.0.1:1 --fleet-auth DIR", "--fleet-auth needs https://", 1 },
        { "check --vms /nonexistent", "should be a directory", 1 },
        { "check --vms DIR --nonsense", "unknown option", 2 },
    };
    struct agent agent = agent_named("wrong");

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char command[512], said[4096];
        FILE *pipe;
        int status;

        snprintf(command, sizeof(command),
                 "set -- '%s'; words=$(echo '%s' | sed \"s,DIR,$1,g\"); timeout 40 %s $words 2>&1", agent.dir,
                 cases[i].arguments, ftagent);
        pipe = popen(command, "r");
        assert_non_null(pipe);
        said[fread(said, 1, sizeof(said) - 1, pipe)] = '\0';
        status = pclose(pipe);
        if (WEXITSTATUS(status) != cases[i].status || strstr(said, cases[i].words) == NULL)
            fail_msg("ftagent %s: status %d: %s", cases[i].arguments, WEXITSTATUS(status), said);
    }
}

/* ---- the guest ---- */

struct real_host {
    struct agent agent;
    struct host host;
};

static void real_host_start(struct real_host *real, const char *name, unsigned number)
{
    char words[1280], listen[64];

    real->agent = agent_named(name);
    snprintf(words, sizeof(words), "%s --stop-after 200", host_words(&real->host, number));
    snprintf(real->host.said, sizeof(real->host.said), "%s", real->agent.said);
    snprintf(listen, sizeof(listen), "shm:fleet-%d-%s", (int)getpid(), name);
    agent_describe(&real->agent, "many", listen, words);
    agent_start(&real->agent, "64", ftvmm);
    await_host(name, true, 64);
}

/* Waits until `live` has a backup on one of the two, which is not `not_there`. */
static struct real_host *await_spare(const struct host *live, struct real_host reals[2],
                                     const struct real_host *not_there)
{
    for (uint64_t until_ns = clock_now_ns() + AGENTS_LIMIT_NS; clock_now_ns() < until_ns;
         clock_sleep_ns(100 * NS_PER_MS)) {
        cJSON *answer = host_ask(live, "status"), *status = cJSON_GetObjectItem(answer, "status");
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(cJSON_GetObjectItem(status, "protection"),
                                                                    "spare_host"));
        bool protected = cJSON_IsTrue(cJSON_GetObjectItem(status, "protected"));
        struct real_host *found_there = NULL;

        for (unsigned i = 0; i < 2 && name != NULL && protected; i++)
            if (strcmp(name, reals[i].agent.name) == 0 && &reals[i] != not_there)
                found_there = &reals[i];
        cJSON_Delete(answer);
        if (found_there != NULL)
            return found_there;
    }
    agents_say();
    host_fail(live, "it gets no backup of the fleet");
    return NULL;
}

/*
 * Host alpha runs the guest with a backup that was started by hand; beta and gamma are the fleet. The backup dies, then
 * the one that the fleet has given, then alpha itself: each time the guest finds the next host without anybody's help.
 */
static void a_guest_finds_its_spares_by_itself(void **state)
{
    struct real_host reals[2], *second, *third;
    struct host first, live;
    char arguments[384];
    cJSON *answer;
    uint64_t began_ns = clock_now_ns();

    (void)state;
    assert_int_equal(hosts_open(ftvmm, ftctl), 0);
    real_host_start(&reals[0], "beta", 90);
    real_host_start(&reals[1], "gamma", 91);
    snprintf(arguments, sizeof(arguments), "--listen shm:fleet-%d-hand", (int)getpid());
    first = host_start(1, "backup", arguments);
    snprintf(arguments, sizeof(arguments), "--verify --fleet %s --spare fleet:alpha --backup shm:fleet-%d-hand",
             etcd_cluster_address(&cluster) + strlen("etcd:"), (int)getpid());
    live = host_start(0, "primary", arguments);
    host_await(&live, "primary", true);
    answer = host_ask(&live, "protect fleet:beta"); /* whose name it is not for ftctl to say */
    assert_false(cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok")));
    cJSON_Delete(answer);
    kill(first.pid, SIGKILL);
    (void)host_end(&first);
    second = await_spare(&live, reals, NULL);
    printf("the first backup is lost: %s has the next\n", second->agent.name);
    await_host(second->agent.name, true, 0);
    backup_kill(&second->agent, "many");
    third = await_spare(&live, reals, second);
    printf("that one is lost: %s has the next\n", third->agent.name);
    await_host(second->agent.name, true, 64); /* its room is free again */
    await_host(third->agent.name, true, 0);
    kill(live.pid, SIGKILL);
    (void)host_end(&live);
    assert_ptr_equal(await_spare(&third->host, reals, third), second);
    printf("the primary is lost: the guest runs on %s, and %s has its backup\n", third->agent.name, second->agent.name);
    cJSON_Delete(host_ask(&third->host, "stop"));
    await_host("beta", true, 64);
    await_host("gamma", true, 64);
    if (!host_has_said(&second->host, "equal to the primary's to the last byte"))
        host_fail(&second->host, "it has not found the guest equal");
    agent_kill(&reals[0].agent, SIGTERM, 0);
    agent_kill(&reals[1].agent, SIGTERM, 0);
    assert_int_equal(hosts_close(), 0);
    printf("%.1f s\n", (double)(clock_now_ns() - began_ns) / (double)NS_PER_S);
}

static int set_up(void **state)
{
    (void)state;
    etcd_cluster_start(&cluster, 1, NULL);
    agents_open(ftagent, etcd_cluster_address(&cluster) + strlen("etcd:"), NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    etcd_cluster_end(&cluster);
    agents_close();
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_vms_race_for_one_slot),
        cmocka_unit_test(a_dead_agent_is_not_chosen),
        cmocka_unit_test(an_agent_that_starts_anew_knows_its_guests),
        cmocka_unit_test(one_name_is_one_agents),
        cmocka_unit_test(garbage_in_etcd_is_said_and_passed_over),
        cmocka_unit_test(why_not_is_said),
        cmocka_unit_test(wrong_use_is_said),
        cmocka_unit_test(a_guest_finds_its_spares_by_itself),
    };

    if (argc != 4)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    ftagent = argv[3];
    if (!etcd_is_installed()) {
        fputs("etcd, etcdctl or openssl is not installed: apt-get install etcd-server etcd-client openssl\n", stderr);
        return 77;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
