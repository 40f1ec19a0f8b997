/*
 * A session: arbiter, machine, network, channel, threads, in this order, and back. The main thread then looks
 * after console, signals and status until the machine thread has finished.
 */
#include "vmm/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/report.h"
#include "vmm/control.h"
#include "vmm/heal_disk.h"
#include "vmm/instructions.h"
#include "vmm/io_thread.h"
#include "vmm/kept_files.h"
#include "vmm/page_copies.h"
#include "vmm/replay.h"
#include "vmm/status.h"

#define ROUND_NS (20 * NS_PER_MS)
#define STATUS_NS (500 * NS_PER_MS)

struct session {
    const struct options *options;
    struct machine_options machine; /* the options', and what was found out about the disk */
    struct lockstep *ls;
    int signal_fd;
    int console_in_fd, console_out_fd;
    pthread_t io_thread, machine_thread;
    bool io_started, machine_started;
    bool joining_cancelled;
    bool dump_made; /* the directory */
    struct control *control; /* NULL: none */
    uint64_t disk_identity;
    char log_address[KEPT_PATH_BYTES + 8]; /* replay: of the file to be replayed; else empty */
    int result; /* of the machine thread */
};

static bool is_live_command(enum command command)
{
    return command == COMMAND_RUN || command == COMMAND_PRIMARY || command == COMMAND_RECORD;
}

static int open_console(struct session *session)
{
    const char *console = session->options->console;

    session->console_in_fd = session->console_out_fd = -1;
    if (strcmp(console, "none") == 0)
        return 0;
    if (strcmp(console, "stdio") == 0) {
        session->console_in_fd = STDIN_FILENO;
        session->console_out_fd = STDOUT_FILENO;
        return 0;
    }
    session->console_out_fd = open(console, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (session->console_out_fd >= 0)
        return 0;
    int error = errno;
    report_error("the console file '%s' does not open: %s", console, strerror(error));
    return -error;
}

static int open_signals(struct session *session)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    session->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return session->signal_fd < 0 ? -errno : 0;
}

/* Opening the channel may wait long for the peer; a thread that waits for the signal can cancel it. */
static void *cancel_on_signal(void *arg)
{
    struct session *session = arg;
    struct pollfd signals = { .fd = session->signal_fd, .events = POLLIN };

    if (poll(&signals, 1, -1) > 0)
        __atomic_store_n(&session->joining_cancelled, true, __ATOMIC_RELAXED);
    return NULL;
}

static int open_channel(struct session *session, const struct channel_hello *hello)
{
    const struct options *options = session->options;
    struct channel_options channel = {
        .address = session->log_address[0] != '\0' ? session->log_address : options->peer,
        .ring_bytes = options->ring_bytes,
        .join_timeout_ns = options->join_timeout_ns,
        .hello = *hello,
        .cancel = &session->joining_cancelled,
        .ack = options->ack,
    };
    bool sender = is_live_command(options->command);
    struct channel_secret secret;
    pthread_t watcher;
    int rc;

    if (options->key_path != NULL) {
        rc = channel_secret_load(&secret, options->key_path);
        if (rc < 0)
            return rc;
        channel.secret = &secret;
    }
    rc = -pthread_create(&watcher, NULL, cancel_on_signal, session);
    if (rc < 0)
        return rc;
    if (sender)
        rc = channel_open_sender(&session->ls->channel, &channel);
    else
        rc = channel_open_receiver(&session->ls->channel, &channel);
    pthread_cancel(watcher);
    pthread_join(watcher, NULL);
    if (channel.secret != NULL)
        channel_secret_wipe(&secret);
    return rc;
}

