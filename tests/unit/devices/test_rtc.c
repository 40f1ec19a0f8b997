/* The MC146818 against its data sheet; dates against the C library's calendar. */
#include "tests/unit/cmocka_prelude.h"

#include <string.h>
#include <time.h>

#include "vmm/rtc.h"

#define S UINT64_C(1000000000)

struct bench {
    struct pic pic;
    struct rtc rtc;
};

static void bench_init(struct bench *bench, int64_t start_unix_seconds)
{
    pic_init(&bench->pic);
    rtc_init(&bench->rtc, start_unix_seconds, 0);
}

static uint8_t get(struct bench *bench, uint8_t index, uint64_t now_ns)
{
    rtc_write(&bench->rtc, 0x70, 1, index, now_ns, &bench->pic);
    return (uint8_t)rtc_read(&bench->rtc, 0x71, 1, now_ns, &bench->pic);
}

static void set(struct bench *bench, uint8_t index, uint8_t value, uint64_t now_ns)
{
    rtc_write(&bench->rtc, 0x70, 2, (uint32_t)(index | value << 8), now_ns, &bench->pic);
}

static bool line(const struct bench *bench)
{
    return bench->pic.chips[1].lines & 1;
}

static unsigned bcd(unsigned value)
{
    return value / 10 << 4 | value % 10;
}

static void assert_shows(struct bench *bench, int64_t unix_seconds, uint64_t now_ns)
{
    time_t when = (time_t)unix_seconds;
    struct tm tm;

    gmtime_r(&when, &tm);
    assert_int_equal(get(bench, 0x00, now_ns), bcd((unsigned)tm.tm_sec));
    assert_int_equal(get(bench, 0x02, now_ns), bcd((unsigned)tm.tm_min));
    assert_int_equal(get(bench, 0x04, now_ns), bcd((unsigned)tm.tm_hour));
    assert_int_equal(get(bench, 0x06, now_ns), bcd((unsigned)tm.tm_wday + 1));
    assert_int_equal(get(bench, 0x07, now_ns), bcd((unsigned)tm.tm_mday));
    assert_int_equal(get(bench, 0x08, now_ns), bcd((unsigned)tm.tm_mon + 1));
    assert_int_equal(get(bench, 0x09, now_ns), bcd((unsigned)tm.tm_year % 100));
    assert_int_equal(get(bench, 0x32, now_ns), bcd((unsigned)(tm.tm_year + 1900) / 100));
}

static void date_agrees_with_the_c_library_over_four_centuries(void **unused)
{
    uint64_t random = test_seed(__func__);
    struct bench bench;

    (void)unused;
    for (unsigned i = 0; i < 20000; i++) {
        int64_t start = (int64_t)(test_random(&random) % UINT64_C(12622780800));

        bench_init(&bench, start);
        assert_shows(&bench, start, 0);
    }
}

static void leap_days_come_and_go(void **unused)
{
    static const struct {
        int64_t unix_seconds; /* last second of 28 February */
        uint8_t day, month;   /* the next day */
    } cases[] = {
        {1709164799, 0x29, 0x02}, /* 2024 */
        {1677628799, 0x01, 0x03}, /* 2023 */
        {951782399, 0x29, 0x02},  /* 2000 */
        {4107542399, 0x01, 0x03}, /* 2100 */
    };
    struct bench bench;

    (void)unused;
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bench_init(&bench, cases[i].unix_seconds);
        assert_int_equal(get(&bench, 0x07, S - 1), 0x28);
        assert_int_equal(get(&bench, 0x07, S), cases[i].day);
        assert_int_equal(get(&bench, 0x08, S), cases[i].month);
    }
}

static void time_follows_virtual_time(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, 1735689599); /* 2024-12-31 23:59:59 */
    assert_shows(&bench, 1735689599, S - 1);
    assert_shows(&bench, 1735689600, S);
    assert_shows(&bench, 1735689599 + 86400 * 365, 86400 * 365 * S);
}

static void dates_before_1970_wrap_by_400_years(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, -1);
    assert_shows(&bench, INT64_C(12622780800) - 1, 0);
    bench_init(&bench, INT64_MIN);
    assert_in_range(get(&bench, 0x08, 0), 0x01, 0x12);
}

