/* The hold queue, the bounce queue and the ring below both, alone and under two threads (ThreadSanitizer). */
#include "support.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "base/clock.h"
#include "dpdk-net/hold.h"
#include "dpdk-net/receive.h"

#define FRAME_BYTES 60u
#define FRAME_MAX_BYTES 1518u
#define CROSSINGS 100000u
#define DEADLINE_NS (40 * NS_PER_S)

static struct hold *hold_new(uint32_t capacity)
{
    struct hold *hold = aligned_alloc(alignof(struct hold), sizeof(*hold));

    assert_non_null(hold);
    assert_int_equal(hold_init(hold, capacity, 1518), 0);
    return hold;
}

static void hold_free(struct hold *hold)
{
    hold_fini(hold);
    free(hold);
}

static int put(struct hold *hold, uint32_t value, uint64_t lsn)
{
    uint8_t frame[FRAME_BYTES];

    frame_fill(frame, sizeof(frame), other_mac, guest_mac, value);
    return hold_put(hold, frame, sizeof(frame), &finished, lsn, 1000);
}

static uint64_t gone(struct hold *hold)
{
    return atomic_load(&hold->gone_number);
}

static void hold_ack_below_lsn_keeps_frame(void **state)
{
    struct hold *hold = hold_new(4);

    (void)state;
    assert_int_equal(put(hold, 1, 10), 0);
    assert_null(hold_releasable(hold, 0, 9));
    assert_non_null(hold_releasable(hold, 0, 10));
    assert_non_null(hold_releasable(hold, 0, 11));
    hold_free(hold);
}

static void hold_unacked_head_blocks_those_behind(void **state)
{
    static struct histogram waited_ns;
    struct hold *hold = hold_new(4);

    (void)state;
    put(hold, 1, 10);
    put(hold, 2, 10);
    put(hold, 3, 20);
    assert_int_equal(frame_value(hold_releasable(hold, 0, 19)->data), 1);
    assert_int_equal(frame_value(hold_releasable(hold, 1, 19)->data), 2);
    assert_null(hold_releasable(hold, 2, 19));
    hold_measure(hold, 2, 1500, &waited_ns);
    hold_release(hold, 2);
    assert_int_equal(gone(hold), 2);
    assert_int_equal(waited_ns.samples, 2);
    assert_int_equal(waited_ns.max, 500);
    assert_null(hold_releasable(hold, 0, 19));
    assert_int_equal(frame_value(hold_releasable(hold, 0, 20)->data), 3);
    hold_free(hold);
}

static void hold_full_queue_refuses_counts_and_numbers(void **state)
{
    struct hold *hold = hold_new(2);

    (void)state;
    assert_int_equal(put(hold, 0, 1), 0);
    assert_int_equal(put(hold, 1, 1), 0);
    assert_int_equal(put(hold, 2, 1), -ENOBUFS);
    assert_int_equal(atomic_load(&hold->refused_full), 1);
    assert_int_equal(atomic_load(&hold->next_number), 3);
    hold_release(hold, 1);
    assert_int_equal(gone(hold), 1);
    assert_int_equal(put(hold, 3, 1), 0);
    hold_release(hold, 1);
    /* number 2 was refused, so the next that still waits is 3 */
    assert_int_equal(gone(hold), 3);
    assert_int_equal(frame_value(hold_releasable(hold, 0, 1)->data), 3);
    hold_release(hold, 1);
    assert_int_equal(gone(hold), 4);
    hold_free(hold);
}

static void hold_refuses_frames_that_are_none(void **state)
{
    struct hold *hold = hold_new(2);
    uint8_t frame[FRAME_MAX_BYTES + 1] = { 0 };

    (void)state;
    assert_int_equal(hold_put(hold, frame, 13, &finished, 1, 0), -EMSGSIZE);
    assert_int_equal(hold_put(hold, frame, sizeof(frame), &finished, 1, 0), -EMSGSIZE);
    assert_int_equal(hold_put(hold, frame, sizeof(frame) - 1, &finished, 1, 0), 0);
    assert_int_equal(hold_put(hold, frame, 14, &finished, 1, 0), 0);
    hold_free(hold);
}

