/* No ring is missed: a thread that sleeps for as long as a minute between looks hears of each piece of work at once, whenever
 * it comes. */
#include <pthread.h>

#include "base/doorbell.h"
#include "tests/unit/cmocka_prelude.h"

#define PIECES 100000u

static struct doorbell bell;
static _Atomic unsigned put, taken;

static void *take_all(void *ctx)
{
    (void)ctx;
    for (;;) {
        uint32_t heard = doorbell_heard(&bell);
        unsigned there = atomic_load_explicit(&put, memory_order_relaxed); /* the ring orders it */

        if (there != atomic_load_explicit(&taken, memory_order_relaxed))
            atomic_store_explicit(&taken, there, memory_order_release);
        else if (there == PIECES)
            return NULL;
        else
            doorbell_sleep(&bell, heard, 60 * NS_PER_S);
    }
}

static void no_ring_is_missed(void **state)
{
    uint64_t random_state = test_seed("doorbell"), begun_ns = clock_now_ns();
    pthread_t thread;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, take_all, NULL), 0);
    for (unsigned piece = 1; piece <= PIECES; piece++) {
        unsigned pause = (unsigned)(test_random(&random_state) % 400); /* before, amidst and after it falls asleep */

        atomic_store_explicit(&put, piece, memory_order_relaxed);
        doorbell_ring(&bell);
        while (atomic_load_explicit(&taken, memory_order_acquire) != piece)
            sched_yield();
        for (unsigned i = 0; i < pause; i++)
            __builtin_ia32_pause();
    }
    pthread_join(thread, NULL);
    assert_true(clock_now_ns() - begun_ns < 30 * NS_PER_S); /* no sleep has come to its end */
}

static void a_sleep_ends_by_itself(void **state)
{
    uint64_t begun_ns = clock_now_ns();

    (void)state;
    doorbell_sleep(&bell, doorbell_heard(&bell), 20 * NS_PER_MS);
    assert_true(clock_now_ns() - begun_ns >= 20 * NS_PER_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_ring_is_missed),
        cmocka_unit_test(a_sleep_ends_by_itself),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
