/*
 * A planned switch-over between two processes: the real positions and I/O threads of primary and backup, the real
 * shared-memory link (once tcp), the real arbiter. Only the guests are missing: between two positions the test sleeps.
 * Whatever the backup does or fails to do, at most one of the two may go on, and the arbiter's file says which.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"
#include "vmm/io_thread.h"

#define PEER_TIMEOUT_NS (600 * NS_PER_MS)
#define PATIENCE_NS     (20 * NS_PER_S)

static char directory[64], arbiter_address[96], lost_address[96], address_of_pair[64];

enum backup_way {
    BACKUP_AS_IT_SHOULD,
    BACKUP_LATE,           /* replays each record slowly, and then as it should */
    BACKUP_LOOKS_AWAY,     /* heartbeats, and looks at no record any more until `released` */
    BACKUP_CLAIMS_SILENTLY, /* wins at the arbiter, and never says so */
    BACKUP_WITHOUT_ARBITER, /* its arbiter does not answer */
};

/* Shared between the two. */
struct backup {
    _Atomic int way;
    _Atomic bool released;
    _Atomic int role, failure; /* what became of it; valid once done */
    _Atomic uint64_t position;
    _Atomic int handover;
    _Atomic bool done;
};

struct pair {
    struct lockstep *ls;
    struct backup *backup;
    pid_t backup_pid;
    pthread_t io_thread;
};

static struct channel_options channel_of(void)
{
    struct channel_options options = { .address = address_of_pair, .ring_bytes = 1u << 20,
                                       .join_timeout_ns = 5 * NS_PER_S, .hello = { .vm = "hand" } };

    return options;
}

static struct lockstep *machine_without_guest(enum lockstep_role role)
{
    struct lockstep *ls = calloc(1, sizeof(*ls));

    ls->options = (struct lockstep_options){
        .heartbeat_ns = 5 * NS_PER_MS, .peer_timeout_ns = PEER_TIMEOUT_NS, .max_input_delay_ns = 10 * NS_PER_MS,
        .idle = { .sleep_ns = 50 * NS_PER_US },
    };
    ls->console_in = calloc(1, sizeof(*ls->console_in));
    ls->machine.vcpu.run = calloc(1, sizeof(struct kvm_run));
    ls->machine.exit = VCPU_EXIT_FORCED;
    pic_init(&ls->machine.pic);
    pit_init(&ls->machine.pit, 0);
    rtc_init(&ls->machine.rtc, 0, 0);
    ls->clock_offset_ns = -(int64_t)clock_now_ns();
    COUNT_SET(ls->role, role);
    COUNT_SET(ls->beat_ns, clock_now_ns());
    COUNT_SET(ls->arrived_ns, clock_now_ns());
    COUNT_SET(ls->deadline_ns, UINT64_MAX);
    COUNT_SET(ls->opened, true);
    COUNT_SET(ls->running, true);
    return ls;
}

/* ---- the backup's process ---- */

static void backup_look_away(struct lockstep *ls, struct backup *backup, bool claim)
{
    struct channel_record record;
    bool reached = false;

    while (!atomic_load(&backup->released)) {
        COUNT_SET(ls->beat_ns, clock_now_ns());
        if (!reached && channel_next(ls->channel, &record) == 0) {
            reached = record.kind == EVENT_HANDOVER;
            if (reached && claim && arbiter_claim(ls->arbiter, ls->generation) != ARBITER_WON)
                _exit(9);
            if (!reached)
                channel_consume(ls->channel);
        }
        clock_sleep_ns(NS_PER_MS);
    }
}

