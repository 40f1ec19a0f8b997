/* The ring, one thread: full, wrapped, padded, stale. test_ring_threads.c has the two-thread tests. */
#include "channel/receive_ring.h"
#include "channel/send_ring.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define KEY        UINT64_C(0x1234567890abcdef)
#define RING_BYTES (1u << 19)

struct pair {
    uint8_t *memory;
    struct ring_credit *credit;
    struct send_ring *send;
    struct receive_ring *receive;
};

static int pair_open(void **state)
{
    struct pair *pair = malloc(sizeof(*pair));

    pair->memory = aligned_alloc(128, RING_BYTES);
    pair->credit = aligned_alloc(128, sizeof(*pair->credit));
    pair->send = aligned_alloc(128, sizeof(*pair->send));
    pair->receive = aligned_alloc(128, (sizeof(*pair->receive) + 127) & ~127ul);
    memset(pair->memory, 0, RING_BYTES);
    memset(pair->credit, 0, sizeof(*pair->credit));
    send_ring_init(pair->send, pair->memory, RING_BYTES, KEY, pair->credit);
    receive_ring_init(pair->receive, pair->memory, RING_BYTES, KEY, pair->credit);
    *state = pair;
    return 0;
}

static int pair_close(void **state)
{
    struct pair *pair = *state;

    free(pair->memory);
    free(pair->credit);
    free(pair->send);
    free(pair->receive);
    free(pair);
    return 0;
}

static int put(struct pair *pair, size_t bytes)
{
    void *payload;
    int result = send_ring_reserve(pair->send, 3, pair->send->next_lsn * 10, bytes, &payload);

    if (result != 0)
        return result;
    assert_int_equal((uintptr_t)payload % 8, 0);
    memset(payload, (int)pair->send->next_lsn, bytes);
    send_ring_commit(pair->send);
    return 0;
}

static enum frame_state take(struct pair *pair, struct channel_record *record)
{
    enum frame_state state = receive_ring_look(pair->receive, UINT64_MAX, record);

    if (state == FRAME_COMPLETE) {
        assert_int_equal(record->position, record->lsn * 10);
        for (uint32_t i = 0; i < record->bytes; i++)
            assert_int_equal(((const uint8_t *)record->payload)[i], (uint8_t)record->lsn);
        receive_ring_consume(pair->receive);
    }
    return state;
}

static void full_ring_says_again_and_recovers(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;
    unsigned count = 0;

    for (int lap = 0; lap < 3; lap++) {
        count = 0;
        while (put(pair, 24) == 0)
            count++;
        assert_int_equal(count, lap == 0 ? RING_BYTES / 64 : 1); /* to the last byte */
        assert_int_equal(put(pair, 24), -EAGAIN);
        assert_int_equal(take(pair, &record), FRAME_COMPLETE);
        assert_int_equal(record.bytes, 24);
    }
    assert_true(pair->send->stalls >= 6);
    count = 0;
    while (take(pair, &record) == FRAME_COMPLETE)
        count++;
    assert_int_equal(count, RING_BYTES / 64 - 1);
    assert_int_equal(pair->credit->lsn, pair->send->next_lsn - 1);
    assert_int_equal(put(pair, CHANNEL_PAYLOAD_MAX_BYTES), 0);
    assert_int_equal(take(pair, &record), FRAME_COMPLETE);
}

static void record_that_fits_the_end_exactly_needs_no_pad(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;

    for (int lap = 0; lap < 4; lap++) {
        for (unsigned i = 0; i < RING_BYTES / 65536; i++) { /* frames of 64 KiB */
            assert_int_equal(put(pair, 65536 - 40), 0);
            assert_int_equal(take(pair, &record), FRAME_COMPLETE);
        }
        assert_int_equal(pair->send->head, (uint64_t)(lap + 1) * RING_BYTES);
    }
}

