/* The arbiter as a directory: every arbiter's promises, and what storage may do to them. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/arbiter_conformance.h"

static char directory[] = "/tmp/ftvmm-arbiter-XXXXXX";
static char address[64];
static struct arbiter_options options = { .address = address, .vm = "vm" };

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

static const char *file(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

static void arbiter_refuses_what_it_cannot_trust(void **state)
{
    static const char *const addresses[] = { "dir:", "etcd:", "oracle:delphi", "dir", "" };
    struct arbiter_options wrong = options;
    struct arbiter *arbiter;

    (void)state;
    wrong.address = "dir:/nonexistent/ftvmm";
    assert_int_equal(arbiter_open(&arbiter, &wrong), -ENOENT);
    assert_null(arbiter);
    for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
        wrong.address = addresses[i];
        assert_int_equal(arbiter_open(&arbiter, &wrong), -EINVAL);
        assert_null(arbiter);
    }
    wrong = options;
    wrong.auth_dir = directory; /* a directory needs none, so somebody is mistaken */
    assert_int_equal(arbiter_open(&arbiter, &wrong), -EINVAL);
}

static void arbiter_gone_storage_is_unreachable_not_lost(void **state)
{
    struct arbiter *arbiter;
    struct arbiter_status status;
    uint64_t generation, until_ns = clock_now_ns() + 10 * NS_PER_S;
    char command[96];

    (void)state;
    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    snprintf(command, sizeof(command), "rm -r '%s' && mkdir '%s'", directory, directory);
    assert_int_equal(system(command), 0);
    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE);
    do { /* asked anew, and again */
        assert_int_not_equal(arbiter_ask(arbiter, generation), ARBITER_LOST);
        arbiter_get_status(arbiter, &status);
        assert_true(clock_now_ns() < until_ns);
        clock_sleep_ns(NS_PER_MS);
    } while (status.asks < 3);
    assert_int_equal(status.verdict, ARBITER_UNREACHABLE);
    assert_non_null(strstr(status.why, directory));
    arbiter_close(arbiter);
}

/* Wiped, and filled anew by others: the generation's number means another pair there. */
static void arbiter_another_pairs_files_decide_nothing(void **state)
{
    struct arbiter *arbiter, *other;
    uint64_t generation, again;

    (void)state;
    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    assert_int_equal(unlink(file("vm.1.pair")), 0);
    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE);
    assert_int_equal(arbiter_open(&other, &options), 0);
    assert_int_equal(arbiter_begin(other, &again), 0);
    assert_int_equal(again, generation);
    assert_int_equal(arbiter_claim(arbiter, generation), ARBITER_UNREACHABLE);
    assert_int_equal(arbiter_claim(other, generation), ARBITER_WON);
    arbiter_close(arbiter);
    arbiter_close(other);
}

/* A FIFO that nobody writes to stands for storage that hangs: whoever opens it waits. */
static void arbiter_asked_of_storage_that_hangs_does_not_wait(void **state)
{
    char pair[128], line[128];
    struct arbiter *arbiter;
    struct arbiter_status status;
    uint64_t generation, began_ns, longest_ns = 0, asks = 0;
    enum arbiter_verdict verdict;
    ssize_t bytes;
    int fd;

    (void)state;
    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    snprintf(pair, sizeof(pair), "%s", file("vm.1.pair"));
    fd = open(pair, O_RDONLY);
    bytes = read(fd, line, sizeof(line));
    close(fd);
    assert_true(bytes > 0);
    assert_int_equal(unlink(pair), 0);
    assert_int_equal(mkfifo(pair, 0600), 0);

    began_ns = clock_now_ns();
    do {
        uint64_t asked_ns = clock_now_ns(), took_ns;

        verdict = arbiter_ask(arbiter, generation);
        took_ns = clock_now_ns() - asked_ns;
        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
        asks++;
        assert_true(clock_now_ns() < began_ns + 10 * NS_PER_S);
        clock_sleep_ns(NS_PER_MS);
    } while (verdict == ARBITER_ASKING);
    print_message("asked %llu times while storage hung: %llu us at most\n", (unsigned long long)asks,
                  (unsigned long long)(longest_ns / NS_PER_US));
    assert_int_equal(verdict, ARBITER_UNREACHABLE);
    assert_true(longest_ns < 300 * NS_PER_MS); /* the machine may be busy; storage hung for over a second */
    arbiter_get_status(arbiter, &status);
    assert_true(status.asking && status.asks == 1 && status.asking_ns >= NS_PER_S);
    assert_non_null(strstr(status.why, "hangs"));

    fd = open(pair, O_WRONLY); /* it comes back, and the claim that hung goes on */
    assert_int_equal(write(fd, line, (size_t)bytes), bytes);
    close(fd);
    began_ns = clock_now_ns();
    while ((verdict = arbiter_ask(arbiter, generation)) == ARBITER_UNREACHABLE) {
        assert_true(clock_now_ns() < began_ns + 10 * NS_PER_S);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_int_equal(verdict, ARBITER_WON);
    arbiter_close(arbiter);
}

/* It is left behind; what it uses lives until it comes back. */
static void arbiter_closed_while_storage_hangs_comes_back(void **state)
{
    struct arbiter *arbiter;
    uint64_t generation, began_ns = clock_now_ns();
    char pair[128];
    int fd = -1;

    (void)state;
    assert_int_equal(arbiter_open(&arbiter, &options), 0);
    assert_int_equal(arbiter_begin(arbiter, &generation), 0);
    snprintf(pair, sizeof(pair), "%s", file("vm.1.pair"));
    assert_int_equal(unlink(pair), 0);
    assert_int_equal(mkfifo(pair, 0600), 0);
    assert_int_equal(arbiter_ask(arbiter, generation), ARBITER_ASKING);
    while (fd < 0 && clock_now_ns() < began_ns + 10 * NS_PER_S) /* until the claim's thread has it open */
        fd = open(pair, O_WRONLY | O_NONBLOCK);
    assert_true(fd >= 0);
    began_ns = clock_now_ns();
    arbiter_close(arbiter);
    assert_true(clock_now_ns() - began_ns > NS_PER_S && clock_now_ns() - began_ns < 10 * NS_PER_S);
    close(fd); /* the claim finds an empty file, and its thread frees the rest */
    clock_sleep_ns(50 * NS_PER_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(arbiter_refuses_what_it_cannot_trust, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_gone_storage_is_unreachable_not_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_another_pairs_files_decide_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_asked_of_storage_that_hangs_does_not_wait, set_up, tear_down),
        cmocka_unit_test_setup_teardown(arbiter_closed_while_storage_hangs_comes_back, set_up, tear_down),
    };
    int failed;

    if (set_up(NULL) != 0)
        return 1;
    failed = arbiter_conformance_run(&options);
    if (tear_down(NULL) != 0)
        return 1;
    return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
