/* ftbench channel and compare as their users run them: tiny runs, their JSON, wrong words, ends that vanish. */
#include "tests/unit/cmocka_prelude.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "tests/unit/ports.h"

#define LIMIT_NS (60 * NS_PER_S) /* a loaded machine is slow; none of these takes more than a second on an idle one */

static const char *ftbench;
static char directory[] = "/tmp/ftbench-channel-XXXXXX";

static const char *path_of(const char *name)
{
    static char paths[16][128];
    static unsigned next;
    char *path = paths[next++ % 16];

    snprintf(path, sizeof(paths[0]), "%s/%s", directory, name);
    return path;
}

static pid_t start(const char *const argv[])
{
    pid_t child = fork();

    if (child == 0) {
        int out = open(path_of("out"), O_WRONLY | O_CREAT | O_APPEND, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing running */
        dup2(out, STDOUT_FILENO);
        dup2(out, STDERR_FILENO);
        execv(ftbench, (char *const *)argv);
        _exit(127);
    }
    return child;
}

/* The exit status; fails the test when it takes too long. */
static int end_of(pid_t child)
{
    uint64_t until_ns = clock_now_ns() + LIMIT_NS;
    int status = 0;

    while (waitpid(child, &status, WNOHANG) == 0) {
        if (clock_now_ns() >= until_ns) {
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            fail_msg("not done after %u s", (unsigned)(LIMIT_NS / NS_PER_S));
        }
        clock_sleep_ns(5 * NS_PER_MS);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define RUN(...) run((const char *const[]){ "ftbench", __VA_ARGS__, NULL })
static int run(const char *const argv[])
{
    unlink(path_of("out"));
    return end_of(start(argv));
}

static char *read_text(const char *path)
{
    static char text[1 << 20];
    FILE *file = fopen(path, "re");
    size_t bytes = file != NULL ? fread(text, 1, sizeof(text) - 1, file) : 0;

    if (file != NULL)
        fclose(file);
    text[bytes] = '\0';
    return text;
}

static bool said(const char *word)
{
    return strstr(read_text(path_of("out")), word) != NULL;
}

static const cJSON *metric_named(const cJSON *result, const char *name)
{
    const cJSON *metric;

    cJSON_ArrayForEach(metric, cJSON_GetObjectItemCaseSensitive(result, "metrics"))
    {
        if (strcmp(cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metric, "name")), name) == 0)
            return metric;
    }
    fail_msg("the JSON has no metric %s", name);
    return NULL;
}

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

    assert_true(cJSON_IsNumber(item));
    return item->valuedouble;
}

/* A whole run of two rounds, whose parts fit each other. */
static void check_run(const char *address)
{
    static const char *const positive[] = {
        "commit_to_ack_ns.p50", "commit_to_seen_ns.p50", "cache_line_one_way_ns.p50", "seen_to_cache_line",
        "records_per_s.64B.ring_full", "records_per_s.256B.w8", "rte_ring_per_s.64B.burst1",
        "rte_ring_per_s.256B.burst32", "channel_to_rte_ring.64B",
    };
    const cJSON *series, *seen = NULL;
    cJSON *result;

    assert_int_equal(RUN("channel", address, "--rounds", "2", "--samples", "200", "--run-ms", "2", "--sizes", "64,256",
                         "--windows", "8,0", "--ring", "1", "--seed", "7", "--json", path_of("run.json"), "--csv",
                         path_of("run.csv"), "--svg", path_of("run.svg")), 0);
    result = cJSON_Parse(read_text(path_of("run.json")));
    assert_non_null(result);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(result, "format")), "ftbench channel 2");
    for (size_t i = 0; i < sizeof(positive) / sizeof(positive[0]); i++) {
        const cJSON *metric = metric_named(result, positive[i]);

        assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(metric, "values")), 2);
        assert_true(number(metric, "min") > 0);
        assert_true(number(metric, "min") <= number(metric, "median") &&
                    number(metric, "median") <= number(metric, "max"));
    }
    cJSON_ArrayForEach(series, cJSON_GetObjectItemCaseSensitive(result, "latency_ns"))
    {
        if (strcmp(cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(series, "name")), "commit_to_seen") == 0)
            seen = series;
    }
    assert_non_null(seen);
    /* Each round ends when its samples are taken, or its time is over. */
    assert_true(number(seen, "samples") >= 2 && number(seen, "samples") <= 400);
    assert_true(number(seen, "p50") <= number(seen, "p99") && number(seen, "p99") <= number(seen, "max"));
    assert_true(number(cJSON_GetObjectItemCaseSensitive(result, "settings"), "seed") == 7);
    assert_true(number(cJSON_GetObjectItemCaseSensitive(result, "noise"), "looked_ms") >= 40);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(result, "goals")), 2);
    cJSON_Delete(result);
    assert_non_null(strstr(read_text(path_of("run.csv")), "records_per_s.256B.w8,ours,higher,2,"));
    assert_non_null(strstr(read_text(path_of("run.svg")), "</svg>"));
    assert_true(said("commit_to_seen"));
}