static void record_that_does_not_fit_the_end_goes_behind_a_pad(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;

    for (unsigned left = 64; left < 1024; left += 64) { /* what is left at the end of the lap */
        uint64_t to_end;

        while ((to_end = RING_BYTES - (pair->send->head & (RING_BYTES - 1))) > left) {
            uint64_t step = to_end - left > 65536 ? 65536 : to_end - left;

            assert_int_equal(put(pair, step - 40), 0);
            assert_int_equal(take(pair, &record), FRAME_COMPLETE);
        }
        assert_int_equal(put(pair, left), 0); /* its frame is longer than `left` */
        assert_int_equal(pair->send->head & (RING_BYTES - 1), frame_bytes(left));
        assert_int_equal(take(pair, &record), FRAME_COMPLETE);
        assert_int_equal(record.bytes, left);
        assert_int_equal(pair->receive->index, pair->send->head);
    }
}

static void pad_counts_against_the_credit(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;
    void *payload;

    /* 64 bytes before the end with one record unread at the start: a pad fits, the record behind it does not. */
    for (unsigned i = 0; i < RING_BYTES / 64 - 1; i++)
        assert_int_equal(put(pair, 0), 0);
    assert_int_equal(put(pair, 64), -EAGAIN);
    assert_int_equal(take(pair, &record), FRAME_COMPLETE);
    assert_int_equal(put(pair, 64), -EAGAIN); /* needs 128 bytes at the start, 64 are free */
    assert_int_equal(take(pair, &record), FRAME_COMPLETE);
    assert_int_equal(put(pair, 64), 0);
    (void)payload;
    for (unsigned i = 0; i < RING_BYTES / 64 - 3 + 1; i++)
        assert_int_equal(take(pair, &record), FRAME_COMPLETE);
    assert_int_equal(record.bytes, 64);
    assert_int_equal(take(pair, &record), FRAME_ABSENT);
}

static void record_that_is_forgotten_leaves_no_pad(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;
    void *payload;

    for (unsigned i = 0; i < RING_BYTES / 64 - 1; i++) {
        assert_int_equal(put(pair, 0), 0);
        assert_int_equal(take(pair, &record), FRAME_COMPLETE);
    }
    /* Needs a pad, and is not committed; the one in its place needs none. */
    assert_int_equal(send_ring_reserve(pair->send, 0, 0, 64, &payload), 0);
    assert_int_equal(take(pair, &record), FRAME_ABSENT);
    assert_int_equal(put(pair, 16), 0);
    assert_int_equal(take(pair, &record), FRAME_COMPLETE);
    assert_int_equal(record.bytes, 16);
    assert_int_equal(pair->receive->index, RING_BYTES);
}

static void stale_lap_is_never_delivered(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;

    for (int lap = 0; lap < 5; lap++) {
        for (unsigned i = 0; i < RING_BYTES / 64; i++) {
            /* Whole frames of the lap before lie ahead of us; none is taken for the one that is due. */
            assert_int_equal(take(pair, &record), FRAME_ABSENT);
            assert_int_equal(put(pair, 16), 0);
            assert_int_equal(take(pair, &record), FRAME_COMPLETE);
        }
    }
}

static void payload_that_imitates_the_next_frame_is_not_delivered(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;
    void *payload;
    uint8_t *forged;

    /* A guest that knows everything but the key places a frame where, a lap later, the one due will begin. */
    assert_int_equal(send_ring_reserve(pair->send, 3, 10, 4096, &payload), 0);
    memset(payload, 0, 4096);
    forged = (uint8_t *)payload + 32; /* 64-byte aligned in the ring */
    frame_seal(forged, KEY ^ 1, 2, 20, 3, 8);
    send_ring_commit(pair->send);
    assert_int_equal(receive_ring_look(pair->receive, UINT64_MAX, &record), FRAME_COMPLETE);
    receive_ring_consume(pair->receive);
    pair->receive->index = 64; /* as if the lap were over */
    assert_int_not_equal(receive_ring_look(pair->receive, UINT64_MAX, &record), FRAME_COMPLETE);
}

