/*
 * The pace of the primary, against a simulated pair with a clock of its own: the guest fills a log as fast as it is
 * let, the backup works it off at some speed of its own and tells so with its heartbeats. Ages come from the
 * channel's own marks.
 */
#include "base/clock.h"
#include "channel/lag.h"
#include "vmm/pace.h"

#include <math.h>

#include "tests/unit/cmocka_prelude.h"

#define LOOK_NS (100 * NS_PER_US) /* between rounds of the I/O thread; between 50 and 150 us here */

struct pair {
    uint64_t target_ns, heartbeat_ns;
    double records_per_s; /* that the guest makes with all of its CPU */
    double record_bytes;
    double speed; /* of the backup; 1: the primary's */
    uint64_t random;

    uint64_t now_ns, beat_ns;
    double made, consumed;
    uint64_t told; /* consumed, as the primary knows */
    struct lag_marks marks;
    struct channel_lag lag;
    struct pace pace;
    unsigned permille;
};

/* What was seen in a stretch of time. */
struct seen {
    double least_age, most_age; /* in targets */
    unsigned least_permille, most_permille, steepest; /* steepest: rise of permille within 10 ms */
    double most_full;
    uint64_t full_looks;
};

static struct pair pair_of(double speed, uint64_t seed)
{
    struct pair pair = { .target_ns = NS_PER_S, .heartbeat_ns = 50 * NS_PER_MS, .records_per_s = 20000,
                         .record_bytes = 200, .speed = speed, .random = seed, .now_ns = NS_PER_S };

    pair.pace.target_ns = pair.target_ns;
    pair.lag.ring_bytes = 16u << 20;
    return pair;
}

static struct seen pair_run(struct pair *pair, double seconds)
{
    struct seen seen = { .least_age = INFINITY, .least_permille = 1000 };
    uint64_t end_ns = pair->now_ns + (uint64_t)(seconds * 1e9), ten_ns = pair->now_ns;
    unsigned ten_ago = pair->permille;

    while (pair->now_ns < end_ns) {
        uint64_t step_ns = LOOK_NS / 2 + test_random(&pair->random) % LOOK_NS;
        double full = pair->records_per_s * (double)step_ns / 1e9, age;

        pair->now_ns += step_ns;
        /* The guest's records come in lumps, and cost more and less to replay. */
        if (pair->lag.bytes + 10 * (uint64_t)pair->record_bytes < pair->lag.ring_bytes)
            pair->made += full * (1 - pair->permille / 1000.0) * (double)(test_random(&pair->random) % 2001) / 1000;
        else
            seen.full_looks++;
        pair->consumed += full * pair->speed * (double)(test_random(&pair->random) % 2001) / 1000;
        pair->consumed = fmin(pair->consumed, floor(pair->made));
        if (pair->now_ns >= pair->beat_ns) {
            pair->told = (uint64_t)pair->consumed;
            pair->beat_ns = pair->now_ns + pair->heartbeat_ns;
        }
        lag_marks_update(&pair->marks, (uint64_t)pair->made, pair->told, pair->now_ns);
        pair->lag.consumed_lsn = pair->told;
        pair->lag.records = (uint64_t)pair->made - pair->told;
        pair->lag.bytes = (uint64_t)((double)pair->lag.records * pair->record_bytes);
        pair->lag.age_ns = pair->lag.records > 0 ? pair->now_ns - atomic_load(&pair->marks.oldest_ns) : 0;
        pair->permille = pace_update(&pair->pace, &pair->lag, pair->now_ns);

        assert_true(pair->permille <= PACE_MOST_PERMILLE);
        age = (double)pair->lag.age_ns / (double)pair->target_ns;
        seen.least_age = fmin(seen.least_age, age);
        seen.most_age = fmax(seen.most_age, age);
        seen.most_full = fmax(seen.most_full, (double)pair->lag.bytes / (double)pair->lag.ring_bytes);
        seen.least_permille = pair->permille < seen.least_permille ? pair->permille : seen.least_permille;
        seen.most_permille = pair->permille > seen.most_permille ? pair->permille : seen.most_permille;
        if (pair->now_ns >= ten_ns + 10 * NS_PER_MS) {
            if (pair->permille > ten_ago && pair->permille - ten_ago > seen.steepest)
                seen.steepest = pair->permille - ten_ago;
            ten_ago = pair->permille;
            ten_ns = pair->now_ns;
        }
    }
    return seen;
}

