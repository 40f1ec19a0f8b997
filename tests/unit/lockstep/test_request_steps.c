/* The steps of a request through the live machine: each is recorded once, where it happened, and by whom it should. */
#include "tests/unit/cmocka_prelude.h"

#include <unistd.h>

#include "vmm/lockstep.h"

static struct lockstep *ls;
static char directory[] = "/tmp/ftvmm-steps-XXXXXX";

static void open_log(void)
{
    char address[64];
    struct channel_options options = { .address = address, .ring_bytes = 1u << 20 };

    snprintf(address, sizeof(address), "file:%s/log", directory);
    assert_int_equal(channel_open_sender(&ls->channel, &options), 0);
}

static int set_up(void **state)
{
    (void)state;
    ls = calloc(1, sizeof(*ls));
    return ls != NULL && mkdtemp(directory) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    char path[64];

    (void)state;
    channel_close(ls->channel);
    free(ls);
    snprintf(path, sizeof(path), "%s/log", directory);
    unlink(path);
    rmdir(directory);
    strcpy(strrchr(directory, '-'), "-XXXXXX");
    return 0;
}

/* An exit by which the guest sends `frames`, as lockstep_run goes through it. */
static void exit_that_sends(unsigned frames)
{
    const struct net_offload finished = { 0 };
    const uint8_t frame[64] = { 0 };

    COUNT_SET(ls->arrived_ns, clock_now_ns());
    ls->output_pending = false;
    ls->output_ns = 0;
    clock_sleep_ns(2 * NS_PER_MS);
    for (unsigned i = 0; i < frames; i++)
        lockstep_frame_out(ls, frame, sizeof(frame), &finished);
    primary_emulated(ls);
}

static void one_reply_is_one_sample_of_each_step(void **state)
{
    (void)state;
    atomic_store(&ls->role, ROLE_PRIMARY);
    open_log();
    ls->taken_ns = clock_now_ns() - 30 * NS_PER_MS;
    exit_that_sends(3);
    assert_int_equal(ls->steps.guest_ns.samples, 1);
    assert_true(ls->steps.guest_ns.max >= 30 * NS_PER_MS);
    assert_int_equal(ls->steps.exit_ns.samples, 1);
    assert_true(ls->steps.exit_ns.max >= 2 * NS_PER_MS && ls->steps.exit_ns.max < ls->steps.guest_ns.max);
    assert_int_equal(ls->steps.append_ns.samples, 1);
    assert_int_equal(ls->steps.append_ns.sum, ls->steps.append_ns.max);
    exit_that_sends(0);
    assert_int_equal(ls->steps.exit_ns.samples, 1);
    exit_that_sends(1); /* what nobody asked for: the guest's own time is not that of a request */
    assert_int_equal(ls->steps.guest_ns.samples, 1);
    assert_int_equal(ls->steps.exit_ns.samples, 2);
    assert_int_equal(ls->steps.append_ns.samples, 2);
}

static void who_is_alone_appends_nothing(void **state)
{
    (void)state;
    atomic_store(&ls->role, ROLE_ALONE);
    ls->taken_ns = clock_now_ns();
    exit_that_sends(1);
    assert_int_equal(ls->steps.guest_ns.samples, 1);
    assert_int_equal(ls->steps.exit_ns.samples, 1);
    assert_int_equal(ls->steps.append_ns.samples, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_reply_is_one_sample_of_each_step, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_is_alone_appends_nothing, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
