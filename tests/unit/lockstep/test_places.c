/*
 * Clocks that count between exits, on a real /dev/kvm: a guest that computes without an exit is recorded and replayed, and
 * run as a pair, and all its timer interrupts come at places (place.h) that the replay finds again to the last register:
 * by single steps, and by a model of a CPU's counter, which the guest keeps itself in RBX.
 *
 *   test-lockstep-places [ROUNDS [counter]]   counter: also where the model is too slow for the guest, see below
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/lockstep/corner_host.h"

/* The guest, at CPL 0: R13 rounds of 16 blocks, each with one conditional branch, which RBX counts; R12 is the digest of
 * all that they do, and is printed. The timer's interrupts are counted at R15 - 8. */
extern const uint8_t places_guest[], places_guest_handler[], places_guest_end[];
__asm__(".pushsection .rodata\n"
        ".globl places_guest, places_guest_handler, places_guest_end\n"
        ".macro put port, value\n"
        "  mov $\\value, %al\n"
        "  out %al, $\\port\n"
        ".endm\n"
        "places_guest:\n"
        "  sti\n" /* first of all, and for good: a software KVM opens the window that an interrupt waits for anywhere */
        "  put 0x20, 0x11\n"
        "  put 0x21, 0x20\n"
        "  put 0x21, 0x04\n"
        "  put 0x21, 0x03\n" /* the end of an interrupt needs no word */
        "  put 0x21, 0xFE\n" /* the timer alone */
        "  put 0xA1, 0xFF\n"
        "  put 0x43, 0x34\n" /* 1193182 Hz / 0x2000: every 6.9 ms */
        "  put 0x40, 0x00\n"
        "  put 0x40, 0x20\n"
        "1:\n"
        ".rept 16\n"
        "  imul %r14, %r12\n"
        "  rol $13, %r12\n"
        "  mov %r12d, %ecx\n"
        "  and $0x7FFF8, %ecx\n"
        "  xor %r12, (%r15, %rcx)\n"
        "  add (%r15, %rcx), %r12\n"
        "  inc %rbx\n"
        "  test $4, %r12b\n"
        "  jz 2f\n"
        "  pushfq\n"
        "  pop %rax\n"
        "  add %rax, %r12\n"
        "2:\n"
        ".endr\n"
        "  mov %r15, %rsi\n"
        "  lea 0x40(%r15), %rdi\n"
        "  mov $8, %ecx\n"
        "  rep movsb\n"
        "  inc %rbx\n"
        "  dec %r13\n"
        "  jnz 1b\n"
        "  cli\n"
        "  mov $0x3F8, %dx\n"
        "  mov $16, %ecx\n"
        "3: rol $4, %r12\n"
        "  mov %r12b, %al\n"
        "  and $15, %al\n"
        "  add $0x41, %al\n"
        "  out %al, %dx\n"
        "  dec %ecx\n"
        "  jnz 3b\n"
        "  hlt\n"
        "places_guest_handler:\n"
        "  incq -8(%r15)\n"
        "  iretq\n"
        "places_guest_end:\n"
        ".popsection\n");

#define GUEST_DATA   0x40000u
#define GUEST_STACK  0x38000u
#define GUEST_TICKS  (GUEST_DATA - 8)
#define VECTOR_TIMER 0x20u
#define GATE_TRAP    0x8F00u /* interrupts stay on: there is never a window to wait for */

#define ROUNDS_STEPPED 100u
#define ROUNDS_COUNTED 3000u

static struct corner_outcome *outcomes; /* of primary and backup */
static char directory[64];
static uint64_t guest_rounds;

static void guest_build(struct guest_memory *memory, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
    uint64_t handler = CORNER_CODE + (uint64_t)(places_guest_handler - places_guest);
    uint32_t *gate = (uint32_t *)(memory->base + CORNER_IDT + 16 * VECTOR_TIMER);

    memcpy(memory->base + CORNER_CODE, places_guest, (size_t)(places_guest_end - places_guest));
    gate[0] = (uint32_t)CORNER_CS0 << 16 | (uint32_t)(handler & 0xffff);
    gate[1] = (uint32_t)(handler & 0xffff0000) | GATE_TRAP;
    *regs = (struct kvm_regs){ .rip = CORNER_CODE, .rsp = GUEST_STACK, .rflags = 2, .r12 = 0x1234567,
                               .r13 = guest_rounds, .r14 = UINT64_C(0x9E3779B97F4A7C15), .r15 = GUEST_DATA };
    sregs->cs.selector = CORNER_CS0;
    sregs->cs.dpl = 0;
    sregs->ss.selector = sregs->ds.selector = sregs->es.selector = CORNER_DS0;
    sregs->ss.dpl = sregs->ds.dpl = sregs->es.dpl = 0;
}

