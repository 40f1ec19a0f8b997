/*
 * The black box: real ftvmm processes, a primary that is killed, and the log that its backup has kept. Replayed from it, in
 * a process of its own, the guest must be the one that the survivor has gone live with: all of its RAM is compared, byte
 * by byte, while the survivor stands still at that moment. argv: ftvmm with faults (faulty.c), ftctl.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/real_hosts.h"

#define RAM_BYTES (UINT64_C(64) << 20)

static const char *ftvmm, *ftctl;

/* Runs a command line; its status. What it says is in *said, until the next one. */
static int run(const char **said, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int run(const char **said, const char *format, ...)
{
    static char text[65536];
    char command[1024];
    va_list args;
    FILE *pipe;
    size_t bytes;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    bytes = fread(text, 1, sizeof(text) - 1, pipe);
    text[bytes] = '\0';
    *said = text;
    return WEXITSTATUS(pclose(pipe));
}

#define REPLAY "timeout 60 %s replay --kernel %s/kernel --memory 64 --name many "

/* Parts of the log in this directory that are whole. */
static unsigned parts_in(const char *name)
{
    char path[128];
    struct dirent *entry;
    unsigned parts = 0;
    DIR *stream;

    snprintf(path, sizeof(path), "%s/%s", hosts_directory(), name);
    stream = opendir(path);
    assert_non_null(stream);
    while ((entry = readdir(stream)) != NULL)
        parts += strstr(entry->d_name, ".log") != NULL;
    closedir(stream);
    return parts;
}

/* The RAM of a guest that stands still. */
static void compare_ram(const struct host *host, const char *dump)
{
    static uint8_t ours[RAM_BYTES], theirs[RAM_BYTES];
    char path[160], line[512];
    unsigned long long base = 0;
    FILE *maps;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)host->pid);
    maps = fopen(path, "r");
    assert_non_null(maps);
    while (base == 0 && fgets(line, sizeof(line), maps) != NULL)
        if (strstr(line, "memfd:guest memory") != NULL)
            base = strtoull(line, NULL, 16);
    fclose(maps);
    assert_true(base != 0);
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)host->pid);
    fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, theirs, RAM_BYTES, (off_t)base), RAM_BYTES);
    close(fd);
    snprintf(path, sizeof(path), "%s/ram", dump);
    fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, ours, RAM_BYTES, 0), RAM_BYTES);
    close(fd);
    for (uint64_t page = 0; page < RAM_BYTES / 4096; page++)
        if (memcmp(ours + page * 4096, theirs + page * 4096, 4096) != 0)
            fail_msg("the page at 0x%llx differs", (unsigned long long)page * 4096);
}

static void await_stopped(const struct host *host)
{
    uint64_t limit_ns = clock_now_ns() + 30 * NS_PER_S;
    siginfo_t info = { 0 };

    while (waitid(P_PID, (id_t)host->pid, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0) {
        if (clock_now_ns() > limit_ns)
            host_fail(host, "it does not go live");
        clock_sleep_ns(5 * NS_PER_MS);
    }
    if (info.si_code != CLD_STOPPED)
        host_fail(host, "it has ended before it went live");
}

/* Starts a pair whose backup keeps its log in `name`, lets it run until the log has so many parts, kills the primary, and
 * leaves the survivor standing still where it goes live. */
static struct host lost_primary(const char *name, const char *more, unsigned parts)
{
    char arguments[256];
    struct host live, backup;

    snprintf(arguments, sizeof(arguments), "--listen shm:kept-%d-%s --keep-log %s/%s%s", (int)getpid(), name,
             hosts_directory(), name, more);
    setenv("FTVMM_FAULT", "live:stop", 1);
    backup = host_start(1, "backup", arguments);
    unsetenv("FTVMM_FAULT");
    snprintf(arguments, sizeof(arguments), "--spare none --backup shm:kept-%d-%s", (int)getpid(), name);
    live = host_start(0, "primary", arguments);
    host_await(&live, "primary", true);
    host_await_number(&live, "lockstep", "positions", 3000);
    host_await_number(&backup, "kept_log", "parts", parts);
    if (parts > 1)
        host_await_number(&backup, "kept_log", "base_pages", 16384);
    kill(live.pid, SIGKILL);
    (void)host_end(&live);
    await_stopped(&backup);
    return backup;
}

static void survivor_ends(struct host *backup)
{
    kill(backup->pid, SIGCONT);
    host_await(backup, "alone", false);
    assert_true(host_has_said(backup, "the log is kept in"));
    cJSON_Delete(host_ask(backup, "stop"));
    if (host_end(backup) != 0)
        host_fail(backup, "it did not stop in order");
}

/* "position N" behind `words`. */
static uint64_t position_after(const char *said, const char *words)
{
    const char *at = strstr(said, words);
    unsigned long long position;

    if (at == NULL || sscanf(at + strlen(words), " position %llu", &position) != 1)
        fail_msg("no position after '%s' in: %s", words, said);
    return position;
}

static void kept_log_replays_up_to_where_the_survivor_goes_live(void **state)
{
    struct host backup = lost_primary("whole", "", 1);
    const char *said, *directory = hosts_directory();
    char dump[128];
    uint64_t position;

    (void)state;
    /* While the survivor stands still, and its writer with it: what it has not written yet is missing, which is said. */
    kill(backup.pid, SIGCONT);
    kill(backup.pid, SIGSTOP);
    snprintf(dump, sizeof(dump), "%s/dump-early", directory);
    if (run(&said, REPLAY "--until 1000 --dump %s %s/whole 2>&1", ftvmm, directory, dump, directory) != 0)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "stopped at position 1000"));
    survivor_ends(&backup);
    if (run(&said, REPLAY "%s/whole 2>&1", ftvmm, directory, directory) != 0)
        fail_msg("%s", said);
    position = position_after(said, "the log that was kept ends here, in the midst of");
    if (run(&said, "%s log --json --summary %s/whole", ftvmm, directory) != 0)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "\"state\":\"kept up to here\""));
    if (run(&said, REPLAY "--until %llu %s/whole 2>&1", ftvmm, directory, (unsigned long long)position + 1, directory) != 1)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "before --until"));
}

static int set_up(void **state)
{
    (void)state;
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
        cmocka_unit_test(kept_log_replays_up_to_where_the_survivor_goes_live),
    };

    if (argc != 3)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    (void)compare_ram;
    (void)parts_in;
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
