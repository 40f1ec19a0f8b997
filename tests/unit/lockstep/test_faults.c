/*
 * A host dies, or freezes and wakes up later, at each step of a failover, a switch-over and a transfer: never do two
 * hosts have the guest, and where one with the right to it is left it has it, gets a new backup, and both end equal to
 * the last byte. argv: ftvmm with faults (faulty.c), ftctl.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/disk_hosts.h"

#define SIDE_BY_SIDE 3
#define FROZEN_NS    (2500 * NS_PER_MS) /* two and a half peer time-outs */

/* What comes over the pair, host 0 the primary and host 1 the backup; or over host 0, which is alone and gets 1. */
enum event { THE_PRIMARY_FREEZES, THE_BACKUP_FREEZES, HANDOVER, TRANSFER, A_DIFFERENCE, A_DIFFERENCE_WITH_DISK,
             A_DIFFERENCE_WITH_SHARED_DISK };

/* Who has the guest in the end. Lost: the only host with the right to it has died. Both: they are a pair. */
enum end { OLD, NEW, LOST, BOTH };

static const struct fault {
    const char *step;
    enum event event;
    unsigned host; /* where */
    enum end killed, stopped;
} faults[] = {
    /* The primary stands still for two and a half time-outs; the backup takes over, or would. */
    { "detected", THE_PRIMARY_FREEZES, 1, OLD, NEW },
    { "fenced", THE_PRIMARY_FREEZES, 1, OLD, NEW },
    { "drained", THE_PRIMARY_FREEZES, 1, OLD, NEW },
    { "decided", THE_PRIMARY_FREEZES, 1, LOST, NEW },
    { "live", THE_PRIMARY_FREEZES, 1, LOST, NEW },
    /* The backup stands still. */
    { "detected", THE_BACKUP_FREEZES, 0, NEW, OLD },
    { "alone-decided", THE_BACKUP_FREEZES, 0, LOST, OLD },
    /* A planned switch-over. */
    { "handover-stopped", HANDOVER, 0, NEW, NEW },
    { "handover-logged", HANDOVER, 0, NEW, NEW },
    { "handover-taken", HANDOVER, 0, NEW, NEW },
    { "handover-reached", HANDOVER, 1, OLD, OLD },
    { "decided", HANDOVER, 1, LOST, NEW },
    { "handover-consumed", HANDOVER, 1, LOST, NEW },
    { "live", HANDOVER, 1, LOST, NEW },
    /* A new backup for a running guest. */
    { "transfer-left", TRANSFER, 0, LOST, BOTH },
    { "transfer-joined", TRANSFER, 0, LOST, OLD },
    { "transfer-begun", TRANSFER, 0, LOST, OLD },
    { "transfer-round", TRANSFER, 0, LOST, OLD },
    { "transfer-paused", TRANSFER, 0, LOST, OLD },
    { "transfer-logged", TRANSFER, 0, NEW, NEW },
    { "transfer-done", TRANSFER, 0, NEW, NEW },
    { "transfer-part-taken", TRANSFER, 1, OLD, OLD },
    { "transfer-machine-taken", TRANSFER, 1, OLD, OLD },
    /* A backup that differs is sent the machine anew. Until it has all of it, it has no right to the guest. */
    { "heal-begun", A_DIFFERENCE, 0, LOST, OLD },
    { "heal-logged", A_DIFFERENCE, 0, NEW, NEW },
    { "heal-part-taken", A_DIFFERENCE, 1, OLD, OLD },
    /* And one with a disk. */
    { "heal-stretch-read", A_DIFFERENCE_WITH_DISK, 0, LOST, OLD },
    { "heal-compared", A_DIFFERENCE_WITH_DISK, 0, LOST, OLD },
    { "heal-logged", A_DIFFERENCE_WITH_DISK, 0, NEW, NEW },
    { "heal-stretch-read", A_DIFFERENCE_WITH_DISK, 1, OLD, OLD },
    { "heal-sectors-taken", A_DIFFERENCE_WITH_DISK, 1, OLD, OLD },
    { "heal-begun", A_DIFFERENCE_WITH_SHARED_DISK, 0, LOST, OLD },
    { "heal-logged", A_DIFFERENCE_WITH_SHARED_DISK, 0, NEW, NEW },
    { "heal-part-taken", A_DIFFERENCE_WITH_SHARED_DISK, 1, OLD, OLD },
};
#define FAULTS (sizeof(faults) / sizeof(faults[0]))

static const char *ftvmm, *ftctl;
static unsigned seed;

/* ---- one case, in a process of its own ---- */

static bool is_shared(const struct fault *fault)
{
    return fault->event == A_DIFFERENCE_WITH_SHARED_DISK;
}

