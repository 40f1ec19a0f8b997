/* The 8254 against its data sheet, and against a second model that moves clock by clock. */
#include "tests/unit/cmocka_prelude.h"

#include <string.h>

#include "vmm/pit.h"

__extension__ typedef unsigned __int128 wide;

/* First nanosecond of a tick, written down independently of the device. */
static uint64_t ns_of(int64_t tick)
{
    return (uint64_t)(((wide)(uint64_t)tick * 1000000000u + 1193182u - 1) / 1193182u);
}

struct bench {
    struct pic pic;
    struct pit pit;
};

static void bench_init(struct bench *bench)
{
    pic_init(&bench->pic);
    pit_init(&bench->pit, 0);
}

static void out8(struct bench *bench, uint16_t port, uint8_t value, int64_t tick)
{
    pit_write(&bench->pit, port, 1, value, ns_of(tick), &bench->pic);
}

static uint8_t in8(struct bench *bench, uint16_t port, int64_t tick)
{
    return (uint8_t)pit_read(&bench->pit, port, 1, ns_of(tick), &bench->pic);
}

static void program(struct bench *bench, unsigned channel, unsigned mode, uint16_t count, int64_t tick)
{
    out8(bench, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1), tick);
    out8(bench, (uint16_t)(0x40 + channel), (uint8_t)count, tick);
    out8(bench, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8), tick);
}

static uint16_t read_both_bytes(struct bench *bench, unsigned channel, int64_t tick)
{
    uint8_t low = in8(bench, (uint16_t)(0x40 + channel), tick);

    return (uint16_t)(low | in8(bench, (uint16_t)(0x40 + channel), tick) << 8);
}

static uint16_t latch_and_read(struct bench *bench, unsigned channel, int64_t tick)
{
    out8(bench, 0x43, (uint8_t)(channel << 6), tick);
    return read_both_bytes(bench, channel, tick);
}

static uint8_t read_status(struct bench *bench, unsigned channel, int64_t tick)
{
    out8(bench, 0x43, (uint8_t)(0xE0 | 2u << channel), tick);
    return in8(bench, (uint16_t)(0x40 + channel), tick);
}

/* Whether the PIC saw a rise of input 0 since the last call. */
static bool edge_seen(struct bench *bench)
{
    bool seen = bench->pic.chips[0].edges & 1;

    bench->pic.chips[0].edges &= 0xFE;
    return seen;
}

static void unprogrammed_timer_never_fires(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    assert_true(pit_deadline_ns(&bench.pit) == UINT64_MAX);
    pit_advance(&bench.pit, UINT64_MAX, &bench.pic);
    assert_false(edge_seen(&bench));
}

static void periodic_mode_raises_an_edge_exactly_at_each_deadline(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 2, 4773, 100); /* 250 Hz, as Linux */
    edge_seen(&bench);
    for (int64_t k = 1; k <= 1000; k++) {
        uint64_t deadline_ns = pit_deadline_ns(&bench.pit);

        assert_true(deadline_ns == ns_of(101 + k * 4773));
        pit_advance(&bench.pit, deadline_ns - 1, &bench.pic);
        assert_false(edge_seen(&bench));
        pit_advance(&bench.pit, deadline_ns, &bench.pic);
        assert_true(edge_seen(&bench));
    }
}

static void missed_periods_give_one_edge(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 2, 1000, 0);
    edge_seen(&bench);
    pit_advance(&bench.pit, ns_of(1 + 57 * 1000 + 3), &bench.pic);
    assert_true(edge_seen(&bench));
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(1 + 58 * 1000));
}

static void periodic_mode_does_not_drift_in_five_centuries(void **unused)
{
    struct bench bench;
    uint64_t late_ns = UINT64_C(500) * 365 * 86400 * 1000000000u;
    int64_t late_tick = (int64_t)((wide)late_ns * 1193182u / 1000000000u);
    int64_t k = (late_tick - 1) / 11932 + 1;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 2, 11932, 0);
    pit_advance(&bench.pit, late_ns, &bench.pic);
    edge_seen(&bench);
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(1 + k * 11932));
    pit_advance(&bench.pit, ns_of(1 + k * 11932) - 1, &bench.pic);
    assert_false(edge_seen(&bench));
    pit_advance(&bench.pit, ns_of(1 + k * 11932), &bench.pic);
    assert_true(edge_seen(&bench));
}