static bool left_in_shm(void)
{
    DIR *shm = opendir("/dev/shm");
    struct dirent *entry;
    bool found = false;

    while (shm != NULL && (entry = readdir(shm)) != NULL)
        found = found || strncmp(entry->d_name, "ftvmm-ftbench-test", 18) == 0;
    if (shm != NULL)
        closedir(shm);
    return found;
}

static void shm_run_measures_all_it_names(void **state)
{
    char address[64];

    (void)state;
    snprintf(address, sizeof(address), "shm:ftbench-test-%ld", (long)getpid());
    check_run(address);
    assert_false(left_in_shm());
}

static void ring_run_measures_all_it_names(void **state)
{
    (void)state;
    check_run("ring");
}

static void json_to_stdout_is_nothing_but_json(void **state)
{
    int pipes[2];
    pid_t child;
    static char text[1 << 20];
    size_t used = 0;
    ssize_t got;
    cJSON *result;

    (void)state;
    assert_int_equal(pipe(pipes), 0);
    child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);

        dup2(pipes[1], STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        close(pipes[0]);
        execl(ftbench, "ftbench", "channel", "ring", "--rounds", "1", "--samples", "50", "--run-ms", "1", "--sizes",
              "64", "--json", "-", NULL);
        _exit(127);
    }
    close(pipes[1]);
    while ((got = read(pipes[0], text + used, sizeof(text) - 1 - used)) > 0)
        used += (size_t)got;
    close(pipes[0]);
    assert_int_equal(end_of(child), 0);
    result = cJSON_Parse(text);
    assert_non_null(result);
    cJSON_Delete(result);
}

/* Both ends on this machine, once as one command and once as two. */
static void tcp_run_measures_channel_and_socket(void **state)
{
    static const char *const names[] = { "commit_to_ack_ns.p50", "commit_to_consumed_ns.p50", "socket_one_way_ns.p50",
                                         "socket_stream_bytes_per_s.64KiB", "consumed_to_socket",
                                         "channel_to_socket_stream.64B" };
    char address[64];

    (void)state;
    for (unsigned two = 0; two < 2; two++) {
        const char *const receiver[] = { "ftbench", "channel", "--receive", address, NULL };
        pid_t peer = 0;
        cJSON *result;
        int status;

        snprintf(address, sizeof(address), "tcp:127.0.0.1:%u", ports_free(4));
        if (two == 1)
            peer = start(receiver);
        status = RUN("channel", address, two == 0 ? "--fork" : "--rounds=2", "--rounds", "2", "--samples", "100",
                     "--run-ms", "2", "--sizes", "64", "--json", path_of("run.json"));
        if (two == 0 && status != 0 && said("give verbs:HOST:PORT, shm:NAME or file:PATH")) {
            print_message("the channel has no link tcp: here\n");
            skip();
        }
        assert_int_equal(status, 0);
        if (two == 1)
            assert_int_equal(end_of(peer), 0);
        result = cJSON_Parse(read_text(path_of("run.json")));
        assert_non_null(result);
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
            assert_true(number(metric_named(result, names[i]), "min") > 0);
        cJSON_Delete(result);
    }
}