/* ---- a model of a CPU's counter: RBX, and a timer that interrupts soon after the count is reached ---- */

#define MODEL_KICK_NS 100000
#define MODEL_MARGIN  4000u /* branches: a software KVM's guest retires less than 1 in 1 us */
/* A CPU of its own retires hundreds, and would come to the place's address as often within the margin that they need: not
 * done by default. */
#define MODEL_MARGIN_WHOLE_CPU 200000u

struct model {
    struct branch_counter counter;
    struct vcpu *vcpu;
    timer_t timer;
};

static int model_read(struct branch_counter *counter, uint64_t *count)
{
    *count = vcpu_regs(((struct model *)counter)->vcpu)->rbx;
    return 0;
}

static int model_timer(struct branch_counter *counter, long period_ns)
{
    const struct itimerspec period = { .it_interval = { .tv_nsec = period_ns }, .it_value = { .tv_nsec = period_ns } };

    return timer_settime(((struct model *)counter)->timer, 0, &period, NULL);
}

static int model_arm(struct branch_counter *counter, uint64_t at)
{
    (void)at; /* place_find looks at the count, after each kick */
    return model_timer(counter, MODEL_KICK_NS);
}

static int model_disarm(struct branch_counter *counter)
{
    return model_timer(counter, 0);
}

static const struct branch_counter_ops model_ops = {
    .start = model_disarm, .read = model_read, .arm = model_arm, .disarm = model_disarm,
};

static int model_open(struct vcpu *vcpu, struct branch_counter **counter)
{
    static struct model model;
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = vcpu_kick_signal() };

    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    model = (struct model){
        .counter = { .ops = &model_ops,
                     .skid_margin = corner_whole_cpu() ? MODEL_MARGIN_WHOLE_CPU : MODEL_MARGIN },
        .vcpu = vcpu,
    };
    *counter = &model.counter;
    return timer_create(CLOCK_MONOTONIC, &event, &model.timer);
}

/* ---- */

static bool expect(bool good, const char *what)
{
    if (!good)
        printf("FAIL: %s\n", what);
    return good;
}

static bool alike(const char *how)
{
    const struct corner_outcome *a = &outcomes[0], *b = &outcomes[1];

    printf("%s: %llu positions, %llu of them places (%llu instants refused), %llu forced syncs; %llu and %llu kicks; "
           "%.16s and %.16s\n", how, (unsigned long long)a->positions, (unsigned long long)a->places,
           (unsigned long long)a->places_refused, (unsigned long long)a->forced_syncs, (unsigned long long)a->kicks,
           (unsigned long long)b->kicks, a->said, b->said);
    fflush(stdout);
    return expect(a->ended && b->ended, "a guest did not end in order, or was compared unequal") &&
           expect(a->positions == b->positions && b->compared == b->positions, "positions differ") &&
           expect(a->ram_digest == b->ram_digest, "RAM differs") && expect(strcmp(a->said, b->said) == 0, "words differ") &&
           expect(!a->lost_interrupt && !b->lost_interrupt, "an interrupt was lost") &&
           expect(a->places == b->places, "the replay has other places") &&
           expect(a->places > 3, "there were hardly any places") &&
           /* One is made when a busy machine lets the guest make no way between some kicks. */
           expect(a->forced_syncs * 20 <= a->places, "there were more forced syncs than now and then");
}

static struct corner_run run_of(enum guest_clock clock)
{
    return (struct corner_run){
        .plan = { .seed = 1, .whole_cpu = corner_whole_cpu() }, .slowness = corner_slowness(), .directory = directory,
        .verify = true, .peer_timeout_ns = 20 * NS_PER_S, .max_input_delay_ns = 10 * NS_PER_MS, .guest = guest_build, .clock = clock,
        .counter = clock == GUEST_CLOCK_PMU ? model_open : NULL,
    };
}

static bool run_twice(const char *what, enum guest_clock clock)
{
    char how[64];
    bool good = corner_record_and_replay(run_of(clock), outcomes);

    snprintf(how, sizeof(how), "%s, record and replay", what);
    good = alike(how) && good && corner_pair(run_of(clock), outcomes);
    snprintf(how, sizeof(how), "%s, a pair", what);
    return good && alike(how);
}

