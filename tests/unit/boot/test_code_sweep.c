/* RDTSC among code that tries to look like it. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>

#include "vmm/code_sweep.h"

#define VA UINT64_C(0xffffffff81000000)

struct found {
    struct code_site sites[8];
    unsigned count;
};

static int remember(void *ctx, const struct code_range *range, const struct code_site *site)
{
    struct found *found = ctx;

    (void)range;
    assert_true(found->count < 8);
    found->sites[found->count++] = *site;
    return 0;
}

/* The bytes are copied to the end of a block of their own: any read beyond is seen by a sanitizer. */
static int sweep(const uint8_t *bytes, size_t size, bool is64, const uint64_t *anchors, size_t anchor_count,
                 struct found *found, struct code_counts *counts)
{
    uint8_t *exact = malloc(size);
    struct code_range range = {.name = "test code",
                               .bytes = exact,
                               .size = size,
                               .va = VA,
                               .is64 = is64,
                               .anchors = anchors,
                               .anchor_count = anchor_count};

    memcpy(exact, bytes, size);
    *found = (struct found){0};
    *counts = (struct code_counts){0};
    int rc = code_sweep(&range, remember, found, counts);
    free(exact);
    return rc;
}

#define SWEEP64(...)                                                                                                   \
    static const uint8_t code[] = {__VA_ARGS__};                                                                       \
    struct code_counts counts;                                                                                         \
    struct found found;                                                                                                \
    int rc = sweep(code, sizeof(code), true, NULL, 0, &found, &counts)

static void sweep_finds_rdtsc_and_rdtscp(void **state)
{
    (void)state;
    SWEEP64(0x90, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x0f, 0x01, 0xf9, 0xc3);
    assert_int_equal(rc, 0);
    assert_int_equal(found.count, 2);
    assert_int_equal(found.sites[0].offset, 1);
    assert_false(found.sites[0].rdtscp);
    assert_int_equal(found.sites[1].offset, 7);
    assert_true(found.sites[1].rdtscp);
    assert_int_equal(counts.rdtsc, 1);
    assert_int_equal(counts.rdtscp, 1);
    assert_int_equal(counts.inside, 0);
}

static void sweep_leaves_the_bytes_inside_immediates_and_displacements(void **state)
{
    (void)state;
    SWEEP64(0xb8, 0x0f, 0x31, 0x90, 0x90,                               /* mov eax, 0x9090310f */
            0xe8, 0x0f, 0x01, 0xf9, 0xff,                               /* call -0x6fef1 */
            0x8b, 0x05, 0x00, 0x0f, 0x31, 0x00,                         /* mov eax, [rip+0x310f00] */
            0x48, 0xb9, 0x0f, 0x31, 0x0f, 0x31, 0x0f, 0x31, 0x0f, 0x31, /* movabs */
            0x0f, 0x31, 0xc3);
    assert_int_equal(rc, 0);
    assert_int_equal(found.count, 1);
    assert_int_equal(found.sites[0].offset, 26);
    assert_int_equal(counts.inside, 7);
}

static void sweep_at_the_very_end_reads_nothing_beyond(void **state)
{
    (void)state;
    SWEEP64(0x90, 0x0f, 0x31);
    assert_int_equal(rc, 0);
    assert_int_equal(counts.rdtsc, 1);
}

static void sweep_of_a_cut_instruction_is_refused(void **state)
{
    (void)state;
    SWEEP64(0x90, 0xb8, 0x0f, 0x31); /* mov eax, imm32 lacks two bytes */
    assert_int_equal(rc, -EILSEQ);
}

static void sweep_refuses_a_prefixed_rdtsc(void **state)
{
    (void)state;
    SWEEP64(0x90, 0xf3, 0x0f, 0x31, 0xc3);
    assert_int_equal(rc, -EILSEQ);
    assert_int_equal(found.count, 0);
}

static void sweep_refuses_code_that_is_no_code(void **state)
{
    (void)state;
    SWEEP64(0x06, 0x0f, 0x31, 0xc3); /* push es does not exist in 64-bit mode */
    assert_int_equal(rc, -EILSEQ);
}

static void sweep_knows_32_bit_code(void **state)
{
    static const uint8_t code[] = {0x40, 0x0f, 0x31, 0xc3}; /* inc eax; rdtsc; in 64-bit mode a prefixed rdtsc */
    struct code_counts counts;
    struct found found;

    (void)state;
    assert_int_equal(sweep(code, sizeof(code), false, NULL, 0, &found, &counts), 0);
    assert_int_equal(counts.rdtsc, 1);
    assert_int_equal(found.sites[0].offset, 1);
    assert_int_equal(sweep(code, sizeof(code), true, NULL, 0, &found, &counts), -EILSEQ);
}