/* ---- wrong words ---- */

static void wrong_words_are_usage_errors(void **state)
{
    (void)state;
    assert_int_equal(RUN("channel", "pigeon:beta"), 2);
    assert_true(said("pigeon:beta"));
    assert_int_equal(RUN("channel", "file:/tmp/log"), 2);
    assert_int_equal(RUN("channel", "verbs:10.9.0.2"), 2);
    assert_true(said("verbs:HOST:PORT"));
    assert_int_equal(RUN("channel", "tcp:host:65533"), 2); /* the next three ports are needed too */
    assert_int_equal(RUN("channel", "--receive", "shm:"), 2);
    assert_int_equal(RUN("channel", "--receive", "--fork", "tcp:127.0.0.1:7000"), 2);
    assert_int_equal(RUN("channel", "--sizes", "65"), 2);
    assert_true(said("multiple of 64"));
    assert_int_equal(RUN("channel", "--sizes", "64,,128"), 2);
    assert_int_equal(RUN("channel", "--sizes", "64,128,192,256,320,384,448,512,576"), 2);
    assert_int_equal(RUN("channel", "--windows", "-1"), 2);
    assert_int_equal(RUN("channel", "--rounds", "0"), 2);
    assert_int_equal(RUN("channel", "--rounds", "65"), 2);
    assert_int_equal(RUN("channel", "--ring", "3"), 2);
    assert_int_equal(RUN("channel", "--cpu", "0"), 2);
    assert_int_equal(RUN("channel", "--wings"), 2);
    assert_int_equal(RUN("channel", "ring", "shm:"), 2);
    assert_int_equal(RUN("channel", "--help"), 0);
}

/* ---- ends that are not there ---- */

static void nobody_to_measure_with_is_said_in_time(void **state)
{
    char address[64];

    (void)state;
    snprintf(address, sizeof(address), "tcp:127.0.0.1:%u", ports_free(4));
    assert_int_equal(RUN("channel", address, "--join-timeout", "1"), 1);
    assert_true(said("--receive"));
    assert_int_equal(RUN("channel", "--receive", address, "--join-timeout", "1"), 1);
    assert_true(said("no leader came"));
}

static pid_t child_of(pid_t parent)
{
    char path[64];

    for (unsigned i = 0; i < 400; i++) {
        snprintf(path, sizeof(path), "/proc/%ld/task/%ld/children", (long)parent, (long)parent);
        if (atol(read_text(path)) > 0)
            return (pid_t)atol(read_text(path));
        clock_sleep_ns(5 * NS_PER_MS);
    }
    return -1;
}

static void peer_that_dies_ends_the_run(void **state)
{
    char address[64];
    const char *const argv[] = { "ftbench", "channel", address, "--rounds", "60", "--run-ms", "200", NULL };
    pid_t leader, peer;

    (void)state;
    snprintf(address, sizeof(address), "shm:ftbench-test-%ld", (long)getpid());
    unlink(path_of("out"));
    leader = start(argv);
    peer = child_of(leader);
    assert_true(peer > 0);
    clock_sleep_ns(300 * NS_PER_MS);
    kill(peer, SIGKILL);
    assert_int_equal(end_of(leader), 1);
    assert_true(said("the other end"));
    assert_false(left_in_shm());
}

