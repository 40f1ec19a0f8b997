/* ftbench counter against a real redis-server on loopback that stalls, dies, forgets, or is not there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "tests/unit/ports.h"

#define SKIPPED 77
#define STATUS_HUNG (-1)

static const char *ftbench;
static char directory[] = "/tmp/ftbench-test-XXXXXX";
static unsigned port;
static pid_t redis = -1;

static bool answers(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                   .sin_port = htons((uint16_t)port) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool answer = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;

    close(fd);
    return answer;
}

static pid_t start(const char *const argv[], const char *output)
{
    pid_t child = fork();

    if (child == 0) {
        int fd = open(output, O_WRONLY | O_CREAT | O_APPEND, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing running */
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    return child;
}

static void redis_start(bool durable)
{
    char port_text[8];
    const char *argv[] = { "redis-server", "--port", port_text, "--bind", "127.0.0.1", "--save", "", "--dir", directory,
                           "--appendonly", durable ? "yes" : "no", "--appendfsync", "always", NULL };

    snprintf(port_text, sizeof(port_text), "%u", port);
    redis = start(argv, "/dev/null");
    for (int i = 0; i < 500 && !answers(); i++)
        clock_sleep_ns(20 * NS_PER_MS);
    assert_true(answers());
}

static void redis_kill(void)
{
    if (redis > 0) {
        kill(redis, SIGKILL);
        waitpid(redis, NULL, 0);
    }
    redis = -1;
}

static int set_up(void **state)
{
    (void)state;
    port = ports_free(1);
    return 0;
}

static int tear_down(void **state)
{
    char command[128];

    (void)state;
    redis_kill();
    snprintf(command, sizeof(command), "rm -rf %s/*", directory);
    return system(command);
}

/* ---- ftbench ---- */

static pid_t bench_start(const char *seconds, const char *patience)
{
    char port_text[8], json[64], log[64];
    const char *argv[] = { ftbench, "counter", "--host", "127.0.0.1", "--port", port_text, "--seconds", seconds,
                           "--patience", patience, "--json", json, "--progress", NULL };

    snprintf(port_text, sizeof(port_text), "%u", port);
    snprintf(json, sizeof(json), "%s/result.json", directory);
    snprintf(log, sizeof(log), "%s/log", directory);
    return start(argv, log);
}

static int bench_wait(pid_t bench)
{
    int status = 0;

    for (int i = 0; i < 2000; i++) {
        if (waitpid(bench, &status, WNOHANG) == bench)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        clock_sleep_ns(10 * NS_PER_MS);
    }
    kill(bench, SIGKILL);
    waitpid(bench, NULL, 0);
    return STATUS_HUNG;
}

/* How often it has told, once a second, what was acknowledged so far. */
static unsigned bench_count_progress(void)
{
    char path[64], text[16384];
    unsigned told = 0;
    ssize_t bytes;
    int fd;

    snprintf(path, sizeof(path), "%s/log", directory);
    fd = open(path, O_RDONLY);
    bytes = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    for (const char *line = text; (line = strstr(line, " acknowledged, ")) != NULL; line++)
        told++;
    return told;
}

static void bench_await_progress(unsigned times)
{
    unsigned before = bench_count_progress();

    for (int i = 0; bench_count_progress() < before + times; i++) {
        if (i == 3000)
            fail_msg("no progress in 30 s");
        clock_sleep_ns(10 * NS_PER_MS);
    }
}

static int bench_stop(pid_t bench)
{
    kill(bench, SIGTERM);
    return bench_wait(bench);
}

static cJSON *result(void)
{
    char path[64], text[65536];
    ssize_t bytes;
    cJSON *object;
    int fd;

    snprintf(path, sizeof(path), "%s/result.json", directory);
    fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    bytes = read(fd, text, sizeof(text) - 1);
    close(fd);
    assert_true(bytes > 0);
    text[bytes] = '\0';
    object = cJSON_Parse(text);
    assert_non_null(object);
    return object;
}

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);

    if (!cJSON_IsNumber(item))
        fail_msg("the result has no number '%s'", name);
    return item->valuedouble;
}

static void healthy_service_is_clean(void **state)
{
    cJSON *object;

    (void)state;
    redis_start(false);
    assert_int_equal(bench_wait(bench_start("1", "5")), 0);
    object = result();
    assert_true(number(object, "acknowledged") > 100);
    assert_int_equal(number(object, "acknowledged"), number(object, "sent"));
    assert_int_equal(number(object, "final_value"), number(object, "acknowledged"));
    assert_int_equal(number(object, "lost"), 0);
    assert_int_equal(number(object, "unknown"), 0);
    assert_string_equal(cJSON_GetObjectItem(object, "verdict")->valuestring, "ok");
    cJSON_Delete(object);
}

