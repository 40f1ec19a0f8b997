/*
 * How far the guest's clock is from the host's: a corner guest that computes, sleeps and reads its counter sends each
 * reading in a frame, and the test holds it against CLOCK_MONOTONIC. What is promised (docs/determinism.md):
 *   - a reading is later than every one before it, and never later than the host's time;
 *   - it is at most 10 us earlier than the host's time when the guest asked;
 *   - after a failover the same, but for the shortest delay with which the backup ever heard of the time.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/lockstep/corner_host.h"

#define GRANULARITY_NS  (10 * NS_PER_US)
#define STALL_NS        (400 * NS_PER_MS)
/* What the way to the backup may take at its best; a busy machine has such moments now and then. */
#define SHORT_DELAY_NS  (100 * NS_PER_MS)
#define LIMIT_NS        (60 * NS_PER_S)

/* Of the live host's frames; all processes share it. */
static struct seen {
    _Atomic uint64_t frames;
    _Atomic int64_t offset_ns;    /* of the first primary's virtual time to CLOCK_MONOTONIC */
    _Atomic uint64_t reading_ns;  /* the last one */
    _Atomic uint64_t real_ns;     /* when it came; virtual time as it should be */
    _Atomic uint64_t back, ahead; /* readings that were not later; that were later than real time */
    _Atomic uint64_t behind_ns;   /* earlier than the frame before it had come, by so much at most */
    _Atomic uint64_t survivor_frames, survivor_behind_ns;
} *seen;

static struct corner_outcome *outcomes;
static char directory[64];

static void frame_seen(struct lockstep *ls, const uint8_t *frame, size_t bytes)
{
    uint64_t reading_ns, real_ns, before_ns = atomic_load(&seen->real_ns), behind_ns;
    enum lockstep_role role = lockstep_role_now(ls);

    if (role == ROLE_BACKUP || bytes < FRAME_TSC + 8)
        return;
    if (role == ROLE_PRIMARY)
        atomic_store(&seen->offset_ns, ls->clock_offset_ns);
    memcpy(&reading_ns, frame + FRAME_TSC, 8);
    real_ns = clock_now_ns() + (uint64_t)atomic_load(&seen->offset_ns);
    behind_ns = before_ns > reading_ns ? before_ns - reading_ns : 0;
    if (reading_ns <= atomic_load(&seen->reading_ns))
        atomic_fetch_add(&seen->back, 1);
    if (reading_ns > real_ns)
        atomic_fetch_add(&seen->ahead, 1);
    if (role == ROLE_PRIMARY) {
        if (behind_ns > atomic_load(&seen->behind_ns))
            atomic_store(&seen->behind_ns, behind_ns);
    } else if (atomic_fetch_add(&seen->survivor_frames, 1) > 0) { /* the first one's reading is of the primary's time */
        if (behind_ns > atomic_load(&seen->survivor_behind_ns))
            atomic_store(&seen->survivor_behind_ns, behind_ns);
    }
    atomic_store(&seen->reading_ns, reading_ns);
    atomic_store(&seen->real_ns, real_ns);
    atomic_fetch_add(&seen->frames, 1);
}

static bool expect(bool good, const char *what)
{
    if (!good)
        printf("FAIL: %s\n", what);
    return good;
}

/* Computing for some ms at a time without an exit, sleeping, or neither. */
static bool a_reading_is_the_hosts_time(void)
{
    char log[96], address[112];
    struct corner_run run = {
        .role = ROLE_PRIMARY, .channel = address, .directory = directory, .slowness = corner_slowness(),
        .peer_timeout_ns = 10 * NS_PER_S, .frame = frame_seen,
        .plan = { .seed = 1, .steps = 400, .whole_cpu = corner_whole_cpu(), .timer_mask = 7, .clock = true,
                  .sleeps = true },
    };
    bool ended;

    snprintf(log, sizeof(log), "%s/log", directory);
    snprintf(address, sizeof(address), "file:%s", log);
    memset(seen, 0, sizeof(*seen));
    ended = corner_finish(corner_start(&run, &outcomes[0]));
    unlink(log);
    printf("%llu readings in %llu ms, %llu forced syncs, %llu timer interrupts: at most %llu ns before the frame before "
           "had come, %llu not later than the one before, %llu ahead of time\n",
           (unsigned long long)atomic_load(&seen->frames),
           (unsigned long long)(atomic_load(&seen->real_ns) / NS_PER_MS), (unsigned long long)outcomes[0].forced_syncs,
           (unsigned long long)outcomes[0].state[S_COUNTS / 8], (unsigned long long)atomic_load(&seen->behind_ns),
           (unsigned long long)atomic_load(&seen->back), (unsigned long long)atomic_load(&seen->ahead));
    return expect(ended, "the guest did not end in order") &&
           expect(atomic_load(&seen->frames) > 300, "too few readings") &&
           expect(outcomes[0].forced_syncs > 0, "no forced sync") &&
           expect(atomic_load(&seen->back) == 0, "time stood still or went back") &&
           expect(atomic_load(&seen->ahead) == 0, "time was ahead of the host's") &&
           expect(atomic_load(&seen->behind_ns) <= GRANULARITY_NS, "time was behind the host's by more than 10 us");
}

