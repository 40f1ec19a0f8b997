/* Runs a corner guest in a process of its own; see corner_host.h. */
#include "tests/unit/lockstep/corner_host.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/io_thread.h"
#include "vmm/page_copies.h"

#define DISK_SECTORS 64u
#define RAM_BYTES    (UINT64_C(64) << 20)
#define LIMIT_S      100u

static struct lockstep *ls;
static struct corner_outcome *outcome;
static void (*frame_hook)(struct lockstep *ls, const uint8_t *frame, size_t bytes);

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__,                                            \
                    ls != NULL ? role_name(lockstep_role_now(ls)) : "test", #condition);                              \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static bool cpu_has(const char *either, const char *or)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[8192];
    bool found = false;

    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL)
        found = strncmp(line, "flags", 5) == 0 && (strstr(line, either) != NULL || strstr(line, or) != NULL);
    if (file != NULL)
        fclose(file);
    return found;
}

int corner_host_check(void)
{
    if (access("/dev/kvm", R_OK | W_OK) == 0)
        return 0;
    puts("no /dev/kvm that may be opened");
    return 77;
}

bool corner_whole_cpu(void)
{
    return cpu_has(" svm", " vmx");
}

static void frame_out(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
    lockstep_frame_out(ctx, frame, bytes, offload);
    if (frame_hook != NULL)
        frame_hook(ls, frame, bytes);
}

static void console_out(void *ctx, uint8_t byte)
{
    size_t length = strlen(outcome->said);

    (void)ctx;
    if (length < sizeof(outcome->said) - 1)
        outcome->said[length] = (char)byte;
}

/* Bytes typed (on the primary) and kicks, at moments of its own. */
static void *storm_run(void *arg)
{
    const struct corner_run *run = arg;
    uint64_t random = clock_now_ns();

    while (!atomic_load(&ls->finished)) {
        uint64_t dice = corner_random(&random);

        clock_sleep_ns((20 * NS_PER_US + dice % (300 * NS_PER_US)) * run->slowness);
        if (dice >> 40 & 1) {
            vcpu_kick(&ls->machine.vcpu);
            outcome->kicks++;
        }
        if (run->role == ROLE_PRIMARY && (dice >> 41 & 3) == 0) {
            (void)byte_ring_put(ls->console_in, (uint8_t)(dice >> 48));
            lockstep_wake(ls);
        }
    }
    return NULL;
}

static void log_start(const struct event_start *start)
{
    size_t cpuid_bytes = start->cpuid_entries * sizeof(struct kvm_cpuid_entry2);
    uint8_t *payload = primary_log_begin(ls, EVENT_START, 0, sizeof(*start) + cpuid_bytes);

    memcpy(payload, start, sizeof(*start));
    memcpy(payload + sizeof(*start), vcpu_cpuid(&ls->machine.vcpu)->entries, cpuid_bytes);
    primary_log_end(ls);
}