/* The same guest, without the clock: its digest must be the same, or the clock was seen by the guest. */
static bool unseen(const char *how)
{
    struct corner_run run = run_of(GUEST_CLOCK_EXITS);
    char said[sizeof(outcomes[0].said)], address[112];

    snprintf(address, sizeof(address), "file:%s/unseen", directory);
    run.channel = address;
    run.role = ROLE_PRIMARY;
    memcpy(said, outcomes[0].said, sizeof(said));
    if (!expect(corner_finish(corner_start(&run, &outcomes[0])), "the guest did not end in order"))
        return false;
    printf("%s: %s with it, %s without\n", how, said, outcomes[0].said);
    return expect(outcomes[0].places == 0, "places without a clock for them") &&
           expect(strlen(said) == 16 && strcmp(said, outcomes[0].said) == 0, "the guest can tell");
}

/* The trial of a counter on KVM, with single steps for a counter: ECX, and an interrupt that is late as it likes. */
static uint64_t trial_lateness, trial_random = 1;

#define TRIAL_MARGIN 12u
#define TRIAL_BASE   (UINT64_C(1) << 40)

static int trial_read(struct branch_counter *counter, uint64_t *count)
{
    *count = TRIAL_BASE - vcpu_regs(((struct model *)counter)->vcpu)->rcx;
    return 0;
}

static int trial_arm(struct branch_counter *counter, uint64_t at)
{
    struct vcpu *vcpu = ((struct model *)counter)->vcpu;
    uint64_t count;

    (void)trial_read(counter, &count);
    vcpu->step_limit = vcpu->steps + 2 * (at - count + corner_random(&trial_random) % (trial_lateness + 1));
    return 0;
}

static int trial_disarm(struct branch_counter *counter)
{
    ((struct model *)counter)->vcpu->step_limit = UINT64_MAX;
    return 0;
}

static int trial_start(struct branch_counter *counter)
{
    vcpu_step_clock(((struct model *)counter)->vcpu);
    return 0;
}

static void trial_stop(struct branch_counter *counter)
{
    (void)counter;
}

static int trial_open(void *ctx, struct vcpu *vcpu, struct branch_counter **counter)
{
    static const struct branch_counter_ops ops = {
        .start = trial_start, .read = trial_read, .arm = trial_arm, .disarm = trial_disarm, .stop = trial_stop,
    };
    static struct model model;

    (void)ctx;
    model = (struct model){ .counter = { .ops = &ops, .skid_margin = TRIAL_MARGIN }, .vcpu = vcpu };
    *counter = &model.counter;
    return 0;
}

static bool trial(uint64_t lateness, enum counter_grade grade)
{
    struct counter_grading grading;
    int rc;

    trial_lateness = lateness;
    rc = counter_grade_on_kvm(trial_open, NULL, 60, 6, 0x7e57, &grading);
    printf("a counter whose interrupts are late by up to %llu: grade %d; %u rounds, %u wrong, %u early, %u lost, late by "
           "up to %llu\n", (unsigned long long)lateness, (int)grading.grade, grading.rounds, grading.wrong, grading.early,
           grading.lost, (unsigned long long)grading.worst_skid);
    fflush(stdout);
    return expect(rc == 0 && grading.grade == grade, "the grade is another") &&
           expect(grading.wrong == 0 || lateness > TRIAL_MARGIN, "something was wrong");
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 1;
    char command[96];
    bool good;

    if (corner_host_check() != 0)
        return 77;
    strcpy(directory, "/tmp/ftvmm-places-XXXXXX");
    outcomes = corner_shared(2 * sizeof(*outcomes));
    if (mkdtemp(directory) == NULL)
        return 1;
    good = trial(0, COUNTER_EXACT) && trial(5 * TRIAL_MARGIN, COUNTER_UNUSABLE);
    for (unsigned i = 0; i < rounds && good; i++) {
        guest_rounds = ROUNDS_STEPPED;
        good = run_twice("single steps", GUEST_CLOCK_STEP) && unseen("single steps");
        if (corner_whole_cpu() && argc < 3)
            continue;
        guest_rounds = ROUNDS_COUNTED * (corner_whole_cpu() ? 500 : 1);
        good = good && run_twice("a counter", GUEST_CLOCK_PMU) && unseen("a counter");
    }
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command) != 0 || !good;
}
