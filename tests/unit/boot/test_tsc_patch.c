/* The rewriting of a toy kernel, and every way in which it must be refused. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>

#include "fake_kernel.h"
#include "vmm/tsc_patch.h"

static struct fake_kernel kernel;

static void patch_rewrites_each_place_and_nothing_else(void **state)
{
    static uint8_t expected[sizeof(kernel.bytes)];
    struct tsc_patch_report report;
    ptrdiff_t text = 0;

    (void)state;
    fake_kernel_build(&kernel);
    memcpy(expected, kernel.bytes, sizeof(expected));
    text = kernel.text - kernel.bytes;
    memcpy(expected + text + FAKE_RDTSC, "\xe5\xf5", 2);
    memcpy(expected + text + FAKE_ALTERNATIVE, "\xe5\xf5", 2);
    memcpy(expected + text + FAKE_WRITE_CR4 - 7, "\x31\xf6\x83\xcf\x04\xeb\x02", 7);
    memcpy(expected + text + FAKE_WRITE_CR4, "\xeb\xf7", 2);
    memcpy(expected + text + FAKE_GP_ENTRY, "\xe6\xf6\x90", 3);
    memcpy(expected + (kernel.replacements - kernel.bytes), "\xe6\xf6\x90\x0f\xae\xe8\xe5\xf5\xe5\xf8\x90", 11);
    memcpy(expected + (kernel.vdso_code - kernel.bytes), "\xe5\xf8\x90", 3);

    assert_int_equal(tsc_patch_kernel(kernel.bytes, kernel.size, &report), 0);
    assert_memory_equal(kernel.bytes, expected, sizeof(expected));
    assert_int_equal(report.sites, 5);
    assert_int_equal(report.inside, 1);
    assert_int_equal(report.gp_entry_va, FAKE_TEXT_VA + FAKE_GP_ENTRY);
    assert_int_equal(report.write_cr4_va, FAKE_TEXT_VA + FAKE_WRITE_CR4);
    assert_int_equal(report.section_count, 3);
    assert_string_equal(report.sections[0].name, ".text");
    assert_int_equal(report.sections[0].rdtsc, 2);
    assert_int_equal(report.sections[0].inside, 1);
    assert_string_equal(report.sections[1].name, ".altinstr_replacement");
    assert_int_equal(report.sections[1].rdtsc, 1);
    assert_int_equal(report.sections[1].rdtscp, 1);
    assert_string_equal(report.sections[2].name, "vDSO (64-bit)");
    assert_int_equal(report.sections[2].rdtscp, 1);
}

/* The jumps of the CR4 hook, followed by hand. */
static void patch_of_cr4_runs_through_the_padding_and_back(void **state)
{
    struct tsc_patch_report report;

    (void)state;
    fake_kernel_build(&kernel);
    assert_int_equal(tsc_patch_kernel(kernel.bytes, kernel.size, &report), 0);
    const uint8_t *entry = kernel.text + FAKE_WRITE_CR4;
    assert_int_equal(entry[0], 0xeb);
    const uint8_t *cave = entry + 2 + (int8_t)entry[1];
    assert_memory_equal(cave, "\x31\xf6\x83\xcf\x04\xeb", 6); /* xor esi, esi; or edi, 4; jmp */
    assert_ptr_equal(cave + 7 + (int8_t)cave[6], entry + 2);
    assert_memory_equal(entry + 2, "\x0f\x22\xe7", 3); /* mov cr4, rdi */
}

/* `rc` and an untouched image. */
static void assert_refused(int rc)
{
    static uint8_t before[sizeof(kernel.bytes)];
    struct tsc_patch_report report;

    memcpy(before, kernel.bytes, sizeof(before));
    assert_int_equal(tsc_patch_kernel(kernel.bytes, kernel.size, &report), rc);
    assert_memory_equal(kernel.bytes, before, sizeof(before));
}

static void patch_twice_is_refused(void **state)
{
    struct tsc_patch_report report;

    (void)state;
    fake_kernel_build(&kernel);
    assert_int_equal(tsc_patch_kernel(kernel.bytes, kernel.size, &report), 0);
    assert_refused(-ENOTSUP);
}

static void patch_without_a_gp_gate_is_refused(void **state)
{
    (void)state;
    fake_kernel_build(&kernel);
    kernel.idt[24] = 12;
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.idt[24 + 9] = 0x8f; /* a trap gate is not what Linux has there */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.idt[24 + 8] = 1; /* nor one with a stack of its own */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.idt[24 + 19] = 0; /* the handler lies outside .text */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.idt[0] = kernel.idt[4] = kernel.idt[48 + 4] = 0; /* no table around it */
    assert_refused(-ENOTSUP);
}

static void patch_with_two_gp_gates_is_refused(void **state)
{
    (void)state;
    fake_kernel_build(&kernel);
    kernel.idt[48] = 13;
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.idt[0] = 13;
    assert_refused(-ENOTSUP);
}