static void open_machine(const struct corner_run *run)
{
    const struct machine_options options = {
        .memory_bytes = RAM_BYTES, .command_line = "", .mac = { 0x52, 0x54, 0, 1, 2, 3 }, .mtu = 1500,
        .disk = { .sectors = DISK_SECTORS }, .log_dirty = true,
    };
    const struct machine_output output = {
        .ctx = ls, .frame = frame_out, .filter = lockstep_filter_out, .console = console_out,
        .disk_data = lockstep_disk_data, .disk_submit = lockstep_disk_submit,
    };
    const struct disk_owner owner = { .ctx = ls, .finished = lockstep_disk_finished,
                                      .may_write = lockstep_disk_may_write };
    char image[128];
    struct disk_options disk = { .path = image, .mode = DISK_MIRRORED, .passive = run->replays_kept };
    uint64_t random = run->replays_kept ? 1 : run->plan.seed; /* what is kept needs no copy of the disk */
    int fd;

    snprintf(image, sizeof(image), "%s/disk.%s", run->directory, role_name(run->role));
    fd = open(image, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(fd >= 0);
    for (unsigned i = 0; i < DISK_SECTORS * 512 / 8; i++) {
        uint64_t word = corner_random(&random);

        CHECK(write(fd, &word, 8) == 8);
    }
    close(fd);
    CHECK(disk_open(&ls->disk, &disk, &owner) == 0);
    CHECK(machine_open(&ls->machine, &options, &output) == 0);
    ls->unsent_pages = calloc((RAM_BYTES / GUEST_PAGE_BYTES + 63) / 64, sizeof(uint64_t));
    CHECK(page_copies_open(&ls->page_copies) == 0);
}

/* As session.c begins a machine, but what boots is ours. */
static void begin(const struct corner_run *run)
{
    struct machine *machine = &ls->machine;
    struct event_start start = {
        .unix_seconds = 1700000000, .verify = run->verify, .clock = (uint16_t)run->clock,
        .cpuid_entries = vcpu_cpuid(&machine->vcpu)->nent
    };
    struct kvm_sregs sregs;
    struct kvm_regs regs;

    if (run->role == ROLE_PRIMARY)
        log_start(&start);
    else
        CHECK(backup_fetch_start(ls, &start) == 0);
    if (!start.transfer)
        corner_image_build(&machine->memory, &run->plan);
    CHECK(vcpu_get_sregs(&machine->vcpu, &sregs) == 0);
    corner_image_registers(&run->plan, &regs, &sregs);
    if (run->guest != NULL)
        run->guest(&machine->memory, &regs, &sregs);
    rtc_init(&machine->rtc, start.unix_seconds, start.time_ns);
    CHECK(vcpu_set_boot_state(&machine->vcpu, &regs, &sregs) == 0);
    if (run->verify) {
        vcpu_want_registers(&machine->vcpu);
        CHECK(verify_open(&ls->verify, ls, true) == 0);
        verify_all(ls->verify, ls);
    }
    CHECK(vcpu_enter_thread(&machine->vcpu) == 0);
    ls->clock = start.clock;
    CHECK(start.clock == run->clock);
    if (run->counter != NULL)
        CHECK(run->counter(&machine->vcpu, &ls->counter) == 0 && ls->counter->ops->start(ls->counter) == 0);
    else
        CHECK(clock_open(ls) == 0);
    if (start.transfer) {
        CHECK(backup_receive_machine(ls) == 0);
        backup_stand(ls, &start);
    }
    ls->clock_offset_ns = (int64_t)(start.time_ns - clock_now_ns());
    COUNT_SET(ls->beat_ns, clock_now_ns());
    COUNT_SET(ls->arrived_ns, clock_now_ns());
    COUNT_SET(ls->deadline_ns, UINT64_MAX);
}

static void open_channel(const struct corner_run *run)
{
    struct channel_options options = { .address = run->channel, .ring_bytes = 16 << 20,
                                       .join_timeout_ns = 20 * NS_PER_S, .hello = { .vm = "corner" } };
    uint64_t generation = 0;

    if (run->arbiter != NULL)
        CHECK(arbiter_open(&ls->arbiter, &(struct arbiter_options){ .address = run->arbiter, .vm = "corner" }) == 0);
    if (run->role == ROLE_PRIMARY) {
        if (run->arbiter != NULL)
            CHECK(arbiter_begin(ls->arbiter, &generation) == 0);
        options.hello.generation = generation;
        COUNT_SET(ls->generation, generation);
        CHECK(channel_open_sender(&ls->channel, &options) == 0);
        return;
    }
    CHECK(channel_open_receiver(&ls->channel, &options) == 0);
    if (run->arbiter != NULL) {
        COUNT_SET(ls->generation, channel_peer(ls->channel)->generation);
        CHECK(arbiter_check(ls->arbiter, COUNT_GET(ls->generation)) == 0);
    }
    ls->replays_kept = run->replays_kept;
    if (run->keep != NULL) {
        struct kept_log_options keep = { .directory = run->keep, .bytes = UINT64_C(1) << 30 };

        options.hello.generation = COUNT_GET(ls->generation);
        CHECK(kept_log_open(&ls->kept, ls, &keep, &options.hello) == 0);
    }
}

static void run_main(struct corner_run run)
{
    pthread_t io_thread, storm_thread;
    int rc;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(run.slowness > 1 ? 5 * LIMIT_S : LIMIT_S);
    ls = calloc(1, sizeof(*ls));
    frame_hook = run.frame;
    ls->machine.vcpu = (struct vcpu){ .kvm_fd = -1, .vm_fd = -1, .fd = -1 };
    ls->options = (struct lockstep_options){
        .heartbeat_ns = 5 * NS_PER_MS * run.slowness, .peer_timeout_ns = run.peer_timeout_ns,
        .max_input_delay_ns = (run.max_input_delay_ns ? run.max_input_delay_ns : 2 * NS_PER_MS) * run.slowness,
        .max_lag_ns = NS_PER_S,
        .idle = { .sleep_ns = 50 * NS_PER_US * run.slowness }, .segment_ns = 5 * NS_PER_MS * run.slowness,
    };
    COUNT_SET(ls->role, run.role);
    ls->console_in = calloc(1, sizeof(*ls->console_in));
    ls->console_out = calloc(1, sizeof(*ls->console_out));
    open_machine(&run);
    open_channel(&run);
    CHECK(pthread_create(&io_thread, NULL, io_thread_run, ls) == 0);
    begin(&run);
    CHECK(pthread_create(&storm_thread, NULL, storm_run, &run) == 0);
    rc = lockstep_run(ls);
    pthread_join(storm_thread, NULL);
    pthread_join(io_thread, NULL);
    outcome->positions = ls->machine.position;
    outcome->ram_digest = COUNT_GET(ls->end_ram_digest);
    outcome->compared = COUNT_GET(ls->positions_compared);
    outcome->segments = COUNT_GET(ls->segments_compared);
    outcome->forced_syncs = COUNT_GET(ls->forced_syncs);
    outcome->forced_delta_pages = COUNT_GET(ls->forced_delta_pages);
    outcome->window_steps = COUNT_GET(ls->machine.vcpu.window_steps);
    outcome->user_tsc_reads = COUNT_GET(ls->machine.user_tsc_reads);
    outcome->frames = ls->frames_built;
    outcome->places = COUNT_GET(ls->places);
    outcome->places_refused = COUNT_GET(ls->places_refused);
    outcome->lost_interrupt = (ls->machine.pic.chips[0].in_service | ls->machine.pic.chips[1].in_service) != 0;
    outcome->ended = rc == 0 && ls->machine.ended == EVENT_END_HALTED &&
                     (run.role == ROLE_PRIMARY || COUNT_GET(ls->end_compared));
    memcpy(outcome->state, ls->machine.memory.base + CORNER_STATE, sizeof(outcome->state));
    memcpy(outcome->frames_seen, ls->machine.memory.base + CORNER_FRAMES, sizeof(outcome->frames_seen));
    memcpy(outcome->history, ls->machine.memory.base + CORNER_HISTORY, sizeof(outcome->history));
    memcpy(outcome->program, ls->machine.memory.base + CORNER_PROGRAM, sizeof(outcome->program));
    if (ls->kept != NULL) {
        struct kept_log_status kept;

        kept_log_get_status(ls->kept, &kept);
        outcome->parts = kept.parts;
        outcome->ended = outcome->ended && kept.recording && kept.breaks == 0;
        kept_log_close(ls->kept);
    }
    disk_close(ls->disk, false);
    channel_close(ls->channel);
    fflush(NULL);
    _exit(outcome->ended ? 0 : 1);
}

/* Virtualization within an emulated or virtual CPU: an exit takes 100 us. */
unsigned corner_slowness(void)
{
    return corner_whole_cpu() && cpu_has(" hypervisor", " hypervisor") ? 10 : 1;
}

void *corner_shared(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED);
    return memory;
}