static void leader_that_dies_ends_the_peer(void **state)
{
    char address[64];
    const char *const argv[] = { "ftbench", "channel", address, "--rounds", "60", "--run-ms", "200", NULL };
    pid_t leader, peer;
    uint64_t until_ns;

    (void)state;
    snprintf(address, sizeof(address), "shm:ftbench-test-%ld", (long)getpid());
    leader = start(argv);
    peer = child_of(leader);
    assert_true(peer > 0);
    clock_sleep_ns(300 * NS_PER_MS);
    kill(leader, SIGKILL);
    assert_int_equal(end_of(leader), -1);
    until_ns = clock_now_ns() + LIMIT_NS;
    while (left_in_shm() && clock_now_ns() < until_ns)
        clock_sleep_ns(5 * NS_PER_MS);
    assert_false(left_in_shm()); /* the peer has cleared away, so it has noticed */
}

/* ---- compare ---- */

/* A result of three rounds: a latency, a rate, a yardstick's rate, their ratio, and a maximum that nobody judges. */
static const char *write_result(const char *name, const char *link, double ack_ns, double rate, double yardstick)
{
    const char *path = path_of(name);
    FILE *file = fopen(path, "we");
    const struct {
        const char *name, *role, *better;
        double value;
    } metrics[] = {
        { "commit_to_ack_ns.p50", "ours", "lower", ack_ns },
        { "commit_to_ack_ns.p99.9", "ours", "lower", ack_ns * rate },
        { "commit_to_ack_ns.max", "ours", "lower", ack_ns * rate },
        { "records_per_s.64B.ring_full", "ours", "higher", rate },
        { "rte_ring_per_s.64B.burst1", "yardstick", "higher", yardstick },
        { "channel_to_rte_ring.64B", "ratio", "higher", rate / yardstick },
    };

    fprintf(file, "{\"format\": \"ftbench channel 2\", \"link\": \"%s\", \"one_machine\": true,"
                  "\"machine\": {\"cpu\": \"x\"}, \"settings\": {\"frame_bytes\": [64], \"windows\": [0],"
                  "\"ring_bytes\": 4194304}, \"metrics\": [", link);
    for (size_t i = 0; i < sizeof(metrics) / sizeof(metrics[0]); i++)
        fprintf(file, "%s{\"name\": \"%s\", \"role\": \"%s\", \"better\": \"%s\", \"values\": [%g, %g, %g]}",
                i > 0 ? "," : "", metrics[i].name, metrics[i].role, metrics[i].better, metrics[i].value * 0.99,
                metrics[i].value, metrics[i].value * 1.01);
    fprintf(file, "]}");
    fclose(file);
    return path;
}

#define NEW(...) write_result("new.json", "shm", __VA_ARGS__)

static void compare_judges_known_cases(void **state)
{
    const char *old = strdup(write_result("old.json", "shm", 100, 1e6, 1e6));

    (void)state;
    assert_int_equal(RUN("compare", old, old), 0);
    assert_true(said("3 metrics judged: 0 worse, 0 better, 3 within the noise"));
    assert_int_equal(RUN("compare", old, NEW(150, 1e6, 1e6)), 1); /* slower */
    assert_true(said("3 metrics judged: 1 worse"));
    assert_int_equal(RUN("compare", old, NEW(100, 0.5e6, 1e6)), 1); /* fewer, and a worse ratio */
    assert_true(said("2 worse"));
    assert_int_equal(RUN("compare", old, NEW(50, 2e6, 1e6)), 0);
    assert_true(said("3 better"));
    assert_int_equal(RUN("compare", old, NEW(103, 0.98e6, 1e6)), 0); /* noise */
    assert_int_equal(RUN("compare", "--tolerance", "1", old, NEW(103, 1e6, 1e6)), 1);
    assert_int_equal(RUN("compare", "--tolerance", "60", old, NEW(150, 1e6, 1e6)), 0);
    free((void *)(uintptr_t)old);
}