static void show(const char *what, double speed, const struct seen *seen)
{
    print_message("%s, backup's speed %.2f: age %.2f to %.2f targets, slowed by %.1f to %.1f %%, ring at most %.2f "
                  "full\n", what, speed, seen->least_age, seen->most_age, seen->least_permille / 10.0, seen->most_permille / 10.0,
                  seen->most_full);
}

static void pace_leaves_the_guest_alone_while_the_backup_keeps_up(void **state)
{
    static const double speeds[] = { 1.05, 1.5, 20 };
    uint64_t seed = test_seed("pace");

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct pair pair = pair_of(speeds[i], seed + i);
        struct seen seen = pair_run(&pair, 30);

        show("keeps up", speeds[i], &seen);
        assert_int_equal(seen.most_permille, 0);
    }
}

static void pace_with_target_0_never_slows_the_guest(void **state)
{
    struct pair pair = pair_of(0, 1);

    (void)state;
    pair.pace.target_ns = 0;
    assert_int_equal(pair_run(&pair, 30).most_permille, 0);
}

static void pace_holds_the_age_at_its_target_without_swinging(void **state)
{
    /* How far the age may go while the pace is found: what is logged by then has to be replayed at that speed. */
    static const struct {
        double speed, most_age;
    } backups[] = { { 0.97, 1 }, { 0.9, 1 }, { 0.8, 1.1 }, { 0.5, 2 }, { 0.25, 3.5 } };
    static const uint64_t targets_ns[] = { 200 * NS_PER_MS, NS_PER_S, 5 * NS_PER_S };
    uint64_t seed = test_seed("pace");

    (void)state;
    for (size_t i = 0; i < sizeof(backups) / sizeof(backups[0]); i++) {
        for (size_t t = 0; t < 3; t++) {
            struct pair pair = pair_of(backups[i].speed, seed + 10 * i + t);
            double targets_s = (double)targets_ns[t] / 1e9;
            struct seen search, settled;

            pair.pace.target_ns = pair.target_ns = targets_ns[t];
            pair.lag.ring_bytes = 1u << 30; /* only the age counts here */
            search = pair_run(&pair, 30 * targets_s + 3);
            settled = pair_run(&pair, 20 * targets_s);
            show("search", backups[i].speed, &search);
            show("settled", backups[i].speed, &settled);
            assert_true(search.most_age <= backups[i].most_age);
            assert_true(settled.most_age <= 1.15 && settled.least_age >= 0.2);
            /* A heartbeat is a quarter of the smallest target: so much the age jumps all the time. */
            assert_true(settled.most_permille - settled.least_permille <= (t == 0 ? 300 : 80));
            assert_true(fabs((settled.most_permille + settled.least_permille) / 2.0 - 1000 * (1 - backups[i].speed)) <
                        (t == 0 ? 100 : 40));
        }
    }
}

static void pace_begins_with_a_few_percent(void **state)
{
    struct pair pair = pair_of(0.8, test_seed("pace"));

    (void)state;
    struct seen seen = pair_run(&pair, 40);

    print_message("steepest rise within 10 ms: %.1f %%\n", seen.steepest / 10.0);
    assert_true(seen.steepest <= 40);
}

static void pace_releases_the_guest_when_the_backup_is_fast_again(void **state)
{
    struct pair pair = pair_of(0.5, test_seed("pace"));
    struct seen seen;

    (void)state;
    pair_run(&pair, 30);
    assert_true(pair.permille > 400);
    pair.speed = 2;
    pair_run(&pair, 1);
    assert_true(pair.permille > 100); /* gently */
    seen = pair_run(&pair, 9);
    assert_int_equal(pair.permille, 0);
    assert_true(seen.steepest <= 5);
}

