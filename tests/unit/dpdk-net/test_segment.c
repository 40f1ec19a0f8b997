/* Segmentation, checksums and the address filter, with frames of every shape and with frames that are none. Built with
 * AddressSanitizer and UndefinedBehaviorSanitizer; FTVMM_TEST_SEED repeats a run. */
#include "tcp_frames.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "dpdk-net/segment.h"
#include "tests/unit/cmocka_prelude.h"

#define FRAME_MAX_BYTES 1518u

static uint8_t frame[NET_SEGMENTED_MAX_BYTES];

static struct tcp_shape random_shape(uint64_t *random)
{
    uint64_t bits = test_random(random);
    struct tcp_shape shape = {
        .ipv6 = bits & 1,
        .tagged = bits >> 1 & 1,
        .ip_option_words = (bits >> 2 & 3) == 0 ? (uint8_t)((bits >> 4) % 11) : 0,
        .tcp_option_words = (uint8_t)((bits >> 8) % 11),
        .flags = (uint8_t)(bits >> 16),
        .sequence = (uint32_t)(bits >> 32),
        .segment_bytes = (uint16_t)(1 + test_random(random) % 1400),
    };

    if (shape.ipv6)
        shape.ip_option_words = 0;
    shape.payload_bytes = (uint32_t)(test_random(random) % (65535 - 120));
    return shape;
}

static void segments_put_together_are_the_frame(void **state)
{
    uint64_t random = test_seed(__func__), segments_seen = 0;

    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        struct tcp_shape shape = random_shape(&random);
        struct net_offload offload;
        size_t bytes = tcp_build(&shape, frame, &offload);
        struct segments segments;
        uint32_t done = 0;

        assert_int_equal(segments_parse(&segments, frame, bytes, &offload, FRAME_MAX_BYTES), 0);
        for (uint32_t i = 0; i < segments.count; i++) {
            size_t expected = segments_bytes(&segments, i), built;
            uint8_t *room = malloc(expected); /* so that a byte too many is seen */

            built = segments_build(&segments, i, room);
            assert_int_equal(built, expected);
            assert_true(built <= FRAME_MAX_BYTES);
            done += tcp_check_segment(&shape, room, built, i, done);
            free(room);
        }
        assert_int_equal(done, shape.payload_bytes);
        segments_seen += segments.count;
    }
    print_message("%llu segments\n", (unsigned long long)segments_seen);
}

static void segments_of_headers_alone_are_one(void **state)
{
    struct tcp_shape shape = { .segment_bytes = 1448 };
    struct net_offload offload;
    size_t bytes = tcp_build(&shape, frame, &offload);
    uint8_t room[FRAME_MAX_BYTES];
    struct segments segments;

    (void)state;
    assert_int_equal(segments_parse(&segments, frame, bytes, &offload, FRAME_MAX_BYTES), 0);
    assert_int_equal(segments.count, 1);
    assert_int_equal(tcp_check_segment(&shape, room, segments_build(&segments, 0, room), 0, 0), 0);
}

/* Each of these is one step away from a good frame. */
static void frames_that_are_not_what_they_claim_are_refused(void **state)
{
    struct tcp_shape shape = { .payload_bytes = 5000, .segment_bytes = 1448 };
    struct net_offload good, offload;
    size_t bytes = tcp_build(&shape, frame, &good);
    struct segments segments;

    (void)state;
    assert_int_equal(segments_parse(&segments, frame, bytes, &good, FRAME_MAX_BYTES), 0);
#define REFUSED(change, undo)                                                                                          \
    do {                                                                                                               \
        offload = good;                                                                                                \
        change;                                                                                                        \
        assert_int_equal(segments_parse(&segments, frame, bytes, &offload, FRAME_MAX_BYTES), -EINVAL);                 \
        undo;                                                                                                          \
    } while (0)
    REFUSED(offload.segmentation = NET_TCP6, );
    REFUSED(offload.segment_bytes = 0, );
    REFUSED(offload.segment_bytes = FRAME_MAX_BYTES - 54 + 1, );
    REFUSED(offload.checksum_start = 33, );
    REFUSED(offload.checksum_start = 38, );
    REFUSED(offload.checksum_start = 0, );
    REFUSED(offload.checksum_start = 65535, );
    REFUSED(frame[12] = 0x09, frame[12] = 0x08);
    REFUSED(frame[14] = 0x65, frame[14] = 0x45);
    REFUSED(frame[20] = 0x20, frame[20] = 0x40); /* more fragments */
    REFUSED(frame[23] = 17, frame[23] = 6);
    REFUSED(frame[46] = 0x40, frame[46] = 0x50); /* a TCP header of 16 bytes */
#undef REFUSED
    for (bytes = 0; bytes < 54; bytes++) {
        uint8_t *cut = malloc(bytes + 1);

        memcpy(cut, frame, bytes);
        assert_int_equal(segments_parse(&segments, cut, bytes, &good, FRAME_MAX_BYTES), -EINVAL);
        free(cut);
    }
}

