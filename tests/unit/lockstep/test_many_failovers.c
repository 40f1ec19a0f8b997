/*
 * One guest that is started once, and its clients, whose sessions stay open: failovers in a row, each followed by a new
 * backup, the hosts in network namespaces of their own (cables.h). Then one host that stays and loses one backup after the
 * other. Nothing that was acknowledged is lost, the histories are linearizable, and the hosts' memory and file descriptors
 * do not grow. argv: ftvmm, ftctl, how many rounds (default 5; soak: 50).
 */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/lan_clients.h"
#include "tests/unit/lockstep/real_hosts.h"

#define HEARTBEAT_MS 200
#define ROUNDS_MAX   1000u
#define CLIENTS      3u
#define GROWTH_KIB   4096u /* of a process over all rounds: less than 50 transfers could leave behind by mistake */

static const char *ftvmm, *ftctl;
static unsigned rounds = 5;
static uint64_t seed;

static const uint8_t guest_mac[6] = { 0x02, 0, 0, 0, 0, 0x50 };

struct place {
    enum cable_place at;
    struct host host;
};

struct lab {
    struct cables cables;
    struct lan_clients clients;
    struct place live, backup;
    unsigned started; /* hosts */
};

static struct lab lab;
static unsigned transfers_again;

static void start(struct place *place, const char *command, const char *more)
{
    char arguments[512];

    snprintf(arguments, sizeof(arguments),
             "--net af_packet:lan --mac 02:00:00:00:00:50 --heartbeat %d --poll 0,200 --max-input-delay 500000 "
             "--segment 200 --spare none %s", HEARTBEAT_MS, more);
    place->host = host_start_in(lab.cables.namespaces[place->at], lab.started++, command, arguments);
}

static void listen_address(const struct place *place, char *address, size_t bytes)
{
    snprintf(address, bytes, "tcp:10.77.1.%d:7471", place->at + 1);
}

static void start_backup(void)
{
    char address[64], words[96];

    listen_address(&lab.backup, address, sizeof(address));
    snprintf(words, sizeof(words), "--listen %s", address);
    start(&lab.backup, "backup", words);
}

/* A transfer that a busy machine took apart is tried again, with a backup started anew, as its unit would. */
static void protect(void)
{
    char address[64], words[96];
    bool good = false;

    listen_address(&lab.backup, address, sizeof(address));
    snprintf(words, sizeof(words), "protect %s", address);
    for (unsigned tries = 0; tries < 4 && !good; tries++) {
        cJSON *answer;

        if (tries == 0 || host_has_ended(&lab.backup.host)) {
            if (tries > 0)
                (void)host_end(&lab.backup.host);
            start_backup();
        }
        answer = host_ask(&lab.live.host, words);
        good = cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok"));
        transfers_again += !good;
        cJSON_Delete(answer);
    }
    if (!good)
        host_fail(&lab.live.host, "it gets no backup");
    host_await(&lab.live.host, "primary", true);
}

static void begin(void)
{
    char address[64], words[96];

    assert_int_equal(cables_open(&lab.cables), 0);
    assert_int_equal(lan_clients_start(&lab.clients, &lab.cables, guest_mac, CLIENTS, 5 * NS_PER_MS, (unsigned)seed), 0);
    lab.live.at = CABLE_HOST_A;
    lab.backup.at = CABLE_HOST_B;
    start_backup();
    listen_address(&lab.backup, address, sizeof(address));
    snprintf(words, sizeof(words), "--backup %s", address);
    start(&lab.live, "primary", words);
    host_await(&lab.live.host, "primary", true);
    if (!lan_clients_await(&lab.clients, 3, 20 * NS_PER_S))
        host_fail(&lab.live.host, "the guest does not answer");
}

static void finish(unsigned moves_max)
{
    char why[512] = "";

    if (!lan_clients_await(&lab.clients, 5, 20 * NS_PER_S))
        host_fail(&lab.live.host, "the service does not come back");
    lan_clients_quiet(&lab.clients, 10 * NS_PER_S);
    cJSON_Delete(host_ask(&lab.live.host, "stop"));
    if (host_end(&lab.live.host) != 0)
        host_fail(&lab.live.host, "it did not stop in order");
    if (host_end(&lab.backup.host) != 0 || !host_has_said(&lab.backup.host, "equal to the primary's to the last byte"))
        host_fail(&lab.backup.host, "it has not found the guest equal");
    lan_clients_stop(&lab.clients);
    if (!lan_clients_judge(&lab.clients, moves_max, why, sizeof(why)))
        host_fail(&lab.live.host, why);
    assert_true(lab.clients.reg.count > 10 && lab.clients.counter.count > 10);
}