/* 64 KiB each: the room for bytes ends before the slots do, and comes back. */
static void hold_of_large_frames_is_full_by_its_bytes(void **state)
{
    struct net_offload large = { .segmentation = NET_TCP4, .checksum_missing = 1, .segment_bytes = 1448 };
    static uint8_t frame[NET_SEGMENTED_MAX_BYTES + 1];
    struct hold *hold = hold_new(64); /* and 512 KiB */
    unsigned put_in = 0, taken = 0;

    (void)state;
    assert_int_equal(hold_put(hold, frame, sizeof(frame), &large, 0, 0), -EMSGSIZE);
    assert_int_equal(hold_put(hold, frame, FRAME_MAX_BYTES + 1, &finished, 0, 0), -EMSGSIZE);
    assert_int_equal(atomic_load(&hold->refused_size), 2);
    assert_false(hold_crowded(hold));
    for (unsigned round = 0; round < 1000; round++) {
        size_t bytes = 30000 + round * 7919 % 35000;

        memset(frame, (int)put_in, bytes);
        if (hold_put(hold, frame, bytes, &large, 0, 0) == 0) {
            put_in++;
            continue;
        }
        assert_true(hold_crowded(hold));
        assert_true(put_in - taken >= 6);
        for (const struct frame_slot *slot; (slot = hold_releasable(hold, 0, 0)) != NULL; taken++) {
            for (size_t i = 0; i < slot->bytes; i++)
                assert_int_equal(slot->data[i], (uint8_t)taken);
            assert_memory_equal(&slot->offload, &large, sizeof(large));
            hold_release(hold, 1);
        }
        assert_int_equal(taken, put_in);
        assert_false(hold_crowded(hold));
    }
    assert_true(taken > 500);
    hold_free(hold);
}

static void forget_drops_what_the_peer_sent(void **state)
{
    struct hold *hold = hold_new(8);

    (void)state;
    for (uint32_t i = 0; i < 5; i++)
        put(hold, i, 0);
    assert_int_equal(hold_forget(hold, 3, NULL, NULL), 3);
    assert_int_equal(gone(hold), 3);
    assert_int_equal(frame_value(hold_releasable(hold, 0, UINT64_MAX)->data), 3);
    assert_int_equal(hold_forget(hold, 3, NULL, NULL), 0);
    assert_int_equal(hold_forget(hold, 1, NULL, NULL), 0); /* a stale report takes nothing back */
    assert_int_equal(gone(hold), 3);
    hold_free(hold);
}

static void forget_ahead_covers_frames_held_later(void **state)
{
    struct hold *hold = hold_new(8);

    (void)state;
    put(hold, 0, 0);
    assert_int_equal(hold_forget(hold, 3, NULL, NULL), 1);
    put(hold, 1, 0);
    put(hold, 2, 0);
    put(hold, 3, 0);
    assert_int_equal(hold_forget(hold, 0, NULL, NULL), 2);
    assert_int_equal(frame_value(hold_releasable(hold, 0, UINT64_MAX)->data), 3);
    assert_int_equal(gone(hold), 3);
    hold_free(hold);
}

/* ---- the bounce queue ---- */

static struct receive *receive_new(uint32_t capacity, const uint8_t mac[6])
{
    struct receive *receive = aligned_alloc(alignof(struct receive), sizeof(*receive));

    assert_non_null(receive);
    assert_int_equal(receive_init(receive, capacity, 1518, mac), 0);
    return receive;
}

static void receive_free(struct receive *receive)
{
    receive_fini(receive);
    free(receive);
}

static void receive_full_queue_drops_and_counts(void **state)
{
    struct receive *receive = receive_new(2, guest_mac);
    uint8_t data[FRAME_BYTES];
    struct receive_frame frame = { .data = data, .bytes = sizeof(data), .whole = true };

    (void)state;
    for (uint32_t i = 0; i < 5; i++) {
        frame_fill(data, sizeof(data), guest_mac, other_mac, i);
        assert_int_equal(receive_put(receive, &frame), i < 2);
    }
    assert_int_equal(atomic_load(&receive->dropped_full), 3);
    assert_int_equal(atomic_load(&receive->received), 2);
    assert_int_equal(frame_value(frame_ring_at(&receive->ring, 0)->data), 0);
    assert_int_equal(frame_value(frame_ring_at(&receive->ring, 1)->data), 1);
    receive_free(receive);
}

