/* Programs that ftbench runs: what comes out of them, however they end. */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "tests/unit/cmocka_prelude.h"

#include "base/clock.h"
#include "bench/child.h"

#define LIMIT_NS (10 * NS_PER_S)

static char text[16];

static int run(const char *script, bool errors_too, uint64_t limit_ns)
{
    char *const argv[] = {"sh", "-c", (char *)script, NULL};

    return child_run(argv, errors_too, text, sizeof(text), limit_ns);
}

static void child_tells_words_and_status(void **state)
{
    (void)state;
    assert_int_equal(run("echo out; echo error >&2", true, LIMIT_NS), 0);
    assert_string_equal(text, "out\nerror\n");
    assert_int_equal(run("exec 2>/dev/null; echo error >&2; exit 3", false, LIMIT_NS), 3);
    assert_string_equal(text, "");
    assert_int_equal(run("echo last; kill -KILL $$", false, LIMIT_NS), -EIO);
    assert_string_equal(text, "last\n");
}

static void child_that_is_not_installed_is_enoent(void **state)
{
    char *const argv[] = {"no-such-program", NULL};

    (void)state;
    assert_int_equal(child_run(argv, true, text, sizeof(text), LIMIT_NS), -ENOENT);
}

static void child_that_says_too_much_goes_on_to_its_end(void **state)
{
    (void)state;
    assert_int_equal(run("head -c 300000 /dev/zero | tr '\\0' x; exit 5", false, LIMIT_NS), 5);
    assert_string_equal(text, "xxxxxxxxxxxxxxx");
}

static void child_is_killed_at_the_limit(void **state)
{
    char *const argv[] = {"sleep", "50", NULL};
    uint64_t begin_ns = clock_now_ns();
    struct child child;

    (void)state;
    assert_int_equal(run("echo begun; exec sleep 50", false, 300 * NS_PER_MS), -ETIMEDOUT);
    assert_string_equal(text, "begun\n");
    assert_true(clock_now_ns() - begin_ns < LIMIT_NS);
    assert_int_equal(child_start(&child, argv, false, text, sizeof(text)), 0);
    assert_true(child_listen(&child));
    assert_int_equal(child_end(&child, -EPIPE), -EPIPE);
    assert_int_equal(kill(child.pid, 0), -1);
    assert_int_equal(errno, ESRCH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(child_tells_words_and_status),
        cmocka_unit_test(child_that_is_not_installed_is_enoent),
        cmocka_unit_test(child_that_says_too_much_goes_on_to_its_end),
        cmocka_unit_test(child_is_killed_at_the_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
