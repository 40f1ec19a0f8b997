/*
 * Finding places, against a simulated guest and a model of a CPU's counter: whose interrupt comes late by chance, is lost,
 * comes for nothing, and whose count is wrong. What is found must be the place to the instruction, or nothing; and such a
 * counter must get the grade that it deserves.
 */
#include "vmm/counter_grade.h"
#include "vmm/place.h"

#include <errno.h>

#include "tests/unit/cmocka_prelude.h"

#define RFLAGS_RF     (UINT64_C(1) << 16)
#define PROGRAM_ROOM  64u
#define BEAT_INSTRUCTIONS 20000u /* so often is the guest kicked in any case */

/* ---- the guest ---- */

enum operation {
    MIX,    /* changes registers */
    BRANCH, /* conditional, by a register */
    SPIN,   /* conditional, to itself, by memory: registers stay the same, and only the count tells */
    JUMP,   /* unconditional, and not counted */
};

struct guest {
    struct {
        enum operation operation;
        unsigned target;
    } program[PROGRAM_ROOM];
    struct kvm_regs regs;
    uint64_t memory;
    uint64_t executed; /* two guests of one program are the same if this is */
    uint64_t branches;
    uint64_t exit_executed, exit_branches; /* it exits when it has executed, branched so often */
    bool stands; /* the breakpoint was hit */
    uint64_t random;
};

static struct guest guest_of(uint64_t seed, bool spins)
{
    struct guest guest = { .exit_executed = UINT64_MAX, .exit_branches = UINT64_MAX, .random = ~seed };

    for (unsigned i = 0; i < PROGRAM_ROOM; i++) {
        unsigned dice = (unsigned)(test_random(&seed) % 10);

        guest.program[i].operation = i == 0 || dice < 5 ? MIX : dice < 8 ? BRANCH : dice < 9 && spins ? SPIN : JUMP;
        guest.program[i].target = (unsigned)(test_random(&seed) % PROGRAM_ROOM);
        if (guest.program[i].operation == JUMP) /* forward: a loop has a MIX in it */
            guest.program[i].target = i + 1 + guest.program[i].target % (PROGRAM_ROOM - i);
    }
    guest.regs.rax = test_random(&seed);
    return guest;
}

static void execute(struct guest *guest)
{
    unsigned at = (unsigned)guest->regs.rip, next = at + 1;
    uint64_t random = guest->regs.rax + at;

    switch (guest->program[at].operation) {
    case MIX:
        guest->regs.rax = test_random(&random);
        break;
    case BRANCH:
        guest->branches++;
        if (guest->regs.rax >> at & 1)
            next = guest->program[at].target;
        guest->regs.rax += 0x9e3779b9; /* or it would take the same way for ever */
        break;
    case SPIN:
        guest->branches++;
        if (guest->memory == 0)
            guest->memory = 1 + guest->regs.rax % 300;
        next = --guest->memory != 0 ? at : at + 1;
        break;
    case JUMP:
        next = guest->program[at].target;
        break;
    }
    guest->regs.rip = next % PROGRAM_ROOM;
    guest->regs.rflags = 2 | (test_random(&guest->random) % 8 == 0 ? RFLAGS_RF : 0); /* not the same twice */
    guest->executed++;
}

static bool exits(const struct guest *guest)
{
    return guest->executed >= guest->exit_executed || guest->branches >= guest->exit_branches;
}

/* ---- the counter ---- */

struct model {
    struct branch_counter counter;
    struct guest *guest;
    uint64_t random;
    uint64_t skid_most;       /* an interrupt is late by so many branches at most */
    unsigned lost_permille;   /* interrupts that never come */
    unsigned early_permille;  /* that come too early */
    unsigned off_permille;    /* times that the guest is entered after which the count is too high by one */
    unsigned kicks_permille;  /* kicks from elsewhere, per 100 instructions */
    bool stands_still;
    uint64_t off, interrupt_at;
};

static struct model *model_of(struct branch_counter *counter)
{
    return (struct model *)counter;
}

static bool happens(struct model *model, unsigned permille)
{
    return test_random(&model->random) % 1000 < permille;
}

static int model_read(struct branch_counter *counter, uint64_t *count)
{
    struct model *model = model_of(counter);

    *count = model->stands_still ? 0 : model->guest->branches + model->off;
    return 0;
}

static int model_arm(struct branch_counter *counter, uint64_t at)
{
    struct model *model = model_of(counter);

    model->interrupt_at = at - model->off + test_random(&model->random) % (model->skid_most + 1);
    if (happens(model, model->early_permille))
        model->interrupt_at = model->guest->branches + (at - model->off - model->guest->branches) / 2;
    if (happens(model, model->lost_permille))
        model->interrupt_at = UINT64_MAX;
    return 0;
}

static int model_disarm(struct branch_counter *counter)
{
    model_of(counter)->interrupt_at = UINT64_MAX;
    return 0;
}

static const struct branch_counter_ops model_ops = { .read = model_read, .arm = model_arm, .disarm = model_disarm };

