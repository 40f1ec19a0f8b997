/* Frames: what is encoded comes back, and nothing else ever looks like a record. */
#include "channel/record_path.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define KEY UINT64_C(0x5eed0123456789ab)

static uint8_t *frame_new(uint64_t lsn, uint64_t position, uint16_t kind, uint32_t bytes)
{
    uint8_t *frame = aligned_alloc(64, FRAME_MAX_BYTES);

    memset(frame, 0xaa, FRAME_MAX_BYTES);
    for (uint32_t i = 0; i < bytes; i++)
        frame[sizeof(struct frame_header) + i] = (uint8_t)(i * 7 + lsn);
    frame_seal(frame, KEY, lsn, position, kind, bytes);
    return frame;
}

static enum frame_state look(const uint8_t *frame, uint64_t room, uint64_t lsn)
{
    struct channel_record record;
    uint64_t bytes = 0;

    return frame_look(frame, room, KEY, lsn, &record, &bytes);
}

static void checksum_is_castagnoli(void **state)
{
    uint8_t zeros[32] = { 0 };

    (void)state;
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c(0, zeros, 32), 0x8a9136aau); /* RFC 3720, B.4 */
    assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283u);
}

/* Long and short data are summed in different ways; the sum of the pieces is that of the whole. */
static void checksum_of_pieces_is_that_of_the_whole(void **state)
{
    uint8_t data[4096];

    (void)state;
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 31 + i / 256);
    for (size_t length = 0; length <= sizeof(data); length += length < 600 ? 1 : 97) {
        uint32_t pieces = 0;

        for (size_t at = 0; at < length; at += 37)
            pieces = crc32c(pieces, data + at, length - at < 37 ? length - at : 37);
        assert_int_equal(crc32c(0, data, length), pieces);
    }
}

static void frame_round_trip_keeps_every_field(void **state)
{
    uint32_t sizes[400];
    unsigned count = 0;

    (void)state;
    for (uint32_t i = 0; i < 300; i++)
        sizes[count++] = i;
    sizes[count++] = CHANNEL_PAYLOAD_MAX_BYTES - 1;
    sizes[count++] = CHANNEL_PAYLOAD_MAX_BYTES;
    for (unsigned i = 0; i < count; i++) {
        uint64_t lsn = 1000 + i, position = UINT64_MAX - i, bytes = 0;
        uint8_t *frame = frame_new(lsn, position, (uint16_t)(65535 - i), sizes[i]);
        struct channel_record record;

        assert_int_equal(frame_look(frame, FRAME_MAX_BYTES, KEY, lsn, &record, &bytes), FRAME_COMPLETE);
        assert_int_equal(bytes, frame_bytes(sizes[i]));
        assert_int_equal(bytes % FRAME_ALIGN_BYTES, 0);
        assert_true(record.lsn == lsn && record.position == position);
        assert_int_equal(record.kind, 65535 - i);
        assert_int_equal(record.bytes, sizes[i]);
        assert_int_equal((uintptr_t)record.payload % 8, 0);
        for (uint32_t j = 0; j < sizes[i]; j++)
            assert_int_equal(((const uint8_t *)record.payload)[j], (uint8_t)(j * 7 + lsn));
        assert_int_equal(frame_lsn_before(frame + bytes, KEY), lsn);
        free(frame);
    }
}

/* Whether the CPU has CRC-32C's instruction changes the way, not the frame; each way takes what the other has sealed. */
static void frames_are_the_same_with_and_without_the_cpus_instruction(void **state)
{
    static const uint32_t sizes[] = { 0, 1, 8, 23, 24, 25, 100, 215, 216, 217, 4056, CHANNEL_PAYLOAD_MAX_BYTES };
    const uint64_t short_bytes = frame_short_bytes;

    (void)state;
    if (short_bytes == 0)
        skip();
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        uint8_t *with = frame_new(7, 9, 11, sizes[i]), *without;

        frame_short_bytes = 0;
        without = frame_new(7, 9, 11, sizes[i]);
        assert_int_equal(look(with, FRAME_MAX_BYTES, 7), FRAME_COMPLETE);
        frame_short_bytes = short_bytes;
        assert_int_equal(look(without, FRAME_MAX_BYTES, 7), FRAME_COMPLETE);
        assert_memory_equal(with, without, frame_bytes(sizes[i]));
        free(with);
        free(without);
    }
}