static void patch_of_another_gp_entry_is_refused(void **state)
{
    (void)state;
    fake_kernel_build(&kernel);
    kernel.text[FAKE_GP_ENTRY] = 0xfc; /* no slot */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.replacements[2] = 0xcb; /* the slot's alternative is STAC */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    int32_t offset; /* a second alternative over the slot */
    memcpy(&offset, kernel.alternatives + 12, 4);
    offset += FAKE_GP_ENTRY - FAKE_ALTERNATIVE;
    memcpy(kernel.alternatives + 12, &offset, 4);
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    memcpy(kernel.idt + 24 + 16, kernel.idt + 16, 8); /* the handler has no slot */
    assert_refused(-ENOTSUP);
}

static void patch_without_write_cr4_or_its_padding_is_refused(void **state)
{
    (void)state;
    fake_kernel_build(&kernel);
    kernel.text[FAKE_WRITE_CR4 + 1] = 0xff; /* xor edi, edi */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    memcpy(kernel.text + FAKE_LAST, "\x31\xf6\x0f\x22\xe7\xc3", 6); /* two of them */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    memcpy(kernel.text + FAKE_LAST, "\x31\xff\x0f\x22\xe7\xc3", 6); /* another function loads CR4 from RDI */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    memset(kernel.text + FAKE_PADDING, 0x50, 16); /* pushes, not padding */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    memset(kernel.text + FAKE_PADDING + 9, 0xc3, 2); /* too little padding */
    kernel.text[FAKE_PADDING + 8] = 0x58;
    memset(kernel.text + FAKE_PADDING, 0x90, 8);
    assert_refused(-ENOTSUP);
}

static void patch_without_orc_table_is_refused(void **state)
{
    uint8_t *name;

    (void)state;
    fake_kernel_build(&kernel);
    name = memmem(kernel.bytes, kernel.size, ".orc_unwind_ip", 14);
    assert_non_null(name);
    name[1] = 'x';
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.orc[7] = 0x80; /* not sorted */
    assert_refused(-ENOTSUP);
}

static void patch_of_strange_alternatives_is_refused(void **state)
{
    (void)state;
    fake_kernel_build(&kernel);
    kernel.alternatives[12 + 11] = 9; /* longer than what it replaces */
    assert_refused(-ENOTSUP);

    fake_kernel_build(&kernel);
    kernel.alternatives[12 + 6] ^= 0x40; /* a replacement elsewhere */
    assert_refused(-ENOTSUP);
}

static void patch_of_code_that_cannot_be_told_is_refused(void **state)
{
    (void)state;
    fake_kernel_build(&kernel);
    kernel.text[FAKE_RDTSC - 1] = 0xb8; /* swallows the function's start, which the ORC table knows */
    assert_refused(-EILSEQ);

    fake_kernel_build(&kernel);
    memcpy(kernel.text + FAKE_RDTSC, "\x66\x0f\x31\xc3", 4);
    assert_refused(-EILSEQ);
}

static void patch_of_no_kernel_is_refused(void **state)
{
    struct tsc_patch_report report;
    uint8_t nothing[4] = {0};

    (void)state;
    assert_int_equal(tsc_patch_kernel(nothing, sizeof(nothing), &report), -EINVAL);
    fake_kernel_build(&kernel);
    kernel.bytes[16] = 3; /* a library */
    assert_refused(-EINVAL);
    fake_kernel_build(&kernel);
    kernel.bytes[18] = 183; /* for another CPU */
    assert_refused(-EINVAL);
}

/* Headers and tables with random damage: any answer, but no crash and no write outside. */
static void patch_survives_damage(void **state)
{
    uint64_t random = 99;

    (void)state;
    for (unsigned round = 0; round < 3000; round++) {
        struct tsc_patch_report report;

        fake_kernel_build(&kernel);
        for (unsigned i = 0; i < 1 + round % 4; i++) {
            static const struct {
                size_t at, bytes;
            } places[] = {{0, 0xb0}, {0x1000, 0x300}, {0x5000, 0x400}, {0x4000, 0x500}, {0x7000, 0x200}};
            size_t place = test_random(&random) % 5;

            kernel.bytes[places[place].at + test_random(&random) % places[place].bytes] = (uint8_t)test_random(&random);
        }
        size_t size = round % 3 ? kernel.size : test_random(&random) % kernel.size;
        uint8_t *exact = malloc(size + 1);

        memcpy(exact, kernel.bytes, size);
        (void)tsc_patch_kernel(exact, size, &report);
        (void)tsc_patch_module(exact, size, "module", &report.sites);
        free(exact);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patch_rewrites_each_place_and_nothing_else),
        cmocka_unit_test(patch_of_cr4_runs_through_the_padding_and_back),
        cmocka_unit_test(patch_twice_is_refused),
        cmocka_unit_test(patch_without_a_gp_gate_is_refused),
        cmocka_unit_test(patch_with_two_gp_gates_is_refused),
        cmocka_unit_test(patch_of_another_gp_entry_is_refused),
        cmocka_unit_test(patch_without_write_cr4_or_its_padding_is_refused),
        cmocka_unit_test(patch_without_orc_table_is_refused),
        cmocka_unit_test(patch_of_strange_alternatives_is_refused),
        cmocka_unit_test(patch_of_code_that_cannot_be_told_is_refused),
        cmocka_unit_test(patch_of_no_kernel_is_refused),
        cmocka_unit_test(patch_survives_damage),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
