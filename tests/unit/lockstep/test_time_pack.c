/* Looks at the clock in one record: what is packed comes out, two bytes a look as a rule, and nothing else is taken for looks. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/time_pack.h"

struct look {
    uint64_t position, time_ns;
};

static uint64_t random_below(uint64_t *state, uint64_t limit)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (*state >> 33) % limit;
}

/* Packs the looks into as many records as it takes, and compares what is read out of each. Returns their payloads' bytes. */
static size_t pack_and_read(const struct look *looks, size_t count, size_t *records)
{
    struct time_pack pack = { 0 };
    size_t bytes = 0, read = 0;

    *records = 0;
    for (size_t i = 0; i <= count; i++) {
        struct time_reader reader;
        unsigned seen = 1;

        if (i < count && time_pack_add(&pack, looks[i].position, looks[i].time_ns))
            continue;
        assert_true(pack.count > 0 && pack.bytes <= TIME_PACK_BYTES_MAX);
        assert_true(time_reader_begin(&reader, pack.first_position, pack.payload, pack.bytes));
        for (int rc = 1; rc > 0; rc = time_reader_next(&reader), seen += rc > 0) {
            assert_true(reader.position == looks[read].position && reader.time_ns == looks[read].time_ns);
            read++;
            assert_int_not_equal(rc, -EBADMSG);
        }
        assert_int_equal(seen, pack.count);
        bytes += pack.bytes;
        ++*records;
        time_pack_clear(&pack);
        if (i < count)
            assert_true(time_pack_add(&pack, looks[i].position, looks[i].time_ns));
    }
    assert_int_equal(read, count);
    return bytes;
}

static void what_is_packed_comes_out(void **state)
{
    static struct look looks[20000];
    uint64_t seed = 20261126, position = 0, time_ns = 0;
    size_t records;

    (void)state;
    printf("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < 20000; i++) { /* near each other, far from each other, at one position, out of step */
        position += random_below(&seed, 4) == 0 ? random_below(&seed, UINT64_C(1) << random_below(&seed, 31)) : 1;
        time_ns += random_below(&seed, UINT64_C(1) << random_below(&seed, 31)) * (random_below(&seed, 64) == 0 ? 1 : TIME_STEP_NS);
        looks[i] = (struct look){ position, time_ns };
    }
    (void)pack_and_read(looks, 20000, &records);
    assert_in_range(records, 100, 10000);
}

static void a_look_is_two_bytes_as_a_rule(void **state)
{
    static struct look looks[1000];
    size_t records, bytes;

    (void)state;
    for (size_t i = 0; i < 1000; i++) /* every 12 us, two exits apart */
        looks[i] = (struct look){ 1000 + 2 * i, 4096000 + i * 47 * TIME_STEP_NS };
    bytes = pack_and_read(looks, 1000, &records);
    assert_int_equal(bytes, records * TIME_PACK_FIRST_BYTES + 2 * (1000 - records));
}

static void the_extremes_fit(void **state)
{
    const struct look looks[] = { { 0, 0 }, { 0, 0 }, { UINT64_MAX, UINT64_MAX / TIME_STEP_NS * TIME_STEP_NS },
                                  { UINT64_MAX, UINT64_MAX } };
    size_t records;

    (void)state;
    (void)pack_and_read(looks, 4, &records);
    assert_int_equal(records, 2); /* the last is out of step */
}

/* Reads the record to its end: 0 or -EBADMSG. */
static int read_all(const uint8_t *payload, size_t bytes)
{
    struct time_reader reader;
    int rc = time_reader_begin(&reader, UINT64_MAX - 200, payload, bytes) ? 1 : -EBADMSG;

    while (rc > 0)
        rc = time_reader_next(&reader);
    return rc;
}

static void nothing_else_is_taken_for_looks(void **state)
{
    uint8_t payload[TIME_PACK_BYTES_MAX + 1] = { 0 };

    (void)state;
    assert_int_equal(read_all(payload, TIME_PACK_FIRST_BYTES), 0);
    for (size_t bytes = 0; bytes < TIME_PACK_FIRST_BYTES; bytes++)
        assert_int_equal(read_all(payload, bytes), -EBADMSG);
    assert_int_equal(read_all(payload, TIME_PACK_BYTES_MAX + 1), -EBADMSG);
    assert_int_equal(read_all(payload, TIME_PACK_BYTES_MAX), 0);     /* of position and time that do not move */
    assert_int_equal(read_all(payload, TIME_PACK_BYTES_MAX - 1), -EBADMSG); /* half a look */
    payload[TIME_PACK_FIRST_BYTES] = 0x80; /* the number goes on, and ends with the payload */
    assert_int_equal(read_all(payload, TIME_PACK_FIRST_BYTES + 1), -EBADMSG);
    memcpy(payload + TIME_PACK_FIRST_BYTES, "\xc9\x01", 3); /* 201: the position would wrap */
    assert_int_equal(read_all(payload, TIME_PACK_FIRST_BYTES + 3), -EBADMSG);
    memcpy(payload + TIME_PACK_FIRST_BYTES, "\xc8\x01", 3);
    assert_int_equal(read_all(payload, TIME_PACK_FIRST_BYTES + 3), 0);
    memcpy(payload + TIME_PACK_FIRST_BYTES, "\0\xff\xff\xff\xff\xff\xff\xff\xff\x01", 10); /* so would the time */
    assert_int_equal(read_all(payload, TIME_PACK_FIRST_BYTES + 10), -EBADMSG);
    memcpy(payload + TIME_PACK_FIRST_BYTES, "\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11); /* more than 64 bits */
    assert_int_equal(read_all(payload, TIME_PACK_FIRST_BYTES + 11), -EBADMSG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_packed_comes_out),
        cmocka_unit_test(a_look_is_two_bytes_as_a_rule),
        cmocka_unit_test(the_extremes_fit),
        cmocka_unit_test(nothing_else_is_taken_for_looks),
    };

    return cmocka_run_group_tests_name("time_pack", tests, NULL, NULL);
}
