/* The age of the backlog: what the marks promise, with a clock of the test's own, and the lag of a real channel. */
#include "base/clock.h"
#include "channel/channel.h"
#include "channel/lag.h"

#include <pthread.h>
#include <unistd.h>

#include "tests/unit/cmocka_prelude.h"

#define RECORDS 200000u

/* ---- marks ---- */

static uint64_t age_of(const struct lag_marks *lag, uint64_t now_ns)
{
    uint64_t oldest_ns = atomic_load(&lag->oldest_ns);

    return oldest_ns == 0 ? 0 : now_ns - oldest_ns;
}

static void marks_have_no_age_without_a_backlog(void **state)
{
    struct lag_marks lag = { 0 };

    (void)state;
    lag_marks_update(&lag, 0, 0, 5 * NS_PER_S);
    assert_int_equal(age_of(&lag, 5 * NS_PER_S), 0);
    lag_marks_update(&lag, 10, 0, 6 * NS_PER_S);
    assert_int_equal(age_of(&lag, 8 * NS_PER_S), 2 * NS_PER_S);
    lag_marks_update(&lag, 10, 9, 8 * NS_PER_S);
    assert_int_equal(age_of(&lag, 9 * NS_PER_S), 3 * NS_PER_S);
    lag_marks_update(&lag, 10, 10, 9 * NS_PER_S);
    assert_int_equal(age_of(&lag, 20 * NS_PER_S), 0);
}

static void marks_tell_the_age_of_what_a_receiver_that_stands_still_has_left(void **state)
{
    struct lag_marks lag = { 0 };

    (void)state;
    /* A day, in looks 50 us to 10 s apart. However often the table is thinned out, its oldest mark was merged only
     * with what came within a 32nd of the age after it. */
    for (uint64_t now_ns = NS_PER_S, lsn = 1; now_ns < 86400 * NS_PER_S; now_ns += 50 * NS_PER_US + now_ns / 10000) {
        uint64_t age_ns = now_ns - NS_PER_S, told_ns;

        lag_marks_update(&lag, lsn++, 0, now_ns);
        told_ns = age_of(&lag, now_ns);
        assert_true(told_ns <= age_ns);
        assert_true(age_ns - told_ns <= age_ns / 32 + LAG_MARK_NS);
    }
}

static void marks_tell_the_age_within_their_promise_while_the_backlog_grows_and_melts(void **state)
{
    uint64_t *committed_ns = calloc(RECORDS + 1, sizeof(uint64_t));
    uint64_t random = test_seed("marks"), worst_ppm = 0;

    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        struct lag_marks lag = { 0 };
        uint64_t now_ns = NS_PER_S, committed = 0, consumed = 0, speed_percent = 100, greatest_ns = 0;

        while (committed < RECORDS) {
            uint64_t look_ns = now_ns + 20 * NS_PER_US + test_random(&random) % (100 * NS_PER_US), more, age_ns;

            if (test_random(&random) % 5000 == 0) /* the receiver crawls, or runs up to four times as fast */
                speed_percent = test_random(&random) % (test_random(&random) % 2 ? 100 : 400);
            more = test_random(&random) % 20;
            for (uint64_t i = 1; i <= more && committed < RECORDS; i++)
                committed_ns[++committed] = now_ns + (look_ns - now_ns) * i / more;
            consumed += test_random(&random) % 20 * speed_percent / 100;
            if (consumed > committed)
                consumed = committed;
            now_ns = look_ns;
            lag_marks_update(&lag, committed, consumed, now_ns);
            age_ns = consumed < committed ? now_ns - committed_ns[consumed + 1] : 0;
            greatest_ns = age_ns == 0 ? 0 : age_ns > greatest_ns ? age_ns : greatest_ns;
            assert_true(age_of(&lag, now_ns) <= age_ns);
            assert_true(age_ns - age_of(&lag, now_ns) <= LAG_MARK_NS + 120 * NS_PER_US + greatest_ns / 32);
            if (age_ns > 100 * NS_PER_MS && (age_ns - age_of(&lag, now_ns)) * 1000000 / age_ns > worst_ppm)
                worst_ppm = (age_ns - age_of(&lag, now_ns)) * 1000000 / age_ns;
        }
    }
    print_message("at ages above 100 ms the age was told short by at most %llu ppm\n", (unsigned long long)worst_ppm);
    free(committed_ns);
}

/* ---- a channel ---- */

struct opening {
    struct channel_options options;
    struct channel *channel;
    int result;
};

static void *open_receiver(void *argument)
{
    struct opening *opening = argument;

    opening->result = channel_open_receiver(&opening->channel, &opening->options);
    return NULL;
}

static void open_pair(struct channel **sender, struct channel **receiver)
{
    static char address[64];
    struct opening opening;
    pthread_t thread;

    snprintf(address, sizeof(address), "shm:lag-test-%d", (int)getpid());
    opening = (struct opening){ .options = { .address = address, .ring_bytes = 1u << 20,
                                             .join_timeout_ns = 5 * NS_PER_S, .hello = { .vm = "lag" } } };
    pthread_create(&thread, NULL, open_receiver, &opening);
    assert_int_equal(channel_open_sender(sender, &opening.options), 0);
    pthread_join(thread, NULL);
    assert_int_equal(opening.result, 0);
    *receiver = opening.channel;
}

