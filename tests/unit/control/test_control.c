/* The control socket, over the socket: a real control thread, a session that is not one, and clients good and bad. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/control/fake_session.h"
#include "vmm/control.h"
#include "vmm/control_socket.h"

#define ANSWER_MS 5000 /* the machine may be busy with other things */

static char directory[64], path[96];
static bool joining_cancelled;

static struct control *open_for(struct lockstep *ls)
{
    struct control_options options = { .path = path, .vm = "fake", .ls = ls, .joining_cancelled = &joining_cancelled };
    struct control *control;

    joining_cancelled = false;
    assert_int_equal(control_open(&control, &options), 0);
    assert_non_null(control);
    return control;
}

static int dial(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void say(int fd, const char *words)
{
    assert_int_equal(send(fd, words, strlen(words), MSG_NOSIGNAL), strlen(words));
}

/* One line of answer as JSON, to be deleted; NULL: the other end has closed. */
static cJSON *hear(int fd)
{
    static char line[262144];
    size_t bytes = 0;

    for (;;) {
        struct pollfd readable = { .fd = fd, .events = POLLIN };
        ssize_t got;

        assert_int_equal(poll(&readable, 1, ANSWER_MS), 1);
        got = recv(fd, line + bytes, 1, 0);
        if (got <= 0) {
            assert_int_equal(bytes, 0); /* never half a line */
            return NULL;
        }
        if (line[bytes++] == '\n') {
            cJSON *answer = cJSON_ParseWithLength(line, bytes);

            assert_non_null(answer);
            return answer;
        }
        assert_true(bytes < sizeof(line));
    }
}

static const char *word(const cJSON *answer, const char *object, const char *name)
{
    const cJSON *from = object != NULL ? cJSON_GetObjectItem(answer, object) : answer;
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(from, name));

    return text != NULL ? text : "";
}

static bool is_ok(const cJSON *answer)
{
    return cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok"));
}

static void expect_refused(int fd, const char *reason)
{
    cJSON *answer = hear(fd);

    assert_non_null(answer);
    assert_false(is_ok(answer));
    if (strstr(word(answer, NULL, "error"), reason) == NULL)
        fail_msg("'%s' does not say '%s'", word(answer, NULL, "error"), reason);
    cJSON_Delete(answer);
}

static void expect_closed(int fd)
{
    assert_null(hear(fd));
    close(fd);
}

static void expect_status(int fd)
{
    cJSON *answer;

    say(fd, "{\"command\":\"status\"}\n");
    answer = hear(fd);
    assert_true(is_ok(answer));
    assert_string_equal(word(answer, "status", "vm"), "fake");
    cJSON_Delete(answer);
}

static void expect_alive(void)
{
    int fd = dial();

    expect_status(fd);
    close(fd);
}

/* ---- the socket ---- */

static void socket_is_for_its_owner_alone_and_goes_with_it(void **state)
{
    struct control_socket made = { .fd = -1 };
    struct stat found;

    (void)state;
    assert_int_equal(control_socket_open(&made, path), 0);
    assert_int_equal(stat(path, &found), 0);
    assert_true(S_ISSOCK(found.st_mode));
    assert_int_equal(found.st_mode & 07777, 0600);
    control_socket_close(&made);
    assert_int_equal(stat(path, &found), -1);
    control_socket_close(&made); /* again: nothing */
}

static void socket_of_a_dead_process_is_replaced(void **state)
{
    struct control_socket made = { .fd = -1 };
    pid_t child = fork();
    int status;

    (void)state;
    if (child == 0)
        _exit(control_socket_open(&made, path) == 0 ? 0 : 1); /* leaves the file */
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(control_socket_open(&made, path), 0);
    control_socket_close(&made);
}

static void socket_of_a_living_process_is_left_alone(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_ALONE, true);
    struct control *control = open_for(ls);
    struct control_socket second = { .fd = -1 };

    (void)state;
    assert_int_equal(control_socket_open(&second, path), -EADDRINUSE);
    assert_int_equal(second.fd, -1);
    expect_alive();
    control_close(control);
    fake_session_close(ls);
}

static void socket_never_replaces_what_is_no_socket(void **state)
{
    struct control_socket made = { .fd = -1 };
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(control_socket_open(&made, path), -EEXIST);
    assert_int_equal(unlink(path), 0);
    close(fd);
}

static void socket_that_was_moved_away_is_not_taken_for_ours(void **state)
{
    struct control_socket made = { .fd = -1 };
    int fd;

    (void)state;
    assert_int_equal(control_socket_open(&made, path), 0);
    assert_int_equal(unlink(path), 0);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    control_socket_close(&made);
    assert_int_equal(unlink(path), 0); /* it was still there */
    close(fd);
}