static int open_arbiter(struct session *session)
{
    const struct options *options = session->options;
    struct arbiter_options arbiter = {
        .address = options->arbiter,
        .vm = options->vm,
        .auth_dir = options->arbiter_auth,
        .deadline_ns = options->lockstep.peer_timeout_ns / 4,
    };
    struct lockstep *ls = session->ls;
    uint64_t generation = 0;
    int rc;

    if (options->arbiter == NULL)
        return 0;
    rc = arbiter_open(&ls->arbiter, &arbiter);
    if (rc == 0 && options->command == COMMAND_PRIMARY)
        rc = arbiter_begin(ls->arbiter, &generation);
    COUNT_SET(ls->generation, generation);
    return rc;
}

static int open_protector(struct session *session, const struct channel_hello *hello)
{
    const struct options *options = session->options;
    struct protect_options protect = {
        .spare = options->spare,
        .key_path = options->key_path,
        .ring_bytes = options->ring_bytes,
        .ack = options->ack,
        .hello = *hello,
        .disk_identity = options->disk.mode == DISK_SHARED ? session->disk_identity : 0,
        .max_pause_ns = options->max_pause_ns,
        .rate_bytes_per_s = options->transfer_bytes_per_s,
        .fleet = {
            .urls = options->fleet,
            .auth_dir = options->fleet_auth,
            .auth_option = "--fleet-auth",
            .own_host = options->fleet_host,
            .vm = options->vm,
            .memory_mib = (uint32_t)(options->machine.memory_bytes >> 20),
            .lost_address = options->command == COMMAND_PRIMARY ? options->peer : NULL,
            .own_address = options->command == COMMAND_BACKUP ? options->peer : NULL,
        },
    };

    return protect_open(&session->ls->protector, session->ls, &protect);
}

/* Of a kept log, the part that has the position asked for. */
static int find_log(struct session *session)
{
    const struct options *options = session->options;
    int prefix = snprintf(session->log_address, sizeof(session->log_address), "file:");

    return kept_files_find(options->log.path, options->lockstep.until_position, session->log_address + prefix,
                           &session->ls->replays_kept);
}

static int open_kept_log(struct session *session, struct channel_hello hello)
{
    if (session->options->keep_log.directory == NULL)
        return 0;
    hello.generation = COUNT_GET(session->ls->generation);
    return kept_log_open(&session->ls->kept, session->ls, &session->options->keep_log, &hello);
}

static int open_net(struct session *session)
{
    struct net_options net = { .port = session->options->net_port };

    if (net.port == NULL)
        return 0;
    net.mtu = session->options->machine.mtu;
    memcpy(net.mac, session->options->machine.mac, sizeof(net.mac));
    return net_open(&session->ls->net, &net);
}

static int open_disk(struct session *session)
{
    struct machine_disk *found = &session->machine.disk;
    const struct options *options = session->options;
    struct disk_options disk = options->disk;
    struct disk_owner owner = {
        .ctx = session->ls, .finished = lockstep_disk_finished, .may_write = lockstep_disk_may_write
    };
    int rc;

    if (disk.path == NULL)
        return 0;
    /* In a kept log the disk's answers are whole; the image lends no more than its size. */
    disk.passive = session->ls->replays_kept || (disk.mode == DISK_SHARED && !is_live_command(options->command));
    rc = disk_open(&session->ls->disk, &disk, &owner);
    if (rc < 0)
        return rc;
    *found = (struct machine_disk){
        .sectors = disk_sectors(session->ls->disk), .readonly = disk.readonly, .shared = disk.mode == DISK_SHARED
    };
    if (session->ls->replays_kept || (options->command == COMMAND_RUN && disk.mode == DISK_MIRRORED))
        return 0; /* a new backup will get the contents as they are then */
    return disk_identify(session->ls->disk, &session->disk_identity);
}

