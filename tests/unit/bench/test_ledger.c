/* The books on a shared counter: what is a contradiction and what is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bench/ledger.h"

static struct ledger fresh(int64_t start)
{
    struct ledger ledger;

    assert_int_equal(ledger_init(&ledger, start), 0);
    return ledger;
}

/* Acks first..last in order. */
static void ack(struct ledger *ledger, int64_t first, int64_t last)
{
    for (int64_t value = first; value <= last; value++)
        ledger_ack(ledger, value, value - 1, value - 1, false);
}

static void counter_that_kept_all_is_clean(void **state)
{
    struct ledger ledger = fresh(100);

    (void)state;
    ack(&ledger, 101, 200);
    assert_true(ledger_judge(&ledger, 200).clean);
    ledger.unknown = 5;
    assert_true(ledger_judge(&ledger, 203).clean); /* three of the five were executed */
    assert_true(ledger_judge(&ledger, 205).clean);
    ledger_fini(&ledger);
}

static void acked_value_missing_from_the_end_is_lost(void **state)
{
    struct ledger ledger = fresh(0);

    (void)state;
    ack(&ledger, 1, 100);
    assert_int_equal(ledger_judge(&ledger, 97).lost, 3);
    assert_false(ledger_judge(&ledger, 97).clean);
    assert_int_equal(ledger_judge(&ledger, 0).lost, 100);
    assert_int_equal(ledger_judge(&ledger, -5).lost, 100);
    ledger_fini(&ledger);
}

static void rollback_hidden_by_later_counting_is_found(void **state)
{
    struct ledger ledger = fresh(0);

    (void)state;
    ack(&ledger, 1, 100);
    /* back to 90, then counted on to 200: the final value alone looks fine */
    for (int64_t value = 91; value <= 200; value++)
        ledger_ack(&ledger, value, 100, value - 1, true);
    assert_int_equal(ledger.duplicated, 10);
    assert_int_equal(ledger.out_of_order, 10);
    assert_int_equal(ledger.acked_before_mark, 100);
    assert_int_equal(ledger.acked_after_mark, 110);
    assert_int_equal(ledger_judge(&ledger, 200).lost, 10);
    assert_false(ledger_judge(&ledger, 200).clean);
    ledger_fini(&ledger);
}

static void increments_executed_twice_are_surplus(void **state)
{
    struct ledger ledger = fresh(0);

    (void)state;
    ack(&ledger, 1, 10);
    ledger.unknown = 2;
    assert_int_equal(ledger_judge(&ledger, 15).surplus, 3);
    assert_false(ledger_judge(&ledger, 15).clean);
    ledger_fini(&ledger);
}

static void values_of_parallel_requests_may_arrive_in_any_order(void **state)
{
    struct ledger ledger = fresh(0);

    (void)state;
    /* two connections, both sent when nothing was known */
    ledger_ack(&ledger, 2, 0, 0, false);
    ledger_ack(&ledger, 1, 0, 0, false);
    assert_int_equal(ledger.out_of_order, 0);
    /* on one connection, replies go up */
    ledger_ack(&ledger, 4, 0, 2, false);
    ledger_ack(&ledger, 3, 0, 4, false);
    assert_int_equal(ledger.out_of_order, 1);
    assert_int_equal(ledger.duplicated, 0);
    ledger_fini(&ledger);
}

static void values_from_before_the_run_are_duplicates(void **state)
{
    struct ledger ledger = fresh(1000);

    (void)state;
    ledger_ack(&ledger, 1, 1000, 1000, true); /* an emptied server */
    ledger_ack(&ledger, INT64_MIN, 1000, 1000, true);
    ledger_ack(&ledger, INT64_MAX, 1000, 1000, true);
    assert_int_equal(ledger.duplicated, 2);
    assert_int_equal(ledger.out_of_order, 2);
    assert_false(ledger_judge(&ledger, 2).clean);
    ledger_fini(&ledger);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counter_that_kept_all_is_clean),
        cmocka_unit_test(acked_value_missing_from_the_end_is_lost),
        cmocka_unit_test(rollback_hidden_by_later_counting_is_found),
        cmocka_unit_test(increments_executed_twice_are_surplus),
        cmocka_unit_test(values_of_parallel_requests_may_arrive_in_any_order),
        cmocka_unit_test(values_from_before_the_run_are_duplicates),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