static void socket_path_must_fit_and_its_directory_be_there(void **state)
{
    struct control_socket made = { .fd = -1 };
    char name[300];

    (void)state;
    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(control_socket_open(&made, name), -ENAMETOOLONG);
    assert_int_equal(control_socket_open(&made, ""), -ENAMETOOLONG);
    assert_int_equal(control_socket_open(&made, "/nowhere/at/all.sock"), -ENOENT);
}

static void directory_fits_if_nobody_else_can_write_there(void **state)
{
    char inner[96], link[112];

    (void)state;
    snprintf(inner, sizeof(inner), "%s/inner", directory);
    snprintf(link, sizeof(link), "%s-link", inner);
    assert_false(control_socket_directory_fits(inner));
    assert_int_equal(mkdir(inner, 0700), 0);
    assert_true(control_socket_directory_fits(inner));
    assert_int_equal(chmod(inner, 0770), 0);
    assert_false(control_socket_directory_fits(inner));
    assert_int_equal(chmod(inner, 0755), 0);
    assert_true(control_socket_directory_fits(inner));
    assert_int_equal(symlink(inner, link), 0);
    assert_false(control_socket_directory_fits(link));
    unlink(link);
    if (geteuid() == 0) {
        assert_int_equal(chown(inner, 65534, 65534), 0);
        assert_false(control_socket_directory_fits(inner));
    }
    rmdir(inner);
}

static void another_user_is_refused_even_past_the_mode(void **state)
{
    struct lockstep *ls;
    struct control *control;
    pid_t child;
    int status;

    (void)state;
    if (geteuid() != 0)
        skip(); /* only root can be somebody else */
    ls = fake_session_open(ROLE_ALONE, true);
    control = open_for(ls);
    assert_int_equal(chmod(path, 0666), 0);
    assert_int_equal(chmod(directory, 0755), 0);
    child = fork();
    if (child == 0) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        char answer[256] = "";
        int fd;

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        if (setgid(65534) != 0 || setuid(65534) != 0)
            _exit(3);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
            _exit(4);
        (void)!send(fd, "{\"command\":\"stop\"}\n", 19, MSG_NOSIGNAL);
        (void)!recv(fd, answer, sizeof(answer) - 1, 0);
        _exit(strstr(answer, "only root") != NULL ? 0 : 5);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_false(COUNT_GET(ls->stop_requested));
    expect_alive();
    control_close(control);
    fake_session_close(ls);
}

/* ---- what is said ---- */

static void status_tells_what_the_session_is(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    cJSON *answer;
    int fd = dial();

    (void)state;
    say(fd, "{\"command\":\"status\"}\n");
    answer = hear(fd);
    assert_true(is_ok(answer));
    assert_string_equal(word(answer, "status", "role"), "primary");
    assert_string_equal(word(answer, "status", "state"), "running");
    assert_int_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(answer, "status"), "generation")->valueint, 7);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(cJSON_GetObjectItem(answer, "status"), "protected")));
    cJSON_Delete(answer);
    /* Several on one connection, and two in one breath. */
    say(fd, "{\"command\":\"status\"} \r\n{\"command\":\"events\"}\n");
    answer = hear(fd);
    assert_true(is_ok(answer) && cJSON_GetObjectItem(answer, "status") != NULL);
    cJSON_Delete(answer);
    answer = hear(fd);
    assert_true(is_ok(answer) && cJSON_IsArray(cJSON_GetObjectItem(answer, "events")));
    cJSON_Delete(answer);
    close(fd);
    control_close(control);
    fake_session_close(ls);
}

static void status_while_joining_follows_no_pointer(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_BACKUP, false);
    struct control *control;
    cJSON *answer;
    int fd;

    (void)state;
    ls->channel = (struct channel *)16; /* would be fatal */
    ls->net = (struct net *)16;
    control = open_for(ls);
    fd = dial();
    say(fd, "{\"command\":\"status\"}\n");
    answer = hear(fd);
    assert_string_equal(word(answer, "status", "state"), "joining");
    cJSON_Delete(answer);
    say(fd, "{\"command\":\"failover\"}\n");
    expect_refused(fd, "not begun");
    close(fd);
    control_close(control);
    fake_session_close(ls);
}