static int open_machine(struct session *session)
{
    struct machine_output output = {
        .ctx = session->ls, .frame = lockstep_frame_out, .filter = lockstep_filter_out, .console = lockstep_console_out,
        .disk_data = lockstep_disk_data, .disk_submit = lockstep_disk_submit,
    };
    struct lockstep *ls = session->ls;
    int rc = machine_open(&ls->machine, &session->machine, &output);

    if (rc < 0)
        return rc;
    if (session->machine.log_dirty) {
        ls->unsent_pages = calloc((ls->machine.memory.bytes / GUEST_PAGE_BYTES + 63) / 64, sizeof(uint64_t));
        if (ls->unsent_pages == NULL)
            return -ENOMEM;
    }
    return page_copies_open(&ls->page_copies);
}

static int open_control(struct session *session)
{
    struct control_options control = {
        .path = session->options->control_path,
        .metrics = session->options->metrics,
        .vm = session->options->vm,
        .ls = session->ls,
        .joining_cancelled = &session->joining_cancelled,
    };

    return control_open(&session->control, &control);
}

/* All that is opened before the guest can begin. */
static int session_open(struct session *session)
{
    const struct options *options = session->options;
    struct lockstep *ls = session->ls;
    struct channel_hello hello = { 0 };
    int rc;

    ls->options = options->lockstep;
    ls->console_in = calloc(1, sizeof(*ls->console_in));
    ls->console_out = calloc(1, sizeof(*ls->console_out));
    if (ls->console_in == NULL || ls->console_out == NULL)
        return -ENOMEM;
    COUNT_SET(ls->role, options->command == COMMAND_RUN ? ROLE_ALONE
                        : is_live_command(options->command) ? ROLE_PRIMARY
                                                            : ROLE_BACKUP);
    session->machine = options->machine;
    rc = options->command == COMMAND_REPLAY ? find_log(session) : 0;
    if (rc < 0)
        return rc;
    rc = open_disk(session); /* before signals are blocked: reading a large image takes its time */
    if (rc == 0)
        rc = open_signals(session);
    if (rc == 0)
        rc = open_control(session);
    if (rc == 0)
        rc = open_console(session);
    if (rc == 0 && options->dump_path != NULL) {
        rc = replay_dump_prepare(options->dump_path);
        session->dump_made = rc == 0;
    }
    if (rc == 0 && options->gdb != NULL)
        rc = gdb_stub_open(&ls->gdb, options->gdb, options->lockstep.until_position);
    if (rc == 0)
        rc = machine_configuration_digest(&session->machine, hello.digest);
    if (rc == 0)
        rc = open_machine(session);
    if (rc == 0)
        rc = open_net(session);
    if (rc == 0)
        rc = open_arbiter(session);
    strncpy(hello.vm, options->vm, sizeof(hello.vm) - 1);
    if (rc == 0 && ls->arbiter != NULL) {
        ls->registers = calloc(1, sizeof(*ls->registers));
        rc = ls->registers != NULL ? open_protector(session, &hello) : -ENOMEM;
    }
    if (rc < 0 || options->peer == NULL)
        return rc;
    hello.generation = COUNT_GET(ls->generation);
    rc = open_channel(session, &hello);
    if (rc < 0)
        return rc;
    if (options->command == COMMAND_BACKUP)
        COUNT_SET(ls->generation, channel_peer(ls->channel)->generation);
    if (options->arbiter != NULL)
        journal_note(&ls->journal, JOURNAL_JOINED, "as %s of generation %llu, by %.60s",
                     role_name(lockstep_role_now(ls)), (unsigned long long)COUNT_GET(ls->generation), options->peer);
    return open_kept_log(session, hello);
}

static int make_start(const struct session *session, struct event_start *start)
{
    *start = (struct event_start){
        .unix_seconds = (int64_t)time(NULL),
        .disk_identity = session->disk_identity,
        .verify = session->options->verify && session->options->command != COMMAND_RUN,
        .clock = (uint8_t)session->ls->clock,
        .cpuid_entries = vcpu_cpuid(&session->ls->machine.vcpu)->nent,
    };
    return getrandom(start->rng_seed, sizeof(start->rng_seed), 0) == sizeof(start->rng_seed) ? 0 : -EIO;
}

