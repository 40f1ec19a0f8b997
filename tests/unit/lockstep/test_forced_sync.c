/* How often what a forced sync would send is forgotten, and how often RAM is digested: both by what it costs. */
#include <string.h>

#include "base/clock.h"
#include "tests/unit/cmocka_prelude.h"
#include "vmm/lockstep.h"

/* Forgets again and again what a guest writes that fills `pages_per_s` anew; the interval that comes of it. */
static uint64_t settled_ns(uint64_t pages_per_s)
{
    uint64_t interval_ns = 500 * NS_PER_MS;

    for (unsigned i = 0; i < 100; i++)
        interval_ns = forced_sync_forget_next(interval_ns, pages_per_s * interval_ns / NS_PER_S);
    return interval_ns;
}

static void a_guest_that_writes_little_is_left_alone(void **state)
{
    (void)state;
    assert_int_equal(settled_ns(0), 500 * NS_PER_MS);
    assert_int_equal(settled_ns(4000), 500 * NS_PER_MS);
}

static void one_that_writes_much_never_has_much_to_send(void **state)
{
    (void)state;
    for (uint64_t pages_per_s = 5000; pages_per_s <= 100000; pages_per_s += 500) {
        uint64_t interval_ns = settled_ns(pages_per_s);

        assert_true(interval_ns >= 20 * NS_PER_MS);
        assert_true(pages_per_s * interval_ns / NS_PER_S <= 2048);
    }
    assert_int_equal(settled_ns(1000000), 20 * NS_PER_MS); /* more often would cost more than it saves */
}

static void the_interval_comes_back_when_the_guest_is_done(void **state)
{
    uint64_t interval_ns = settled_ns(1000000);

    (void)state;
    for (unsigned i = 0; i < 10; i++)
        interval_ns = forced_sync_forget_next(interval_ns, 10);
    assert_int_equal(interval_ns, 500 * NS_PER_MS);
}

static void digesting_takes_a_fiftieth_of_the_guests_time_at_most(void **state)
{
    struct verify verify = { .segment_cost_ns = 10 * NS_PER_MS };

    (void)state;
    assert_int_equal(verify_segment_ns(&verify, NS_PER_S), NS_PER_S); /* one in a hundred */
    verify.segment_cost_ns = 100 * NS_PER_MS;
    assert_int_equal(verify_segment_ns(&verify, NS_PER_S), 5 * NS_PER_S);
    verify.segment_cost_ns = 3 * NS_PER_S; /* no CPU is as slow; an emulated one is */
    assert_int_equal(verify_segment_ns(&verify, NS_PER_S), 10 * NS_PER_S);
    verify.each_position = true; /* who asks for that does not ask what it costs */
    assert_int_equal(verify_segment_ns(&verify, NS_PER_S), NS_PER_S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_that_writes_little_is_left_alone),
        cmocka_unit_test(one_that_writes_much_never_has_much_to_send),
        cmocka_unit_test(the_interval_comes_back_when_the_guest_is_done),
        cmocka_unit_test(digesting_takes_a_fiftieth_of_the_guests_time_at_most),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