static void small_records_take_one_line(void **state)
{
    (void)state;
    assert_int_equal(frame_bytes(0), 64);
    assert_int_equal(frame_bytes(24), 64);
    assert_int_equal(frame_bytes(25), 128);
    assert_int_equal(frame_bytes(CHANNEL_PAYLOAD_MAX_BYTES), FRAME_MAX_BYTES);
}

static void every_flipped_bit_is_detected(void **state)
{
    uint8_t *frame = frame_new(77, 123456, 5, 100);
    uint64_t bytes = frame_bytes(100);

    (void)state;
    assert_int_equal(look(frame, FRAME_MAX_BYTES, 77), FRAME_COMPLETE);
    for (uint64_t i = 0; i < bytes; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            enum frame_state found;

            frame[i] ^= (uint8_t)(1u << bit);
            found = look(frame, FRAME_MAX_BYTES, 77);
            if (found == FRAME_COMPLETE || found == FRAME_PAD)
                fail_msg("bit %u of byte %llu flipped: state %d", bit, (unsigned long long)i, found);
            frame[i] ^= (uint8_t)(1u << bit);
        }
    }
    assert_int_equal(look(frame, FRAME_MAX_BYTES, 77), FRAME_COMPLETE);
    free(frame);
}

static int compare_words(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/*
 * What docs/failures.md says of several flipped bits. Flipped bits stay unseen if the CRCs of each of them alone cancel
 * out. The generator has an even number of terms, so an odd number of bits never does. Two do not, if all positions
 * have different remainders; four do not, if all pairs of positions have.
 */
static void three_flipped_bits_are_detected_in_any_frame_and_five_in_small_ones(void **state)
{
    const uint32_t generator = 0x1edc6f41; /* and x^32 */
    /* The key, the frame, and its CRC, which lies elsewhere in the frame than at the codeword's end: the same bits. */
    const uint64_t most_bits = 64 + 8 * FRAME_MAX_BYTES, small_bits = 64 + 8 * 640;
    uint32_t *remainders = malloc(small_bits * sizeof(*remainders)), remainder = 1;
    uint32_t *pairs = malloc(small_bits * (small_bits - 1) / 2 * sizeof(*pairs));
    size_t count = 0;

    (void)state;
    assert_int_equal(__builtin_popcount(generator) % 2, 1);
    for (uint64_t bit = 0; bit < most_bits; bit++) {
        if (bit < small_bits)
            remainders[bit] = remainder;
        remainder = remainder << 1 ^ (remainder >> 31 != 0 ? generator : 0);
        assert_int_not_equal(remainder, 1); /* the powers of x have not come round */
    }
    for (uint64_t i = 0; i < small_bits; i++)
        for (uint64_t j = i + 1; j < small_bits; j++)
            pairs[count++] = remainders[i] ^ remainders[j];
    qsort(pairs, count, sizeof(*pairs), compare_words);
    for (size_t i = 1; i < count; i++)
        if (pairs[i] == pairs[i - 1])
            fail_msg("four bits of %llu cancel out", (unsigned long long)small_bits);
    free(remainders);
    free(pairs);
}

static void every_flipped_bit_of_a_pad_is_detected(void **state)
{
    uint8_t *frame = aligned_alloc(64, FRAME_MAX_BYTES);
    struct channel_record record;
    uint64_t bytes = 0;

    (void)state;
    memset(frame, 0xaa, FRAME_MAX_BYTES);
    frame_seal_pad(frame, KEY, 77, 6400);
    assert_int_equal(frame_look(frame, 6400, KEY, 77, &record, &bytes), FRAME_PAD);
    assert_int_equal(bytes, 6400);
    assert_int_equal(look(frame, 6336, 77), FRAME_DAMAGED); /* longer than what is left */
    for (unsigned i = 0; i < 64; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            enum frame_state found;

            frame[i] ^= (uint8_t)(1u << bit);
            found = look(frame, FRAME_MAX_BYTES, 77);
            assert_true(found != FRAME_COMPLETE && found != FRAME_PAD);
            frame[i] ^= (uint8_t)(1u << bit);
        }
    }
    free(frame);
}

