/* ftctl as it is installed, against a control thread in front of a session that is not one. argv[1]: the program. */
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/control/fake_session.h"
#include "vmm/control.h"

static const char *program;
static char directory[64], path[96], said[65536];

static struct control *open_for(struct lockstep *ls)
{
    struct control_options options = { .path = path, .vm = "fake", .ls = ls };
    struct control *control;

    assert_int_equal(control_open(&control, &options), 0);
    return control;
}

/* Runs it; its exit status. What it says, on both streams, is in `said`. */
static int run(const char *arguments)
{
    char command[512];
    FILE *pipe;
    size_t bytes;
    int status;

    snprintf(command, sizeof(command), "timeout 20 %s %s 2>&1 </dev/null", program, arguments);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    bytes = fread(said, 1, sizeof(said) - 1, pipe);
    said[bytes] = '\0';
    status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int ask(const char *words)
{
    char arguments[256];

    snprintf(arguments, sizeof(arguments), "--socket %s %s", path, words);
    return run(arguments);
}

static void expect_said(const char *words)
{
    if (strstr(said, words) == NULL)
        fail_msg("'%s' is not in: %s", words, said);
}

static void wrong_use_is_said_and_ends_with_2(void **state)
{
    static const char *const arguments[] = {
        "", "fly", "status now", "--wings status", "--follow status", "--name a --socket b status", "--socket",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(arguments) / sizeof(arguments[0]); i++) {
        assert_int_equal(run(arguments[i]), 2);
        expect_said("ftctl: error: ");
    }
    assert_int_equal(run("--help"), 0);
    expect_said("usage: ftctl");
    assert_int_equal(run("--version"), 0);
}

static void nobody_at_the_socket_ends_with_1_and_the_reason(void **state)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    (void)state;
    assert_int_equal(ask("status"), 1);
    expect_said("there is no control socket");
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
    assert_int_equal(ask("status"), 1);
    expect_said("nobody listens");
    unlink(path);
}

static void status_is_text_for_people_and_json_for_machines(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);

    (void)state;
    COUNT_SET(ls->machine.exits_by_kind[VCPU_EXIT_MMIO], 4321);
    COUNT_SET(ls->receipt.peer_seen_ns, 1000 * NS_PER_MS);
    COUNT_SET(ls->receipt.detected_ns, 2001 * NS_PER_MS);
    COUNT_SET(ls->receipt.decided_ns, 2003 * NS_PER_MS);
    COUNT_SET(ls->receipt.first_frame_ns, 2010 * NS_PER_MS);
    assert_int_equal(ask("status"), 0);
    expect_said("fake: primary, running, protected, generation 7\n");
    expect_said("mmio 4321");
    expect_said("divergences        0\n");
    expect_said("1.00 s  silence noticed\n");
    expect_said("1.00 s  the arbiter's answer\n");
    expect_said("1.01 s  the guest's first frame sent\n");
    assert_int_equal(ask("--json status"), 0);
    assert_int_equal(said[0], '{');
    expect_said("\"mmio\":4321");
    control_close(control);
    fake_session_close(ls);
}

static void refusal_ends_with_1_and_the_reason(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_BACKUP, true);
    struct control *control = open_for(ls);

    (void)state;
    assert_int_equal(ask("failover"), 1);
    expect_said("ftctl: error: failover: this is the backup");
    assert_int_equal(ask("stop --json"), 1);
    expect_said("{\"ok\":false,");
    control_close(control);
    fake_session_close(ls);
}

static void *hand_over_soon(void *argument)
{
    struct lockstep *ls = argument;

    while (handover_state_now(&ls->handover) != HANDOVER_ASKED)
        clock_sleep_ns(NS_PER_MS);
    COUNT_SET(ls->handover.stopped_ns, COUNT_GET(ls->handover.asked_ns) + 2 * NS_PER_MS);
    COUNT_SET(ls->handover.taken_ns, COUNT_GET(ls->handover.asked_ns) + 34 * NS_PER_MS);
    atomic_store(&ls->handover.state, HANDOVER_DONE);
    return NULL;
}

static void failover_waits_and_shows_its_steps(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    pthread_t thread;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, hand_over_soon, ls), 0);
    assert_int_equal(ask("failover"), 0);
    pthread_join(thread, NULL);
    expect_said("the backup has the guest");
    expect_said("2.0 ms  the guest stood still\n");
    expect_said("34.0 ms  heard that the backup has the guest\n");
    control_close(control);
    fake_session_close(ls);
}

static void *end_soon(void *argument)
{
    clock_sleep_ns(300 * NS_PER_MS);
    control_close(argument);
    return NULL;
}

static void events_are_followed_until_the_session_ends(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    pthread_t thread;

    (void)state;
    journal_note(&ls->journal, JOURNAL_JOINED, "as primary");
    assert_int_equal(ask("events"), 0);
    expect_said("Z  joined       as primary\n");
    assert_int_equal(pthread_create(&thread, NULL, end_soon, control), 0);
    assert_int_equal(ask("events --follow"), 0);
    pthread_join(thread, NULL);
    expect_said("Z  joined       as primary\n");
    fake_session_close(ls);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_use_is_said_and_ends_with_2),
        cmocka_unit_test(nobody_at_the_socket_ends_with_1_and_the_reason),
        cmocka_unit_test(status_is_text_for_people_and_json_for_machines),
        cmocka_unit_test(refusal_ends_with_1_and_the_reason),
        cmocka_unit_test(failover_waits_and_shows_its_steps),
        cmocka_unit_test(events_are_followed_until_the_session_ends),
    };
    int failed;

    if (argc < 2) {
        puts("give the path of ftctl");
        return 1;
    }
    program = argv[1];
    snprintf(directory, sizeof(directory), "/tmp/ftvmm-ftctl-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return 1;
    snprintf(path, sizeof(path), "%s/vm.sock", directory);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(directory);
    return failed;
}