static void binary_and_twelve_hour_formats(void **unused)
{
    static const uint8_t hours[][2] = {{0, 12}, {1, 1}, {11, 11}, {12, 0x8C}, {13, 0x81}, {23, 0x8B}};
    struct bench bench;

    (void)unused;
    for (unsigned i = 0; i < sizeof(hours) / sizeof(hours[0]); i++) {
        bench_init(&bench, hours[i][0] * 3600 + 45 * 60);
        set(&bench, 0x0B, 0x04, 0); /* binary, 12 hours */
        assert_int_equal(get(&bench, 0x04, 0), hours[i][1]);
        assert_int_equal(get(&bench, 0x02, 0), 45);
        set(&bench, 0x0B, 0x84, 0); /* written back in that format: the same time */
        set(&bench, 0x04, hours[i][1], 0);
        set(&bench, 0x0B, 0x04, 0);
        set(&bench, 0x0B, 0x02, 0);
        assert_int_equal(get(&bench, 0x04, 0), bcd(hours[i][0]));
    }
}

static void setting_the_time_as_linux_does(void **unused)
{
    struct bench bench;
    static const uint8_t writes[][2] = {{0x09, 0x31}, {0x08, 0x02}, {0x07, 0x28},
                                        {0x04, 0x23}, {0x02, 0x59}, {0x00, 0x58}};

    (void)unused;
    bench_init(&bench, 1700000000);
    set(&bench, 0x0B, 0x82, 5 * S + 7);
    for (unsigned i = 0; i < sizeof(writes) / sizeof(writes[0]); i++)
        set(&bench, writes[i][0], writes[i][1], 6 * S);
    assert_int_equal(get(&bench, 0x00, 9 * S), 0x58);         /* held */
    assert_int_equal(get(&bench, 0x0A, 9 * S + S - 1), 0x26); /* no update while held */
    set(&bench, 0x0B, 0x02, 10 * S);
    assert_shows(&bench, 1930089598, 10 * S); /* 2031-02-28 23:59:58 UTC */
    assert_shows(&bench, 1930089600, 12 * S);
}

static void update_in_progress_shows_just_before_the_second(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, 0);
    assert_int_equal(get(&bench, 0x0A, S - 244001), 0x26);
    assert_int_equal(get(&bench, 0x0A, S - 244000), 0xA6);
    assert_int_equal(get(&bench, 0x0A, S - 1), 0xA6);
    assert_int_equal(get(&bench, 0x0A, S), 0x26);
    set(&bench, 0x0A, 0xA6, S);
    assert_int_equal(get(&bench, 0x0A, S), 0x26); /* UIP is read-only */
}

static void periodic_interrupt_fires_at_its_rate(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, 0);
    set(&bench, 0x0B, 0x42, 0);
    for (uint64_t k = 1; k <= 4096; k++) { /* 1,024 Hz */
        uint64_t due_ns = (k * S + 1023) / 1024;

        assert_true(rtc_deadline_ns(&bench.rtc) == due_ns);
        rtc_advance(&bench.rtc, due_ns - 1, &bench.pic);
        assert_false(line(&bench));
        rtc_advance(&bench.rtc, due_ns, &bench.pic);
        assert_true(line(&bench));
        assert_true(rtc_deadline_ns(&bench.rtc) == UINT64_MAX);
        assert_int_equal(get(&bench, 0x0C, due_ns) & 0xC0, 0xC0);
        assert_false(line(&bench));
    }
}

static void every_periodic_rate_has_its_period(void **unused)
{
    struct bench bench;
    /* MC146818, table 5, for a time base of 32,768 Hz; Hz */
    static const unsigned rates_hz[16] = {0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2};

    (void)unused;
    for (uint8_t rate = 0; rate < 16; rate++) {
        bench_init(&bench, 0);
        set(&bench, 0x0A, 0x20 | rate, 0);
        set(&bench, 0x0B, 0x42, 0);
        if (rate == 0)
            assert_true(rtc_deadline_ns(&bench.rtc) == UINT64_MAX);
        else
            assert_true(rtc_deadline_ns(&bench.rtc) == (S + rates_hz[rate] - 1) / rates_hz[rate]);
    }
}

