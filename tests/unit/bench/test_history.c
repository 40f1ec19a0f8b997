/* ftbench history against a real redis-server on loopback: as it is, frozen for a while, and robbed of what it had. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"

static const char *ftbench;
static char directory[] = "/tmp/ftbench-history-XXXXXX";
static unsigned port;
static pid_t redis;

static pid_t start(const char *const argv[])
{
    char said[64];
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        int fd;

        snprintf(said, sizeof(said), "%s/said", directory);
        fd = open(said, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing running */
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    return child;
}

static int redis_command(const char *words)
{
    char command[128];

    snprintf(command, sizeof(command), "redis-cli -p %u %s >/dev/null 2>&1", port, words);
    return system(command);
}

static int set_up(void **state)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char port_text[8];
    const char *const argv[] = { "redis-server", "--port", port_text, "--bind", "127.0.0.1", "--save", "", "--dir",
                                 directory, NULL };

    (void)state;
    if (mkdtemp(directory) == NULL || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &bytes) != 0)
        return -1;
    close(fd);
    port = ntohs(address.sin_port);
    snprintf(port_text, sizeof(port_text), "%u", port);
    redis = start(argv);
    for (unsigned i = 0; i < 500 && redis_command("ping") != 0; i++)
        clock_sleep_ns(20 * NS_PER_MS);
    return redis_command("ping");
}

static int tear_down(void **state)
{
    char command[96];

    (void)state;
    kill(redis, SIGKILL);
    waitpid(redis, NULL, 0);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}

static pid_t history_start(void)
{
    char port_text[8];
    const char *const argv[] = { ftbench, "history", "--host", "127.0.0.1", "--port", port_text, "--seconds", "2",
                                 "--pause", "2", "--patience", "20", NULL };

    snprintf(port_text, sizeof(port_text), "%u", port);
    return start(argv);
}

static int history_end(pid_t pid)
{
    int status = 0;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_service_that_stalls_is_linearizable(void **state)
{
    pid_t history = history_start();

    (void)state;
    clock_sleep_ns(700 * NS_PER_MS);
    kill(redis, SIGSTOP);
    clock_sleep_ns(500 * NS_PER_MS);
    kill(redis, SIGCONT);
    assert_int_equal(history_end(history), 0);
}

static void a_counter_that_goes_back_is_not(void **state)
{
    pid_t history = history_start();

    (void)state;
    clock_sleep_ns(NS_PER_S);
    assert_int_equal(redis_command("decrby history:counter 3"), 0);
    assert_int_equal(history_end(history), 1);
}

static void a_register_with_a_lost_value_is_not(void **state)
{
    pid_t history = history_start();

    (void)state;
    clock_sleep_ns(NS_PER_S);
    for (unsigned i = 0; i < 20; i++) /* some reader sees it before it is written again */
        assert_int_equal(redis_command("set history:register 0"), 0);
    assert_int_equal(history_end(history), 1);
}

static void nobody_there_is_said(void **state)
{
    const char *const argv[] = { ftbench, "history", "--host", "127.0.0.1", "--port", "1", NULL };
    const char *const wrong[] = { ftbench, "history", "--clients", "0", "--host", "127.0.0.1", NULL };

    (void)state;
    assert_int_equal(history_end(start(argv)), 3);
    assert_int_equal(history_end(start(wrong)), 2);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_service_that_stalls_is_linearizable),
        cmocka_unit_test(a_counter_that_goes_back_is_not),
        cmocka_unit_test(a_register_with_a_lost_value_is_not),
        cmocka_unit_test(nobody_there_is_said),
    };

    if (argc != 2)
        return 1;
    ftbench = argv[1];
    if (system("command -v redis-server redis-cli >/dev/null 2>&1") != 0) {
        puts("no redis-server here: apt-get install redis-server");
        return TEST_SKIP;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