static void compare_judges_ratios_only_when_a_yardstick_changed(void **state)
{
    const char *old = strdup(write_result("old.json", "shm", 100, 1e6, 1e6));

    (void)state;
    assert_int_equal(RUN("compare", old, NEW(300, 0.5e6, 0.5e6)), 0); /* all is half as fast: the machine */
    assert_true(said("the yardstick changed"));
    assert_true(said("1 metrics judged: 0 worse"));
    assert_int_equal(RUN("compare", old, NEW(100, 0.25e6, 0.5e6)), 1); /* ours is a quarter as fast */
    assert_true(said("1 metrics judged: 1 worse"));
    free((void *)(uintptr_t)old);
}

static void compare_refuses_what_cannot_be_compared(void **state)
{
    const char *old = strdup(write_result("old.json", "shm", 100, 1e6, 1e6));
    FILE *file = fopen(path_of("text.json"), "we");

    (void)state;
    fputs("{\"format\": \"ftbench", file);
    fclose(file);
    assert_int_equal(RUN("compare", old, write_result("new.json", "verbs", 100, 1e6, 1e6)), 3);
    assert_true(said("links differ"));
    assert_int_equal(RUN("compare", old, path_of("text.json")), 3);
    assert_int_equal(RUN("compare", old, path_of("nowhere.json")), 3);
    assert_int_equal(RUN("compare", old, ftbench), 3);
    file = fopen(path_of("text.json"), "we");
    fputs("{\"format\": \"ftbench channel 1\", \"metrics\": []}", file);
    fclose(file);
    assert_int_equal(RUN("compare", old, path_of("text.json")), 3);
    assert_true(said("version 1"));
    file = fopen(path_of("text.json"), "we");
    fputs("{\"format\": \"ftbench guest 2\", \"metrics\": []}", file);
    fclose(file);
    assert_int_equal(RUN("compare", old, path_of("text.json")), 3);
    assert_true(said("ftbench guest 2"));
    assert_int_equal(RUN("compare", old), 2);
    assert_int_equal(RUN("compare", "--tolerance", "much", old, old), 2);
    free((void *)(uintptr_t)old);
}

static void compare_takes_what_channel_writes(void **state)
{
    const char *first = strdup(path_of("first.json"));

    (void)state;
    assert_int_equal(RUN("channel", "ring", "--rounds", "2", "--samples", "50", "--run-ms", "1", "--sizes", "64",
                         "--json", first), 0);
    assert_int_equal(RUN("compare", "--all", first, first), 0);
    assert_true(said("records_per_s.64B.ring_full"));
    free((void *)(uintptr_t)first);
}

static int remove_directory(void **state)
{
    static const char *const names[] = { "out", "run.json", "run.csv", "run.svg", "old.json", "new.json", "text.json",
                                         "first.json" };

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unlink(path_of(names[i]));
    return rmdir(directory);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shm_run_measures_all_it_names),
        cmocka_unit_test(ring_run_measures_all_it_names),
        cmocka_unit_test(tcp_run_measures_channel_and_socket),
        cmocka_unit_test(json_to_stdout_is_nothing_but_json),
        cmocka_unit_test(wrong_words_are_usage_errors),
        cmocka_unit_test(nobody_to_measure_with_is_said_in_time),
        cmocka_unit_test(peer_that_dies_ends_the_run),
        cmocka_unit_test(leader_that_dies_ends_the_peer),
        cmocka_unit_test(compare_judges_known_cases),
        cmocka_unit_test(compare_judges_ratios_only_when_a_yardstick_changed),
        cmocka_unit_test(compare_refuses_what_cannot_be_compared),
        cmocka_unit_test(compare_takes_what_channel_writes),
    };

    if (argc != 2 || mkdtemp(directory) == NULL) {
        fprintf(stderr, "usage: test_channel_bench FTBENCH\n");
        return 1;
    }
    ftbench = argv[1];
    return cmocka_run_group_tests(tests, NULL, remove_directory);
}