static void alarm_fires_at_its_time_of_day(void **unused)
{
    struct bench bench;
    uint64_t due_ns = (13 * 3600 + 5 * 60 + 9) * S;

    (void)unused;
    bench_init(&bench, 0);
    set(&bench, 0x05, 0x13, 0);
    set(&bench, 0x03, 0x05, 0);
    set(&bench, 0x01, 0x09, 0);
    set(&bench, 0x0B, 0x22, 0);
    assert_true(rtc_deadline_ns(&bench.rtc) == due_ns);
    rtc_advance(&bench.rtc, due_ns - 1, &bench.pic);
    assert_false(line(&bench));
    rtc_advance(&bench.rtc, due_ns, &bench.pic);
    assert_true(line(&bench));
    assert_int_equal(get(&bench, 0x0C, due_ns) & 0xA0, 0xA0);
    assert_int_equal(get(&bench, 0x0C, due_ns), 0x00);
    assert_true(rtc_deadline_ns(&bench.rtc) == due_ns + 86400 * S); /* and the next day */
    set(&bench, 0x05, 0xFF, due_ns);                                /* any hour */
    assert_true(rtc_deadline_ns(&bench.rtc) == due_ns + 3600 * S);
    set(&bench, 0x03, 0xC0, due_ns);
    assert_true(rtc_deadline_ns(&bench.rtc) == due_ns + 60 * S);
    set(&bench, 0x01, 0xC0, due_ns);
    assert_true(rtc_deadline_ns(&bench.rtc) == due_ns + S);
    set(&bench, 0x01, 0x99, due_ns); /* no such second */
    assert_true(rtc_deadline_ns(&bench.rtc) == UINT64_MAX);
}

static void alarm_passed_over_in_one_step_is_noticed(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, 0);
    set(&bench, 0x01, 0x30, 0);
    set(&bench, 0x03, 0x00, 0);
    set(&bench, 0x05, 0x00, 0);
    rtc_advance(&bench.rtc, 29 * S, &bench.pic);
    assert_int_equal(get(&bench, 0x0C, 29 * S) & 0x20, 0x00);
    rtc_advance(&bench.rtc, 100000 * S, &bench.pic);
    assert_int_equal(get(&bench, 0x0C, 100000 * S) & 0x30, 0x30);
    assert_false(line(&bench)); /* flags without enables */
}

static void update_ended_interrupt_comes_each_second(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, 0);
    set(&bench, 0x0B, 0x12, S / 2);
    assert_true(rtc_deadline_ns(&bench.rtc) == S);
    rtc_advance(&bench.rtc, S, &bench.pic);
    assert_true(line(&bench));
    assert_int_equal(get(&bench, 0x0C, S) & 0x90, 0x90);
    assert_true(rtc_deadline_ns(&bench.rtc) == 2 * S);
}

static void cmos_ram_and_status_registers(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench, 0);
    for (uint8_t index = 0x0E; index < 0x80; index++)
        if (index != 0x32)
            set(&bench, index, (uint8_t)~index, 0);
    for (uint8_t index = 0x0E; index < 0x80; index++)
        if (index != 0x32)
            assert_int_equal(get(&bench, index | 0x80, 0), (uint8_t)~index); /* bit 7 is the NMI mask */
    set(&bench, 0x0D, 0x00, 0);
    assert_int_equal(get(&bench, 0x0D, 0), 0x80);
    assert_int_equal(rtc_read(&bench.rtc, 0x70, 1, 0, &bench.pic), 0xFF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(date_agrees_with_the_c_library_over_four_centuries),
        cmocka_unit_test(leap_days_come_and_go),
        cmocka_unit_test(time_follows_virtual_time),
        cmocka_unit_test(dates_before_1970_wrap_by_400_years),
        cmocka_unit_test(binary_and_twelve_hour_formats),
        cmocka_unit_test(setting_the_time_as_linux_does),
        cmocka_unit_test(update_in_progress_shows_just_before_the_second),
        cmocka_unit_test(periodic_interrupt_fires_at_its_rate),
        cmocka_unit_test(every_periodic_rate_has_its_period),
        cmocka_unit_test(alarm_fires_at_its_time_of_day),
        cmocka_unit_test(alarm_passed_over_in_one_step_is_noticed),
        cmocka_unit_test(update_ended_interrupt_comes_each_second),
        cmocka_unit_test(cmos_ram_and_status_registers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