static bool wait_for(_Atomic uint64_t *count, uint64_t least)
{
    uint64_t limit_ns = clock_now_ns() + LIMIT_NS;

    while (atomic_load(count) < least && clock_now_ns() < limit_ns)
        clock_sleep_ns(NS_PER_MS);
    return atomic_load(count) >= least;
}

/* The primary dies while its backup stands still: what the backup learns of the time it learns late. */
static bool a_lagging_backup_goes_live_with_the_right_time(void)
{
    char address[64], arbiter[80];
    struct corner_run run = {
        .channel = address, .arbiter = arbiter, .directory = directory, .slowness = corner_slowness(),
        .peer_timeout_ns = NS_PER_S, .frame = frame_seen,
        .plan = { .seed = 2, .steps = 100000, .whole_cpu = corner_whole_cpu(), .timer_mask = 7, .clock = true },
    };
    pid_t primary, backup;
    bool begun, survived;

    snprintf(address, sizeof(address), "shm:time-%d", (int)getpid());
    snprintf(arbiter, sizeof(arbiter), "dir:%s", directory);
    memset(seen, 0, sizeof(*seen));
    run.role = ROLE_BACKUP;
    backup = corner_start(&run, &outcomes[1]);
    run.role = ROLE_PRIMARY;
    primary = corner_start(&run, &outcomes[0]);
    begun = wait_for(&seen->frames, 200);
    kill(backup, SIGSTOP);
    clock_sleep_ns(20 * NS_PER_MS); /* something is in the log that it has not seen */
    kill(primary, SIGKILL);
    (void)corner_finish(primary);
    clock_sleep_ns(STALL_NS);
    kill(backup, SIGCONT);
    survived = wait_for(&seen->survivor_frames, 100);
    kill(backup, SIGKILL);
    (void)corner_finish(backup);
    printf("failover with a backup that was %llu ms late: %llu readings before it, %llu after, the latter at most "
           "%llu us behind, %llu not later than the one before, %llu ahead of time\n",
           (unsigned long long)(STALL_NS / NS_PER_MS),
           (unsigned long long)(atomic_load(&seen->frames) - atomic_load(&seen->survivor_frames)),
           (unsigned long long)atomic_load(&seen->survivor_frames),
           (unsigned long long)(atomic_load(&seen->survivor_behind_ns) / NS_PER_US),
           (unsigned long long)atomic_load(&seen->back), (unsigned long long)atomic_load(&seen->ahead));
    return expect(begun, "the guest did not begin") && expect(survived, "the backup did not go live") &&
           expect(atomic_load(&seen->back) == 0, "time stood still or went back") &&
           expect(atomic_load(&seen->ahead) == 0, "time was ahead of the host's") &&
           expect(atomic_load(&seen->survivor_behind_ns) < SHORT_DELAY_NS, "the guest's clock has lost time");
}

int main(void)
{
    char command[96];
    bool good;

    if (corner_host_check() != 0)
        return 77;
    strcpy(directory, "/tmp/ftvmm-time-XXXXXX");
    outcomes = corner_shared(2 * sizeof(*outcomes));
    seen = corner_shared(sizeof(*seen));
    if (mkdtemp(directory) == NULL)
        return 1;
    good = a_reading_is_the_hosts_time();
    good = a_lagging_backup_goes_live_with_the_right_time() && good;
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command) != 0 || !good;
}