static void events_are_told_and_followed_to_the_end(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    cJSON *answer, *first;
    int fd = dial();

    (void)state;
    journal_note(&ls->journal, JOURNAL_JOINED, "as %s", "primary");
    say(fd, "{\"command\":\"events\",\"follow\":true}\n");
    answer = hear(fd);
    assert_true(is_ok(answer));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(answer, "events")), 1);
    first = cJSON_GetArrayItem(cJSON_GetObjectItem(answer, "events"), 0);
    assert_string_equal(word(first, NULL, "detail"), "as primary");
    cJSON_Delete(answer);
    journal_note(&ls->journal, JOURNAL_PEER_SILENT, "nothing is heard");
    answer = hear(fd);
    assert_string_equal(word(answer, "event", "event"), "peer-silent");
    cJSON_Delete(answer);
    journal_note(&ls->journal, JOURNAL_ENDED, "with status 0");
    control_close(control);
    answer = hear(fd); /* the last words came before the end */
    assert_string_equal(word(answer, "event", "event"), "ended");
    cJSON_Delete(answer);
    expect_closed(fd);
    fake_session_close(ls);
}

static void journal_that_is_full_keeps_what_it_has(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    cJSON *answer;
    int fd = dial();

    (void)state;
    for (unsigned i = 0; i < JOURNAL_ENTRIES + 10; i++)
        journal_note(&ls->journal, JOURNAL_LIVE, "%0150u \"\\", i); /* longer than a detail */
    say(fd, "{\"command\":\"events\"}\n");
    answer = hear(fd);
    assert_true(is_ok(answer));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(answer, "events")), JOURNAL_ENTRIES);
    cJSON_Delete(answer);
    assert_null(journal_read(&ls->journal, JOURNAL_ENTRIES));
    close(fd);
    control_close(control);
    fake_session_close(ls);
}

/* ---- what is asked for ---- */

static void failover_is_refused_where_it_cannot_be(void **state)
{
    static const struct {
        enum lockstep_role role;
        const char *reason;
    } cases[] = { { ROLE_ALONE, "no backup" }, { ROLE_BACKUP, "ask its primary" } };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct lockstep *ls = fake_session_open(cases[i].role, true);
        struct control *control = open_for(ls);
        int fd = dial();

        say(fd, "{\"command\":\"failover\"}\n");
        expect_refused(fd, cases[i].reason);
        say(fd, "{\"command\":\"unprotect\"}\n");
        expect_refused(fd, cases[i].reason);
        assert_int_equal(handover_state_now(&ls->handover), HANDOVER_NONE);
        assert_false(COUNT_GET(ls->unprotect_requested));
        close(fd);
        control_close(control);
        fake_session_close(ls);
    }
}

static void failover_is_answered_when_it_is_decided(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    int fd = dial(), other = dial();
    cJSON *answer;

    (void)state;
    say(fd, "{\"command\":\"failover\"}\n");
    while (handover_state_now(&ls->handover) != HANDOVER_ASKED)
        clock_sleep_ns(NS_PER_MS);
    assert_true(COUNT_GET(ls->handover.asked_ns) > 0);
    say(other, "{\"command\":\"unprotect\"}\n");
    expect_refused(other, "under way");
    expect_status(other); /* others are served meanwhile */
    COUNT_SET(ls->handover.stopped_ns, clock_now_ns());
    COUNT_SET(ls->handover.taken_ns, clock_now_ns());
    atomic_store(&ls->handover.state, HANDOVER_DONE);
    answer = hear(fd);
    assert_true(is_ok(answer));
    assert_string_equal(word(answer, "handover", "state"), "done");
    assert_non_null(cJSON_GetObjectItem(cJSON_GetObjectItem(answer, "handover"), "taken_us"));
    cJSON_Delete(answer);
    close(fd);
    close(other);
    control_close(control);
    fake_session_close(ls);
}

static void failover_that_fails_says_so(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    int fd = dial();

    (void)state;
    say(fd, "{\"command\":\"failover\"}\n");
    while (handover_state_now(&ls->handover) != HANDOVER_ASKED)
        clock_sleep_ns(NS_PER_MS);
    COUNT_SET(ls->role, ROLE_ALONE);
    atomic_store(&ls->handover.state, HANDOVER_FAILED);
    expect_refused(fd, "goes on here, alone");
    close(fd);
    control_close(control);
    fake_session_close(ls);
}

static void unprotect_is_answered_by_the_role(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    int fd = dial(), other = dial();
    cJSON *answer;

    (void)state;
    say(fd, "{\"command\":\"unprotect\"}\n");
    while (!COUNT_GET(ls->unprotect_requested))
        clock_sleep_ns(NS_PER_MS);
    say(other, "{\"command\":\"failover\"}\n");
    expect_refused(other, "being left");
    COUNT_SET(ls->role, ROLE_ALONE);
    answer = hear(fd);
    assert_true(is_ok(answer));
    cJSON_Delete(answer);
    close(fd);
    close(other);
    control_close(control);
    fake_session_close(ls);
}