static void receive_drops_oversize_and_segmented(void **state)
{
    struct receive *receive = receive_new(4, guest_mac);
    uint8_t data[2000];
    struct receive_frame frame = { .data = data, .bytes = FRAME_MAX_BYTES + 1, .whole = true };

    (void)state;
    frame_fill(data, sizeof(data), guest_mac, other_mac, 1);
    assert_false(receive_put(receive, &frame));
    frame.bytes = 1000;
    frame.whole = false;
    assert_false(receive_put(receive, &frame));
    frame.whole = true;
    frame.bytes = FRAME_MAX_BYTES - 3;
    frame.tagged = true; /* one byte too many once the tag is back */
    assert_false(receive_put(receive, &frame));
    assert_int_equal(atomic_load(&receive->dropped_oversize), 3);
    frame.bytes = FRAME_MAX_BYTES - 4;
    assert_true(receive_put(receive, &frame));
    assert_int_equal(frame_ring_at(&receive->ring, 0)->bytes, FRAME_MAX_BYTES);
    receive_free(receive);
}

static void receive_puts_a_stripped_tag_back(void **state)
{
    struct receive *receive = receive_new(4, guest_mac);
    uint8_t data[FRAME_BYTES];
    struct receive_frame frame = { .data = data, .bytes = sizeof(data), .whole = true, .tagged = true, .vlan = 0x2064 };
    const uint8_t tag[4] = { 0x81, 0x00, 0x20, 0x64 };
    const struct frame_slot *slot;

    (void)state;
    frame_fill(data, sizeof(data), guest_mac, other_mac, 7);
    assert_true(receive_put(receive, &frame));
    slot = frame_ring_at(&receive->ring, 0);
    assert_int_equal(slot->bytes, FRAME_BYTES + 4);
    assert_memory_equal(slot->data, data, 12);
    assert_memory_equal(slot->data + 12, tag, 4);
    assert_memory_equal(slot->data + 16, data + 12, FRAME_BYTES - 12);
    receive_free(receive);
}