static void pace_survives_a_backup_that_stands_still_and_goes_on(void **state)
{
    static const double pauses_s[] = { 0.4, 1, 3, 20 };
    uint64_t seed = test_seed("pace");

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct pair pair = pair_of(0.7, seed + i);
        struct seen seen;

        pair.records_per_s = 2000; /* a ring that holds the longest pause */
        pair_run(&pair, 30);
        pair.speed = 0;
        seen = pair_run(&pair, pauses_s[i]);
        assert_int_equal(seen.full_looks, 0);
        assert_true(i < 2 || seen.most_permille == PACE_MOST_PERMILLE);
        pair.speed = 0.7;
        seen = pair_run(&pair, 40);
        show("after a pause", 0.7, &seen);
        assert_int_equal(seen.full_looks, 0);
        seen = pair_run(&pair, 10);
        assert_true(seen.most_age <= 1.15 && seen.least_age >= 0.5);
    }
}

static void pace_never_stops_the_guest_nor_hurries_when_nothing_moves(void **state)
{
    struct pair pair = pair_of(0, test_seed("pace"));
    double made;

    (void)state;
    pair_run(&pair, 20); /* long enough for the ring to fill: 4 MB/s at first, 0.4 MB/s at the end */
    assert_int_equal(pair.permille, PACE_MOST_PERMILLE);
    made = pair.made;
    pair_run(&pair, 5);
    assert_true(pair.made - made > 0.08 * 5 * pair.records_per_s);
}

static void pace_keeps_room_in_the_ring(void **state)
{
    static const double speeds[] = { 0.9, 0.5, 0.25, 0.12 };
    uint64_t seed = test_seed("pace");

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct pair pair = pair_of(speeds[i], seed + i);
        struct seen seen;

        pair.records_per_s = 100000;
        pair.record_bytes = 4096; /* 400 MB/s: the ring is full after 40 ms */
        pair.heartbeat_ns = NS_PER_MS; /* stands for the credits that a link gives within the ring */
        seen = pair_run(&pair, 20);
        show("bulk", speeds[i], &seen);
        assert_int_equal(seen.full_looks, 0);
        assert_true(seen.most_full < 0.95);
    }
}

static void pace_stays_sane_with_a_backup_of_changing_speed(void **state)
{
    struct pair pair = pair_of(1, test_seed("pace"));
    double worst = 0;

    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        struct seen seen;

        pair.speed = 0.3 + (double)(test_random(&pair.random) % 1200) / 1000; /* 0.3 to 1.5 */
        seen = pair_run(&pair, 0.1 + (double)(test_random(&pair.random) % 50) / 10);
        worst = fmax(worst, seen.most_age);
        assert_int_equal(seen.full_looks, 0);
    }
    print_message("worst age %.2f targets\n", worst);
    assert_true(worst < 4);
}

static void pace_copes_with_an_io_thread_that_was_frozen(void **state)
{
    struct pair pair = pair_of(0.9, test_seed("pace"));
    double before;

    (void)state;
    pair_run(&pair, 30);
    before = pair.pace.steady;
    pair.now_ns += 3600 * NS_PER_S; /* and nothing happened meanwhile: the age is an hour */
    pair_run(&pair, 0.001);
    assert_true(pair.pace.steady - before <= 0.25); /* one step of a tenth of a target, and a few looks */
    assert_true(pair_run(&pair, 60).most_permille <= PACE_MOST_PERMILLE);
    assert_true(pair.lag.age_ns < 2 * NS_PER_S);
}

/* ---- rests ---- */