/* Anything at all, near a good frame or far from it: refused, or cut into what fits. */
static void hostile_frames_stay_within_bounds(void **state)
{
    uint64_t random = test_seed(__func__), taken = 0;

    (void)state;
    for (unsigned round = 0; round < 20000; round++) {
        struct tcp_shape shape = random_shape(&random);
        struct net_offload offload;
        struct segments segments;
        size_t bytes;
        uint8_t *copy;

        shape.payload_bytes %= 3000;
        bytes = tcp_build(&shape, frame, &offload);
        bytes = test_random(&random) % 4 == 0 ? test_random(&random) % (bytes + 1) : bytes;
        copy = malloc(bytes + 1);
        memcpy(copy, frame, bytes);
        for (unsigned i = 0; i < test_random(&random) % 8 && bytes > 0; i++)
            copy[test_random(&random) % (bytes < 100 ? bytes : 100)] = (uint8_t)test_random(&random);
        if (test_random(&random) % 4 == 0)
            offload.checksum_start = (uint16_t)(test_random(&random) % 120);
        if (test_random(&random) % 8 == 0)
            offload.segment_bytes = (uint16_t)test_random(&random);
        if (segments_parse(&segments, copy, bytes, &offload, FRAME_MAX_BYTES) == 0) {
            uint8_t *room = malloc(FRAME_MAX_BYTES);
            uint32_t last = segments.count - 1;

            assert_true(segments_build(&segments, 0, room) <= FRAME_MAX_BYTES);
            assert_true(segments_build(&segments, last, room) <= FRAME_MAX_BYTES);
            free(room);
            taken++;
        }
        (void)checksum_examine(copy, bytes);
        (void)checksum_complete(copy, bytes, offload.checksum_start, (size_t)(test_random(&random) % 70000));
        free(copy);
    }
    assert_true(taken > 1000);
}

static void checksum_adds_as_the_definition_says(void **state)
{
    uint64_t random = test_seed(__func__);
    uint8_t data[300];

    (void)state;
    for (unsigned round = 0; round < 5000; round++) {
        size_t start = test_random(&random) % 8, bytes = test_random(&random) % 290;
        uint32_t before = (uint32_t)(test_random(&random) % 0x20000), sum = before;

        for (size_t i = 0; i < sizeof(data); i++)
            data[i] = round % 3 == 0 ? 0xff : (uint8_t)test_random(&random);
        for (size_t i = 0; i < bytes; i++)
            sum += i % 2 == 0 ? (uint32_t)data[start + i] << 8 : data[start + i];
        assert_int_equal(checksum_fold(checksum_add(before, data + start, bytes)), checksum_fold(sum));
    }
}

static void missing_checksum_is_completed(void **state)
{
    struct tcp_shape shape = { .payload_bytes = 333, .tcp_option_words = 3 };
    struct net_offload offload;
    size_t bytes = tcp_build(&shape, frame, &offload);

    (void)state;
    assert_int_equal(checksum_complete(frame, bytes, offload.checksum_start, offload.checksum_offset), 0);
    assert_int_equal(tcp_check_segment(&shape, frame, bytes, 0, 0), 333);
    assert_int_equal(checksum_complete(frame, bytes, bytes - 1, 0), -EINVAL);
    assert_int_equal(checksum_complete(frame, bytes, bytes - 2, 0), 0);
    assert_int_equal(checksum_complete(frame, bytes, 0, SIZE_MAX), -EINVAL);
}

static void filter_takes_what_the_guest_asked_for(void **state)
{
    static const uint8_t group[6] = { 0x33, 0x33, 0, 0, 0, 1 }, all[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    struct net_filter filter;

    (void)state;
    net_filter_init(&filter, guest_mac);
    assert_true(net_filter_takes(&filter, guest_mac));
    assert_true(net_filter_takes(&filter, group));
    assert_true(net_filter_takes(&filter, all));
    assert_false(net_filter_takes(&filter, other_mac));
    filter.all_multicast = 0;
    assert_false(net_filter_takes(&filter, group));
    assert_true(net_filter_takes(&filter, all));
    memcpy(filter.addresses[0], group, 6);
    memcpy(filter.addresses[1], other_mac, 6);
    filter.addresses_used = 1;
    assert_true(net_filter_takes(&filter, group));
    assert_false(net_filter_takes(&filter, other_mac));
    filter.addresses_used = 2;
    assert_true(net_filter_takes(&filter, other_mac));
    filter.addresses_used = 0;
    filter.more_unicast = 1;
    assert_true(net_filter_takes(&filter, other_mac));
    assert_false(net_filter_takes(&filter, group));
    filter.no_unicast = filter.no_broadcast = 1;
    assert_false(net_filter_takes(&filter, guest_mac));
    assert_false(net_filter_takes(&filter, all));
    filter.more_multicast = filter.no_multicast = 1;
    assert_false(net_filter_takes(&filter, group));
    filter.promiscuous = 1;
    assert_true(net_filter_takes(&filter, group) && net_filter_takes(&filter, all) &&
                net_filter_takes(&filter, other_mac));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments_put_together_are_the_frame),
        cmocka_unit_test(segments_of_headers_alone_are_one),
        cmocka_unit_test(frames_that_are_not_what_they_claim_are_refused),
        cmocka_unit_test(hostile_frames_stay_within_bounds),
        cmocka_unit_test(checksum_adds_as_the_definition_says),
        cmocka_unit_test(missing_checksum_is_completed),
        cmocka_unit_test(filter_takes_what_the_guest_asked_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