static bool has_disk(const struct fault *fault)
{
    return fault->event == A_DIFFERENCE_WITH_DISK || is_shared(fault);
}

static unsigned image_of(const struct fault *fault, unsigned host)
{
    return is_shared(fault) ? 0 : host;
}

static struct host start_with(const struct fault *fault, const char *how, unsigned number, const char *command,
                              const char *arguments)
{
    char value[64];
    struct host host;

    if (has_disk(fault))
        disk_hosts_image(image_of(fault, number), is_shared(fault));
    snprintf(value, sizeof(value), "%s:%s", fault->step, how);
    if (fault->host == number)
        setenv("FTVMM_FAULT", value, 1);
    host = host_start(number, command, arguments);
    unsetenv("FTVMM_FAULT");
    return host;
}

static void tell(const struct host *host, const char *words)
{
    char line[160];

    /* Who answers may be about to die. What is said is shown if the case fails. */
    snprintf(line, sizeof(line), "%s >%s/ftctl.said 2>&1 & true", words, hosts_directory());
    cJSON_Delete(host_ask(host, line));
}

/* Waits until the fault has come. */
static void await_fault(const struct host *host, bool stopped)
{
    uint64_t limit_ns = clock_now_ns() + 90 * NS_PER_S;
    siginfo_t info = { 0 };

    while (waitid(P_PID, (id_t)host->pid, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0) {
        if (clock_now_ns() > limit_ns)
            host_fail(host, "it has not come to the step");
        clock_sleep_ns(5 * NS_PER_MS);
    }
    if (info.si_code != (stopped ? CLD_STOPPED : CLD_KILLED))
        host_fail(host, "it has ended before the step");
}

static void must_have_lost(const struct host *host, bool killed)
{
    int status = host_end(host);

    if (killed ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL : !WIFEXITED(status) || WEXITSTATUS(status) == 0)
        host_fail(host, "it has ended as if it had had the guest");
}

/* The guest was stopped with a backup: the copies are equal, and hold what it was told wherever it ran. */
static void check_disks(const struct fault *fault, const struct host *hosts, const struct host *winner,
                        const struct host *backup)
{
    uint64_t told = 0;

    for (unsigned i = 0; i < 2; i++)
        if (disk_hosts_told(&hosts[i], 'D') > told)
            told = disk_hosts_told(&hosts[i], 'D');
    assert_true(told > 0);
    disk_hosts_check(image_of(fault, winner->number), told);
    disk_hosts_check_equal(image_of(fault, winner->number), image_of(fault, backup->number));
}

static void case_main(const struct fault *fault, bool killed)
{
    const char *how = killed ? "kill" : "stop";
    enum end end = killed ? fault->killed : fault->stopped;
    struct host hosts[3], *faulty = &hosts[fault->host], *other = &hosts[1 - fault->host], *winner, *loser, *backup;
    char listen[96], arguments[160], words[96];
    uint64_t positions;

    snprintf(listen, sizeof(listen), "--listen shm:fault-%d", (int)getpid());
    if (fault->event == TRANSFER) {
        hosts[0] = start_with(fault, how, 0, "run", "--verify");
        host_await(&hosts[0], "alone", false);
        snprintf(arguments, sizeof(arguments), "%s --join-timeout 40", listen); /* nobody comes if host 0 dies first */
        hosts[1] = start_with(fault, how, 1, "backup", arguments);
    } else {
        hosts[1] = start_with(fault, how, 1, "backup", listen);
        snprintf(arguments, sizeof(arguments), "--verify --spare none --backup shm:fault-%d", (int)getpid());
        hosts[0] = start_with(fault, how, 0, "primary", arguments);
        host_await(&hosts[0], "primary", true);
    }
    host_await_number(&hosts[0], "lockstep", "positions", 500);
    positions = host_number(&hosts[0], "lockstep", "positions");

    switch (fault->event) {
    case THE_PRIMARY_FREEZES:
    case THE_BACKUP_FREEZES:
        kill(other->pid, SIGSTOP);
        break;
    case A_DIFFERENCE:
        host_spoil(&hosts[1]);
        break;
    case A_DIFFERENCE_WITH_DISK:
        disk_hosts_spoil(&hosts[1], true, &seed);
        break;
    case A_DIFFERENCE_WITH_SHARED_DISK:
        disk_hosts_divert(&hosts[1], &seed);
        break;
    case HANDOVER:
        tell(&hosts[0], "failover");
        break;
    case TRANSFER:
        snprintf(words, sizeof(words), "protect shm:fault-%d", (int)getpid());
        tell(&hosts[0], words);
        break;
    }
    await_fault(faulty, !killed);
    if (killed) {
        kill(other->pid, SIGCONT);
    } else {
        clock_sleep_ns(FROZEN_NS);
        kill(other->pid, SIGCONT);
        clock_sleep_ns(FROZEN_NS / 10);
        kill(faulty->pid, SIGCONT);
    }

    winner = &hosts[end == NEW ? 1 : 0];
    loser = &hosts[end == NEW ? 0 : 1];
    if (end == LOST) {
        must_have_lost(faulty, true);
        must_have_lost(other, false);
        return;
    }
    if (end == BOTH) {
        host_await(winner, "primary", true);
        backup = loser;
    } else {
        must_have_lost(loser, killed && loser == faulty);
        host_await(winner, "alone", false);
        if (has_disk(fault))
            disk_hosts_image(image_of(fault, 2), is_shared(fault));
        hosts[2] = host_protect(winner, 2);
        backup = &hosts[2];
    }
    if (host_number(winner, "lockstep", "positions") < positions)
        host_fail(winner, "the guest is not where it was");
    cJSON_Delete(host_ask(winner, "stop"));
    if (host_end(winner) != 0)
        host_fail(winner, "it did not stop in order");
    if (host_end(backup) != 0 || !host_has_said(backup, "equal to the primary's to the last byte"))
        host_fail(backup, "it has not found the guest equal");
    if (has_disk(fault))
        check_disks(fault, hosts, winner, backup);
}

static void one_case(void **state)
{
    const uintptr_t number = (uintptr_t)*state;

    case_main(&faults[number / 2], number % 2 == 0);
}

static int case_process(unsigned number)
{
    const struct CMUnitTest test = cmocka_unit_test_prestate(one_case, (void *)(uintptr_t)number);
    char path[64];
    int rc, said;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(path, sizeof(path), "/tmp/ftvmm-fault-%d-%u", (int)getppid(), number);
    said = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
    dup2(said, STDOUT_FILENO);
    dup2(said, STDERR_FILENO);
    seed += number;
    if ((has_disk(&faults[number / 2]) ? disk_hosts_open : hosts_open)(ftvmm, ftctl) != 0)
        return 1;
    rc = _cmocka_run_group_tests(faults[number / 2].step, &test, 1, NULL, NULL);
    hosts_close();
    return rc;
}

/* ---- all of them ---- */

static void case_done(pid_t pid, pid_t *pids, unsigned count, int status, unsigned *failed)
{
    static const char *const ends[] = { [OLD] = "stays where it was", [NEW] = "goes to the other host",
                                        [LOST] = "is lost, and nobody goes on with it",
                                        [BOTH] = "stays, and is protected" };
    unsigned number = 0;
    char path[64], command[96];
    const struct fault *fault;

    while (number < count && pids[number] != pid)
        number++;
    if (number == count)
        return;
    pids[number] = 0; /* may be another case's later */
    fault = &faults[number / 2];
    snprintf(path, sizeof(path), "/tmp/ftvmm-fault-%d-%u", (int)getpid(), number);
    printf("%s %-22s host %u %-9s the guest %s\n", status == 0 ? "ok  " : "FAIL", fault->step, fault->host,
           number % 2 == 0 ? "is killed" : "freezes", ends[number % 2 == 0 ? fault->killed : fault->stopped]);
    if (status != 0) {
        (*failed)++;
        snprintf(command, sizeof(command), "cat %s", path);
        fflush(stdout);
        if (system(command) != 0)
            puts("it has said nothing");
    }
    unlink(path);
}

int main(int argc, char **argv)
{
    pid_t pids[2 * FAULTS] = { 0 };
    unsigned started = 0, ended = 0, failed = 0;

    if (argc < 3)
        return 1;
    ftvmm = argv[1];
    ftctl = argv[2];
    seed = getenv("FTVMM_TEST_SEED") != NULL ? (unsigned)strtoul(getenv("FTVMM_TEST_SEED"), NULL, 0)
                                             : (unsigned)clock_now_ns();
    printf("seed %u\n", seed);
    while (ended < 2 * FAULTS) {
        int status;
        pid_t pid;

        if (started < 2 * FAULTS && started - ended < SIDE_BY_SIDE) {
            if (argc > 3 && strcmp(argv[3], faults[started / 2].step) != 0) { /* only this step */
                started++;
                ended++;
                continue;
            }
            fflush(stdout);
            pids[started] = fork();
            if (pids[started] == 0)
                exit(case_process(started));
            started++;
            continue;
        }
        pid = wait(&status);
        if (pid < 0)
            return 1;
        case_done(pid, pids, started, status, &failed);
        ended++;
    }
    printf("%u of %u cases failed\n", failed, (unsigned)(2 * FAULTS));
    return failed != 0;
}
