/*
 * Every failure of a pair, its networks and its arbiter, at every place and in every phase: real ftvmm processes in network
 * namespaces of their own (cables.h), a guest that answers (answering_guest.h), clients on its LAN that keep histories, and
 * a real etcd, or a directory, for an arbiter. In each cell never do two hosts have the guest, as the LAN sees it; nothing
 * that was acknowledged is lost; and where one host with the right to the guest is left, it serves it. Prints what
 * happened and how long the service was silent.
 *
 * argv: ftvmm with faults (faulty.c), ftctl, and "quick" (a choice), "all", or a text that a cell's name contains.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/lockstep/etcd_cluster.h"
#include "tests/unit/lockstep/lan_clients.h"
#include "tests/unit/lockstep/real_hosts.h"

#define SIDE_BY_SIDE 3 /* cells at once: they wait most of the time */
#define HEARTBEAT_MS 200
#define HOLD_NS      (2500 * NS_PER_MS) /* a fault lasts so long: two and a half peer time-outs; a slow arbiter's twice */
#define SETTLE_NS    (40 * NS_PER_S)
#define DELAY_NS     (100 * NS_PER_MS) /* of a slow link, each way */
#define SLOW_NS      (200 * NS_PER_MS) /* of the way to a slow arbiter, each way: longer than it is first waited for */

enum fault { KILLED, FREEZES, RAIL_CUT, LAN_CUT, BOTH_CUT, ONE_WAY, SLOW_LINK, ARBITER_GONE, ARBITER_SLOW, ARBITER_FULL, FAULTS };
enum place { PRIMARY, BACKUP, BOTH, WITNESS, PLACES };
enum phase { IDLE, LOADED, TRANSFER, GO_LIVE, PHASES };

static const char *const fault_names[] = { "SIGKILL", "freeze", "rail cut", "LAN cut", "all cut", "one-way loss", "slow link",
                                           "arbiter gone", "arbiter slow", "arbiter full" };
static const char *const place_names[] = { "primary", "backup", "both", "arbiter" };
static const char *const phase_names[] = { "idle", "loaded", "transfer", "go-live" };

/* How a cell may end, as bits. */
enum end { PAIR = 1, STAYS = 2, MOVES = 4, LOST = 8 };
#define EITHER (STAYS | MOVES) /* both are asking, and the first one wins */

/* Why some cells are none. */
enum { NO_RAIL = 0x100, ONE_CABLE, SAME_AS_RAIL, SAME_AS_CUT, SAME_AS_SLOW, NOBODY_ASKS, ITSELF };

static const char *none_reason(unsigned ends)
{
    switch (ends) {
    case NO_RAIL: return "the arbiter is not on the rail";
    case ONE_CABLE: return "it has one cable: LAN cut";
    case SAME_AS_RAIL: return "both directions: rail cut";
    case SAME_AS_CUT: return "LAN cut";
    case SAME_AS_SLOW: return "slow link";
    case NOBODY_ASKS: return "nobody is left to ask it: SIGKILL";
    case ITSELF: return "that is what go-live is about";
    default: return NULL;
    }
}

/*
 * What a fault at a place means: for the hosts, their process or their cables; for the arbiter its process or its cable.
 * "all cut" takes the way to the arbiter, too. A fault of the arbiter comes together with the death of the host of that
 * column (both: with the rail cut), for without one nobody asks it.
 */
static const unsigned steady[FAULTS][PLACES] = {
    [KILLED] = { MOVES, STAYS, LOST, PAIR },
    [FREEZES] = { MOVES, STAYS, PAIR | EITHER, PAIR },
    [RAIL_CUT] = { EITHER, EITHER, EITHER, NO_RAIL },
    [LAN_CUT] = { PAIR, PAIR, PAIR, PAIR },
    [BOTH_CUT] = { MOVES, STAYS, EITHER, ONE_CABLE },
    [ONE_WAY] = { EITHER, EITHER, SAME_AS_RAIL, PAIR },
    [SLOW_LINK] = { PAIR, PAIR, PAIR, PAIR },
    [ARBITER_GONE] = { MOVES, STAYS, EITHER, SAME_AS_CUT },
    [ARBITER_SLOW] = { MOVES, STAYS, EITHER, SAME_AS_SLOW },
    [ARBITER_FULL] = { MOVES, STAYS, EITHER, PAIR },
};