static void log_start(struct lockstep *ls, const struct event_start *start)
{
    size_t cpuid_bytes = start->cpuid_entries * sizeof(struct kvm_cpuid_entry2);
    uint8_t *payload;

    if (lockstep_role_now(ls) != ROLE_PRIMARY)
        return;
    payload = primary_log_begin(ls, EVENT_START, 0, sizeof(*start) + cpuid_bytes);
    memcpy(payload, start, sizeof(*start));
    memcpy(payload + sizeof(*start), vcpu_cpuid(&ls->machine.vcpu)->entries, cpuid_bytes);
    primary_log_end(ls);
}

static int receive_machine(struct session *session, const struct event_start *start)
{
    struct lockstep *ls = session->ls;
    uint64_t until = ls->options.until_position;
    int rc = backup_receive_machine(ls);

    if (rc == 0)
        backup_stand(ls, start);
    if (rc == 0 && until != 0 && ls->machine.position > until) {
        report_error("this log begins at position %llu, behind --until %llu", (unsigned long long)ls->machine.position,
                     (unsigned long long)until);
        return -ERANGE;
    }
    return rc;
}

static int begin_from_start(struct session *session, const struct event_start *start)
{
    /* Whatever is on it now: it is copied, or not used. */
    bool copied = (start->transfer && session->options->disk.mode == DISK_MIRRORED) || start->kept;

    if (start->kept && !session->ls->replays_kept) {
        report_error("the log that comes from the primary is one that a backup has kept: it is none of a pair");
        return -EBADMSG;
    }
    if (!copied && start->disk_identity != session->disk_identity) {
        report_error("this host's disk is not the one that the guest began with (%016llx, not %016llx): copy the "
                     "image, or name the shared one",
                     (unsigned long long)session->disk_identity, (unsigned long long)start->disk_identity);
        return -EPROTO;
    }
    return start->transfer ? receive_machine(session, start)
                           : machine_boot(&session->ls->machine, &session->machine, start);
}

/* Both roles begin alike: the primary makes START and logs it, the backup fetches it; then both boot. A backup of a guest
 * that runs already takes it over from the log instead. */
static int machine_begin(struct session *session)
{
    struct lockstep *ls = session->ls;
    struct event_start start;
    int rc = 0;

    if (session->options->command == COMMAND_BACKUP) /* here, where heartbeats go out however slow the arbiter is */
        rc = arbiter_check(ls->arbiter, ls->generation);
    if (rc < 0)
        return rc;
    if (is_live_command(session->options->command)) {
        if (session->machine.log_dirty) /* else there will never be a log */
            rc = clock_choose(ls);
        if (rc == 0)
            rc = make_start(session, &start);
        if (rc == 0)
            log_start(ls, &start);
    } else {
        rc = backup_fetch_start(ls, &start);
        if (rc == 0)
            rc = clock_follow(ls, &start);
    }
    if (rc == 0)
        rc = vcpu_enter_thread(&ls->machine.vcpu);
    if (rc == 0)
        rc = clock_open(ls);
    COUNT_SET(ls->instructions, instructions_open() + 1);
    if (rc == 0 && start.verify)
        vcpu_want_registers(&ls->machine.vcpu);
    if (rc == 0 && session->machine.log_dirty)
        rc = verify_open(&ls->verify, ls, start.verify);
    if (rc == 0)
        rc = begin_from_start(session, &start);
    if (rc == 0 && session->options->command != COMMAND_RUN && !start.transfer)
        verify_all(ls->verify, ls);
    ls->clock_offset_ns = (int64_t)(ls->machine.time_ns - clock_now_ns());
    COUNT_SET(ls->beat_ns, clock_now_ns());
    COUNT_SET(ls->arrived_ns, clock_now_ns());
    COUNT_SET(ls->deadline_ns, UINT64_MAX);
    return rc;
}