static void stalled_service_shows_as_the_longest_gap(void **state)
{
    cJSON *object;
    pid_t bench;

    (void)state;
    redis_start(false);
    bench = bench_start("60", "30");
    bench_await_progress(1);
    kill(redis, SIGSTOP);
    kill(bench, SIGUSR1);
    clock_sleep_ns(2 * NS_PER_S);
    kill(redis, SIGCONT);
    bench_await_progress(2);
    assert_int_equal(bench_stop(bench), 0);
    object = result();
    assert_true(number(object, "longest_gap_ms") > 1900);
    assert_true(number(object, "longest_gap_ms") < 20000);
    assert_true(number(object, "longest_gap_begin_from_mark_s") > -1);
    assert_true(number(object, "longest_gap_begin_from_mark_s") < 1);
    assert_int_equal(number(object, "reconnects"), 0); /* the silence was borne */
    assert_true(number(object, "acknowledged_before_mark") > 0);
    assert_true(number(object, "acknowledged_after_mark") > 0);
    assert_int_equal(number(object, "acknowledged_before_mark") + number(object, "acknowledged_after_mark"),
                     number(object, "acknowledged"));
    cJSON_Delete(object);
}

static void service_that_forgets_is_found_out(void **state)
{
    cJSON *object;
    pid_t bench;

    (void)state;
    redis_start(false);
    bench = bench_start("60", "10");
    bench_await_progress(1);
    redis_kill();
    redis_start(false);
    bench_await_progress(2);
    assert_int_equal(bench_stop(bench), 1);
    object = result();
    assert_true(number(object, "lost") > 0);
    assert_true(number(object, "duplicated") > 0);
    assert_true(number(object, "reconnects") > 0);
    assert_string_equal(cJSON_GetObjectItem(object, "verdict")->valuestring, "failed");
    cJSON_Delete(object);
}

static void service_that_remembers_survives_a_restart(void **state)
{
    cJSON *object;
    pid_t bench;

    (void)state;
    redis_start(true);
    bench = bench_start("60", "10");
    bench_await_progress(1);
    redis_kill();
    clock_sleep_ns(300 * NS_PER_MS);
    redis_start(true);
    bench_await_progress(2);
    assert_int_equal(bench_stop(bench), 0);
    object = result();
    assert_true(number(object, "reconnects") > 0);
    assert_true(number(object, "longest_gap_ms") > 250); /* it spans the two connections */
    assert_int_equal(number(object, "lost"), 0);
    assert_true(number(object, "final_value") >= number(object, "acknowledged"));
    assert_true(number(object, "final_value") <= number(object, "sent"));
    cJSON_Delete(object);
}

static void service_that_stays_away_is_unreachable(void **state)
{
    cJSON *object;
    pid_t bench;

    (void)state;
    redis_start(false);
    bench = bench_start("60", "1");
    bench_await_progress(1);
    redis_kill();
    assert_int_equal(bench_stop(bench), 3);
    object = result();
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(object, "final_value")));
    assert_string_equal(cJSON_GetObjectItem(object, "verdict")->valuestring, "unreachable");
    assert_true(number(object, "acknowledged") > 0);
    cJSON_Delete(object);
}

static void absent_service_is_unreachable(void **state)
{
    uint64_t start_ns = clock_now_ns();

    (void)state;
    assert_int_equal(bench_wait(bench_start("1", "0.5")), 3);
    assert_true(clock_now_ns() - start_ns < 10 * NS_PER_S);
}

static void terminated_run_still_gives_its_result(void **state)
{
    uint64_t start_ns = clock_now_ns();
    cJSON *object;
    pid_t bench;

    (void)state;
    redis_start(false);
    bench = bench_start("60", "5");
    bench_await_progress(1);
    assert_int_equal(bench_stop(bench), 0);
    assert_true(clock_now_ns() - start_ns < 50 * NS_PER_S);
    object = result();
    assert_int_equal(number(object, "lost"), 0);
    cJSON_Delete(object);
}

static void bad_options_are_a_usage_error(void **state)
{
    static const char *const cases[][8] = {
        { "counter" },
        { "counter", "--host" },
        { "counter", "--host", "127.0.0.1", "--port", "0" },
        { "counter", "--host", "127.0.0.1", "--port", "x" },
        { "counter", "--host", "127.0.0.1", "--pipeline", "-1" },
        { "counter", "--host", "127.0.0.1", "--seconds", "nan" },
        { "counter", "--host", "127.0.0.1", "--json", "/nonexistent/x" },
        { "counter", "--host", "127.0.0.1", "more" },
        { "counter", "--host", "127.0.0.1", "--bogus" },
        { "nonesuch" },
        { NULL },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *argv[10] = { ftbench };

        memcpy(argv + 1, cases[i], sizeof(cases[i]));
        if (bench_wait(start(argv, "/dev/null")) != 2)
            fail_msg("case %zu is not refused", i);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(healthy_service_is_clean, set_up, tear_down),
        cmocka_unit_test_setup_teardown(stalled_service_shows_as_the_longest_gap, set_up, tear_down),
        cmocka_unit_test_setup_teardown(service_that_forgets_is_found_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(service_that_remembers_survives_a_restart, set_up, tear_down),
        cmocka_unit_test_setup_teardown(service_that_stays_away_is_unreachable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(absent_service_is_unreachable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(terminated_run_still_gives_its_result, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_options_are_a_usage_error, set_up, tear_down),
    };
    int failed;

    if (argc < 2) {
        fprintf(stderr, "usage: test_counter FTBENCH\n");
        return 2;
    }
    ftbench = argv[1];
    if (system("command -v redis-server >/dev/null") != 0) {
        printf("skipped: needs redis-server (package redis-server)\n");
        return SKIPPED;
    }
    if (mkdtemp(directory) == NULL)
        return 1;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(directory);
    return failed;
}