static void time_going_back_counts_as_standing_still(void **unused)
{
    struct bench bench;
    struct pit before;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 2, 1000, 5000);
    before = bench.pit;
    pit_advance(&bench.pit, ns_of(100), &bench.pic);
    assert_memory_equal(&before, &bench.pit, sizeof(before));
}

static void oneshot_strobe_fires_once_one_clock_after_the_count(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 4, 500, 10);
    edge_seen(&bench); /* the mode word itself raised OUT */
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(11 + 500 + 1));
    pit_advance(&bench.pit, ns_of(11 + 500), &bench.pic);
    assert_false(read_status(&bench, 0, 11 + 500) & 0x80);
    pit_advance(&bench.pit, ns_of(11 + 501), &bench.pic);
    assert_true(edge_seen(&bench));
    assert_true(pit_deadline_ns(&bench.pit) == UINT64_MAX);
    out8(&bench, 0x40, 200, 2000); /* written again: fires again */
    out8(&bench, 0x40, 0, 2000);
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(2001 + 201));
}

static void terminal_count_mode_rises_at_the_end_and_stays(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 0, 300, 0);
    assert_false(edge_seen(&bench));
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(301));
    pit_advance(&bench.pit, ns_of(301), &bench.pic);
    assert_true(edge_seen(&bench));
    assert_true(pit_deadline_ns(&bench.pit) == UINT64_MAX);
    assert_int_equal(latch_and_read(&bench, 0, 302), 0xFFFF); /* wraps and counts on */
    assert_true(read_status(&bench, 0, 100000) & 0x80);
    out8(&bench, 0x40, 1, 100001); /* the low byte alone drops OUT and stops it */
    assert_false(read_status(&bench, 0, 100002) & 0x80);
    assert_true(pit_deadline_ns(&bench.pit) == UINT64_MAX);
}

static void zero_counts_65536(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 2, 0, 0);
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(65537));
    assert_int_equal(latch_and_read(&bench, 0, 1), 0);
    assert_int_equal(latch_and_read(&bench, 0, 2), 0xFFFF);
}

static void latch_holds_the_count_until_read(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 2, 0x1234, 0);
    out8(&bench, 0x43, 0x00, 11);
    out8(&bench, 0x43, 0x00, 50); /* ignored: the first is unread */
    assert_int_equal(in8(&bench, 0x40, 70), 0x2A);
    assert_int_equal(in8(&bench, 0x40, 90), 0x12);
    assert_int_equal(in8(&bench, 0x40, 91), (0x1234 - 90) & 0xFF); /* live again */
}

static void read_back_gives_status_then_count_of_each_channel(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 0, 2, 1000, 0);
    program(&bench, 2, 3, 500, 0);
    out8(&bench, 0x43, 0xC0 | 0x02 | 0x08, 101); /* status and count of 0 and 2 */
    assert_int_equal(in8(&bench, 0x40, 200), 0x80 | 0x34);
    assert_int_equal(read_both_bytes(&bench, 0, 200), 900);
    assert_int_equal(in8(&bench, 0x42, 200), 0x80 | 0x36);
    assert_int_equal(read_both_bytes(&bench, 2, 200), 500); /* its gate is low */
    out8(&bench, 0x40, 7, 300);
    out8(&bench, 0x40, 0, 300);
    assert_int_equal(read_status(&bench, 0, 300), 0x80 | 0x40 | 0x34); /* null count until the period ends */
    assert_int_equal(read_status(&bench, 0, 1003) & 0x40, 0);
}

static void single_byte_access_modes(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x43, 0x14, 0); /* low byte only, mode 2 */
    out8(&bench, 0x40, 200, 0);
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(201));
    assert_int_equal(in8(&bench, 0x40, 51), 150);
    assert_int_equal(in8(&bench, 0x40, 52), 149);
    out8(&bench, 0x43, 0x24, 100); /* high byte only */
    out8(&bench, 0x40, 2, 100);
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(101 + 512));
    assert_int_equal(in8(&bench, 0x40, 101), 2);
    assert_int_equal(in8(&bench, 0x40, 102), 1);
}

static void bcd_counts_in_decimal(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x43, 0x35, 0);
    out8(&bench, 0x40, 0x00, 0);
    out8(&bench, 0x40, 0x10, 0); /* 1000 */
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(1001));
    assert_int_equal(latch_and_read(&bench, 0, 2), 0x0999);
    out8(&bench, 0x43, 0x31, 2000);
    out8(&bench, 0x40, 0x00, 2000);
    out8(&bench, 0x40, 0x00, 2000); /* 10000 */
    assert_true(pit_deadline_ns(&bench.pit) == ns_of(12001));
    assert_int_equal(latch_and_read(&bench, 0, 12002), 0x9999);
}