static int backup_main(struct backup *backup, uint64_t generation)
{
    struct channel_options options = channel_of();
    struct lockstep *ls = machine_without_guest(ROLE_BACKUP);
    enum backup_way way = (enum backup_way)atomic_load(&backup->way);
    struct arbiter_options place = { .address = way == BACKUP_WITHOUT_ARBITER ? lost_address : arbiter_address,
                                     .vm = "hand" };
    pthread_t io_thread;

    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion leaves it behind */
    if (arbiter_open(&ls->arbiter, &place) != 0 ||
        (way != BACKUP_WITHOUT_ARBITER && arbiter_check(ls->arbiter, generation) != 0) ||
        channel_open_receiver(&ls->channel, &options) != 0 || vcpu_enter_thread(&ls->machine.vcpu) != 0)
        return 8;
    ls->generation = generation;
    if (way == BACKUP_WITHOUT_ARBITER)
        rmdir(lost_address + 4);
    if (pthread_create(&io_thread, NULL, io_thread_run, ls) != 0)
        return 8;
    if (way == BACKUP_CLAIMS_SILENTLY)
        backup_look_away(ls, backup, true);
    if (way == BACKUP_LOOKS_AWAY) { /* and replays from there, as if nothing had been */
        backup_look_away(ls, backup, false);
        ls->machine.position = atomic_load(&backup->position);
        backup_arrive(ls);
    }
    while (!ls->failure && lockstep_role_now(ls) == ROLE_BACKUP && backup_before_run(ls) == STEP_RUN &&
           lockstep_role_now(ls) == ROLE_BACKUP) {
        ls->machine.position++;
        ls->position_closed = false;
        backup_arrive(ls);
        if (way == BACKUP_LATE)
            clock_sleep_ns(8 * NS_PER_MS);
    }
    atomic_store(&backup->role, lockstep_role_now(ls));
    atomic_store(&backup->failure, ls->failure);
    atomic_store(&backup->position, ls->machine.position);
    atomic_store(&backup->handover, handover_state_now(&ls->handover));
    atomic_store(&backup->done, true);
    clock_sleep_ns(300 * NS_PER_MS); /* its I/O thread tells the primary */
    atomic_store(&ls->finished, true);
    pthread_join(io_thread, NULL);
    return 0;
}

/* ---- the primary's ---- */

static void choose_tcp_address(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (const struct sockaddr *)&address, bytes), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    close(fd);
    snprintf(address_of_pair, sizeof(address_of_pair), "tcp:127.0.0.1:%u", ntohs(address.sin_port));
}