static void stop_is_answered_when_the_session_has_ended(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    int fd = dial();
    cJSON *answer;

    (void)state;
    say(fd, "{\"command\":\"stop\"}\n");
    while (!COUNT_GET(ls->stop_requested))
        clock_sleep_ns(NS_PER_MS);
    control_close(control);
    answer = hear(fd);
    assert_true(is_ok(answer));
    cJSON_Delete(answer);
    expect_closed(fd);
    fake_session_close(ls);
}

static void stop_ends_joining_and_is_refused_by_a_backup(void **state)
{
    struct lockstep *joining = fake_session_open(ROLE_BACKUP, false), *backup = fake_session_open(ROLE_BACKUP, true);
    struct control *control = open_for(joining);
    int fd = dial();

    (void)state;
    say(fd, "{\"command\":\"stop\"}\n");
    while (!__atomic_load_n(&joining_cancelled, __ATOMIC_RELAXED))
        clock_sleep_ns(NS_PER_MS);
    close(fd);
    control_close(control);
    control = open_for(backup);
    fd = dial();
    say(fd, "{\"command\":\"stop\"}\n");
    expect_refused(fd, "this is the backup");
    assert_false(COUNT_GET(backup->stop_requested));
    close(fd);
    control_close(control);
    fake_session_close(joining);
    fake_session_close(backup);
}

/* ---- hostile clients ---- */

static void garbage_is_refused_in_a_sentence(void **state)
{
    static const char *const lines[] = {
        "\n", "hello\n", "{}\n", "[]\n", "null\n", "{\"command\":7}\n", "{\"command\":\"fly\"}\n",
        "{\"command\":\"status\"}x\n", "{\"command\":\"status\"}{\"command\":\"stop\"}\n", "{\"command\":\"status\"\n",
        "\"command\"\n", "{\"Command\":\"stop\"}\n", "\xff\xfe\xff\n",
    };
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    char deep[4000], nul[] = "{\"command\":\"stop\"}\0\n";
    int fd = dial();

    (void)state;
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        say(fd, lines[i]);
        expect_refused(fd, "comma"); /* "command" or what stands in the example */
    }
    memset(deep, '[', sizeof(deep) - 2);
    strcpy(deep + sizeof(deep) - 2, "\n");
    say(fd, deep);
    expect_refused(fd, "JSON object");
    assert_int_equal(send(fd, nul, sizeof(nul) - 1, MSG_NOSIGNAL), sizeof(nul) - 1);
    expect_refused(fd, "JSON object");
    expect_status(fd); /* no harm done to the connection */
    assert_false(COUNT_GET(ls->stop_requested));
    close(fd);
    control_close(control);
    fake_session_close(ls);
}

static void line_too_long_is_refused_and_the_client_dropped(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    static char line[CONTROL_REQUEST_MAX_BYTES + 1];
    int fd = dial();

    (void)state;
    memset(line, 'a', CONTROL_REQUEST_MAX_BYTES);
    say(fd, line);
    expect_refused(fd, "at most 4095 bytes");
    expect_closed(fd);
    /* The longest that is allowed: one less, and a newline. */
    fd = dial();
    memset(line, ' ', sizeof(line));
    memcpy(line, "{\"command\":\"status\"}", 20);
    line[CONTROL_REQUEST_MAX_BYTES - 1] = '\n';
    assert_int_equal(send(fd, line, CONTROL_REQUEST_MAX_BYTES, MSG_NOSIGNAL), CONTROL_REQUEST_MAX_BYTES);
    cJSON *answer = hear(fd);
    assert_true(is_ok(answer));
    cJSON_Delete(answer);
    close(fd);
    expect_alive();
    control_close(control);
    fake_session_close(ls);
}

static void half_lines_and_clients_that_go_disturb_nobody(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    static const char request[] = "{\"command\":\"status\"}\n";
    int half = dial(), slow = dial(), fd;

    (void)state;
    say(half, "{\"command\":\"st");
    for (size_t i = 0; i + 1 < sizeof(request) - 1; i++) {
        assert_int_equal(send(slow, request + i, 1, MSG_NOSIGNAL), 1);
        clock_sleep_ns(NS_PER_MS);
    }
    expect_alive();
    close(half);
    assert_int_equal(send(slow, "\n", 1, MSG_NOSIGNAL), 1);
    cJSON *answer = hear(slow);
    assert_true(is_ok(answer));
    cJSON_Delete(answer);
    close(slow);
    /* Gone right after asking, for an answer now and one to come. */
    for (unsigned i = 0; i < 50; i++) {
        fd = dial();
        say(fd, i % 2 ? "{\"command\":\"status\"}\n" : "{\"command\":\"events\",\"follow\":true}\n");
        close(fd);
    }
    expect_alive();
    control_close(control);
    fake_session_close(ls);
}