static enum place_stop run_guest(struct model *model, uint64_t break_at)
{
    struct guest *guest = model->guest;

    model->off += happens(model, model->off_permille);
    for (unsigned i = 1; !exits(guest); i++) {
        if (break_at == guest->regs.rip && !guest->stands) {
            guest->stands = true;
            return PLACE_STOP_THERE;
        }
        guest->stands = false;
        execute(guest);
        if (guest->branches >= model->interrupt_at) {
            model->interrupt_at = UINT64_MAX;
            return PLACE_STOP_KICKED;
        }
        if (i % BEAT_INSTRUCTIONS == 0 || (i % 100 == 0 && happens(model, model->kicks_permille)))
            return PLACE_STOP_KICKED;
    }
    return PLACE_STOP_EXIT;
}

static enum place_stop run(void *ctx)
{
    return run_guest(ctx, UINT64_MAX);
}

static enum place_stop run_to(void *ctx, uint64_t rip)
{
    return run_guest(ctx, rip);
}

static const struct kvm_regs *registers(void *ctx)
{
    return &((struct model *)ctx)->guest->regs;
}

static uint64_t now_ns(void *ctx)
{
    return ((struct model *)ctx)->guest->executed * 10000;
}

static struct place_guest place_guest(struct model *model)
{
    return (struct place_guest){
        .ctx = model, .counter = &model->counter, .run = run, .run_to = run_to, .registers = registers, .now_ns = now_ns
    };
}

static void model_begin(struct model *model, struct guest *guest)
{
    model->counter.ops = &model_ops;
    model->guest = guest;
    model->interrupt_at = UINT64_MAX;
    model->off = 0;
    model->counter.position_count = 0;
}

/* ---- places ---- */

struct tally {
    unsigned found, passed, exited, stuck, wrong;
};

/* Guests of many seeds are stopped somewhere; others of the same seeds are sent there by this model. */
static struct tally find_many(struct model model, unsigned rounds, bool spins, bool exits_before)
{
    struct tally tally = { 0 };
    uint64_t random = model.random;

    for (unsigned i = 0; i < rounds; i++) {
        uint64_t seed = test_random(&random), executed = test_random(&random) % 60000, count;
        struct guest there = guest_of(seed, spins), here = there;
        struct event_place place;
        struct place_guest guest;

        while (there.executed < executed)
            execute(&there);
        place = (struct event_place){ .count = there.branches, .rip = there.regs.rip,
                                      .digest = place_digest(&there.regs) };
        if (exits_before && executed > 0)
            here.exit_executed = test_random(&random) % executed;
        here.random = seed;
        model_begin(&model, &here);
        guest = place_guest(&model);
        switch (place_find(&guest, &place, &count)) {
        case PLACE_FOUND:
            tally.found++;
            tally.wrong += here.executed != there.executed;
            break;
        case PLACE_PASSED: tally.passed++; break;
        case PLACE_EXITED: tally.exited++; break;
        case PLACE_STUCK: tally.stuck++; break;
        case PLACE_FAILED:
        case PLACE_GIVEN_UP: fail_msg("a model does not fail");
        }
    }
    print_message("%u found, %u of them wrong; %u passed, %u exits, %u stuck\n", tally.found, tally.wrong, tally.passed,
                  tally.exited, tally.stuck);
    return tally;
}

static void place_is_found_to_the_instruction_whatever_the_skid(void **state)
{
    const uint64_t margins[] = { 0, 1, 125, 10000 };
    uint64_t seed = test_seed("skid within the margin");

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct tally tally = find_many((struct model){ .counter.skid_margin = margins[i], .skid_most = margins[i],
                                                       .kicks_permille = 20, .random = seed + i }, 300, true, false);

        assert_int_equal(tally.found, 300);
        assert_int_equal(tally.wrong, 0);
    }
}

static void place_beyond_the_margin_is_refused_never_taken_for_another(void **state)
{
    struct tally tally = find_many((struct model){ .counter.skid_margin = 125, .skid_most = 500,
                                                   .random = test_seed("skid beyond the margin") }, 600, true, false);

    (void)state;
    assert_int_equal(tally.wrong, 0);
    assert_true(tally.found > 50 && tally.passed > 200);
    assert_int_equal(tally.found + tally.passed, 600);
}

static void place_of_a_lost_interrupt_is_passed_and_seen_at_the_next_kick(void **state)
{
    struct tally tally = find_many((struct model){ .counter.skid_margin = 125, .skid_most = 125, .lost_permille = 500,
                                                   .random = test_seed("lost interrupts") }, 600, true, false);

    (void)state;
    assert_int_equal(tally.wrong, 0);
    assert_true(tally.found > 200 && tally.passed > 100);
    assert_int_equal(tally.found + tally.passed, 600);
}

/* Where a loop leaves the registers as they are, only the count tells the rounds apart: such a count must be right. */
static void place_of_a_wrong_count_is_not_found(void **state)
{
    struct tally tally = find_many((struct model){ .counter.skid_margin = 125, .skid_most = 125, .off_permille = 500,
                                                   .kicks_permille = 20, .random = test_seed("wrong counts") },
                                   600, false, false);

    (void)state;
    assert_int_equal(tally.wrong, 0);
    assert_true(tally.passed > 100);
}