static void pair_open_by(struct pair *pair, enum backup_way way, bool tcp)
{
    struct arbiter_options place = { .address = arbiter_address, .vm = "hand" };
    struct channel_options options;
    static unsigned count;
    struct lockstep *ls = machine_without_guest(ROLE_PRIMARY);
    uint64_t generation;

    if (tcp)
        choose_tcp_address();
    else
        snprintf(address_of_pair, sizeof(address_of_pair), "shm:hand-%d-%u", (int)getpid(), ++count);
    *pair = (struct pair){ .ls = ls };
    pair->backup = mmap(NULL, sizeof(struct backup), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(pair->backup != MAP_FAILED);
    atomic_store(&pair->backup->way, way);
    assert_int_equal(arbiter_open(&ls->arbiter, &place), 0);
    assert_int_equal(arbiter_begin(ls->arbiter, &generation), 0);
    COUNT_SET(ls->generation, generation);
    if (way == BACKUP_WITHOUT_ARBITER)
        assert_int_equal(mkdir(lost_address + 4, 0700), 0);
    options = channel_of();
    pair->backup_pid = fork();
    assert_true(pair->backup_pid >= 0);
    if (pair->backup_pid == 0)
        _exit(backup_main(pair->backup, ls->generation));
    assert_int_equal(channel_open_sender(&ls->channel, &options), 0);
    assert_int_equal(vcpu_enter_thread(&ls->machine.vcpu), 0);
    assert_int_equal(pthread_create(&pair->io_thread, NULL, io_thread_run, ls), 0);
}

static void pair_open(struct pair *pair, enum backup_way way)
{
    pair_open_by(pair, way, false);
}

static void pair_close(struct pair *pair)
{
    struct lockstep *ls = pair->ls;

    atomic_store(&ls->finished, true);
    pthread_join(pair->io_thread, NULL);
    kill(pair->backup_pid, SIGKILL);
    waitpid(pair->backup_pid, NULL, 0);
    channel_close(ls->channel);
    arbiter_close(ls->arbiter);
    munmap(pair->backup, sizeof(struct backup));
    free(ls->machine.vcpu.run);
    free(ls->console_in);
    free(ls);
}

static void primary_step(struct lockstep *ls)
{
    assert_int_equal(primary_before_run(ls), STEP_RUN);
    clock_sleep_ns(NS_PER_MS);
    ls->machine.position++;
    COUNT_SET(ls->arrived_ns, clock_now_ns());
    COUNT_SET(ls->beat_ns, clock_now_ns());
    primary_arrive(ls);
}

/* Some positions, then the question, then the position at which it is answered. */
static void primary_hand_over_after(struct pair *pair, unsigned positions)
{
    struct lockstep *ls = pair->ls;

    while (positions-- > 0)
        primary_step(ls);
    assert_int_equal(ls->failure, 0);
    assert_true(handover_ask(ls));
    assert_false(handover_ask(ls));
    atomic_store(&pair->backup->position, ls->machine.position + 1);
    primary_step(ls);
}

static void await_backup(const struct pair *pair)
{
    uint64_t limit_ns = clock_now_ns() + PATIENCE_NS;

    while (!atomic_load(&pair->backup->done)) {
        assert_true(clock_now_ns() < limit_ns);
        clock_sleep_ns(NS_PER_MS);
    }
}

static void expect_primary_done(const struct lockstep *ls)
{
    assert_int_equal(ls->failure, -ECANCELED);
    assert_true(COUNT_GET(ls->lost_arbitration));
    assert_int_equal(handover_state_now(&ls->handover), HANDOVER_DONE);
    assert_int_equal(arbiter_claim(ls->arbiter, ls->generation), ARBITER_LOST);
}

static void expect_primary_alone(const struct lockstep *ls)
{
    assert_int_equal(ls->failure, 0);
    assert_false(COUNT_GET(ls->lost_arbitration));
    assert_int_equal(lockstep_role_now(ls), ROLE_ALONE);
    assert_int_equal(handover_state_now(&ls->handover), HANDOVER_FAILED);
    assert_int_equal(arbiter_claim(ls->arbiter, ls->generation), ARBITER_WON);
}

static void moves_the_guest(bool tcp)
{
    struct pair pair;
    uint64_t asked_ns;

    pair_open_by(&pair, BACKUP_AS_IT_SHOULD, tcp);
    asked_ns = clock_now_ns();
    primary_hand_over_after(&pair, 50);
    expect_primary_done(pair.ls);
    assert_true(clock_now_ns() < asked_ns + PEER_TIMEOUT_NS); /* nobody waited for a silence */
    await_backup(&pair);
    assert_int_equal(atomic_load(&pair.backup->role), ROLE_ALONE);
    assert_int_equal(atomic_load(&pair.backup->failure), 0);
    assert_int_equal(atomic_load(&pair.backup->handover), HANDOVER_DONE);
    assert_int_equal(atomic_load(&pair.backup->position), pair.ls->machine.position);
    assert_true(COUNT_GET(pair.ls->handover.stopped_ns) >= asked_ns);
    assert_true(COUNT_GET(pair.ls->handover.taken_ns) > COUNT_GET(pair.ls->handover.logged_ns));
    pair_close(&pair);
}

static void handover_moves_the_guest_to_the_backup_at_that_position(void **state)
{
    (void)state;
    moves_the_guest(false);
}

static void handover_over_tcp_tells_the_primary_too(void **state)
{
    (void)state;
    moves_the_guest(true);
}

static void handover_of_a_guest_that_sleeps_needs_no_wake(void **state)
{
    struct pair pair;

    (void)state;
    pair_open(&pair, BACKUP_AS_IT_SHOULD);
    for (unsigned i = 0; i < 20; i++)
        primary_step(pair.ls);
    pair.ls->machine.halted = true;
    assert_true(handover_ask(pair.ls));
    primary_sleep(pair.ls);
    expect_primary_done(pair.ls);
    await_backup(&pair);
    assert_int_equal(atomic_load(&pair.backup->role), ROLE_ALONE);
    assert_int_equal(atomic_load(&pair.backup->position), pair.ls->machine.position);
    pair_close(&pair);
}

static void handover_waits_for_a_backup_that_is_behind_and_moves(void **state)
{
    struct pair pair;
    uint64_t logged_ns;

    (void)state;
    pair_open(&pair, BACKUP_LATE);
    primary_hand_over_after(&pair, 250); /* about 2 s of its time */
    logged_ns = COUNT_GET(pair.ls->handover.logged_ns);
    expect_primary_done(pair.ls);
    assert_true(COUNT_GET(pair.ls->handover.taken_ns) > logged_ns + PEER_TIMEOUT_NS);
    assert_false(COUNT_GET(pair.ls->handover.overdue));
    await_backup(&pair);
    assert_int_equal(atomic_load(&pair.backup->position), pair.ls->machine.position);
    pair_close(&pair);
}

static void handover_that_the_backup_ignores_ends_with_the_primary_alone(void **state)
{
    struct pair pair;

    (void)state;
    pair_open(&pair, BACKUP_LOOKS_AWAY);
    primary_hand_over_after(&pair, 20);
    expect_primary_alone(pair.ls);
    primary_step(pair.ls); /* its guest goes on */
    assert_int_equal(pair.ls->failure, 0);
    /* Late, the backup comes to the record, asks the arbiter, and is told. */
    atomic_store(&pair.backup->released, true);
    await_backup(&pair);
    assert_int_equal(atomic_load(&pair.backup->role), ROLE_BACKUP);
    assert_int_equal(atomic_load(&pair.backup->failure), -ECANCELED);
    pair_close(&pair);
}

static void handover_whose_word_is_lost_is_learned_from_the_arbiter(void **state)
{
    struct pair pair;

    (void)state;
    pair_open(&pair, BACKUP_CLAIMS_SILENTLY);
    primary_hand_over_after(&pair, 20);
    expect_primary_done(pair.ls);
    assert_true(COUNT_GET(pair.ls->handover.overdue));
    assert_int_equal(COUNT_GET(pair.ls->handover.taken_ns), 0);
    pair_close(&pair);
}

static void handover_to_a_backup_without_arbiter_ends_with_the_primary_alone(void **state)
{
    struct pair pair;

    (void)state;
    pair_open(&pair, BACKUP_WITHOUT_ARBITER);
    primary_hand_over_after(&pair, 20);
    expect_primary_alone(pair.ls);
    clock_sleep_ns(500 * NS_PER_MS);
    assert_false(atomic_load(&pair.backup->done)); /* it asks on, and is not live */
    pair_close(&pair);
}

static void handover_to_a_backup_that_dies_ends_with_the_primary_alone(void **state)
{
    struct pair pair;

    (void)state;
    pair_open(&pair, BACKUP_LOOKS_AWAY);
    for (unsigned i = 0; i < 20; i++)
        primary_step(pair.ls);
    kill(pair.backup_pid, SIGKILL);
    primary_hand_over_after(&pair, 0);
    expect_primary_alone(pair.ls);
    primary_step(pair.ls);
    assert_int_equal(pair.ls->failure, 0);
    pair_close(&pair);
}

static void handover_yields_to_a_stop_that_came_first(void **state)
{
    struct pair pair;

    (void)state;
    pair_open(&pair, BACKUP_AS_IT_SHOULD);
    for (unsigned i = 0; i < 20; i++)
        primary_step(pair.ls);
    COUNT_SET(pair.ls->stop_requested, true);
    primary_hand_over_after(&pair, 0);
    assert_int_equal(pair.ls->failure, 0);
    assert_int_equal(pair.ls->machine.ended, EVENT_END_STOPPED);
    assert_int_equal(handover_state_now(&pair.ls->handover), HANDOVER_CANCELLED);
    assert_false(atomic_load(&pair.backup->done));
    pair_close(&pair);
}

/* ---- leaving the backup behind, the other thing an operator may ask for ---- */

static void unprotect_makes_the_primary_alone_and_ends_the_backup(void **state)
{
    uint64_t limit_ns = clock_now_ns() + PATIENCE_NS;
    struct pair pair;

    (void)state;
    pair_open(&pair, BACKUP_AS_IT_SHOULD);
    for (unsigned i = 0; i < 20; i++)
        primary_step(pair.ls);
    COUNT_SET(pair.ls->unprotect_requested, true);
    while (lockstep_role_now(pair.ls) == ROLE_PRIMARY) {
        primary_step(pair.ls);
        assert_true(clock_now_ns() < limit_ns);
    }
    assert_int_equal(lockstep_role_now(pair.ls), ROLE_ALONE);
    assert_int_equal(arbiter_claim(pair.ls->arbiter, pair.ls->generation), ARBITER_WON);
    await_backup(&pair);
    assert_int_equal(atomic_load(&pair.backup->role), ROLE_BACKUP);
    assert_int_equal(atomic_load(&pair.backup->failure), -ECANCELED);
    primary_step(pair.ls);
    assert_int_equal(pair.ls->failure, 0);
    pair_close(&pair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handover_moves_the_guest_to_the_backup_at_that_position),
        cmocka_unit_test(handover_over_tcp_tells_the_primary_too),
        cmocka_unit_test(handover_of_a_guest_that_sleeps_needs_no_wake),
        cmocka_unit_test(handover_waits_for_a_backup_that_is_behind_and_moves),
        cmocka_unit_test(handover_that_the_backup_ignores_ends_with_the_primary_alone),
        cmocka_unit_test(handover_whose_word_is_lost_is_learned_from_the_arbiter),
        cmocka_unit_test(handover_to_a_backup_without_arbiter_ends_with_the_primary_alone),
        cmocka_unit_test(handover_to_a_backup_that_dies_ends_with_the_primary_alone),
        cmocka_unit_test(handover_yields_to_a_stop_that_came_first),
        cmocka_unit_test(unprotect_makes_the_primary_alone_and_ends_the_backup),
    };
    char command[160];
    int failed;

    snprintf(directory, sizeof(directory), "/tmp/ftvmm-hand-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return 1;
    snprintf(arbiter_address, sizeof(arbiter_address), "dir:%s", directory);
    snprintf(lost_address, sizeof(lost_address), "dir:%s/lost", directory);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -rf '%s' /dev/shm/ftvmm-hand-%d-*", directory, (int)getpid());
    return system(command) != 0 || failed;
}
