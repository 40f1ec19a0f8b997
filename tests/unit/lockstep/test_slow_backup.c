/*
 * A primary and a backup that is too slow for it: the real I/O thread, the real positions of the primary, the real
 * shared-memory link, the real arbiter, and a process that consumes records at a rate of the test's choice. Only the
 * guest is missing: between two positions the test sleeps.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "tests/unit/cmocka_prelude.h"
#include "vmm/io_thread.h"
#include "vmm/status.h"

#define STUCK_NS (2 * NS_PER_S) /* a position that takes longer; the machine may be busy with other things */

static char directory[64], arbiter_address[80], shm_address[64];

/* ---- the backup ---- */

struct backup {
    _Atomic uint64_t records_per_s;
    _Atomic bool silent;                 /* it gives no sign of life */
    _Atomic bool listening;              /* it notes in silence_ns how long the primary gave none, at most */
    _Atomic uint64_t silence_ns;
};

static struct channel_options channel_of(size_t ring_bytes)
{
    struct channel_options options = { .address = shm_address, .ring_bytes = ring_bytes,
                                       .join_timeout_ns = 5 * NS_PER_S, .hello = { .vm = "slow" } };

    return options;
}

static int backup_main(struct backup *backup, size_t ring_bytes)
{
    struct channel_options options = channel_of(ring_bytes);
    uint64_t last_ns, end_ns;
    struct channel *channel;
    double may = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion leaves it behind */
    if (channel_open_receiver(&channel, &options) != 0)
        return 1;
    last_ns = clock_now_ns();
    for (end_ns = last_ns + 60 * NS_PER_S; last_ns < end_ns;) {
        uint64_t now_ns = clock_now_ns(), rate = atomic_load(&backup->records_per_s);
        struct channel_record record;

        may += (double)((now_ns - last_ns) * rate) / 1e9;
        if (may > (double)rate / 50)
            may = (double)rate / 50; /* a rest is not made up for, but for what the scheduler takes */
        last_ns = now_ns;
        for (; may >= 1 && channel_next(channel, &record) == 0; may--)
            channel_consume(channel);
        if (!atomic_load(&backup->silent))
            channel_heartbeat(channel);
        if (atomic_load(&backup->listening)) {
            uint64_t silence_ns = clock_now_ns() - channel_peer_seen_ns(channel);

            if (silence_ns > atomic_load(&backup->silence_ns))
                atomic_store(&backup->silence_ns, silence_ns);
        }
        clock_sleep_ns(500 * NS_PER_US);
    }
    return 0;
}

/* ---- the primary ---- */

struct primary {
    struct lockstep *ls;
    struct backup *backup; /* shared with it */
    pid_t backup_pid;
    pthread_t io_thread;
    uint64_t position_ns; /* what the guest takes from one to the next */
    size_t record_bytes;
    uint64_t longest_ns; /* that a position took */
    uint64_t ages_ns, looks, most_age_ns, most_bytes;
};