/* Data before a function would swallow its first byte; the anchor at its start says otherwise. */
static void sweep_refuses_to_step_over_an_anchor(void **state)
{
    static const uint8_t code[] = {0x90, 0xb8, 0x0f, 0x31, 0x90, 0x90, 0xc3};
    const uint64_t anchor[] = {VA + 2};
    struct code_counts counts;
    struct found found;

    (void)state;
    assert_int_equal(sweep(code, sizeof(code), true, anchor, 1, &found, &counts), -EILSEQ);
    assert_int_equal(found.count, 0);
}

static void sweep_starts_afresh_at_anchors_behind_data(void **state)
{
    static const uint8_t code[] = {0xb8, 0x90, 0x90, /* data: would be mov eax, ... */
                                   0x90, 0xc3, 0x90, 0xc3, 0x90, 0xc3, 0x0f, 0x31, 0xc3};
    const uint64_t anchors[] = {VA - 100, VA + 3, VA + 5, VA + 7, VA + 9, VA + 1000};
    struct code_counts counts;
    struct found found;

    (void)state;
    assert_int_equal(sweep(code, sizeof(code), true, anchors, 6, &found, &counts), 0);
    assert_int_equal(found.count, 1);
    assert_int_equal(found.sites[0].offset, 9);
}

static int stop(void *ctx, const struct code_range *range, const struct code_site *site)
{
    (void)ctx, (void)range, (void)site;
    return -ENOMEM;
}

static void sweep_ends_when_the_visitor_says_so(void **state)
{
    static const uint8_t code[] = {0x0f, 0x31, 0x0f, 0x31};
    struct code_range range = {.name = "t", .bytes = code, .size = sizeof(code), .is64 = true};
    struct code_counts counts = {0};

    (void)state;
    assert_int_equal(code_sweep(&range, stop, NULL, &counts), -ENOMEM);
    assert_int_equal(counts.rdtsc, 1);
}

static void starts_at_tells_instructions_from_their_insides(void **state)
{
    static const uint8_t code[] = {0xb8, 1, 2, 3, 4, 0x0f, 0x22, 0xe7, 0xc3};
    struct code_range range = {.name = "t", .bytes = code, .size = sizeof(code), .va = VA, .is64 = true};

    (void)state;
    for (size_t i = 0; i < 12; i++)
        assert_int_equal(code_starts_at(&range, i), i == 0 || i == 5 || i == 8);
}

/* Any bytes at all: found or refused, but no crash, and whatever is found is an RDTSC. */
static void sweep_survives_random_bytes(void **state)
{
    uint64_t random = 42;

    (void)state;
    for (unsigned round = 0; round < 3000; round++) {
        uint8_t code[64];
        uint64_t anchors[4];
        struct code_counts counts;
        struct found found;

        for (size_t i = 0; i < sizeof(code); i++)
            code[i] = (uint8_t)test_random(&random);
        for (unsigned i = 0; i < 3; i++)
            memcpy(code + test_random(&random) % 61, i ? "\x0f\x31" : "\x0f\x01\xf9", i ? 2 : 3);
        for (unsigned i = 0; i < 4; i++)
            anchors[i] = VA + 16 * i + test_random(&random) % 16;
        (void)sweep(code, sizeof(code), round % 2, anchors, round % 5, &found, &counts);
        for (unsigned i = 0; i < found.count; i++)
            assert_memory_equal(code + found.sites[i].offset, found.sites[i].rdtscp ? "\x0f\x01\xf9" : "\x0f\x31",
                                found.sites[i].rdtscp ? 3 : 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sweep_finds_rdtsc_and_rdtscp),
        cmocka_unit_test(sweep_leaves_the_bytes_inside_immediates_and_displacements),
        cmocka_unit_test(sweep_at_the_very_end_reads_nothing_beyond),
        cmocka_unit_test(sweep_of_a_cut_instruction_is_refused),
        cmocka_unit_test(sweep_refuses_a_prefixed_rdtsc),
        cmocka_unit_test(sweep_refuses_code_that_is_no_code),
        cmocka_unit_test(sweep_knows_32_bit_code),
        cmocka_unit_test(sweep_refuses_to_step_over_an_anchor),
        cmocka_unit_test(sweep_starts_afresh_at_anchors_behind_data),
        cmocka_unit_test(sweep_ends_when_the_visitor_says_so),
        cmocka_unit_test(starts_at_tells_instructions_from_their_insides),
        cmocka_unit_test(sweep_survives_random_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
