/*
 * The black box: real ftvmm processes, a primary that is killed, and the log that its backup has kept. Replayed from it, in
 * a process of its own, the guest must be the one that the survivor has gone live with: all of its RAM is compared, byte
 * by byte, while the survivor stands still at that moment. argv: ftvmm with faults (faulty.c), ftctl.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/real_hosts.h"
#include "tests/unit/ports.h"
#include "vmm/kept_files.h"

#define RAM_BYTES (UINT64_C(64) << 20)

static const char *ftvmm, *ftctl;
static unsigned number; /* of the next host */

#define REPLAY "timeout 100 %s replay --kernel %s/kernel --memory 64 --name many "

static int list(const char *name, struct kept_file **files, size_t *count)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", hosts_directory(), name);
    return kept_files_list(path, files, count);
}

/* Parts that can be replayed, and those that were deleted again. */
static unsigned parts_begun(const char *name)
{
    struct kept_file *files;
    unsigned begun = 0;
    size_t count;

    assert_int_equal(list(name, &files, &count), 0);
    for (size_t i = 0; i < count; i++)
        if (files[i].whole)
            begun = files[i].part;
    free(files);
    return begun;
}

/* The RAM of a guest that stands still. */
static void compare_ram(const struct host *host, const char *dump)
{
    static uint8_t ours[RAM_BYTES], theirs[RAM_BYTES];
    uint64_t base = host_ram_at(host);
    char path[160];
    int fd;

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

static void await_parts(const struct host *host, const char *name, unsigned parts)
{
    uint64_t limit_ns = clock_now_ns() + 120 * NS_PER_S;

    while (parts_begun(name) < parts) {
        if (clock_now_ns() > limit_ns)
            host_fail(host, "its kept log gets no new part");
        clock_sleep_ns(20 * NS_PER_MS);
    }
}

/* Waits until the newest part is closed: who writes a log holds a lock on it. */
static void await_written(const struct host *host, const char *name)
{
    uint64_t limit_ns = clock_now_ns() + 120 * NS_PER_S;
    char path[128], file[KEPT_PATH_BYTES];
    bool kept;
    int fd;

    snprintf(path, sizeof(path), "%s/%s", hosts_directory(), name);
    assert_int_equal(kept_files_find(path, 0, file, &kept), 0);
    assert_true(kept);
    fd = open(file, O_RDONLY);
    assert_true(fd >= 0);
    while (flock(fd, LOCK_SH | LOCK_NB) != 0) {
        if (clock_now_ns() > limit_ns)
            host_fail(host, "it does not close its log");
        clock_sleep_ns(20 * NS_PER_MS);
    }
    close(fd);
}

/* Starts a pair whose backup keeps its log in `name`, lets it run until the log has so many parts, and kills the primary.
 * The survivor is held where it goes live, until survivor_ends. */
static struct host lost_primary(const char *link, const char *name, const char *more, unsigned parts)
{
    char arguments[320], go[128];
    struct host live, backup;

    snprintf(go, sizeof(go), "%s/go", hosts_directory());
    unlink(go);
    snprintf(arguments, sizeof(arguments), "--listen %s --peer-timeout 4000 --keep-log %s/%s%s", link, hosts_directory(), name, more);
    setenv("FTVMM_FAULT", "live:hold", 1);
    setenv("FTVMM_FAULT_GO", go, 1);
    backup = host_start(number++, "backup", arguments);
    unsetenv("FTVMM_FAULT");
    snprintf(arguments, sizeof(arguments), "--verify --peer-timeout 4000 --spare none --backup %s", link);
    live = host_start(number++, "primary", arguments);
    host_await(&live, "primary", true);
    host_await_number(&live, "lockstep", "positions", 300);
    await_parts(&backup, name, parts);
    kill(live.pid, SIGKILL);
    (void)host_end(&live);
    host_await_said(&backup, "fault: held at live");
    await_written(&backup, name);
    return backup;
}

static void survivor_ends(const struct host *backup)
{
    char go[128];

    snprintf(go, sizeof(go), "%s/go", hosts_directory());
    close(open(go, O_CREAT | O_WRONLY, 0600));
    host_await(backup, "alone", false);
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

static uint64_t position_after_in(const struct host *host, const char *words)
{
    const char *said;

    shell(&said, "cat %s", host->said);
    return position_after(said, words);
}

/* Replays the newest part to its end, and compares it with the survivor, which is held there. Its position. */
static uint64_t replay_equals_survivor(const struct host *survivor, const char *name)
{
    const char *said, *directory = hosts_directory();
    char dump[128];

    snprintf(dump, sizeof(dump), "%s/%s.dump", directory, name);
    if (shell(&said, REPLAY "--dump %s %s/%s 2>&1", ftvmm, directory, dump, directory, name) != 0)
        fail_msg("%s", said);
    compare_ram(survivor, dump);
    return position_after(said, "the log that was kept ends here, in the midst of");
}

static void kept_log_from_the_start_gives_the_survivor(void **state)
{
    const char *said, *directory = hosts_directory();
    char link[64];
    struct host backup;
    uint64_t position;

    (void)state;
    snprintf(link, sizeof(link), "shm:kept-%d", (int)getpid());
    backup = lost_primary(link, "whole", "", 1);
    position = replay_equals_survivor(&backup, "whole");
    survivor_ends(&backup);
    if (!host_has_said(&backup, "the log is kept in") || position_after_in(&backup, "live at") != position)
        host_fail(&backup, "its log does not end where it went live");
    if (shell(&said, REPLAY "--until 200 %s/whole 2>&1", ftvmm, directory, directory) != 0)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "stopped at position 200"));
    if (shell(&said, REPLAY "--until %llu %s/whole 2>&1", ftvmm, directory, (unsigned long long)position + 1, directory) != 1)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "before --until"));
    if (shell(&said, "%s log --json --summary %s/whole 2>&1", ftvmm, directory) != 0)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "\"state\":\"kept up to here\""));
}