static void put(struct channel *sender, size_t bytes)
{
    void *payload;

    assert_int_equal(channel_reserve(sender, 1, 1, bytes, &payload), 0);
    memset(payload, 7, bytes);
    channel_commit(sender);
}

static void take(struct channel *receiver)
{
    struct channel_record record;

    assert_int_equal(channel_next(receiver, &record), 0);
    channel_consume(receiver);
}

static void channel_lag_counts_records_bytes_and_time_outstanding(void **state)
{
    struct channel *sender, *receiver;
    struct channel_statistics statistics;
    uint64_t first_ns, tenth_ns, dated_ns, before_ns;
    struct channel_lag lag;

    (void)state;
    open_pair(&sender, &receiver);
    channel_poll(sender);
    channel_get_lag(sender, &lag);
    assert_true(lag.records == 0 && lag.bytes == 0 && lag.age_ns == 0 && lag.ring_bytes == 1u << 20);

    first_ns = clock_now_ns();
    for (int i = 0; i < 9; i++)
        put(sender, 1000);
    channel_get_lag(sender, &lag); /* nobody has polled yet: counted, not dated */
    assert_true(lag.records == 9 && lag.age_ns == 0);
    channel_get_statistics(sender, &statistics);
    assert_int_equal(lag.bytes, statistics.record_bytes);
    channel_poll(sender);
    clock_sleep_ns(30 * NS_PER_MS);
    tenth_ns = clock_now_ns();
    put(sender, 1000);
    channel_poll(sender);
    dated_ns = clock_now_ns();
    clock_sleep_ns(10 * NS_PER_MS);
    channel_get_lag(sender, &lag);
    assert_int_equal(lag.records, 10);
    assert_true(lag.age_ns >= 40 * NS_PER_MS && lag.age_ns <= clock_now_ns() - first_ns);

    for (int i = 0; i < 9; i++)
        take(receiver);
    before_ns = clock_now_ns();
    channel_poll(sender);
    channel_get_lag(sender, &lag);
    assert_true(lag.records == 1 && lag.consumed_lsn == 9);
    assert_true(lag.bytes >= 1000 && lag.bytes < 1200);
    assert_true(lag.age_ns >= before_ns - dated_ns && lag.age_ns <= clock_now_ns() - tenth_ns);
    take(receiver);
    channel_get_lag(sender, &lag);
    assert_true(lag.records == 0 && lag.bytes == 0 && lag.age_ns == 0);
    channel_get_lag(receiver, &lag);
    assert_true(lag.records == 0 && lag.bytes == 0 && lag.ring_bytes == 0);
    channel_close(sender);
    channel_close(receiver);
}

struct reading {
    struct channel *sender;
    _Atomic bool stop;
    uint64_t looks, most_records, most_bytes;
};

static void *read_lag(void *argument)
{
    struct reading *reading = argument;

    while (!atomic_load(&reading->stop)) {
        struct channel_lag lag;

        channel_get_lag(reading->sender, &lag);
        reading->most_records = lag.records > reading->most_records ? lag.records : reading->most_records;
        reading->most_bytes = lag.bytes > reading->most_bytes ? lag.bytes : reading->most_bytes;
        reading->looks++;
        sched_yield();
    }
    return NULL;
}

/* A difference that went below zero would be an enormous lag. */
static void channel_lag_is_never_absurd_while_both_ends_run(void **state)
{
    struct reading reading = { 0 };
    struct channel *sender, *receiver;
    pthread_t thread;

    (void)state;
    open_pair(&sender, &receiver);
    reading.sender = sender;
    pthread_create(&thread, NULL, read_lag, &reading);
    for (uint64_t end_ns = clock_now_ns() + 300 * NS_PER_MS; clock_now_ns() < end_ns;) {
        for (int i = 0; i < 8; i++)
            put(sender, 50);
        channel_poll(sender);
        for (int i = 0; i < 8; i++)
            take(receiver);
    }
    atomic_store(&reading.stop, true);
    pthread_join(thread, NULL);
    assert_true(reading.looks > 0);
    /* What was committed between the reader's two loads counts too, however long it was held up between them. */
    assert_true(reading.most_records < channel_committed_lsn(sender) + 1);
    assert_true(reading.most_bytes < UINT64_C(1) << 40);
    channel_close(sender);
    channel_close(receiver);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(marks_have_no_age_without_a_backlog),
        cmocka_unit_test(marks_tell_the_age_of_what_a_receiver_that_stands_still_has_left),
        cmocka_unit_test(marks_tell_the_age_within_their_promise_while_the_backlog_grows_and_melts),
        cmocka_unit_test(channel_lag_counts_records_bytes_and_time_outstanding),
        cmocka_unit_test(channel_lag_is_never_absurd_while_both_ends_run),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
