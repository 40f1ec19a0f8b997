/* The model of ftbench sim, against figures worked out by hand and against queueing theory. */
#include <math.h>

#include "tests/unit/cmocka_prelude.h"

#include "bench/model.h"

static const struct model model = {
    .write_ns = 1000, .record_ns = 100, .record_byte_ns = 0.5, .exit_ns = 2000, .poll_ns = 400, .guest_ns = 5000,
    .outside_ns = 7000, .exits = 10, .records = 4, .log_bytes = 800, .log_writes = 2,
};

static void near(double found, double expected)
{
    if (fabs(found - expected) > 1e-6 * fabs(expected))
        fail_msg("%.9g is not %.9g", found, expected);
}

static void channel_is_work_wire_and_write(void **state)
{
    int by_link;

    (void)state;
    near(model_wire_bytes(64), 64 + 82 + 16);
    near(model_wire_bytes(4097), 4097 + 2 * 82 + 16);
    near(model_wire_ns(64, 25), 162 * 8 / 25.0);
    near(model_commit_to_ack_ns(&model, 64, 25), 100 + 32 + 51.84 + 1000);
    near(model_records_per_s(&model, 64, 400, &by_link), 1e9 / 132);
    assert_false(by_link);
    /* 65536 bytes in 16 packets are 66864 bytes on the wire, and carry 1024 records */
    near(model_records_per_s(&model, 64, 1, &by_link), 1e9 / (66864 * 8.0 / 1024));
    assert_true(by_link);
}

static void request_is_the_sum_of_its_steps(void **state)
{
    int by_link;

    (void)state;
    near(model_vcpu_ns(&model, 0), 5000 + 20000);
    near(model_vcpu_ns(&model, 1), 5000 + 20000 + 400 + 400);
    near(model_hold_ns(&model, 25), 51.84 + 1000 + 200);
    near(model_request_ns(&model, 0, 25), 7000 + 25000 + 200);
    near(model_request_ns(&model, 1, 25), 7000 + 25800 + 1251.84);
    near(model_requests_per_s(&model, 0, 25, &by_link), 1e9 / 25000);
    near(model_requests_per_s(&model, 1, 25, &by_link), 1e9 / 25800);
    assert_false(by_link);
    /* two writes of 400 bytes */
    near(model_requests_per_s(&model, 1, 0.1, &by_link), 1e9 / (2 * 498 * 8 / 0.1));
    assert_true(by_link);
}

/* Deterministic service, random arrivals: a request waits S * u / (2 * (1 - u)) on average (Pollaczek, Khinchine). */
static void simulated_queue_waits_as_theory_says(void **state)
{
    static const double loads[] = { 0.1, 0.5, 0.8 };
    static struct histogram ns;
    struct model bare = { .guest_ns = 10000 };

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        double expected = 10000 * (1 + loads[i] / (2 * (1 - loads[i]))), mean;

        memset(&ns, 0, sizeof(ns));
        model_simulate(&bare, 0, 25, loads[i] * 1e9 / 10000, 1000000, 7, &ns);
        mean = (double)ns.sum / (double)ns.samples;
        if (fabs(mean - expected) > 0.02 * expected)
            fail_msg("at load %.1f the mean is %.0f ns, not %.0f", loads[i], mean, expected);
    }
}

static void simulated_request_is_no_shorter_than_its_steps(void **state)
{
    static struct histogram with, without;
    double least = model_request_ns(&model, 1, 25) - model.poll_ns / 2;

    (void)state;
    model_simulate(&model, 1, 25, 100, 20000, 3, &with);
    model_simulate(&model, 0, 25, 100, 20000, 3, &without);
    assert_true((double)histogram_percentile(&with, 0) >= 0.98 * least);
    /* at such a load nobody waits for another */
    assert_true((double)histogram_percentile(&with, 50) <= 1.03 * (least + model.poll_ns / 2));
    assert_true(histogram_percentile(&with, 50) > histogram_percentile(&without, 50));
    memset(&without, 0, sizeof(without));
    model_simulate(&model, 1, 25, 100, 20000, 3, &without);
    assert_memory_equal(&with, &without, sizeof(with)); /* the seed decides */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(channel_is_work_wire_and_write),
        cmocka_unit_test(request_is_the_sum_of_its_steps),
        cmocka_unit_test(simulated_queue_waits_as_theory_says),
        cmocka_unit_test(simulated_request_is_no_shorter_than_its_steps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