pid_t corner_start(const struct corner_run *run, struct corner_outcome *where)
{
    pid_t pid;

    fflush(NULL);
    outcome = where;
    memset(outcome, 0, sizeof(*outcome));
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        run_main(*run);
    return pid;
}

bool corner_finish(pid_t pid)
{
    int status;

    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool corner_record_and_replay(struct corner_run run, struct corner_outcome outcomes[2])
{
    char log[96], address[112];
    bool good;

    snprintf(log, sizeof(log), "%s/log", run.directory);
    snprintf(address, sizeof(address), "file:%s", log);
    run.channel = address;
    run.role = ROLE_PRIMARY;
    good = corner_finish(corner_start(&run, &outcomes[0]));
    run.role = ROLE_BACKUP;
    good = good && corner_finish(corner_start(&run, &outcomes[1]));
    unlink(log);
    return good;
}

bool corner_pair(struct corner_run run, struct corner_outcome outcomes[2])
{
    static unsigned count;
    char address[64], arbiter[80];
    pid_t backup, primary;
    bool good;

    snprintf(address, sizeof(address), "shm:corner-%d-%u", (int)getpid(), ++count);
    snprintf(arbiter, sizeof(arbiter), "dir:%s", run.directory);
    run.channel = address;
    run.arbiter = arbiter;
    run.role = ROLE_BACKUP;
    backup = corner_start(&run, &outcomes[1]);
    run.role = ROLE_PRIMARY;
    run.keep = NULL; /* the backup's alone */
    primary = corner_start(&run, &outcomes[0]);
    good = corner_finish(primary);
    return corner_finish(backup) && good;
}