static void place_behind_an_exit_is_not_found(void **state)
{
    struct tally tally = find_many((struct model){ .counter.skid_margin = 125, .skid_most = 125,
                                                   .random = test_seed("exits") }, 300, true, true);

    (void)state;
    assert_int_equal(tally.exited, 300);
}

static void place_of_a_counter_that_stands_still_is_given_up(void **state)
{
    struct tally tally = find_many((struct model){ .counter.skid_margin = 10, .stands_still = true,
                                                   .random = test_seed("no counter") }, 50, true, false);

    (void)state;
    assert_int_equal(tally.wrong, 0);
    assert_true(tally.stuck > 40);
}

/* ---- grades ---- */

static int begin(void *ctx, uint64_t branches)
{
    struct model *model = ctx;

    model->guest->exit_branches = model->guest->branches + branches;
    model->guest->regs.rip = 0;
    model->guest->regs.rax = 1;
    model->guest->memory = 0;
    model->guest->stands = false;
    return 0;
}

static struct counter_grading grade(struct model model)
{
    struct guest guest = guest_of(1, true);
    struct counter_grading grading;
    struct grade_guest trial = { .branches_most = 20000, .begin = begin };

    model_begin(&model, &guest);
    trial.place = place_guest(&model);
    assert_int_equal(counter_grade(&trial, 40, model.random, &grading), 0);
    print_message("grade %d: %u rounds, %u wrong by up to %llu, %u early, %u lost, late by up to %llu\n",
                  (int)grading.grade, grading.rounds, grading.wrong, (unsigned long long)grading.worst_off, grading.early,
                  grading.lost, (unsigned long long)grading.worst_skid);
    return grading;
}

static void counter_gets_the_grade_that_it_deserves(void **state)
{
    const struct {
        struct model model;
        enum counter_grade grade;
    } cases[] = {
        { { .counter.skid_margin = 125, .skid_most = 0 }, COUNTER_EXACT },
        { { .counter.skid_margin = 125, .skid_most = 60 }, COUNTER_EXACT },
        { { .counter.skid_margin = 10000, .skid_most = 4000 }, COUNTER_EXACT },
        { { .counter.skid_margin = 125, .skid_most = 120 }, COUNTER_FLAGGED },
        { { .counter.skid_margin = 125, .skid_most = 400 }, COUNTER_UNUSABLE },
        { { .counter.skid_margin = 125, .lost_permille = 200 }, COUNTER_UNUSABLE },
        { { .counter.skid_margin = 125, .early_permille = 200 }, COUNTER_UNUSABLE },
        { { .counter.skid_margin = 125, .off_permille = 50 }, COUNTER_UNUSABLE },
        { { .counter.skid_margin = 125, .stands_still = true }, COUNTER_UNUSABLE },
    };
    uint64_t seed = test_seed("grades");

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct model model = cases[i].model;

        model.random = seed;
        assert_int_equal(grade(model).grade, cases[i].grade);
    }
}

static void branches_are_counted_by_each_cpus_own_event(void **state)
{
    struct branch_event event;

    (void)state;
    assert_int_equal(branch_event_find("GenuineIntel", 6, 0x55, &event), 0); /* Skylake server */
    assert_int_equal(event.config, 0x01c4);
    assert_false(event.is_zen);
    assert_int_equal(branch_event_find("GenuineIntel", 6, 0x6a, &event), 0); /* Ice Lake server */
    assert_int_equal(event.config, 0x11c4);
    assert_int_equal(event.skid_margin, 125);
    assert_int_equal(branch_event_find("AuthenticAMD", 0x19, 0x11, &event), 0); /* Zen 4 */
    assert_int_equal(event.config, 0x00d1);
    assert_int_equal(event.skid_margin, 10000);
    assert_true(event.is_zen);
    assert_int_equal(branch_event_find("AuthenticAMD", 0x15, 0x02, &event), -ENOTSUP);
    assert_int_equal(branch_event_find("GenuineIntel", 6, 0x0f, &event), -ENOTSUP);
    assert_int_equal(branch_event_find("GenuineIntel", 15, 0x55, &event), -ENOTSUP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(place_is_found_to_the_instruction_whatever_the_skid),
        cmocka_unit_test(place_beyond_the_margin_is_refused_never_taken_for_another),
        cmocka_unit_test(place_of_a_lost_interrupt_is_passed_and_seen_at_the_next_kick),
        cmocka_unit_test(place_of_a_wrong_count_is_not_found),
        cmocka_unit_test(place_behind_an_exit_is_not_found),
        cmocka_unit_test(place_of_a_counter_that_stands_still_is_given_up),
        cmocka_unit_test(counter_gets_the_grade_that_it_deserves),
        cmocka_unit_test(branches_are_counted_by_each_cpus_own_event),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
