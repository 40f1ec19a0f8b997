/*
 * gdb itself on a replayed guest: real ftvmm processes, a recording of a guest of a few bytes, and Debian's gdb in batch
 * mode. It sees registers and memory as a dump at that position has them, can change nothing, and the replay that it has
 * looked at, stepped and let go ends equal to the recording to the last byte. argv: ftvmm, ftctl.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/real_hosts.h"

#define LIMIT_NS  (120 * NS_PER_S)
#define POSITIONS 400u /* of the recording, at least */

static const char *ftvmm, *ftctl;

static void must_say(const char *said, const char *words)
{
    if (strstr(said, words) == NULL)
        fail_msg("not '%s' in:\n%s", words, said);
}

#define REPLAY "timeout 100 %s replay --kernel %s/kernel --memory 64 --name many --gdb unix:%s/gdb.sock "

/* A replay that waits for gdb at `until`; its words go to the file `replay.said`. */
static pid_t start_replay(unsigned until)
{
    const char *directory = hosts_directory();
    char command[1024], path[128];
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;
    pid_t pid;

    snprintf(command, sizeof(command), "exec " REPLAY "%s%.0u %s/log >%s/replay.said 2>&1", ftvmm, directory, directory,
             until != 0 ? "--until " : "", until, directory, directory);
    snprintf(path, sizeof(path), "%s/gdb.sock", directory);
    pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(99);
    }
    while (access(path, F_OK) != 0) { /* the one before has taken its own away */
        if (clock_now_ns() > limit_ns)
            fail_msg("the replay does not listen");
        clock_sleep_ns(20 * NS_PER_MS);
    }
    return pid;
}

/* How the replay has ended, and what it has said. */
static int end_replay(pid_t pid, const char **said)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    shell(said, "cat %s/replay.said", hosts_directory());
    return WEXITSTATUS(status);
}

static const char *dumped(const cJSON *state, const char *name)
{
    return cJSON_GetStringValue(
        cJSON_GetObjectItem(cJSON_GetObjectItem(cJSON_GetObjectItem(state, "vcpu"), "registers"), name));
}

/* Registers and memory at a position are those of a dump; a step goes to the next one; a change is refused. */
static void gdb_sees_what_a_dump_has_and_leaves_no_trace(void **state)
{
    const char *said, *directory = hosts_directory();
    char text[65536], line[160];
    unsigned long long rsi;
    uint64_t word;
    cJSON *dump;
    pid_t pid;
    int fd;

    (void)state;
    if (shell(&said, "%s replay --kernel %s/kernel --memory 64 --name many --until 100 --dump %s/dump %s/log 2>&1", ftvmm,
            directory, directory, directory) != 0)
        fail_msg("%s", said);
    shell(&said, "cat %s/dump/state.json", directory);
    dump = cJSON_Parse(said);
    assert_non_null(dump);
    snprintf(line, sizeof(line), "%s/dump/ram", directory);
    fd = open(line, O_RDONLY);
    rsi = 0x2000000; /* what the guest writes begins here; virtual is physical there */
    for (word = 0; word == 0 && rsi < 0x3000000; rsi += word == 0 ? 4096 : 0)
        assert_int_equal(pread(fd, &word, sizeof(word), (off_t)rsi), sizeof(word));
    close(fd);
    assert_true(word != 0);

    pid = start_replay(100);
    shell(&said,
        "timeout 100 gdb -nx -batch -ex 'target remote %s/gdb.sock' -ex 'monitor position' -ex 'p/x $rip' -ex 'p/x $rbx' "
        "-ex 'p/x $r12' -ex 'p/x $cs' -ex 'p/x $cr3' -ex 'p/x $efer' -ex 'p $eflags' -ex 'p/x $mxcsr' -ex 'p/x $gs_base' "
        "-ex 'x/1gx 0x%llx' -ex 'x/2i $rip' -ex 'x/1gx 0x7fffffffe000' -ex 'set var *(long *)0x%llx = 1' "
        "-ex 'set var $rax = 1' -ex 'stepi' -ex 'monitor position' -ex 'monitor until 140' -ex 'monitor until 3' "
        "-ex 'continue' -ex 'monitor position' -ex 'detach' 2>&1", directory, rsi, rsi);
    snprintf(text, sizeof(text), "%s", said);
    must_say(text, "position 100, exit io");
    snprintf(line, sizeof(line), "= 0x%llx\n", strtoull(dumped(dump, "rip"), NULL, 0));
    must_say(text, line);
    snprintf(line, sizeof(line), "= 0x%llx\n", strtoull(dumped(dump, "rbx"), NULL, 0));
    must_say(text, line);
    snprintf(line, sizeof(line), "= 0x%llx\n", strtoull(dumped(dump, "r12"), NULL, 0));
    must_say(text, line);
    snprintf(line, sizeof(line), "= 0x%llx\n", strtoull(dumped(dump, "cr3"), NULL, 0));
    must_say(text, line);
    snprintf(line, sizeof(line), "0x%llx:\t0x%016llx", rsi, (unsigned long long)word);
    must_say(text, line);
    must_say(text, "Cannot access memory at address 0x7fffffffe000");
    must_say(text, "Cannot access memory at address 0x2"); /* the write */
    must_say(text, "the guest of a replay can be read only");
    must_say(text, "position 101, exit ");
    must_say(text, "continue stops at position 140");
    must_say(text, "stands at position 101 already; a replay does not go back");
    must_say(text, "position 140, exit ");
    cJSON_Delete(dump);
    if (end_replay(pid, &said) != 0)
        fail_msg("%s\n%s", said, text);
    must_say(said, "equal to the primary's to the last byte");
}