static void kept_log_from_a_base_gives_the_survivor(void **state)
{
    const char *said, *directory = hosts_directory();
    struct kept_file *files;
    size_t count, first;
    struct host backup;
    char link[64];

    (void)state;
    snprintf(link, sizeof(link), "tcp:127.0.0.1:%u", ports_free(1));
    backup = lost_primary(link, "based", ",minutes=0.02", 4);
    replay_equals_survivor(&backup, "based");
    survivor_ends(&backup);
    /* Two parts are left, both from a base, one of them up to where the other begins. */
    assert_int_equal(list("based", &files, &count), 0);
    assert_true(kept_files_last_run(files, count, &first));
    assert_int_equal(count - first, 2);
    assert_true(files[first].position > 0 && files[first].position < files[first + 1].position);
    if (shell(&said, REPLAY "--until %llu %s/based 2>&1", ftvmm, directory,
            (unsigned long long)files[first + 1].position - 1, directory) != 0)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "stopped at position"));
    if (shell(&said, REPLAY "--until %llu %s/based 2>&1", ftvmm, directory,
            (unsigned long long)files[first].position - 1, directory) != 1)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "does not go back to position"));
    if (shell(&said, "%s log --kind machine %s/based 2>&1", ftvmm, directory) != 0)
        fail_msg("%s", said);
    assert_non_null(strstr(said, "kept up to here"));
    free(files);
}

/* A pair that lives; its backup keeps its log in `name`. */
static void start_pair(struct host hosts[2], const char *name, const char *more)
{
    char arguments[256];

    snprintf(arguments, sizeof(arguments), "--listen shm:kept-%d-%s --peer-timeout 4000 --keep-log %s/%s%s", (int)getpid(),
             name, hosts_directory(), name, more);
    hosts[1] = host_start(number++, "backup", arguments);
    /* A segment each millisecond: a log that grows fast. */
    snprintf(arguments, sizeof(arguments), "--verify --segment 1 --peer-timeout 4000 --spare none --backup shm:kept-%d-%s",
             (int)getpid(), name);
    hosts[0] = host_start(number++, "primary", arguments);
    host_await(&hosts[0], "primary", true);
}