static int close_lab(void **state)
{
    (void)state;
    cables_close(&lab.cables);
    lan_clients_close(&lab.clients);
    lab = (struct lab){ .started = lab.started };
    return 0;
}

/* ---- what a process holds ---- */

static uint64_t anonymous_kib(const struct host *host)
{
    char path[64], line[256];
    unsigned long long kib = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)host->pid);
    file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file) != NULL && sscanf(line, "RssAnon: %llu", &kib) != 1)
        ;
    fclose(file);
    assert_true(kib > 0);
    return kib;
}

static unsigned descriptors(const struct host *host)
{
    char path[64];
    unsigned count = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)host->pid);
    dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

/* ---- the guest moves ---- */

/* A planned switch-over, and by its receipt how long the guest stood still; beside it the rail's round trip. */
static double hand_over(double *round_trip_us)
{
    cJSON *status = host_ask(&lab.live.host, "status"), *answer = host_ask(&lab.live.host, "failover");
    const cJSON *channel = cJSON_GetObjectItem(cJSON_GetObjectItem(status, "status"), "channel");
    const cJSON *receipt = cJSON_GetObjectItem(answer, "handover");
    double stopped_us = cJSON_GetNumberValue(cJSON_GetObjectItem(receipt, "stopped_us"));
    double taken_us = cJSON_GetNumberValue(cJSON_GetObjectItem(receipt, "taken_us"));

    if (!cJSON_IsTrue(cJSON_GetObjectItem(answer, "ok")) || !(taken_us > stopped_us))
        host_fail(&lab.live.host, "it does not hand over, or its receipt does not say so");
    *round_trip_us = cJSON_GetNumberValue(cJSON_GetObjectItem(cJSON_GetObjectItem(channel, "ack_latency"), "p50_us"));
    cJSON_Delete(status);
    cJSON_Delete(answer);
    return taken_us - stopped_us;
}

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return a < b ? -1 : a > b;
}