/* From the start to the end, every step of some, and the guest's end seen by gdb. */
static void gdb_stays_to_the_end(void **state)
{
    const char *said, *directory = hosts_directory();
    pid_t pid = start_replay(0);

    (void)state;
    shell(&said, "timeout 100 gdb -nx -batch -ex 'target remote %s/gdb.sock' -ex 'monitor position' -ex 'stepi 60' "
               "-ex 'monitor position' -ex 'continue' -ex 'monitor position' -ex 'p $rip' -ex 'continue' 2>&1",
        directory);
    must_say(said, "position 0, exit none");
    must_say(said, "position 60, exit ");
    must_say(said, "the replay has come to its end at position");
    must_say(said, "exited normally");
    if (end_replay(pid, &said) != 0)
        fail_msg("%s", said);
    must_say(said, "equal to the primary's to the last byte");
}

static int connect_replay(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/gdb.sock", hosts_directory());
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* Whoever speaks another language does no harm, and the next one is served. */
static void gdb_comes_after_somebody_who_talks_nonsense(void **state)
{
    static const char nonsense[] = "GET / HTTP/1.0\r\n\r\n$m#00$m0,ffffffffffffffff#b0$#00+-\x03$qXfer:features:read:x#ff$p";
    const char *said, *directory = hosts_directory();
    pid_t pid = start_replay(10);
    int fd = connect_replay();

    (void)state;
    assert_int_equal(write(fd, nonsense, sizeof(nonsense)), sizeof(nonsense));
    close(fd);
    shell(&said, "timeout 100 gdb -nx -batch -ex 'target remote %s/gdb.sock' -ex 'monitor position' -ex 'kill' 2>&1",
        directory);
    must_say(said, "position 10, exit ");
    if (end_replay(pid, &said) != 0)
        fail_msg("%s", said);
}

/* A breakpoint in the guest's loop, again and again; it leaves no trace either. */
static void gdb_stops_at_a_breakpoint(void **state)
{
    const char *said, *directory = hosts_directory();
    unsigned long long rbx;
    char line[64];
    pid_t pid = start_replay(100);

    (void)state;
    shell(&said, "timeout 100 gdb -nx -batch -ex 'target remote %s/gdb.sock' -ex 'printf \"first %%lu\\n\", $rbx' "
                 "-ex 'eval \"monitor break 0x%%lx\", $rip' -ex 'monitor break 0xffffffffffff0000' -ex continue -ex continue "
                 "-ex continue -ex 'printf \"then %%lu\\n\", $rbx' -ex 'monitor position' -ex stepi -ex stepi "
                 "-ex 'printf \"last %%lu\\n\", $rbx' -ex 'monitor clear' -ex stepi -ex 'monitor position' -ex detach 2>&1",
          directory);
    must_say(said, "stop before the instruction at 0xffffffffffff0000");
    if (strstr(said, "first ") == NULL)
        fail_msg("%s", said);
    rbx = strtoull(strstr(said, "first ") + 6, NULL, 10);
    snprintf(line, sizeof(line), "then %llu\n", rbx + 2);
    must_say(said, line);
    must_say(said, "position 102, exit ");
    if (end_replay(pid, &said) != 0)
        fail_msg("%s", said);
    must_say(said, "equal to the primary's to the last byte");
}

/* Ctrl-C on the way to the end; then the replay itself is stopped while it waits. */
static void gdb_interrupts_a_replay_that_runs(void **state)
{
    static const char words[] = "$QStartNoAckMode#b0$c#63\x03";
    char answer[256] = "";
    const char *said;
    size_t bytes = 0;
    pid_t pid = start_replay(10);
    int fd = connect_replay();

    (void)state;
    assert_int_equal(write(fd, words, sizeof(words) - 1), sizeof(words) - 1);
    while (strstr(answer, "$T05") == NULL && bytes < sizeof(answer) - 1) {
        ssize_t got = read(fd, answer + bytes, sizeof(answer) - 1 - bytes);

        assert_true(got > 0);
        bytes += (size_t)got;
    }
    assert_null(strstr(answer, "$O4")); /* it has not said that it came to the end */
    kill(pid, SIGTERM); /* of timeout(1), which passes it on */
    assert_int_equal(end_replay(pid, &said), 0);
    must_say(said, "the guest stands at position");
    close(fd);
}

static int set_up(void **state)
{
    const char *said, *directory;
    unsigned long positions = 0;

    (void)state;
    if (hosts_open(ftvmm, ftctl) != 0)
        return -1;
    directory = hosts_directory();
    for (unsigned seconds = 1; positions < POSITIONS && seconds <= 32; seconds *= 2) { /* a busy machine is slow */
        const char *at;

        if (shell(&said, "timeout 100 %s record --kernel %s/kernel --memory 64 --name many --verify --stop-after %u --control "
                       "none %s/log 2>&1", ftvmm, directory, seconds, directory) != 0)
            fail_msg("%s", said);
        at = strstr(said, "the guest has ended at position ");
        positions = at != NULL ? strtoul(at + strlen("the guest has ended at position "), NULL, 10) : 0;
    }
    return positions < POSITIONS ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    return hosts_close();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gdb_sees_what_a_dump_has_and_leaves_no_trace),
        cmocka_unit_test(gdb_stays_to_the_end),
        cmocka_unit_test(gdb_stops_at_a_breakpoint),
        cmocka_unit_test(gdb_comes_after_somebody_who_talks_nonsense),
        cmocka_unit_test(gdb_interrupts_a_replay_that_runs),
    };

    if (argc != 3)
        return 1;
    if (access("/usr/bin/gdb", X_OK) != 0) {
        puts("no gdb here");
        return 77;
    }
    ftvmm = argv[1];
    ftctl = argv[2];
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
