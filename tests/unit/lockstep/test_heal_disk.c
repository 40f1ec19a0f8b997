/*
 * A backup with a disk that differs, and is healed: real ftvmm processes, a real vCPU, a guest that works its disk all the
 * time and checks what it reads. Memory and image of the backup are changed behind its back. argv[1]: ftvmm, argv[2]: ftctl.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/disk_hosts.h"
#include "tests/unit/ports.h"

static const char *ftvmm, *ftctl;
static unsigned seed;

/* Host `first` and its backup, the one after it, each with the image of its number; or with one, if they share it. Every
 * other pair over tcp. */
static void start_pair(struct host *live, struct host *backup, unsigned first, bool shared)
{
    char address[64], arguments[160];

    if (first % 20 == 0)
        snprintf(address, sizeof(address), "tcp:127.0.0.1:%u", ports_free(1));
    else
        snprintf(address, sizeof(address), "shm:heal-disk-%d-%u", (int)getpid(), first);
    disk_hosts_image(shared ? first : first + 1, shared);
    snprintf(arguments, sizeof(arguments), "--listen %s", address);
    *backup = host_start(first + 1, "backup", arguments);
    disk_hosts_image(first, shared);
    snprintf(arguments, sizeof(arguments), "--spare none --backup %s", address);
    *live = host_start(first, "primary", arguments);
    host_await(live, "primary", true);
    disk_hosts_await(live, 'D', 200);
}

static void await_healed(const struct host *live, const struct host *backup, unsigned times)
{
    host_await_number(backup, "lockstep", "healed", times);
    host_await_number(live, "lockstep", "healed", times);
    host_await(live, "primary", true);
}

/* Of the report with this number: how much of the disk differed; and says it. */
static uint64_t differing_bytes(const struct host *backup, unsigned number)
{
    cJSON *report = host_difference(backup, number);
    const cJSON *disk = cJSON_GetObjectItem(report, "disk");
    double differing = cJSON_GetNumberValue(cJSON_GetObjectItem(disk, "differing_bytes"));

    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(report, "outcome")), "healed");
    printf("difference %u: %.0f of %.0f KiB of the disk\n", number, differing / 1024,
           cJSON_GetNumberValue(cJSON_GetObjectItem(disk, "compared_bytes")) / 1024);
    cJSON_Delete(report);
    return differing > 0 ? (uint64_t)differing : 0;
}

/* First the guest finds it, by reading; then memory differs, too. In the end both copies are equal, to the last byte, as the
 * machines are. */
static void a_spoilt_copy_is_made_equal_again(void **state)
{
    struct host live, backup;

    (void)state;
    start_pair(&live, &backup, 0, false);
    disk_hosts_spoil(&backup, false, &seed);
    await_healed(&live, &backup, 1);
    assert_true(host_has_said(&backup, "the two copies of the disk were not equal"));
    assert_true(differing_bytes(&backup, 1) > 0);
    disk_hosts_spoil(&backup, true, &seed);
    await_healed(&live, &backup, 2);
    assert_true(differing_bytes(&backup, 2) > 0);
    disk_hosts_await(&live, 'S', disk_hosts_told(&live, 'S') + 2);
    assert_int_equal(host_number(&live, "lockstep", "divergences"), 2);
    hosts_stop(&live, &backup);
    disk_hosts_check(0, disk_hosts_told(&live, 'D'));
    disk_hosts_check_equal(0, 1);
}

/* The primary is killed some time after its backup was healed. */
static void outlive(unsigned first, bool shared)
{
    struct host live, backup, third;
    uint64_t told, scans;

    start_pair(&live, &backup, first, shared);
    if (shared)
        disk_hosts_divert(&backup, &seed);
    else
        disk_hosts_spoil(&backup, true, &seed);
    await_healed(&live, &backup, 1);
    clock_sleep_ns((uint64_t)(rand_r(&seed) % 500) * NS_PER_MS);
    kill(live.pid, SIGKILL);
    assert_int_equal(WTERMSIG(host_end(&live)), SIGKILL);
    told = disk_hosts_told(&live, 'D');
    host_await(&backup, "alone", false);
    disk_hosts_await(&backup, 'D', told);
    scans = disk_hosts_told(&backup, 'S');
    disk_hosts_await(&backup, 'S', scans + 2); /* it has read all of its disk, and found what it must */
    disk_hosts_check(first, told);
    disk_hosts_image(shared ? first : first + 2, shared);
    third = host_protect(&backup, first + 2);
    hosts_stop(&backup, &third);
    disk_hosts_check(shared ? first : first + 1, disk_hosts_told(&backup, 'D'));
    if (!shared)
        disk_hosts_check_equal(first + 1, first + 2);
}

static void a_healed_backup_outlives_its_primary_with_its_own_copy(void **state)
{
    (void)state;
    outlive(10, false);
}

static void a_healed_backup_outlives_its_primary_with_the_shared_disk(void **state)
{
    (void)state;
    outlive(20, true);
}

/* Something is cut off the primary's image: what is left of it is no whole disk, and must not be taken for one. */
static void a_primary_that_cannot_read_its_disk_lets_the_backup_go(void **state)
{
    struct host live, backup;
    uint64_t told;

    (void)state;
    start_pair(&live, &backup, 30, false);
    disk_hosts_cut(30);
    disk_hosts_divert(&backup, &seed);
    assert_int_equal(WEXITSTATUS(host_end(&backup)), 4);
    assert_true(host_has_said(&backup, "the primary cannot send the machine anew"));
    host_await(&live, "alone", false);
    assert_true(host_has_said(&live, "cannot be read to compare it"));
    told = disk_hosts_told(&live, 'D');
    disk_hosts_await(&live, 'D', told + 500);
    cJSON_Delete(host_ask(&live, "stop"));
    if (host_end(&live) != 0)
        host_fail(&live, "it did not stop in order");
    disk_hosts_check(30, told + 500);
}

/* What the backup cannot read of its copy it writes anew. */
static void a_copy_that_was_cut_is_made_whole(void **state)
{
    struct host live, backup;

    (void)state;
    start_pair(&live, &backup, 40, false);
    disk_hosts_cut(41);
    disk_hosts_divert(&backup, &seed);
    await_healed(&live, &backup, 1);
    hosts_stop(&live, &backup);
    disk_hosts_check_equal(40, 41);
}

static int set_up(void **state)
{
    const char *given = getenv("FTVMM_TEST_SEED");

    (void)state;
    seed = given != NULL ? (unsigned)strtoul(given, NULL, 0) : (unsigned)clock_now_ns();
    printf("seed %u\n", seed);
    return disk_hosts_open(ftvmm, ftctl);
}

static int tear_down(void **state)
{
    (void)state;
    return hosts_close();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_spoilt_copy_is_made_equal_again),
        cmocka_unit_test(a_healed_backup_outlives_its_primary_with_its_own_copy),
        cmocka_unit_test(a_healed_backup_outlives_its_primary_with_the_shared_disk),
        cmocka_unit_test(a_primary_that_cannot_read_its_disk_lets_the_backup_go),
        cmocka_unit_test(a_copy_that_was_cut_is_made_whole),
    };

    if (argc != 3)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