static void primary_open(struct primary *primary, size_t ring_bytes, uint64_t max_lag_ns, uint64_t records_per_s)
{
    struct arbiter_options arbiter = { .address = arbiter_address, .vm = "slow" };
    struct channel_options options;
    struct lockstep *ls = calloc(1, sizeof(*ls));
    static unsigned count;
    uint64_t generation;

    /* A name of its own for each: the backup of a test that failed may live for a while. */
    snprintf(shm_address, sizeof(shm_address), "shm:slow-%d-%u", (int)getpid(), ++count);
    *primary = (struct primary){ .ls = ls, .position_ns = 300 * NS_PER_US, .record_bytes = 200 };
    primary->backup = mmap(NULL, sizeof(struct backup), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(primary->backup != MAP_FAILED);
    atomic_store(&primary->backup->records_per_s, records_per_s);
    options = channel_of(ring_bytes);
    primary->backup_pid = fork();
    assert_true(primary->backup_pid >= 0);
    if (primary->backup_pid == 0)
        _exit(backup_main(primary->backup, ring_bytes));

    ls->options = (struct lockstep_options){
        .heartbeat_ns = 5 * NS_PER_MS, .peer_timeout_ns = 1500 * NS_PER_MS, .max_input_delay_ns = 10 * NS_PER_MS,
        .max_lag_ns = max_lag_ns, .idle = { .sleep_ns = 50 * NS_PER_US },
    };
    ls->console_in = calloc(1, sizeof(*ls->console_in));
    ls->machine.vcpu.run = calloc(1, sizeof(struct kvm_run));
    ls->machine.exit = VCPU_EXIT_FORCED;
    pic_init(&ls->machine.pic);
    pit_init(&ls->machine.pit, 0);
    rtc_init(&ls->machine.rtc, 0, 0);
    assert_int_equal(arbiter_open(&ls->arbiter, &arbiter), 0);
    assert_int_equal(arbiter_begin(ls->arbiter, &generation), 0);
    COUNT_SET(ls->generation, generation);
    assert_int_equal(channel_open_sender(&ls->channel, &options), 0);
    assert_int_equal(vcpu_enter_thread(&ls->machine.vcpu), 0);
    ls->clock_offset_ns = -(int64_t)clock_now_ns();
    COUNT_SET(ls->role, ROLE_PRIMARY);
    COUNT_SET(ls->beat_ns, clock_now_ns());
    COUNT_SET(ls->arrived_ns, clock_now_ns());
    COUNT_SET(ls->deadline_ns, UINT64_MAX);
    COUNT_SET(ls->opened, true);
    COUNT_SET(ls->running, true);
    assert_int_equal(pthread_create(&primary->io_thread, NULL, io_thread_run, ls), 0);
}

static void primary_close(struct primary *primary)
{
    struct lockstep *ls = primary->ls;

    atomic_store(&ls->finished, true);
    pthread_join(primary->io_thread, NULL);
    kill(primary->backup_pid, SIGKILL);
    waitpid(primary->backup_pid, NULL, 0);
    channel_close(ls->channel);
    arbiter_close(ls->arbiter);
    munmap(primary->backup, sizeof(struct backup));
    free(ls->machine.vcpu.run);
    free(ls->console_in);
    free(ls);
}

/* One position, as lockstep_run has it, with one record of the test's size. */
static void primary_step(struct primary *primary)
{
    struct lockstep *ls = primary->ls;
    uint64_t began_ns, now_ns;
    struct channel_lag lag;

    assert_int_equal(primary_before_run(ls), STEP_RUN);
    clock_sleep_ns(primary->position_ns);
    ls->machine.position++;
    began_ns = clock_now_ns();
    COUNT_SET(ls->arrived_ns, began_ns);
    COUNT_SET(ls->beat_ns, began_ns);
    primary_arrive(ls);
    assert_int_equal(ls->failure, 0);
    memset(primary_log_begin(ls, EVENT_OUTPUT, ls->machine.position, primary->record_bytes), 1, primary->record_bytes);
    assert_int_equal(ls->failure, 0);
    primary_log_end(ls);
    now_ns = clock_now_ns();
    if (now_ns - began_ns > primary->longest_ns)
        primary->longest_ns = now_ns - began_ns;
    channel_get_lag(ls->channel, &lag);
    primary->ages_ns += lag.age_ns;
    primary->looks++;
    primary->most_age_ns = lag.age_ns > primary->most_age_ns ? lag.age_ns : primary->most_age_ns;
    primary->most_bytes = lag.bytes > primary->most_bytes ? lag.bytes : primary->most_bytes;
}

/* Returns the positions made. */
static uint64_t primary_run(struct primary *primary, uint64_t ns, const char *what)
{
    const struct lockstep *ls = primary->ls;
    uint64_t began_ns = clock_now_ns(), rested_ns = COUNT_GET(ls->rested_ns), began = ls->machine.position;
    uint64_t records = channel_committed_lsn(ls->channel);
    uint64_t passed_ns;

    primary->longest_ns = primary->ages_ns = primary->looks = primary->most_age_ns = primary->most_bytes = 0;
    while (clock_now_ns() < began_ns + ns)
        primary_step(primary);
    passed_ns = clock_now_ns() - began_ns;
    print_message("%s: %llu records/s, age %llu ms (at most %llu), %llu KiB in the ring at most, rested %llu %%, pace "
                  "%.1f %%, %llu stalls\n", what,
                  (unsigned long long)((channel_committed_lsn(ls->channel) - records) * NS_PER_S / passed_ns),
                  (unsigned long long)(primary->ages_ns / primary->looks / NS_PER_MS),
                  (unsigned long long)(primary->most_age_ns / NS_PER_MS),
                  (unsigned long long)(primary->most_bytes / 1024),
                  (unsigned long long)((COUNT_GET(ls->rested_ns) - rested_ns) * 100 / passed_ns),
                  COUNT_GET(ls->pace_permille) / 10.0, (unsigned long long)COUNT_GET(ls->ring_full_stalls));
    assert_true(primary->longest_ns < STUCK_NS);
    return ls->machine.position - began;
}

static double status_number(const cJSON *root, const char *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(cJSON_GetObjectItem(root, object), name);

    assert_true(cJSON_IsNumber(item));
    return item->valuedouble;
}

/* What an operator is told while the guest is slowed. */
static void status_tells_lag_and_pace(const struct primary *primary)
{
    char path[96], text[8192] = "";
    cJSON *root;
    FILE *file;

    snprintf(path, sizeof(path), "%s/status.json", directory);
    assert_int_equal(status_write(path, "slow", primary->ls), 0);
    file = fopen(path, "r");
    assert_true(file != NULL && fread(text, 1, sizeof(text) - 1, file) > 0);
    fclose(file);
    root = cJSON_Parse(text);
    assert_non_null(root);
    assert_true(status_number(root, "lag", "records") > 0);
    assert_true(status_number(root, "lag", "bytes") >= 64 * status_number(root, "lag", "records"));
    assert_true(status_number(root, "lag", "ms") > 0);
    assert_true(status_number(root, "pace", "percent") > 0 && status_number(root, "pace", "percent") <= 90);
    assert_true(status_number(root, "pace", "rested_ms") > 100);
    assert_true(status_number(root, "pace", "ring_full_stalls") == 0);
    assert_true(status_number(root, "pace", "ring_full_ms") == 0);
    cJSON_Delete(root);
}

static void primary_is_not_slowed_for_a_backup_that_keeps_up(void **state)
{
    struct primary primary;

    (void)state;
    primary_open(&primary, 1u << 20, 400 * NS_PER_MS, 1000000);
    primary_run(&primary, NS_PER_S, "fast backup");
    assert_int_equal(COUNT_GET(primary.ls->rested_ns), 0);
    assert_true(primary.ages_ns / primary.looks < 50 * NS_PER_MS);
    primary_close(&primary);
}

static void primary_keeps_a_slow_backup_near_the_target(void **state)
{
    const uint64_t target_ns = 250 * NS_PER_MS;
    struct primary primary;
    uint64_t rate;

    (void)state;
    primary_open(&primary, 4u << 20, target_ns, 1000000);
    rate = primary_run(&primary, NS_PER_S, "fast backup"); /* as fast as this machine is just now */
    atomic_store(&primary.backup->records_per_s, rate / 3);
    primary_run(&primary, 4 * NS_PER_S, "slow backup, search");
    assert_true(COUNT_GET(primary.ls->rested_ns) > 0);
    primary_run(&primary, 2 * NS_PER_S, "slow backup, settled");
    assert_true(primary.ages_ns / primary.looks > target_ns / 3 && primary.ages_ns / primary.looks < target_ns * 2);
    assert_true(COUNT_GET(primary.ls->pace_permille) > 0);
    assert_true(primary.most_bytes < 1u << 20);
    status_tells_lag_and_pace(&primary);

    /* It stands still for a while, heartbeats and all, and goes on. */
    kill(primary.backup_pid, SIGSTOP);
    assert_true(primary_run(&primary, 700 * NS_PER_MS, "stopped backup") > 50);
    kill(primary.backup_pid, SIGCONT);
    primary_run(&primary, 4 * NS_PER_S, "goes on");
    primary_run(&primary, NS_PER_S, "settled again");
    assert_true(primary.ages_ns / primary.looks < target_ns * 2);

    /* It is fast again. */
    atomic_store(&primary.backup->records_per_s, 1000000);
    for (unsigned i = 0; i < 10 && COUNT_GET(primary.ls->pace_permille) > 0; i++)
        primary_run(&primary, NS_PER_S, "fast again");
    assert_int_equal(COUNT_GET(primary.ls->pace_permille), 0);
    assert_int_equal(COUNT_GET(primary.ls->ring_full_stalls), 0);
    assert_int_equal(lockstep_role_now(primary.ls), ROLE_PRIMARY);
    primary_close(&primary);
}

static void primary_never_fills_the_ring_of_a_backup_that_is_slow_with_much(void **state)
{
    struct primary primary;
    uint64_t rate;

    (void)state;
    primary_open(&primary, 16u << 20, 60 * NS_PER_S, 1000000); /* a target that the ring cannot hold */
    primary.record_bytes = 16384;
    rate = primary_run(&primary, NS_PER_S, "bulk, fast backup");
    atomic_store(&primary.backup->records_per_s, rate / 3);
    primary_run(&primary, 4 * NS_PER_S, "bulk, search");
    primary_run(&primary, 2 * NS_PER_S, "bulk, settled");
    assert_int_equal(COUNT_GET(primary.ls->ring_full_stalls), 0);
    assert_true(primary.most_bytes > 2u << 20 && primary.most_bytes < 15u << 20);
    assert_true(COUNT_GET(primary.ls->rested_ns) > 0);
    primary_close(&primary);
}

static void primary_rests_at_most_so_long_and_stops_when_told(void **state)
{
    struct primary primary;
    uint64_t asked_ns;

    (void)state;
    primary_open(&primary, 4u << 20, 100 * NS_PER_MS, 0);
    primary_run(&primary, 900 * NS_PER_MS, "backup that heartbeats and consumes nothing");
    assert_int_equal(COUNT_GET(primary.ls->pace_permille), PACE_MOST_PERMILLE);
    asked_ns = clock_now_ns();
    COUNT_SET(primary.ls->stop_requested, true);
    primary_step(&primary);
    assert_int_equal(primary.ls->machine.ended, EVENT_END_STOPPED);
    assert_true(clock_now_ns() - asked_ns < STUCK_NS);
    primary_close(&primary);
}

static void primary_goes_on_alone_and_unslowed_when_the_slow_backup_dies(void **state)
{
    struct primary primary;
    uint64_t killed_ns;

    (void)state;
    primary_open(&primary, 4u << 20, 200 * NS_PER_MS, 300);
    primary_run(&primary, 1500 * NS_PER_MS, "slow backup");
    assert_true(COUNT_GET(primary.ls->pace_permille) > 0);
    kill(primary.backup_pid, SIGKILL);
    for (killed_ns = clock_now_ns(); lockstep_role_now(primary.ls) == ROLE_PRIMARY;) {
        primary_step(&primary);
        assert_true(clock_now_ns() < killed_ns + 15 * NS_PER_S);
    }
    assert_true(clock_now_ns() - killed_ns > primary.ls->options.peer_timeout_ns * 9 / 10);
    assert_int_equal(lockstep_role_now(primary.ls), ROLE_ALONE);
    assert_int_equal(COUNT_GET(primary.ls->pace_permille), 0);
    uint64_t rested_ns = COUNT_GET(primary.ls->rested_ns);
    for (unsigned i = 0; i < 200; i++)
        primary_step(&primary);
    assert_int_equal(COUNT_GET(primary.ls->rested_ns), rested_ns);
    primary_close(&primary);
}

static void *kill_soon(void *argument)
{
    clock_sleep_ns(500 * NS_PER_MS);
    kill(*(pid_t *)argument, SIGKILL);
    return NULL;
}

/* With pacing off the ring does fill; the vCPU waits for room in it until the arbiter has spoken. */
static void primary_waiting_for_room_is_freed_by_the_death_of_the_backup(void **state)
{
    struct primary primary;
    pthread_t killer;
    uint64_t began_ns;

    (void)state;
    primary_open(&primary, 1u << 20, 0, 0);
    primary.record_bytes = 65536;
    pthread_create(&killer, NULL, kill_soon, &primary.backup_pid);
    for (began_ns = clock_now_ns(); lockstep_role_now(primary.ls) == ROLE_PRIMARY;) {
        primary_step(&primary);
        assert_true(clock_now_ns() < began_ns + 15 * NS_PER_S);
    }
    pthread_join(killer, NULL);
    assert_true(primary.ls->machine.position < 20);
    assert_int_equal(COUNT_GET(primary.ls->ring_full_stalls), 1);
    assert_true(COUNT_GET(primary.ls->ring_full_ns) > 400 * NS_PER_MS);
    assert_int_equal(COUNT_GET(primary.ls->rested_ns), 0);
    for (unsigned i = 0; i < 100; i++)
        primary_step(&primary);
    primary_close(&primary);
}

/* A FIFO in the place of the pair's file: the claim hangs in open(2), as on storage that does not answer. */
static void primary_heartbeats_on_while_the_arbiter_hangs(void **state)
{
    char pair[128], line[128];
    struct primary primary;
    struct arbiter_status status;
    uint64_t until_ns, silence_ns;
    ssize_t bytes;
    int fd;

    (void)state;
    primary_open(&primary, 1u << 20, 400 * NS_PER_MS, 1000000);
    snprintf(pair, sizeof(pair), "%s/slow.%llu.pair", directory, (unsigned long long)primary.ls->generation);
    fd = open(pair, O_RDONLY);
    bytes = read(fd, line, sizeof(line));
    close(fd);
    assert_true(bytes > 0);
    assert_int_equal(unlink(pair), 0);
    assert_int_equal(mkfifo(pair, 0600), 0);
    primary.position_ns = 2 * NS_PER_MS; /* so that the ring has room for all until the backup is found silent */
    atomic_store(&primary.backup->records_per_s, 0);
    atomic_store(&primary.backup->silent, true);
    for (until_ns = clock_now_ns() + 15 * NS_PER_S; !COUNT_GET(primary.ls->peer_lost);) {
        primary_step(&primary);
        assert_true(clock_now_ns() < until_ns);
    }
    atomic_store(&primary.backup->silent, false); /* too late, but now it hears the primary */
    atomic_store(&primary.backup->records_per_s, 1000000);
    primary_run(&primary, 300 * NS_PER_MS, "arbiter that hangs, at first");
    atomic_store(&primary.backup->listening, true);
    primary_run(&primary, 2 * NS_PER_S, "arbiter that hangs");
    silence_ns = atomic_load(&primary.backup->silence_ns);
    arbiter_get_status(primary.ls->arbiter, &status);
    print_message("longest silence of the primary %llu ms; the claim hangs since %llu ms\n",
                  (unsigned long long)(silence_ns / NS_PER_MS), (unsigned long long)(status.asking_ns / NS_PER_MS));
    assert_int_equal(lockstep_role_now(primary.ls), ROLE_PRIMARY);
    assert_true(status.asking && status.asks == 1 && status.asking_ns > NS_PER_S);
    assert_int_equal(status.verdict, ARBITER_UNREACHABLE);
    assert_true(silence_ns > 0 && silence_ns < NS_PER_S); /* heartbeats are 5 ms apart; the claim hung twice as long */
    fd = open(pair, O_WRONLY);
    assert_int_equal(write(fd, line, (size_t)bytes), bytes);
    close(fd);
    for (until_ns = clock_now_ns() + 15 * NS_PER_S; lockstep_role_now(primary.ls) == ROLE_PRIMARY;) {
        primary_step(&primary);
        assert_true(clock_now_ns() < until_ns);
    }
    primary_close(&primary);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(primary_is_not_slowed_for_a_backup_that_keeps_up),
        cmocka_unit_test(primary_keeps_a_slow_backup_near_the_target),
        cmocka_unit_test(primary_never_fills_the_ring_of_a_backup_that_is_slow_with_much),
        cmocka_unit_test(primary_rests_at_most_so_long_and_stops_when_told),
        cmocka_unit_test(primary_goes_on_alone_and_unslowed_when_the_slow_backup_dies),
        cmocka_unit_test(primary_waiting_for_room_is_freed_by_the_death_of_the_backup),
        cmocka_unit_test(primary_heartbeats_on_while_the_arbiter_hangs),
    };
    char command[160];
    int failed;

    snprintf(directory, sizeof(directory), "/tmp/ftvmm-slow-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return 1;
    snprintf(arbiter_address, sizeof(arbiter_address), "dir:%s", directory);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -rf '%s' /dev/shm/ftvmm-slow-%d-*", directory, (int)getpid());
    return system(command) != 0 || failed; /* a killed backup leaves its ring */
}