static void *machine_thread_run(void *arg)
{
    struct session *session = arg;
    int rc = machine_begin(session);

    if (rc == 0)
        rc = lockstep_run(session->ls);
    if (rc == -ENODATA && session->ls->replays_kept) {
        report_info("the log that was kept ends here, %s position %llu",
                    session->ls->position_open ? "in the midst of" : "behind",
                    (unsigned long long)session->ls->machine.position);
        rc = 0;
    }
    if (rc == 0 && session->options->command == COMMAND_REPLAY)
        rc = replay_stopped(session->ls, session->options->dump_path);
    session->result = rc;
    atomic_store_explicit(&session->ls->finished, true, memory_order_release);
    return NULL;
}

static void drain_console(struct session *session)
{
    uint8_t bytes[4096];
    size_t count;

    while ((count = byte_ring_take(session->ls->console_out, bytes, sizeof(bytes))) > 0)
        if (session->console_out_fd >= 0 && write(session->console_out_fd, bytes, count) < 0)
            return; /* a console that takes nothing loses it; the guest does not wait */
}

static void read_console(struct session *session)
{
    uint8_t bytes[256];
    ssize_t got = read(session->console_in_fd, bytes, sizeof(bytes));

    if (got <= 0) {
        session->console_in_fd = -1;
        return;
    }
    for (ssize_t i = 0; i < got; i++)
        (void)byte_ring_put(session->ls->console_in, bytes[i]);
    lockstep_wake(session->ls);
}

static void request_stop(struct lockstep *ls)
{
    COUNT_SET(ls->stop_requested, true);
    lockstep_wake(ls);
}

static void main_thread_rounds(struct session *session)
{
    struct lockstep *ls = session->ls;
    uint64_t status_due_ns = 0;
    uint64_t stop_ns = ls->options.stop_after_ns ? clock_now_ns() + ls->options.stop_after_ns : UINT64_MAX;

    while (!atomic_load_explicit(&ls->finished, memory_order_acquire)) {
        struct pollfd fds[2] = { { .fd = session->signal_fd, .events = POLLIN },
                                 { .fd = session->console_in_fd, .events = POLLIN } };
        struct timespec round = { .tv_nsec = ROUND_NS };
        struct signalfd_siginfo info;

        (void)ppoll(fds, 2, &round, NULL);
        if (fds[0].revents && read(session->signal_fd, &info, sizeof(info)) == sizeof(info))
            request_stop(ls);
        if (fds[1].revents)
            read_console(session);
        drain_console(session);
        if (clock_now_ns() > stop_ns)
            request_stop(ls);
        if (session->options->status_path != NULL && clock_now_ns() > status_due_ns) {
            int rc = status_write(session->options->status_path, session->options->vm, ls);

            if (rc < 0 && status_due_ns == 0)
                report_warning("the status file '%s' cannot be written: %s", session->options->status_path,
                               strerror(-rc));
            status_due_ns = clock_now_ns() + STATUS_NS;
        }
    }
    drain_console(session);
}

/* On the CPU that the operator named for it, from its first instruction on: what it touches first is then near it. */
static int start_thread(pthread_t *thread, const struct options *options, unsigned cpu, void *(*run)(void *), void *arg)
{
    pthread_attr_t attributes;
    cpu_set_t cpus;
    int rc = pthread_attr_init(&attributes);

    if (rc != 0)
        return rc;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    if (options->cpus_given)
        rc = pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus);
    if (rc == 0)
        rc = pthread_create(thread, &attributes, run, arg);
    pthread_attr_destroy(&attributes);
    return rc;
}

static int start_threads(struct session *session)
{
    const struct options *options = session->options;
    int rc = start_thread(&session->io_thread, options, options->io_cpu, io_thread_run, session->ls);

    session->io_started = rc == 0;
    if (rc == 0)
        rc = start_thread(&session->machine_thread, options, options->vcpu_cpu, machine_thread_run, session);
    session->machine_started = rc == 0 && session->io_started;
    if (rc != 0)
        report_error("a thread does not start: %s", strerror(rc));
    if (!session->machine_started)
        atomic_store_explicit(&session->ls->finished, true, memory_order_release);
    return -rc;
}