static void receive_keeps_only_frames_for_the_guest(void **state)
{
    static const uint8_t everybody[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    static const uint8_t many[6] = { 0x33, 0x33, 0, 0, 0, 1 };
    static const uint8_t none[6];
    struct receive *receive = receive_new(8, guest_mac), *open = receive_new(8, none);
    uint8_t data[FRAME_BYTES];
    struct receive_frame frame = { .data = data, .bytes = sizeof(data), .whole = true };

    (void)state;
    frame_fill(data, sizeof(data), other_mac, guest_mac, 1);
    assert_false(receive_put(receive, &frame));
    assert_true(receive_put(open, &frame));
    assert_int_equal(atomic_load(&receive->other_station), 1);
    memcpy(data, everybody, 6);
    assert_true(receive_put(receive, &frame));
    memcpy(data, many, 6);
    assert_true(receive_put(receive, &frame));
    memcpy(data, guest_mac, 6);
    assert_true(receive_put(receive, &frame));
    receive_free(receive);
    receive_free(open);
}

/* ---- two threads ---- */

static _Atomic bool give_up;

static size_t bytes_of(uint32_t number)
{
    return 60 + number % 97 * 15;
}

static void *hold_producer(void *arg)
{
    struct hold *hold = arg;
    uint8_t frame[FRAME_MAX_BYTES];

    for (uint32_t i = 0; i < CROSSINGS && !atomic_load(&give_up); i++) {
        frame_fill(frame, bytes_of(i), other_mac, guest_mac, i);
        while (hold_put(hold, frame, bytes_of(i), &finished, i / 3, 0) == -ENOBUFS && !atomic_load(&give_up))
            sched_yield();
    }
    return NULL;
}

static void hold_crosses_threads_whole_and_in_order(void **state)
{
    struct hold *hold = hold_new(16);
    uint64_t deadline_ns = clock_now_ns() + DEADLINE_NS, acked_lsn = 0, last_gone = 0;
    uint8_t expected[FRAME_MAX_BYTES];
    pthread_t thread;
    uint32_t next = 0;
    bool in_order = true;

    (void)state;
    atomic_store(&give_up, false);
    assert_int_equal(pthread_create(&thread, NULL, hold_producer, hold), 0);
    while (next < CROSSINGS && in_order && clock_now_ns() < deadline_ns) {
        const struct frame_slot *slot;
        unsigned ready = 0;

        while (ready < 8 && (slot = hold_releasable(hold, ready, acked_lsn)) != NULL) {
            frame_fill(expected, bytes_of(next), other_mac, guest_mac, next);
            in_order = in_order && slot->lsn == next / 3 && slot->bytes == bytes_of(next) &&
                       memcmp(slot->data, expected, bytes_of(next)) == 0;
            next++;
            ready++;
        }
        if (ready > 0)
            hold_release(hold, ready);
        in_order = in_order && gone(hold) >= last_gone && gone(hold) <= atomic_load(&hold->next_number);
        last_gone = gone(hold);
        if (ready == 0) {
            acked_lsn = next / 3;
            sched_yield();
        }
    }
    atomic_store(&give_up, true);
    pthread_join(thread, NULL);
    assert_true(in_order);
    assert_int_equal(next, CROSSINGS);
    hold_release(hold, 0);
    assert_int_equal(gone(hold), atomic_load(&hold->next_number));
    hold_free(hold);
}

static void *receive_producer(void *arg)
{
    struct receive *receive = arg;
    uint8_t data[FRAME_BYTES];
    struct receive_frame frame = { .data = data, .bytes = sizeof(data), .whole = true };

    for (uint32_t i = 0; i < CROSSINGS; i++) {
        frame_fill(data, sizeof(data), guest_mac, other_mac, i);
        if (!receive_put(receive, &frame))
            sched_yield();
    }
    return NULL;
}

static void receive_crosses_threads_dropping_but_never_mixing(void **state)
{
    struct receive *receive = receive_new(16, guest_mac);
    uint64_t deadline_ns = clock_now_ns() + DEADLINE_NS, taken = 0;
    uint8_t expected[FRAME_BYTES];
    int64_t last = -1;
    pthread_t thread;
    bool right = true;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, receive_producer, receive), 0);
    while (last < (int64_t)CROSSINGS - 1 && right && clock_now_ns() < deadline_ns) {
        const struct frame_slot *slot;

        if (!frame_ring_waiting(&receive->ring)) {
            /* everything was offered, so what has not come was dropped */
            if (atomic_load(&receive->received) + atomic_load(&receive->dropped_full) == CROSSINGS &&
                !frame_ring_waiting(&receive->ring))
                break;
            sched_yield();
            continue;
        }
        slot = frame_ring_at(&receive->ring, 0);
        if (slot == NULL)
            continue;
        frame_fill(expected, sizeof(expected), guest_mac, other_mac, frame_value(slot->data));
        right = memcmp(slot->data, expected, sizeof(expected)) == 0 && (int64_t)frame_value(slot->data) > last;
        last = frame_value(slot->data);
        taken++;
        frame_ring_release(&receive->ring, 1);
    }
    pthread_join(thread, NULL);
    assert_true(right);
    assert_int_equal(taken, atomic_load(&receive->received));
    assert_int_equal(taken + atomic_load(&receive->dropped_full), CROSSINGS);
    receive_free(receive);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hold_ack_below_lsn_keeps_frame),
        cmocka_unit_test(hold_unacked_head_blocks_those_behind),
        cmocka_unit_test(hold_full_queue_refuses_counts_and_numbers),
        cmocka_unit_test(hold_refuses_frames_that_are_none),
        cmocka_unit_test(hold_of_large_frames_is_full_by_its_bytes),
        cmocka_unit_test(forget_drops_what_the_peer_sent),
        cmocka_unit_test(forget_ahead_covers_frames_held_later),
        cmocka_unit_test(receive_full_queue_drops_and_counts),
        cmocka_unit_test(receive_drops_oversize_and_segmented),
        cmocka_unit_test(receive_puts_a_stripped_tag_back),
        cmocka_unit_test(receive_keeps_only_frames_for_the_guest),
        cmocka_unit_test(hold_crosses_threads_whole_and_in_order),
        cmocka_unit_test(receive_crosses_threads_dropping_but_never_mixing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