static void a_guest_moves_again_and_again(void **state)
{
    enum { KILL, FREEZE, RAIL, HANDOVER, KINDS };
    static const char *const names[] = { "SIGKILL", "freeze", "rail cut", "switch-over" };
    struct { double longest_ms, sum_ms; unsigned count; } silence[KINDS] = { 0 };
    static double pauses_us[ROUNDS_MAX], round_trips_us[ROUNDS_MAX];
    double live_longest_us = 0;
    uint64_t first_kib = 0, last_kib = 0, began_ns = clock_now_ns();
    unsigned moved = 0, first_descriptors = 0, last_descriptors = 0;

    (void)state;
    begin();
    for (unsigned round = 0; round < rounds; round++) {
        unsigned kind = round < KINDS ? round : (unsigned)(test_random(&seed) % KINDS);
        struct place was;
        bool stays;
        double ms;

        clock_sleep_ns(test_random(&seed) % 300 * NS_PER_MS);
        lan_clients_mark(&lab.clients);
        switch (kind) {
        case KILL: kill(lab.live.host.pid, SIGKILL); break;
        case FREEZE: kill(lab.live.host.pid, SIGSTOP); break;
        case RAIL: cable_cut(&lab.cables, CABLE_RAIL, lab.live.at, true); break;
        case HANDOVER: pauses_us[silence[kind].count] = hand_over(&round_trips_us[silence[kind].count]); break;
        }
        if (kind == FREEZE)
            host_await(&lab.backup.host, "alone", false);
        kill(lab.live.host.pid, SIGCONT);
        while (!host_has_ended(&lab.live.host) && !host_has_ended(&lab.backup.host))
            clock_sleep_ns(5 * NS_PER_MS); /* the test's own limit of time ends it */
        stays = host_has_ended(&lab.backup.host);
        if (stays && kind != RAIL)
            host_fail(&lab.backup.host, "it has ended");
        cable_cut(&lab.cables, CABLE_RAIL, lab.live.at, false);
        (void)host_end(stays ? &lab.backup.host : &lab.live.host);
        if (!stays) {
            was = lab.live;
            lab.live = lab.backup;
            lab.backup = was;
            moved++;
        }
        host_await(&lab.live.host, "alone", false);
        if (!lan_clients_await(&lab.clients, 1, 20 * NS_PER_S))
            host_fail(&lab.live.host, "the service does not come back");
        ms = (double)atomic_load(&lab.clients.silence_ns) / (double)NS_PER_MS;
        silence[kind].sum_ms += ms;
        silence[kind].count++;
        silence[kind].longest_ms = ms > silence[kind].longest_ms ? ms : silence[kind].longest_ms;
        if (kind != HANDOVER) {
            double live_us = (double)host_number(&lab.live.host, "failover", "live_us");

            live_longest_us = live_us > live_longest_us ? live_us : live_longest_us;
        }
        protect();
        last_kib = anonymous_kib(&lab.live.host);
        last_descriptors = descriptors(&lab.live.host);
        if (round == 1) {
            first_kib = last_kib;
            first_descriptors = last_descriptors;
        }
    }
    finish(moved);
    for (unsigned kind = 0; kind < KINDS; kind++)
        if (silence[kind].count > 0)
            printf("%2u x %-11s: the service was silent for %.0f ms on average, %.0f at most\n", silence[kind].count,
                   names[kind], silence[kind].sum_ms / silence[kind].count, silence[kind].longest_ms);
    printf("live at most %.0f ms after the last sign of life: %.1f heartbeats\n", live_longest_us / 1000,
           live_longest_us / 1000 / HEARTBEAT_MS);
    if (silence[HANDOVER].count > 0) {
        unsigned count = silence[HANDOVER].count;

        qsort(pauses_us, count, sizeof(pauses_us[0]), by_size);
        qsort(round_trips_us, count, sizeof(round_trips_us[0]), by_size);
        printf("switch-over: from the guest's stop until the old host knows that the new one has it %.1f ms (median; least %.1f, "
               "most %.1f), that is %.0f round trips of the rail (%.0f us)\n", pauses_us[count / 2] / 1000, pauses_us[0] / 1000,
               pauses_us[count - 1] / 1000, pauses_us[count / 2] / round_trips_us[count / 2], round_trips_us[count / 2]);
    }
    printf("%u rounds in %.0f s, the guest moved %u times and was never started again; %zu answers; register and counter "
           "linearizable (%zu and %zu operations); a host has %llu KiB and %u descriptors, at the beginning %llu and %u; transfers begun again: %u\n",
           rounds, (double)(clock_now_ns() - began_ns) / (double)NS_PER_S, moved, lab.clients.answers_count,
           lab.clients.reg.count, lab.clients.counter.count, (unsigned long long)last_kib, last_descriptors,
           (unsigned long long)first_kib, first_descriptors, transfers_again);
    assert_true(last_kib <= first_kib + GROWTH_KIB);
    assert_true(last_descriptors <= first_descriptors + 4);
}

/* ---- one host stays ---- */

static void a_host_that_stays_does_not_grow(void **state)
{
    uint64_t first_kib = 0, kib = 0;
    unsigned first_descriptors = 0, count = 0;

    (void)state;
    begin();
    for (unsigned round = 0; round < rounds; round++) {
        kill(lab.backup.host.pid, SIGKILL);
        (void)host_end(&lab.backup.host);
        host_await(&lab.live.host, "alone", false);
        protect();
        kib = anonymous_kib(&lab.live.host);
        count = descriptors(&lab.live.host);
        if (round == 1) {
            first_kib = kib;
            first_descriptors = count;
        }
    }
    finish(0);
    printf("one host, %u backups lost: %llu KiB and %u descriptors, after the second %llu and %u\n", rounds,
           (unsigned long long)kib, count, (unsigned long long)first_kib, first_descriptors);
    assert_true(kib <= first_kib + GROWTH_KIB);
    assert_true(count <= first_descriptors + 1);
}

static int set_up(void **state)
{
    (void)state;
    seed = test_seed("many failovers");
    return hosts_open_with(ftvmm, ftctl, __start_answering_guest,
                           (size_t)(__stop_answering_guest - __start_answering_guest));
}

static int tear_down(void **state)
{
    (void)state;
    return hosts_close();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_guest_moves_again_and_again, close_lab),
        cmocka_unit_test_teardown(a_host_that_stays_does_not_grow, close_lab),
    };
    const char *missing = cables_check();

    if (argc < 3)
        return 1;
    if (missing == NULL && access("/dev/kvm", R_OK | W_OK) != 0)
        missing = "no /dev/kvm that may be opened";
    if (missing != NULL) {
        puts(missing);
        return TEST_SKIP;
    }
    ftvmm = argv[1];
    ftctl = argv[2];
    if (argc > 3)
        rounds = (unsigned)strtoul(argv[3], NULL, 10);
    if (rounds < 3 || rounds > ROUNDS_MAX)
        return 1;
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