static void record_stays_until_it_is_consumed(void **state)
{
    struct pair *pair = *state;
    struct channel_record first, again;

    assert_int_equal(put(pair, 8), 0);
    assert_int_equal(put(pair, 8), 0);
    assert_int_equal(receive_ring_look(pair->receive, UINT64_MAX, &first), FRAME_COMPLETE);
    assert_int_equal(receive_ring_look(pair->receive, UINT64_MAX, &again), FRAME_COMPLETE);
    assert_true(first.lsn == 1 && again.lsn == 1 && first.payload == again.payload);
    receive_ring_consume(pair->receive);
    receive_ring_consume(pair->receive); /* nothing found since: no effect */
    assert_int_equal(receive_ring_look(pair->receive, UINT64_MAX, &again), FRAME_COMPLETE);
    assert_int_equal(again.lsn, 2);
}

static void reserve_again_forgets_the_open_record(void **state)
{
    struct pair *pair = *state;
    struct channel_record record;
    void *payload;

    assert_int_equal(send_ring_reserve(pair->send, 1, 1, 5000, &payload), 0);
    assert_int_equal(send_ring_reserve(pair->send, 2, 10, 3, &payload), 0);
    memset(payload, 1, 3);
    assert_int_equal(send_ring_commit(pair->send), 1);
    assert_int_equal(take(pair, &record), FRAME_COMPLETE);
    assert_true(record.kind == 2 && record.bytes == 3);
    assert_int_equal(take(pair, &record), FRAME_ABSENT);
}

static void oversize_and_impossible_credit_are_errors(void **state)
{
    struct pair *pair = *state;
    void *payload;

    assert_int_equal(send_ring_reserve(pair->send, 1, 1, CHANNEL_PAYLOAD_MAX_BYTES + 1, &payload), -EMSGSIZE);
    assert_int_equal(send_ring_reserve(pair->send, 1, 1, SIZE_MAX, &payload), -EMSGSIZE);
    while (put(pair, 24) == 0)
        ;
    pair->credit->bytes = pair->send->head + 64; /* "consumed" more than was ever sent */
    assert_int_equal(put(pair, 24), -EPIPE);
}

static void cut_ends_where_a_record_ends(void **state)
{
    struct pair *pair = *state;
    uint64_t ends[64], cut, whole;
    unsigned count = 0;

    srandom(5);
    while (count < 20) {
        assert_int_equal(put(pair, (size_t)random() % 9000), 0);
        ends[count++] = pair->send->head;
    }
    whole = pair->send->head;
    assert_int_equal(send_ring_cut(pair->send, 0, whole, whole), whole);
    for (uint64_t most = 64; most < whole; most += 64) {
        unsigned i = 0;

        cut = send_ring_cut(pair->send, 0, whole, most);
        while (i < count && ends[i] != cut)
            i++;
        assert_true(i < count);
        assert_true(cut <= most || i == 0);
        assert_true(i + 1 == count || ends[i + 1] > most); /* and not too early */
        assert_int_equal(send_ring_lsn_before(pair->send, cut), i + 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(full_ring_says_again_and_recovers, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(record_that_fits_the_end_exactly_needs_no_pad, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(record_that_does_not_fit_the_end_goes_behind_a_pad, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(pad_counts_against_the_credit, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(record_that_is_forgotten_leaves_no_pad, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(stale_lap_is_never_delivered, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(payload_that_imitates_the_next_frame_is_not_delivered, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(record_stays_until_it_is_consumed, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(reserve_again_forgets_the_open_record, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(oversize_and_impossible_credit_are_errors, pair_open, pair_close),
        cmocka_unit_test_setup_teardown(cut_ends_where_a_record_ends, pair_open, pair_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