/* The guest is alone on the primary's host, and on its way to the backup's. */
static const unsigned transfer[FAULTS][PLACES] = {
    [KILLED] = { LOST, STAYS, LOST, PAIR },
    [FREEZES] = { PAIR | STAYS, PAIR | STAYS, PAIR | STAYS, PAIR },
    [RAIL_CUT] = { STAYS, STAYS, STAYS, NO_RAIL },
    [LAN_CUT] = { PAIR, PAIR, PAIR, PAIR },
    [BOTH_CUT] = { STAYS, STAYS, STAYS, ONE_CABLE },
    [ONE_WAY] = { STAYS, STAYS, SAME_AS_RAIL, PAIR },
    [SLOW_LINK] = { PAIR, PAIR, PAIR, PAIR },
    [ARBITER_GONE] = { NOBODY_ASKS, STAYS, NOBODY_ASKS, SAME_AS_CUT },
    [ARBITER_SLOW] = { NOBODY_ASKS, STAYS, NOBODY_ASKS, SAME_AS_SLOW },
    [ARBITER_FULL] = { NOBODY_ASKS, STAYS, NOBODY_ASKS, PAIR },
};

/* The primary freezes; the backup has shut and replayed the log and is about to ask. The primary wakes up later. */
static const unsigned go_live[FAULTS][PLACES] = {
    [KILLED] = { MOVES, STAYS, LOST, MOVES },
    [FREEZES] = { ITSELF, EITHER, EITHER, MOVES },
    [RAIL_CUT] = { MOVES, MOVES, MOVES, NO_RAIL },
    [LAN_CUT] = { MOVES, MOVES, MOVES, MOVES },
    [BOTH_CUT] = { MOVES, EITHER, EITHER, ONE_CABLE },
    [ONE_WAY] = { MOVES, MOVES, SAME_AS_RAIL, MOVES },
    [SLOW_LINK] = { MOVES, MOVES, MOVES, MOVES },
    [ARBITER_GONE] = { MOVES, STAYS, NOBODY_ASKS, SAME_AS_CUT },
    [ARBITER_SLOW] = { MOVES, STAYS, NOBODY_ASKS, SAME_AS_SLOW },
    [ARBITER_FULL] = { MOVES, STAYS, NOBODY_ASKS, MOVES },
};

/* What `quick` runs: each fault, each place and each phase, most of what decides anything. */
static const struct { enum fault fault; enum place place; enum phase phase; } chosen[] = {
    { KILLED, PRIMARY, LOADED },      { FREEZES, PRIMARY, LOADED },      { RAIL_CUT, BOTH, LOADED },
    { LAN_CUT, PRIMARY, IDLE },       { BOTH_CUT, PRIMARY, LOADED },     { ONE_WAY, PRIMARY, LOADED },
    { SLOW_LINK, BACKUP, LOADED },    { ARBITER_GONE, PRIMARY, LOADED }, { ARBITER_SLOW, PRIMARY, IDLE },
    { ARBITER_FULL, BACKUP, LOADED }, { FREEZES, BACKUP, TRANSFER },     { RAIL_CUT, PRIMARY, TRANSFER },
    { KILLED, WITNESS, TRANSFER },    { FREEZES, BACKUP, GO_LIVE },      { BOTH_CUT, BOTH, GO_LIVE },
    { ONE_WAY, WITNESS, GO_LIVE },    { KILLED, PRIMARY, GO_LIVE },
};

struct cell {
    enum fault fault;
    enum place place;
    enum phase phase;
    unsigned ends; /* or why it is none */
};

static const char *ftvmm, *ftctl;
static uint64_t seed;
static pid_t main_pid;

/* ---- one cell, in a process of its own ---- */

static const uint8_t guest_mac[6] = { 0x02, 0, 0, 0, 0, 0x50 };

static struct {
    struct cell cell;
    struct cables cables;
    struct lan_clients clients;
    struct etcd_cluster etcd;
    struct host hosts[2];
    char arbiter[128], disk[96]; /* the option; the directory, if it is one */
    char row[512];
} now;

static bool wants_etcd(const struct cell *cell)
{
    return cell->fault != ARBITER_FULL &&
           (cell->place == WITNESS || cell->fault == BOTH_CUT || cell->fault == ARBITER_GONE || cell->fault == ARBITER_SLOW);
}