static void clients_beyond_the_limit_are_told_and_places_come_free(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    int fds[8], extra;

    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        fds[i] = dial();
        expect_status(fds[i]);
    }
    extra = dial();
    expect_refused(extra, "too many clients");
    expect_closed(extra);
    for (unsigned i = 0; i < 8; i++)
        close(fds[i]);
    expect_alive();
    control_close(control);
    fake_session_close(ls);
}

static void client_that_never_listens_is_left_waiting_and_others_are_served(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control *control = open_for(ls);
    int deaf = dial(), sent = 0;

    (void)state;
    fcntl(deaf, F_SETFL, O_NONBLOCK);
    for (unsigned i = 0; i < 200000 && sent >= 0; i++) /* until the kernel and the control thread take no more */
        sent = (int)send(deaf, "{\"command\":\"status\"}\n", 21, MSG_NOSIGNAL);
    assert_int_equal(sent, -1);
    assert_true(errno == EAGAIN || errno == EPIPE);
    expect_alive();
    close(deaf);
    expect_alive();
    control_close(control);
    fake_session_close(ls);
}

static void random_bytes_never_stop_it(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_BACKUP, true); /* on which nothing can be changed by luck */
    struct control *control = open_for(ls);
    uint64_t random = test_seed("random_bytes_never_stop_it");

    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        uint8_t bytes[5000];
        size_t count = test_random(&random) % sizeof(bytes);
        int fd = dial();

        for (size_t i = 0; i < count; i++)
            bytes[i] = test_random(&random) % 16 == 0 ? '\n' : (uint8_t)test_random(&random);
        if (round % 3 == 0 && count > 30) /* nearly right */
            memcpy(bytes, "{\"command\":\"status\",\"follow\":", 29);
        (void)!send(fd, bytes, count, MSG_NOSIGNAL);
        close(fd);
    }
    expect_alive();
    control_close(control);
    fake_session_close(ls);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(socket_is_for_its_owner_alone_and_goes_with_it),
        cmocka_unit_test(socket_of_a_dead_process_is_replaced),
        cmocka_unit_test(socket_of_a_living_process_is_left_alone),
        cmocka_unit_test(socket_never_replaces_what_is_no_socket),
        cmocka_unit_test(socket_that_was_moved_away_is_not_taken_for_ours),
        cmocka_unit_test(socket_path_must_fit_and_its_directory_be_there),
        cmocka_unit_test(directory_fits_if_nobody_else_can_write_there),
        cmocka_unit_test(another_user_is_refused_even_past_the_mode),
        cmocka_unit_test(status_tells_what_the_session_is),
        cmocka_unit_test(status_while_joining_follows_no_pointer),
        cmocka_unit_test(events_are_told_and_followed_to_the_end),
        cmocka_unit_test(journal_that_is_full_keeps_what_it_has),
        cmocka_unit_test(failover_is_refused_where_it_cannot_be),
        cmocka_unit_test(failover_is_answered_when_it_is_decided),
        cmocka_unit_test(failover_that_fails_says_so),
        cmocka_unit_test(unprotect_is_answered_by_the_role),
        cmocka_unit_test(stop_is_answered_when_the_session_has_ended),
        cmocka_unit_test(stop_ends_joining_and_is_refused_by_a_backup),
        cmocka_unit_test(garbage_is_refused_in_a_sentence),
        cmocka_unit_test(line_too_long_is_refused_and_the_client_dropped),
        cmocka_unit_test(half_lines_and_clients_that_go_disturb_nobody),
        cmocka_unit_test(clients_beyond_the_limit_are_told_and_places_come_free),
        cmocka_unit_test(client_that_never_listens_is_left_waiting_and_others_are_served),
        cmocka_unit_test(random_bytes_never_stop_it),
    };
    int failed;

    snprintf(directory, sizeof(directory), "/tmp/ftvmm-control-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return 1;
    snprintf(path, sizeof(path), "%s/vm.sock", directory);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return rmdir(directory) != 0 || failed; /* nothing is left in it */
}