/* The disk takes nothing for a while: the pair does not wait, the log breaks off, and a new part goes on to the end. */
static void kept_log_of_a_disk_that_stalls_begins_anew(void **state)
{
    const char *said, *directory = hosts_directory();
    struct host hosts[2];
    uint64_t before;
    char go[128];

    (void)state;
    snprintf(go, sizeof(go), "%s/go-stalled", directory);
    setenv("FTVMM_FAULT", "kept-log-look:hold", 1);
    setenv("FTVMM_FAULT_GO", go, 1);
    start_pair(hosts, "stalled", ",size=192");
    unsetenv("FTVMM_FAULT");
    host_await_said(&hosts[1], "the kept log breaks off at position");
    before = host_number(&hosts[1], "lockstep", "positions");
    host_await_number(&hosts[1], "lockstep", "positions", before + 100);
    close(open(go, O_CREAT | O_WRONLY, 0600));
    await_parts(&hosts[1], "stalled", 2);
    hosts_stop(&hosts[0], &hosts[1]);
    if (shell(&said, REPLAY "%s/stalled 2>&1", ftvmm, directory, directory) != 0 ||
        strstr(said, "equal to the primary's to the last byte") == NULL)
        fail_msg("%s", said);
}

/* The backup's machine differs and is healed: what was kept of the old one is one part, the new one's begins from a base. */
static void kept_log_of_a_healed_backup_begins_anew(void **state)
{
    const char *said, *directory = hosts_directory();
    struct host hosts[2];

    (void)state;
    start_pair(hosts, "healed", "");
    host_spoil(&hosts[1]);
    host_await_number(&hosts[0], "lockstep", "healed", 1);
    assert_true(host_has_said(&hosts[1], "the kept log breaks off at position"));
    await_parts(&hosts[1], "healed", 2);
    hosts_stop(&hosts[0], &hosts[1]);
    if (shell(&said, REPLAY "%s/healed 2>&1", ftvmm, directory, directory) != 0 ||
        strstr(said, "equal to the primary's to the last byte") == NULL)
        fail_msg("%s", said);
}

/* Its directory is taken away: that is said, and nothing else happens. */
static void kept_log_that_cannot_go_on_leaves_the_pair_alone(void **state)
{
    struct host hosts[2];
    const char *said;

    (void)state;
    start_pair(hosts, "gone", ",minutes=0.02");
    shell(&said, "rm -rf %s/gone", hosts_directory());
    host_await_said(&hosts[1], "the log is kept no more");
    hosts_stop(&hosts[0], &hosts[1]);
}

/* What came with a transfer is a beginning, too; a backup's last run but one is left alone, an older one is not. */
static void kept_log_begins_with_a_transfer_and_leaves_the_run_before(void **state)
{
    struct host live = host_start(number++, "run", "--peer-timeout 4000"), backup;
    const char *said, *directory = hosts_directory();
    char arguments[256], words[96];
    struct kept_file *files;
    size_t count, first;

    (void)state;
    host_await(&live, "alone", false);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(arguments, sizeof(arguments), "--listen shm:kept-%d-again%u --peer-timeout 4000 --keep-log %s/again", (int)getpid(), i,
                 directory);
        backup = host_start(number++, "backup", arguments);
        snprintf(words, sizeof(words), "protect shm:kept-%d-again%u", (int)getpid(), i);
        cJSON_Delete(host_ask(&live, words));
        host_await(&live, "primary", true);
        if (i == 2)
            break;
        kill(backup.pid, SIGTERM);
        (void)host_end(&backup);
        host_await(&live, "alone", false);
    }
    cJSON_Delete(host_ask(&live, "stop"));
    if (host_end(&live) != 0 || host_end(&backup) != 0)
        host_fail(&backup, "the pair did not stop in order");
    assert_int_equal(list("again", &files, &count), 0);
    assert_true(kept_files_last_run(files, count, &first));
    assert_true(files[first].run == 3 && files[first].position > 0 && count == 2 && files[0].run == 2);
    free(files);
    if (shell(&said, REPLAY "%s/again 2>&1", ftvmm, directory, directory) != 0 ||
        strstr(said, "equal to the primary's to the last byte") == NULL)
        fail_msg("%s", said);
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
        cmocka_unit_test(kept_log_from_the_start_gives_the_survivor),
        cmocka_unit_test(kept_log_from_a_base_gives_the_survivor),
        cmocka_unit_test(kept_log_of_a_disk_that_stalls_begins_anew),
        cmocka_unit_test(kept_log_of_a_healed_backup_begins_anew),
        cmocka_unit_test(kept_log_that_cannot_go_on_leaves_the_pair_alone),
        cmocka_unit_test(kept_log_begins_with_a_transfer_and_leaves_the_run_before),
    };

    if (argc != 3)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