static void gate_two_stops_and_output_two_shows_at_port_61(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    /* As Linux calibrates: gate on, speaker off, mode 0. */
    out8(&bench, 0x61, 0x01, 0);
    program(&bench, 2, 0, 1000, 0);
    assert_int_equal(in8(&bench, 0x61, 1000) & 0x2F, 0x01);
    out8(&bench, 0x61, 0x00, 500 + 1); /* time stands: still 1000 */
    out8(&bench, 0x61, 0x00, 1000);
    assert_int_equal(in8(&bench, 0x61, 90000) & 0x20, 0x00);
    assert_int_equal(latch_and_read(&bench, 2, 90000), 1);
    out8(&bench, 0x61, 0x03, 90000);
    assert_int_equal(in8(&bench, 0x61, 90000) & 0x2F, 0x03);
    assert_int_equal(in8(&bench, 0x61, 90001) & 0x2F, 0x23);
}

static void rising_gate_triggers_the_one_shot(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    program(&bench, 2, 1, 50, 0);
    assert_int_equal(in8(&bench, 0x61, 10) & 0x20, 0x20);
    out8(&bench, 0x61, 0x01, 100);
    assert_int_equal(in8(&bench, 0x61, 101) & 0x20, 0x00);
    out8(&bench, 0x61, 0x00, 120); /* does not stop it */
    out8(&bench, 0x61, 0x01, 130); /* but this starts it anew */
    assert_int_equal(in8(&bench, 0x61, 180) & 0x20, 0x00);
    assert_int_equal(in8(&bench, 0x61, 181) & 0x20, 0x20);
    program(&bench, 2, 5, 20, 200); /* mode 5: a strobe of one clock */
    out8(&bench, 0x61, 0x00, 201);
    out8(&bench, 0x61, 0x01, 210);
    assert_int_equal(in8(&bench, 0x61, 230) & 0x20, 0x20);
    assert_int_equal(in8(&bench, 0x61, 231) & 0x20, 0x00);
    assert_int_equal(in8(&bench, 0x61, 232) & 0x20, 0x20);
}

static void gate_restarts_the_square_wave(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x61, 0x01, 0);
    program(&bench, 2, 3, 100, 0);
    assert_int_equal(in8(&bench, 0x61, 60) & 0x20, 0x00);
    out8(&bench, 0x61, 0x00, 61); /* low gate: high output */
    assert_int_equal(in8(&bench, 0x61, 61) & 0x20, 0x20);
    out8(&bench, 0x61, 0x01, 1000);
    assert_int_equal(in8(&bench, 0x61, 1050) & 0x20, 0x20);
    assert_int_equal(in8(&bench, 0x61, 1051) & 0x20, 0x00);
    assert_int_equal(in8(&bench, 0x61, 1101) & 0x20, 0x20);
}

static void refresh_bit_toggles_every_fifteen_microseconds(void **unused)
{
    struct bench bench;
    unsigned changes = 0;
    uint8_t last;

    (void)unused;
    bench_init(&bench);
    last = in8(&bench, 0x61, 0) & 0x10;
    for (int64_t tick = 1; tick <= 1800; tick++) {
        uint8_t now = in8(&bench, 0x61, tick) & 0x10;

        changes += now != last;
        last = now;
    }
    assert_int_equal(changes, 100);
}

/* Channel 0, binary, as the data sheet tells it: one clock at a time. */
struct reference {
    unsigned mode;
    uint32_t register_count; /* CR, 65536 for 0 */
    uint32_t period;         /* mode 3: the count in use */
    uint32_t element;        /* CE */
    bool fresh;              /* CR not yet in CE */
    bool running;
    bool fired;
    bool out;
};

static void reference_set_mode(struct reference *ref, unsigned mode)
{
    memset(ref, 0, sizeof(*ref));
    ref->mode = mode;
    ref->out = mode != 0;
}

static void reference_write(struct reference *ref, uint32_t count)
{
    ref->register_count = count;
    ref->fresh = true;
    if (ref->mode == 0)
        ref->out = false;
}

static void reference_load(struct reference *ref)
{
    ref->period = ref->register_count;
    ref->element = ref->mode == 3 ? ref->period & ~1u : ref->period;
    ref->fresh = false;
    ref->running = true;
    ref->fired = false;
}