static void frame_without_its_end_is_torn(void **state)
{
    uint8_t *whole = frame_new(9, 1, 2, 1000), *arriving = aligned_alloc(64, FRAME_MAX_BYTES);
    uint64_t bytes = frame_bytes(1000);

    (void)state;
    memset(arriving, 0, FRAME_MAX_BYTES);
    /* Front first, as a NIC was seen to do. */
    for (uint64_t arrived = 8; arrived < bytes; arrived += 8) {
        enum frame_state found;

        memcpy(arriving, whole, arrived);
        found = look(arriving, FRAME_MAX_BYTES, 9);
        if (arrived < 16)
            assert_int_equal(found, FRAME_ABSENT);
        else
            assert_true(found == FRAME_TORN);
    }
    memcpy(arriving, whole, bytes);
    assert_int_equal(look(arriving, FRAME_MAX_BYTES, 9), FRAME_COMPLETE);
    /* End first, with a hole: never delivered either. */
    memset(arriving + 512, 0, 8);
    assert_int_equal(look(arriving, FRAME_MAX_BYTES, 9), FRAME_DAMAGED);
    free(whole);
    free(arriving);
}

static void frame_of_another_lsn_key_or_version_is_not_ours(void **state)
{
    uint8_t *frame = frame_new(9, 1, 2, 10);
    struct frame_header *header = (struct frame_header *)frame;
    struct channel_record record;
    uint64_t bytes;

    (void)state;
    assert_int_equal(look(frame, FRAME_MAX_BYTES, 10), FRAME_ABSENT);
    assert_int_equal(look(frame, FRAME_MAX_BYTES, 8), FRAME_ABSENT);
    assert_int_equal(look(frame, 0, 9), FRAME_ABSENT);
    assert_int_equal(frame_look(frame, FRAME_MAX_BYTES, KEY + 1, 9, &record, &bytes), FRAME_TORN);
    header->version++; /* and with a checksum that fits */
    header->crc = crc32c(crc32c_keyed(KEY, frame, offsetof(struct frame_header, crc)), frame + 32, 32);
    assert_int_equal(look(frame, FRAME_MAX_BYTES, 9), FRAME_DAMAGED);
    header->version--;
    header->crc = crc32c(crc32c_keyed(KEY, frame, offsetof(struct frame_header, crc)), frame + 32, 32);
    assert_int_equal(look(frame, FRAME_MAX_BYTES, 9), FRAME_COMPLETE);
    free(frame);
}

static void length_beyond_the_limit_is_damage_not_an_overrun(void **state)
{
    /* Exactly as much memory as there is room: valgrind and sanitizers would see a read beyond it. */
    uint8_t *frame = aligned_alloc(64, 64);
    struct frame_header *header = (struct frame_header *)frame;

    (void)state;
    frame_seal(frame, KEY, 1, 0, 0, 0);
    header->bytes = 25;
    assert_int_equal(look(frame, 64, 1), FRAME_DAMAGED);
    header->bytes = CHANNEL_PAYLOAD_MAX_BYTES + 1;
    assert_int_equal(look(frame, 64, 1), FRAME_DAMAGED);
    header->bytes = UINT32_MAX;
    assert_int_equal(look(frame, 64, 1), FRAME_DAMAGED);
    free(frame);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checksum_is_castagnoli),
        cmocka_unit_test(checksum_of_pieces_is_that_of_the_whole),
        cmocka_unit_test(frame_round_trip_keeps_every_field),
        cmocka_unit_test(frames_are_the_same_with_and_without_the_cpus_instruction),
        cmocka_unit_test(small_records_take_one_line),
        cmocka_unit_test(every_flipped_bit_is_detected),
        cmocka_unit_test(three_flipped_bits_are_detected_in_any_frame_and_five_in_small_ones),
        cmocka_unit_test(every_flipped_bit_of_a_pad_is_detected),
        cmocka_unit_test(frame_without_its_end_is_torn),
        cmocka_unit_test(frame_of_another_lsn_key_or_version_is_not_ours),
        cmocka_unit_test(length_beyond_the_limit_is_damage_not_an_overrun),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