static void session_close(struct session *session)
{
    struct lockstep *ls = session->ls;

    protect_close(ls->protector);
    gdb_stub_close(ls->gdb);
    kept_log_close(ls->kept);
    heal_drop(ls);
    heal_disk_close(ls);
    /* Next: a write may still wait for what the channel knows. Who has lost the guest does not touch its disk. */
    disk_close(ls->disk, COUNT_GET(ls->lost_arbitration));
    channel_close(ls->channel);
    net_close(ls->net);
    clock_close(ls);
    machine_close(&ls->machine);
    arbiter_close(ls->arbiter);
    verify_close(ls->verify);
    forced_sync_discard(ls);
    if (COUNT_GET(ls->instructions) != 0)
        close(COUNT_GET(ls->instructions) - 1);
    free(ls->unsent_pages);
    page_copies_close(ls->page_copies);
    free(ls->registers);
    free(ls->console_in);
    free(ls->console_out);
    pthread_mutex_destroy(&ls->channel_lock);
    if (session->signal_fd >= 0)
        close(session->signal_fd);
    free(ls);
}

static int exit_status(const struct session *session, int rc)
{
    const struct lockstep *ls = session->ls;

    if (COUNT_GET(ls->lost_arbitration))
        return 3;
    if (rc == -EILSEQ)
        return 4;
    if (rc == 0 || (rc == -ECANCELED && (COUNT_GET(ls->stop_requested) || session->joining_cancelled)))
        return 0;
    return 1;
}

static void say_goodbye(const struct lockstep *ls)
{
    static const char *const words[] = { "", "it restarted (a triple fault, as 'reboot' makes)", "it halted", "it was stopped" };
    uint32_t ended = COUNT_GET(ls->ended);

    if (ended == 0)
        return;
    report_info("the guest has ended at position %llu: %s; RAM digest %016llx%s", (unsigned long long)COUNT_GET(ls->positions),
                words[ended], (unsigned long long)COUNT_GET(ls->end_ram_digest),
                COUNT_GET(ls->end_compared) ? ", equal to the primary's to the last byte" : "");
}

int session_run(const struct options *options)
{
    struct session session = { .options = options, .signal_fd = -1, .console_in_fd = -1, .console_out_fd = -1 };
    int rc, status;

    session.ls = calloc(1, sizeof(*session.ls));
    if (session.ls == NULL)
        return 1;
    COUNT_SET(session.ls->protected_lsn, 1); /* START */
    pthread_mutex_init(&session.ls->channel_lock, NULL);
    session.ls->began_ns = clock_now_ns();
    session.ls->machine.vcpu = (struct vcpu){ .kvm_fd = -1, .vm_fd = -1, .fd = -1 };
    rc = session_open(&session);
    /* S1 pairs S2 in status.c: what was opened, before others look at it. */
    if (rc == 0)
        atomic_store_explicit(&session.ls->opened, true, memory_order_release);
    if (rc == 0)
        rc = start_threads(&session);
    if (rc == 0)
        main_thread_rounds(&session);
    if (session.machine_started) {
        pthread_join(session.machine_thread, NULL);
        rc = session.result;
    }
    if (session.io_started)
        pthread_join(session.io_thread, NULL);
    if (session.machine_started && options->status_path != NULL)
        (void)status_write(options->status_path, options->vm, session.ls);
    say_goodbye(session.ls);
    status = exit_status(&session, rc);
    journal_note(&session.ls->journal, JOURNAL_ENDED, "this process ends with status %d", status);
    if (session.dump_made)
        replay_dump_forget(options->dump_path);
    control_close(session.control);
    session_close(&session);
    return status;
}