static void rests_add_up_to_the_share_however_the_guest_exits(void **state)
{
    static const unsigned shares[] = { 10, 50, 333, 500, 900 };
    uint64_t random = test_seed("rests");

    (void)state;
    for (size_t i = 0; i < 5; i++) {
        struct pace_rest rest = { 0 };
        uint64_t now_ns = NS_PER_S, ran_ns = 0, rested_ns = 0;

        while (ran_ns + rested_ns < 100 * NS_PER_S) {
            uint64_t run_ns = test_random(&random) % (test_random(&random) % 8 == 0 ? 2 * NS_PER_MS : 50 * NS_PER_US);
            uint64_t due_ns, slept_ns;

            now_ns += run_ns;
            ran_ns += run_ns;
            due_ns = pace_rest_due(&rest, shares[i], now_ns);
            if (due_ns == 0)
                continue;
            assert_true(due_ns >= PACE_REST_LEAST_NS && due_ns <= PACE_REST_MOST_NS);
            slept_ns = due_ns + test_random(&random) % (100 * NS_PER_US); /* a sleep is never punctual */
            pace_rest_done(&rest, now_ns, now_ns + slept_ns);
            now_ns += slept_ns;
            rested_ns += slept_ns;
        }
        assert_true(fabs(1000.0 * (double)rested_ns / (double)(ran_ns + rested_ns) - shares[i]) < 2 + shares[i] * 0.01);
    }
}

static void rests_are_not_owed_for_time_in_which_the_guest_slept(void **state)
{
    struct pace_rest rest = { 0 };
    uint64_t now_ns = NS_PER_S;

    (void)state;
    assert_int_equal(pace_rest_due(&rest, 500, now_ns), 0);
    for (unsigned i = 0; i < 9; i++) {
        pace_rest_skip(&rest, now_ns += 20 * NS_PER_MS);
        assert_int_equal(pace_rest_due(&rest, 500, now_ns += 10 * NS_PER_US), 0);
    }
    pace_rest_skip(&rest, now_ns += NS_PER_S);
    assert_int_equal(pace_rest_due(&rest, 500, now_ns += 10 * NS_PER_US), 100 * NS_PER_US);
}

static void rests_are_bounded_and_no_debt_is_kept_for_long(void **state)
{
    struct pace_rest rest = { 0 };
    uint64_t now_ns = NS_PER_S;

    (void)state;
    assert_int_equal(pace_rest_due(&rest, 900, now_ns), 0);
    assert_int_equal(pace_rest_due(&rest, 900, now_ns += 60 * NS_PER_S), PACE_REST_MOST_NS);
    pace_rest_done(&rest, now_ns, now_ns + PACE_REST_MOST_NS);
    now_ns += PACE_REST_MOST_NS;
    assert_int_equal(pace_rest_due(&rest, 900, now_ns), 0);
    /* A rest that took a minute is worth no more than one of the longest. */
    assert_true(pace_rest_due(&rest, 900, now_ns += NS_PER_MS) > 0);
    pace_rest_done(&rest, now_ns, now_ns + 60 * NS_PER_S);
    now_ns += 60 * NS_PER_S;
    assert_true(pace_rest_due(&rest, 900, now_ns += 3 * NS_PER_MS) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pace_leaves_the_guest_alone_while_the_backup_keeps_up),
        cmocka_unit_test(pace_with_target_0_never_slows_the_guest),
        cmocka_unit_test(pace_holds_the_age_at_its_target_without_swinging),
        cmocka_unit_test(pace_begins_with_a_few_percent),
        cmocka_unit_test(pace_releases_the_guest_when_the_backup_is_fast_again),
        cmocka_unit_test(pace_survives_a_backup_that_stands_still_and_goes_on),
        cmocka_unit_test(pace_never_stops_the_guest_nor_hurries_when_nothing_moves),
        cmocka_unit_test(pace_keeps_room_in_the_ring),
        cmocka_unit_test(pace_stays_sane_with_a_backup_of_changing_speed),
        cmocka_unit_test(pace_copes_with_an_io_thread_that_was_frozen),
        cmocka_unit_test(rests_add_up_to_the_share_however_the_guest_exits),
        cmocka_unit_test(rests_are_not_owed_for_time_in_which_the_guest_slept),
        cmocka_unit_test(rests_are_bounded_and_no_debt_is_kept_for_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