static void reference_clock(struct reference *ref)
{
    if (ref->fresh && (ref->mode == 0 || ref->mode == 4 || !ref->running)) {
        reference_load(ref);
        if (ref->mode == 4)
            ref->out = true;
        return;
    }
    if (!ref->running)
        return;
    switch (ref->mode) {
    case 0:
        ref->element = (ref->element - 1) & 0xFFFF;
        if (ref->element == 0)
            ref->out = true;
        break;
    case 2:
        ref->element--;
        if (ref->element == 1)
            ref->out = false;
        if (ref->element == 0) {
            reference_load(ref);
            ref->out = true;
        }
        break;
    case 3:
        if (ref->element == 0) { /* odd count, high half: one clock after it expired */
            ref->out = false;
            reference_load(ref);
            break;
        }
        ref->element -= 2;
        if (ref->element == 0 && !(ref->out && ref->period % 2 == 1)) {
            ref->out = !ref->out;
            reference_load(ref);
        }
        break;
    default:
        ref->element = (ref->element - 1) & 0xFFFF;
        ref->out = !(ref->element == 0 && !ref->fired);
        ref->fired = ref->fired || ref->element == 0;
        break;
    }
}

static uint32_t random_count(uint64_t *random)
{
    switch (test_random(random) % 4) {
    case 0:
        return 2 + test_random(random) % 8;
    case 1:
        return 65536;
    case 2:
        return 2 + test_random(random) % 300;
    default:
        return 2 + test_random(random) % 65534;
    }
}

static void every_mode_agrees_with_the_clock_by_clock_model(void **unused)
{
    static const unsigned modes[] = {0, 2, 3, 4};
    uint64_t random = test_seed(__func__);
    struct bench bench;
    struct reference ref;
    int64_t tick = 0;

    (void)unused;
    bench_init(&bench);
    for (unsigned round = 0; round < 3000; round++) {
        uint32_t count = random_count(&random);

        if (round % 6 == 0) {
            unsigned mode = modes[test_random(&random) % 4];

            reference_set_mode(&ref, mode);
            reference_write(&ref, count);
            program(&bench, 0, mode, (uint16_t)count, tick);
        } else {
            reference_write(&ref, count);
            out8(&bench, 0x40, (uint8_t)count, tick);
            out8(&bench, 0x40, (uint8_t)(count >> 8), tick);
        }
        edge_seen(&bench);
        for (unsigned step = 0; step < 12; step++) {
            uint64_t deadline_ns = pit_deadline_ns(&bench.pit);
            int64_t target = tick + 1 + (int64_t)(test_random(&random) % (step % 3 == 0 ? 3 * count + 9 : 9));
            int64_t first_rise = -1;

            while (tick < target) {
                bool before = ref.out;

                reference_clock(&ref);
                tick++;
                if (ref.out && !before && first_rise < 0)
                    first_rise = tick;
            }
            pit_advance(&bench.pit, ns_of(tick), &bench.pic);
            if (first_rise >= 0)
                assert_true(deadline_ns == ns_of(first_rise));
            else
                assert_true(deadline_ns > ns_of(tick));
            assert_int_equal(edge_seen(&bench), first_rise >= 0 && ref.out);
            assert_int_equal(read_status(&bench, 0, tick) >> 7, ref.out);
            assert_int_equal(latch_and_read(&bench, 0, tick), ref.element & 0xFFFF);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unprogrammed_timer_never_fires),
        cmocka_unit_test(periodic_mode_raises_an_edge_exactly_at_each_deadline),
        cmocka_unit_test(missed_periods_give_one_edge),
        cmocka_unit_test(periodic_mode_does_not_drift_in_five_centuries),
        cmocka_unit_test(time_going_back_counts_as_standing_still),
        cmocka_unit_test(oneshot_strobe_fires_once_one_clock_after_the_count),
        cmocka_unit_test(terminal_count_mode_rises_at_the_end_and_stays),
        cmocka_unit_test(zero_counts_65536),
        cmocka_unit_test(latch_holds_the_count_until_read),
        cmocka_unit_test(read_back_gives_status_then_count_of_each_channel),
        cmocka_unit_test(single_byte_access_modes),
        cmocka_unit_test(bcd_counts_in_decimal),
        cmocka_unit_test(gate_two_stops_and_output_two_shows_at_port_61),
        cmocka_unit_test(rising_gate_triggers_the_one_shot),
        cmocka_unit_test(gate_restarts_the_square_wave),
        cmocka_unit_test(refresh_bit_toggles_every_fifteen_microseconds),
        cmocka_unit_test(every_mode_agrees_with_the_clock_by_clock_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