static void open_arbiter(void)
{
    if (wants_etcd(&now.cell)) {
        assert_int_equal(cables_enter(&now.cables, CABLE_ARBITER), 0);
        etcd_cluster_start_at(&now.etcd, "10.77.3.3");
        assert_int_equal(cables_enter(&now.cables, CABLE_TEST), 0);
        snprintf(now.arbiter, sizeof(now.arbiter), "%s", etcd_cluster_address(&now.etcd));
        return;
    }
    snprintf(now.disk, sizeof(now.disk), "%s/arbiter", hosts_directory());
    assert_int_equal(mkdir(now.disk, 0700), 0);
    assert_int_equal(unshare(CLONE_NEWNS), 0);
    assert_int_equal(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
    assert_int_equal(mount("arbiter", now.disk, "tmpfs", 0, "size=64k,nr_inodes=32,mode=700"), 0);
    snprintf(now.arbiter, sizeof(now.arbiter), "dir:%s", now.disk);
}

/* Not a byte and not a name fits any more. */
static void fill_disk(bool fill)
{
    char path[160], block[4096] = { 1 };

    for (unsigned i = 0; i < 40; i++) {
        int fd;

        snprintf(path, sizeof(path), "%s/filler-%u", now.disk, i);
        if (!fill) {
            unlink(path);
            continue;
        }
        fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            return;
        while (write(fd, block, sizeof(block)) > 0)
            ;
        close(fd);
    }
}

static struct host start(unsigned number, const char *command, const char *more)
{
    char arguments[1024];

    snprintf(arguments, sizeof(arguments),
             "--arbiter %s --net af_packet:lan --mac 02:00:00:00:00:50 --heartbeat %d --peer-timeout 1000 --poll 0,200 "
             "--max-input-delay 500000 --segment 200 %s", now.arbiter, HEARTBEAT_MS, more);
    return host_start_in(now.cables.namespaces[number == 0 ? CABLE_HOST_A : CABLE_HOST_B], number, command, arguments);
}

/* As its unit would; the guest's host finds it by itself. */
static void start_backup(void)
{
    now.hosts[1] = start(1, "backup", "--listen tcp:10.77.1.2:7471");
}

static void open_hosts(void)
{
    enum phase phase = now.cell.phase;

    if (phase == GO_LIVE)
        setenv("FTVMM_FAULT", "drained:stop", 1);
    if (phase == TRANSFER) {
        now.hosts[0] = start(0, "run", "--verify --transfer-rate 2");
        host_await(&now.hosts[0], "alone", false);
        start_backup();
    } else {
        start_backup();
        unsetenv("FTVMM_FAULT");
        now.hosts[0] = start(0, "primary", "--verify --spare none --backup tcp:10.77.1.2:7471");
        host_await(&now.hosts[0], "primary", true);
    }
}

static void cut(enum cable_network network, enum cable_place place, bool broken)
{
    cable_cut(&now.cables, network, place, broken);
}

/* Begins or ends what may end. */
static void fault_at_host(enum fault fault, unsigned host, bool begins)
{
    enum cable_place place = host == 0 ? CABLE_HOST_A : CABLE_HOST_B;

    switch (fault) {
    case KILLED:
        if (begins)
            kill(now.hosts[host].pid, SIGKILL);
        return;
    case FREEZES:
        kill(now.hosts[host].pid, begins ? SIGSTOP : SIGCONT);
        return;
    case BOTH_CUT:
        cut(CABLE_RAIL, place, begins);
        cut(CABLE_LAN, place, begins);
        cut(CABLE_ARBITER_WAY, place, begins);
        return;
    case RAIL_CUT: cut(CABLE_RAIL, place, begins); return;
    case LAN_CUT: cut(CABLE_LAN, place, begins); return;
    case ONE_WAY: atomic_store(&now.cables.at[CABLE_RAIL][place].lossy, begins); return;
    case SLOW_LINK: atomic_store(&now.cables.at[CABLE_RAIL][place].delay_ns, begins ? DELAY_NS : 0); return;
    case ARBITER_GONE:
    case ARBITER_SLOW:
    case ARBITER_FULL:
    case FAULTS: return;
    }
}

static void fault_at_arbiter(enum fault fault, bool begins)
{
    struct cable *cable = &now.cables.at[CABLE_ARBITER_WAY][CABLE_ARBITER];

    switch (fault) {
    case KILLED:
        if (begins) {
            etcd_member_kill(&now.etcd, 0);
            return;
        }
        assert_int_equal(cables_enter(&now.cables, CABLE_ARBITER), 0);
        etcd_member_start(&now.etcd, 0);
        assert_int_equal(cables_enter(&now.cables, CABLE_TEST), 0);
        etcd_member_wait(&now.etcd, 0);
        return;
    case FREEZES: kill(now.etcd.pids[0], begins ? SIGSTOP : SIGCONT); return;
    case LAN_CUT:
    case ARBITER_GONE: cut(CABLE_ARBITER_WAY, CABLE_ARBITER, begins); return;
    case ONE_WAY: atomic_store(&cable->lossy, begins); return;
    case SLOW_LINK: atomic_store(&cable->delay_ns, begins ? DELAY_NS : 0); return;
    case ARBITER_SLOW: atomic_store(&cable->delay_ns, begins ? SLOW_NS : 0); return;
    case ARBITER_FULL: fill_disk(begins); return;
    case RAIL_CUT:
    case BOTH_CUT:
    case FAULTS: return;
    }
}

static void fault(bool begins)
{
    enum fault what = now.cell.fault;
    enum place place = now.cell.place;

    if (what >= ARBITER_GONE || place == WITNESS)
        fault_at_arbiter(what, begins);
    if (place == WITNESS)
        return;
    if (what >= ARBITER_GONE)
        what = place == BOTH ? RAIL_CUT : KILLED; /* so that somebody asks */
    if (place != BACKUP)
        fault_at_host(what, 0, begins);
    if (place != PRIMARY)
        fault_at_host(what, 1, begins);
}

/* ---- how it ended ---- */

/*
 * Waits until it has ended in one of the ways that it may. A transfer that must not fail may be taken apart by a busy
 * machine: then another one must do.
 */
static enum end await_end(void)
{
    const struct host *a = &now.hosts[0], *b = &now.hosts[1];
    unsigned again = 0;
    uint64_t limit_ns = clock_now_ns() + SETTLE_NS;
    char why[512];

    while (clock_now_ns() < limit_ns) {
        bool a_ended = host_has_ended(a), b_ended = host_has_ended(b);

        if ((now.cell.ends & LOST) && a_ended && b_ended)
            return LOST;
        if ((now.cell.ends & MOVES) && a_ended && host_is(b, "alone", false))
            return MOVES;
        if ((now.cell.ends & STAYS) && b_ended && host_is(a, "alone", false))
            return STAYS;
        if ((now.cell.ends & PAIR) && !a_ended && !b_ended && host_is(a, "primary", true))
            return PAIR;
        if (now.cell.phase == TRANSFER && now.cell.ends == PAIR && b_ended && again++ < 3) {
            (void)host_end(b);
            start_backup();
        }
        clock_sleep_ns(100 * NS_PER_MS);
    }
    for (unsigned i = 0; i < 2; i++) {
        char *said;
        cJSON *answer = host_has_ended(&now.hosts[i]) ? NULL : host_ask(&now.hosts[i], "status");

        said = answer != NULL ? cJSON_PrintUnformatted(answer) : NULL;
        fprintf(stderr, "host %u: %s\n", i, said != NULL ? said : host_has_ended(&now.hosts[i]) ? "has ended" : "no answer");
        free(said);
        cJSON_Delete(answer);
    }
    fprintf(stderr, "last answer %.1f s ago\n", (double)(clock_now_ns() - atomic_load(&now.clients.last_ns)) / (double)NS_PER_S);
    lan_clients_stop(&now.clients);
    host_fail(a, lan_clients_judge(&now.clients, 1, why, sizeof(why)) ? "it does not end as it should" : why);
    return LOST;
}

/* The status's receipt of a failover: "; detected 1.03, live 1.10 s (5.5 heartbeats), first frame 1.10". */
static void receipt(const struct host *host, char *text, size_t bytes)
{
    double detected = (double)host_number(host, "failover", "detected_us") / 1e6;
    double live = (double)host_number(host, "failover", "live_us") / 1e6;
    double first = (double)host_number(host, "failover", "first_frame_us") / 1e6;

    if (live > 0)
        snprintf(text, bytes, "; silence noticed at %.2f s, live at %.2f (%.1f heartbeats), first frame at %.2f", detected, live,
                 live * 1000 / HEARTBEAT_MS, first);
}

/* Ends the hosts in order, and looks how they end. */
static void end_hosts(enum end end)
{
    struct host *winner = &now.hosts[end == MOVES ? 1 : 0], *other = &now.hosts[end == MOVES ? 0 : 1];
    int status;

    if (end == LOST)
        return;
    cJSON_Delete(host_ask(winner, "stop"));
    if (host_end(winner) != 0)
        host_fail(winner, "it did not stop in order");
    status = host_end(other);
    if (end == PAIR && (status != 0 || !host_has_said(other, "equal to the primary's to the last byte")))
        host_fail(other, "it has not found the guest equal");
    if (end != PAIR && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        host_fail(other, "it has ended as if it had had the guest");
}

static void judge(enum end end, uint64_t healed_ns)
{
    static const char *const names[] = { [PAIR] = "pair", [STAYS] = "stays", [MOVES] = "moves", [LOST] = "lost" };
    struct host *winner = &now.hosts[end == MOVES ? 1 : 0];
    char why[512] = "", proof[160] = "";
    bool repaired = false;
    double silence;

    if (end == LOST) {
        if (lan_clients_await(&now.clients, 1, NS_PER_S))
            host_fail(winner, "somebody answers, though nobody has the right to");
    } else if (!lan_clients_await(&now.clients, 5, 20 * NS_PER_S)) {
        host_fail(winner, "the service does not come back");
    }
    silence = (double)atomic_load(&now.clients.silence_ns) / (double)NS_PER_S;
    repaired = silence > 0.5 && atomic_load(&now.clients.silence_end_ns) > healed_ns &&
               (now.cell.fault != KILLED || now.cell.place == WITNESS);
    if (end == MOVES || end == STAYS)
        receipt(winner, proof, sizeof(proof));
    lan_clients_quiet(&now.clients, end == LOST ? 0 : 10 * NS_PER_S);
    end_hosts(end);
    lan_clients_stop(&now.clients);
    if (!lan_clients_judge(&now.clients, end == MOVES ? 1 : 0, why, sizeof(why)))
        host_fail(winner, why);
    if (now.clients.answers_count < 5)
        host_fail(winner, "hardly anything was asked: this proves nothing");
    if (end == LOST)
        snprintf(now.row, sizeof(now.row), "lost|%zu answers before", now.clients.answers_count);
    else
        snprintf(now.row, sizeof(now.row), "%s, %.1f s%s|silent for %.2f s%s%s; %zu answers", names[end], silence,
                 repaired ? "*" : "", silence, repaired ? ", until after the repair" : "", proof,
                 now.clients.answers_count);
}

/* ---- the phases ---- */

static bool is_down(unsigned host)
{
    return (now.cell.fault == KILLED || now.cell.fault == FREEZES) && now.cell.place != WITNESS &&
           now.cell.place != (host == 0 ? BACKUP : PRIMARY);
}

/* What the fault must lead to while it lasts, whatever the machine's load: a host that is starved is slow to notice. */
static bool has_led_to_it(void)
{
    const struct host *a = &now.hosts[0], *b = &now.hosts[1];
    bool wants_repair = now.cell.fault >= ARBITER_GONE || (now.cell.fault == BOTH_CUT && now.cell.place == BOTH);

    if (now.cell.phase == GO_LIVE || (now.cell.ends & (PAIR | LOST)) || wants_repair)
        return true;
    if (now.cell.phase == TRANSFER)
        return host_has_ended(b);
    return (!is_down(0) && host_is(a, "alone", false)) || (!is_down(1) && host_is(b, "alone", false));
}

/* The fault lasts for a while, and ends. */
static uint64_t hold(uint64_t from_ns)
{
    uint64_t until_ns = from_ns + (now.cell.fault == ARBITER_SLOW ? 2 * HOLD_NS : HOLD_NS);

    while (clock_now_ns() < until_ns || (!has_led_to_it() && clock_now_ns() < until_ns + SETTLE_NS))
        clock_sleep_ns(20 * NS_PER_MS);
    lan_clients_mark_end(&now.clients);
    fault(false);
    return clock_now_ns();
}

static void begin_go_live(void)
{
    uint64_t limit_ns = clock_now_ns() + 30 * NS_PER_S;
    siginfo_t info = { 0 };

    kill(now.hosts[0].pid, SIGSTOP);
    while (waitid(P_PID, (id_t)now.hosts[1].pid, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0) {
        if (clock_now_ns() > limit_ns)
            host_fail(&now.hosts[1], "it does not begin to go live");
        clock_sleep_ns(5 * NS_PER_MS);
    }
    if (info.si_code != CLD_STOPPED)
        host_fail(&now.hosts[1], "it has ended before it went live");
}

/* Goes on where begin_go_live stopped, through the fault. */
static uint64_t go_on_live(void)
{
    bool backup_is_out = now.cell.place != PRIMARY && now.cell.place != WITNESS &&
                         (now.cell.fault == KILLED || now.cell.fault == FREEZES || now.cell.fault == BOTH_CUT ||
                          now.cell.fault >= ARBITER_GONE);
    uint64_t from_ns = clock_now_ns(), healed_ns;

    if (!(backup_is_out && now.cell.fault == FREEZES))
        kill(now.hosts[1].pid, SIGCONT);
    if (backup_is_out && !(now.cell.fault == FREEZES && now.cell.place == BOTH))
        kill(now.hosts[0].pid, SIGCONT);
    healed_ns = hold(from_ns);
    if (!backup_is_out)
        host_await(&now.hosts[1], "alone", false);
    kill(now.hosts[0].pid, SIGCONT);
    return healed_ns;
}

static void one_cell(void **state)
{
    enum phase phase = now.cell.phase;
    unsigned clients = phase == IDLE ? 1 : phase == LOADED ? 4 : 3;
    uint64_t healed_ns;

    (void)state;
    assert_int_equal(cables_open(&now.cables), 0);
    assert_int_equal(lan_clients_start(&now.clients, &now.cables, guest_mac, clients,
                                       (phase == IDLE ? 100 : phase == LOADED ? 0 : 5) * NS_PER_MS, (unsigned)seed), 0);
    open_arbiter();
    open_hosts();
    if (!lan_clients_await(&now.clients, 3, 20 * NS_PER_S))
        host_fail(&now.hosts[0], "the guest does not answer");
    if (now.cell.phase == TRANSFER) {
        cJSON_Delete(host_ask(&now.hosts[0], "protect tcp:10.77.1.2:7471 >/dev/null & true"));
        host_await_number(&now.hosts[0], "protection", "sent_pages", 300);
    }
    lan_clients_mark(&now.clients);
    if (now.cell.phase == GO_LIVE)
        begin_go_live();
    fault(true);
    healed_ns = now.cell.phase == GO_LIVE ? go_on_live() : hold(clock_now_ns());
    judge(await_end(), healed_ns);
}

static int tear_down(void **state)
{
    (void)state;
    cables_close(&now.cables);
    lan_clients_close(&now.clients);
    etcd_cluster_end(&now.etcd);
    if (now.disk[0] != '\0')
        umount2(now.disk, MNT_DETACH);
    return 0;
}

static void path_of(unsigned number, const char *what, char *path, size_t bytes)
{
    snprintf(path, bytes, "/tmp/ftvmm-matrix-%d-%u-%s", (int)main_pid, number, what);
}

static int cell_process(const struct cell *cell, const char *said, const char *row)
{
    const struct CMUnitTest test = cmocka_unit_test_teardown(one_cell, tear_down);
    FILE *file;
    int rc, fd;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fd = open(said, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    now.cell = *cell;
    if (hosts_open_with(ftvmm, ftctl, __start_answering_guest,
                        (size_t)(__stop_answering_guest - __start_answering_guest)) != 0)
        return 1;
    rc = _cmocka_run_group_tests("cell", &test, 1, NULL, NULL);
    file = fopen(row, "w");
    if (file != NULL) {
        fputs(now.row, file);
        fclose(file);
    }
    hosts_close();
    return rc;
}

/* ---- all of them ---- */

static struct cell cells[FAULTS * PLACES * PHASES];
static char rows[FAULTS][PLACES][PHASES][64];

static void done(unsigned number, int status, unsigned *failed)
{
    const struct cell *cell = &cells[number];
    char said[96], row[96], text[512] = "|it has come to no end", command[128], *more;
    FILE *file;

    path_of(number, "said", said, sizeof(said));
    path_of(number, "row", row, sizeof(row));
    file = fopen(row, "r");
    if (file != NULL) {
        if (fgets(text, sizeof(text), file) == NULL)
            snprintf(text, sizeof(text), "|it has come to no end");
        fclose(file);
    }
    more = strchr(text, '|');
    if (more != NULL)
        *more++ = '\0';
    snprintf(rows[cell->fault][cell->place][cell->phase], 64, "%s", status == 0 ? text : "FAILED");
    printf("%s %-8s %-12s %-7s: %s; %s\n", status == 0 ? "ok  " : "FAIL", phase_names[cell->phase], fault_names[cell->fault],
           place_names[cell->place], text, more != NULL ? more : "");
    fflush(stdout);
    if (status != 0) {
        (*failed)++;
        snprintf(command, sizeof(command), "cat %s", said);
        if (system(command) != 0)
            puts("it has said nothing");
    }
    unlink(said);
    unlink(row);
}

static void print_table(void)
{
    for (enum phase phase = 0; phase < PHASES; phase++) {
        printf("\n| %s | primary | backup | both | arbiter |\n|---|---|---|---|---|\n", phase_names[phase]);
        for (enum fault fault_ = 0; fault_ < FAULTS; fault_++) {
            printf("| %s |", fault_names[fault_]);
            for (enum place place = 0; place < PLACES; place++)
                printf(" %s |", rows[fault_][place][phase]);
            printf("\n");
        }
    }
}

static bool is_wanted(const struct cell *cell, const char *which)
{
    char name[96];

    if (strcmp(which, "all") == 0)
        return true;
    if (strcmp(which, "quick") == 0) {
        for (size_t i = 0; i < sizeof(chosen) / sizeof(chosen[0]); i++)
            if (chosen[i].fault == cell->fault && chosen[i].place == cell->place && chosen[i].phase == cell->phase)
                return true;
        return false;
    }
    snprintf(name, sizeof(name), "%s, %s, %s", phase_names[cell->phase], fault_names[cell->fault], place_names[cell->place]);
    return strstr(name, which) != NULL;
}

static unsigned choose_cells(const char *which, unsigned *none, unsigned *skipped)
{
    bool etcd = etcd_is_installed();
    unsigned count = 0;

    for (enum phase phase = 0; phase < PHASES; phase++)
        for (enum fault fault_ = 0; fault_ < FAULTS; fault_++)
            for (enum place place = 0; place < PLACES; place++) {
                unsigned ends = phase == TRANSFER ? transfer[fault_][place]
                                : phase == GO_LIVE ? go_live[fault_][place] : steady[fault_][place];
                struct cell cell = { fault_, place, phase, ends };
                char *row = rows[fault_][place][phase];

                if (none_reason(ends) != NULL) {
                    snprintf(row, 64, "- (%s)", none_reason(ends));
                    (*none)++;
                } else if (!is_wanted(&cell, which)) {
                    continue;
                } else if (wants_etcd(&cell) && !etcd) {
                    snprintf(row, 64, "not run: no etcd here");
                    (*skipped)++;
                } else {
                    cells[count++] = cell;
                }
            }
    return count;
}

int main(int argc, char **argv)
{
    pid_t pids[FAULTS * PLACES * PHASES] = { 0 };
    unsigned count, started = 0, ended = 0, failed = 0, none = 0, skipped = 0;
    const char *which = argc > 3 ? argv[3] : "quick", *missing = cables_check();
    uint64_t began_ns = clock_now_ns();

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
    seed = test_seed("matrix");
    main_pid = getpid();
    count = choose_cells(which, &none, &skipped);
    while (ended < count) {
        char said[96], row[96];
        int status;
        pid_t pid;

        if (started < count && started - ended < SIDE_BY_SIDE) {
            path_of(started, "said", said, sizeof(said));
            path_of(started, "row", row, sizeof(row));
            fflush(stdout);
            pids[started] = fork();
            if (pids[started] == 0)
                exit(cell_process(&cells[started], said, row));
            started++;
            continue;
        }
        pid = wait(&status);
        if (pid < 0)
            return 1;
        for (unsigned i = 0; i < started; i++)
            if (pids[i] == pid) {
                pids[i] = 0; /* the number may be another cell's later */
                done(i, status, &failed);
                ended++;
            }
    }
    if (strcmp(which, "all") == 0)
        print_table();
    printf("\n%u of %u cells failed; %u more make no sense, %u not run; %.0f s\n", failed, count, none, skipped,
           (double)(clock_now_ns() - began_ns) / (double)NS_PER_S);
    return failed != 0;
}
