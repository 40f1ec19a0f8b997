/* Medians, spreads, the rule of ftbench compare, and what perftest says. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>

#include "bench/channel_bench.h"
#include "bench/statistics.h"

static void median_of_odd_and_even_counts(void **state)
{
    const double odd[] = { 5, 1, 9 }, even[] = { 4, 1, 2, 100 }, one[] = { 7 };
    struct summary summary = statistics_summarize(odd, 3);

    (void)state;
    assert_true(summary.median == 5 && summary.min == 1 && summary.max == 9);
    assert_true(statistics_spread(&summary) == 8.0 / 5.0);
    assert_true(statistics_summarize(even, 4).median == 3);
    summary = statistics_summarize(one, 1);
    assert_true(summary.median == 7 && statistics_spread(&summary) == 0);
}

static void quantile_is_a_value_that_was_there(void **state)
{
    const double values[] = { 30, 10, 50, 20, 40 };

    (void)state;
    assert_true(statistics_quantile(values, 5, 0) == 10);
    assert_true(statistics_quantile(values, 5, 0.2) == 10);
    assert_true(statistics_quantile(values, 5, 0.5) == 30);
    assert_true(statistics_quantile(values, 5, 0.9) == 50);
    assert_true(statistics_quantile(values, 5, 1) == 50);
    assert_true(statistics_quantile(values, 1, 0.99) == 30);
}

static void zero_median_has_no_spread(void **state)
{
    const double values[] = { 0, 0, 3 };
    struct summary summary = statistics_summarize(values, 3);

    (void)state;
    assert_true(statistics_spread(&summary) == 0);
}

static void compare_tells_better_from_worse(void **state)
{
    const double low[] = { 100, 101, 102, 103, 104 }, high[] = { 120, 121, 122, 123, 124 };

    (void)state;
    assert_int_equal(statistics_compare(low, 5, high, 5, true, 0.05), CHANGE_WORSE);
    assert_int_equal(statistics_compare(low, 5, high, 5, false, 0.05), CHANGE_BETTER);
    assert_int_equal(statistics_compare(high, 5, low, 5, true, 0.05), CHANGE_BETTER);
    assert_int_equal(statistics_compare(high, 5, low, 5, false, 0.05), CHANGE_WORSE);
}

static void compare_calls_overlap_noise(void **state)
{
    /* The medians are 30 % apart; one repetition of the new ones is as good as the worst of the old. */
    const double before[] = { 100, 101, 102, 103, 110 }, after[] = { 110, 131, 132, 133, 134 };

    (void)state;
    assert_int_equal(statistics_compare(before, 5, after, 5, true, 0.05), CHANGE_NONE);
}

static void compare_calls_less_than_the_tolerance_noise(void **state)
{
    const double before[] = { 100, 100, 100 }, after[] = { 104, 104, 104 }, later[] = { 106, 106, 106 };

    (void)state;
    assert_int_equal(statistics_compare(before, 3, after, 3, true, 0.05), CHANGE_NONE);
    assert_int_equal(statistics_compare(before, 3, later, 3, true, 0.05), CHANGE_WORSE);
    assert_int_equal(statistics_compare(before, 3, after, 3, true, 0.03), CHANGE_WORSE);
    assert_int_equal(statistics_compare(before, 3, before, 3, true, 0), CHANGE_NONE);
}

/* Two sets of one distribution are called different about as often as the rule's own arithmetic says. */
static void compare_seldom_cries_wolf(void **state)
{
    uint64_t random = test_seed("compare_seldom_cries_wolf");
    unsigned alarms = 0;

    (void)state;
    for (unsigned i = 0; i < 20000; i++) {
        double sets[2][7];

        for (unsigned k = 0; k < 14; k++)
            sets[k / 7][k % 7] = 100 + (double)(test_random(&random) % 10000) / 100;
        alarms += statistics_compare(sets[0], 7, sets[1], 7, true, 0) != CHANGE_NONE;
    }
    /* 20000 / 1716 = 11.7 expected; 40 has a chance below 1 in 10^9 (Poisson). */
    assert_in_range(alarms, 1, 40);
}

static void histograms_merge_to_the_sum(void **state)
{
    static struct histogram both, a, b;

    (void)state;
    for (uint64_t i = 1; i <= 1000; i++) {
        histogram_record(i % 2 == 0 ? &a : &b, i);
        histogram_record(&both, i);
    }
    histogram_merge(&a, &b);
    assert_int_equal(a.samples, 1000);
    assert_int_equal(a.max, 1000);
    for (double percentile = 0; percentile <= 100; percentile += 7)
        assert_int_equal(histogram_percentile(&a, percentile), histogram_percentile(&both, percentile));
}

static const char lat_text[] =
    "---------------------------------------------------------------------------------------\n"
    " local address: LID 0000 QPN 0x0012 PSN 0x9a1d1c\n"
    " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   "
    "99% percentile[usec]   99.9% percentile[usec] \n"
    " 64      1000          29.77          163.47       34.52    \t       36.01       \t7.12\t\t61.06   \t\t163.47 \n"
    "---------------------------------------------------------------------------------------\n";
static const char bw_text[] =
    " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n"
    " 65536      1000             512.44             498.01\t\t   0.007968\n"
    "---------------------------------------------------------------------------------------\n";

static void perftest_words_are_read(void **state)
{
    double value = 0;

    (void)state;
    assert_int_equal(perftest_parse(lat_text, true, 64, &value), 0);
    assert_true(value == 34.52);
    assert_int_equal(perftest_parse(bw_text, false, 65536, &value), 0);
    assert_true(value == 498.01);
}

static void perftest_without_a_result_is_told(void **state)
{
    double value;

    (void)state;
    assert_int_equal(perftest_parse("", true, 64, &value), -EPROTO);
    assert_int_equal(perftest_parse("Couldn't connect to 10.9.0.2:7503\n", false, 64, &value), -EPROTO);
    assert_int_equal(perftest_parse(lat_text, true, 128, &value), -EPROTO); /* another size */
    assert_int_equal(perftest_parse(" #bytes #iterations", false, 64, &value), -EPROTO);
    assert_int_equal(perftest_parse(" #bytes #iterations\n 64 1000 0 0 0\n", false, 64, &value), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(median_of_odd_and_even_counts),
        cmocka_unit_test(quantile_is_a_value_that_was_there),
        cmocka_unit_test(zero_median_has_no_spread),
        cmocka_unit_test(compare_tells_better_from_worse),
        cmocka_unit_test(compare_calls_overlap_noise),
        cmocka_unit_test(compare_calls_less_than_the_tolerance_noise),
        cmocka_unit_test(compare_seldom_cries_wolf),
        cmocka_unit_test(histograms_merge_to_the_sum),
        cmocka_unit_test(perftest_words_are_read),
        cmocka_unit_test(perftest_without_a_result_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
