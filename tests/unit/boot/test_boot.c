/* Where the loader puts things, what it tells the kernel, and when it says no. */
#include "tests/unit/cmocka_prelude.h"

#include <asm/bootparam.h>
#include <errno.h>

#include "fake_kernel.h"
#include "vmm/boot.h"

#define MIB ((uint64_t)1 << 20)

static const char *kernel_path;
static struct fake_kernel kernel;

static struct guest_memory new_memory(uint64_t bytes)
{
    return (struct guest_memory){
        .base = calloc(1, bytes), .bytes = bytes, .dirty = calloc(bytes / GUEST_PAGE_BYTES / 64 + 1, sizeof(uint64_t))};
}

static void free_memory(struct guest_memory *memory)
{
    free(memory->base);
    free(memory->dirty);
}

static struct boot_options new_options(void)
{
    struct boot_options options = {.kernel_path = kernel_path, .command_line = "console=ttyS0 quiet"};

    for (unsigned i = 0; i < sizeof(options.rng_seed); i++)
        options.rng_seed[i] = (uint8_t)(i + 1);
    return options;
}

/* A valid archive of about that size: one file. */
static const char *new_initrd(size_t bytes, char fill)
{
    char *archive = malloc(bytes + 200);

    memset(archive, fill, bytes + 200);
    snprintf(archive, 111, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1u, 0100644u, 0u, 0u, 1u, 0u,
             (unsigned)bytes, 0u, 0u, 0u, 0u, 2u, 0u);
    memcpy(archive + 110, "a", 2);
    const char *path = fake_file(archive, 112 + bytes);
    free(archive);
    return path;
}

static int set_up(void **state)
{
    size_t bytes;

    (void)state;
    fake_kernel_build(&kernel);
    uint8_t *file = fake_bzimage(kernel.bytes, kernel.size, FAKE_GZIP, &bytes);
    kernel_path = fake_file(file, bytes);
    free(file);
    return 0;
}

static void load_puts_the_rewritten_kernel_where_it_is_linked(void **state)
{
    struct guest_memory memory = new_memory(64 * MIB);
    struct boot_options options = new_options();
    struct tsc_patch_report report;
    struct boot_info info;

    (void)state;
    assert_int_equal(boot_load(&memory, &options, &info), 0);
    fake_kernel_build(&kernel);
    assert_int_equal(tsc_patch_kernel(kernel.bytes, kernel.size, &report), 0);
    assert_memory_equal(memory.base + FAKE_TEXT_GPA, kernel.text, FAKE_TEXT_BYTES);
    assert_int_equal(info.entry_gpa, FAKE_TEXT_GPA);
    assert_int_equal(info.kernel_end_gpa, FAKE_TEXT_GPA + 0x4000 + 0x400000);
    assert_int_equal(info.tsc.sites, 5);
    assert_string_equal(info.kernel_version, "6.1.0-fake");
    assert_int_equal(info.initrd_bytes, 0);
    free_memory(&memory);
}

static void load_tells_the_kernel_of_ram_initrd_command_line_and_seed(void **state)
{
    struct guest_memory memory = new_memory(64 * MIB);
    struct boot_options options = new_options();
    const struct boot_params *params;
    const struct setup_data *data;
    struct boot_info info;

    (void)state;
    options.initrd_path = new_initrd(1000000, 'i');
    assert_int_equal(boot_load(&memory, &options, &info), 0);
    params = guest_memory_at(&memory, info.boot_params_gpa, sizeof(*params));
    assert_int_equal(params->hdr.header, 0x53726448); /* HdrS */
    assert_int_equal(params->hdr.type_of_loader, 0xff);
    assert_string_equal((char *)memory.base + params->hdr.cmd_line_ptr, options.command_line);
    assert_int_equal(params->hdr.ramdisk_image, info.initrd_gpa);
    assert_int_equal(params->hdr.ramdisk_size, 1000112);
    assert_int_equal(info.initrd_gpa % GUEST_PAGE_BYTES, 0);
    assert_true(info.initrd_gpa >= info.kernel_end_gpa);
    assert_true(info.initrd_gpa + info.initrd_bytes <= memory.bytes);
    assert_memory_equal(memory.base + info.initrd_gpa, "070701", 6);
    assert_int_equal(memory.base[info.initrd_gpa + 1000000], 'i');

    uint64_t usable = 0, end = 0;
    assert_in_range(params->e820_entries, 1, 16);
    for (unsigned i = 0; i < params->e820_entries; i++) {
        assert_true(params->e820_table[i].addr >= end); /* in order, apart */
        end = params->e820_table[i].addr + params->e820_table[i].size;
        if (params->e820_table[i].type == 1)
            usable += params->e820_table[i].size;
    }
    assert_int_equal(end, memory.bytes);
    assert_in_range(usable, memory.bytes - 512 * 1024, memory.bytes);

    data = guest_memory_at(&memory, params->hdr.setup_data, sizeof(*data) + 32);
    assert_non_null(data);
    assert_int_equal(data->next, 0);
    assert_int_equal(data->type, 9);
    assert_int_equal(data->len, 32);
    assert_memory_equal(data->data, options.rng_seed, 32);
    free_memory(&memory);
}

/* What is in memory and not zero must be marked, or a backup would never get it. */
static void load_marks_all_that_it_wrote(void **state)
{
    struct guest_memory memory = new_memory(64 * MIB);
    struct boot_options options = new_options();
    struct boot_info info;
    unsigned written = 0;

    (void)state;
    options.initrd_path = new_initrd(100000, 'i');
    assert_int_equal(boot_load(&memory, &options, &info), 0);
    for (uint64_t page = 0; page < memory.bytes / GUEST_PAGE_BYTES; page++) {
        static const uint8_t zeros[GUEST_PAGE_BYTES];

        if (memcmp(memory.base + page * GUEST_PAGE_BYTES, zeros, GUEST_PAGE_BYTES) == 0)
            continue;
        written++;
        if (!(memory.dirty[page / 64] >> page % 64 & 1))
            fail_msg("page 0x%llx is written and not marked", (unsigned long long)page);
    }
    assert_true(written > 30);
    free_memory(&memory);
}

static void registers_are_those_of_the_64_bit_entry(void **state)
{
    struct guest_memory memory = new_memory(64 * MIB);
    struct boot_options options = new_options();
    struct kvm_sregs sregs = {.apic_base = 0xfee00900};
    struct kvm_regs regs;
    struct boot_info info;
    uint64_t entry;

    (void)state;
    assert_int_equal(boot_load(&memory, &options, &info), 0);
    boot_set_registers(&info, &sregs, &regs);
    assert_int_equal(regs.rip, info.entry_gpa);
    assert_int_equal(regs.rsi, info.boot_params_gpa);
    assert_int_equal(regs.rflags, 2);
    assert_int_equal(sregs.cs.selector, 0x10);
    assert_true(sregs.cs.l && !sregs.cs.db);
    assert_int_equal(sregs.ds.selector, 0x18);
    assert_int_equal(sregs.apic_base, 0xfee00900); /* what is not ours stays */
    assert_int_equal(sregs.efer & 0x500, 0x500);
    assert_true(sregs.cr0 & 0x80000000);
    assert_int_equal(sregs.gdt.limit, 0x1f);
    memcpy(&entry, memory.base + sregs.gdt.base + 0x10, 8);
    assert_int_equal(entry >> 40 & 0xff, 0x9b); /* code, as the segment register says */
    assert_int_equal(entry >> 53 & 1, 1);       /* 64-bit */

    /* Every MiB of the first 4 GiB lies where its address says. */
    for (uint64_t va = 0; va < UINT64_C(4) << 30; va += MIB) {
        uint64_t table = sregs.cr3;

        for (int shift = 39; shift >= 21; shift -= 9) {
            memcpy(&entry, memory.base + table + (va >> shift & 511) * 8, 8);
            assert_int_equal(entry & 3, 3);
            assert_int_equal(entry >> 7 & 1, shift == 21);
            table = entry & UINT64_C(0xffffffffff000);
        }
        assert_int_equal(entry >> 21, va >> 21);
    }
    free_memory(&memory);
}

static void load_into_too_little_ram_is_refused(void **state)
{
    struct boot_options options = new_options();
    struct boot_info info;

    (void)state;
    for (uint64_t mib = 2; mib <= 36; mib += 2) { /* the kernel ends at 20 MiB and wants 16 more */
        struct guest_memory memory = new_memory(mib * MIB);

        assert_int_equal(boot_load(&memory, &options, &info), -ENOSPC);
        free_memory(&memory);
    }
    struct guest_memory memory = new_memory(40 * MIB);
    assert_int_equal(boot_load(&memory, &options, &info), 0);
    options.initrd_path = new_initrd(3 << 20, 'i');
    assert_int_equal(boot_load(&memory, &options, &info), -ENOSPC);
    free_memory(&memory);
}

static void load_of_bad_files_and_lines_is_refused(void **state)
{
    struct guest_memory memory = new_memory(64 * MIB);
    struct boot_options options = new_options();
    struct boot_info info;
    char line[4000];

    (void)state;
    options.kernel_path = "/nonexistent";
    assert_int_equal(boot_load(&memory, &options, &info), -ENOENT);
    options = new_options();
    options.initrd_path = "/nonexistent";
    assert_int_equal(boot_load(&memory, &options, &info), -ENOENT);
    options.initrd_path = "/tmp";
    assert_int_equal(boot_load(&memory, &options, &info), -EINVAL);
    options.initrd_path = fake_file("", 0);
    assert_int_equal(boot_load(&memory, &options, &info), -EINVAL);
    options.initrd_path = fake_file("\x1f\x8b packed", 9);
    assert_int_equal(boot_load(&memory, &options, &info), -ENOTSUP);
    options = new_options();
    memset(line, 'x', sizeof(line));
    line[2048] = 0;
    options.command_line = line;
    assert_int_equal(boot_load(&memory, &options, &info), -E2BIG);
    line[2047] = 0;
    assert_int_equal(boot_load(&memory, &options, &info), 0);
    free_memory(&memory);
}

/* Segments that lie: outside the file, over low memory, an entry that is nowhere. */
static void load_of_a_lying_elf_is_refused(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
    } lies[] = {
        {64 + 8 + 4, 1},       /* p_offset beyond the file */
        {64 + 32 + 3, 1},      /* p_filesz beyond the file */
        {64 + 24 + 3, 0},      /* p_paddr below 1 MiB (0x01000000 loses its only byte) */
        {64 + 56 + 24 + 3, 0}, /* the second's too */
        {64 + 24 + 5, 1},      /* p_paddr beyond 4 GiB */
        {64 + 40 + 5, 1},      /* p_memsz beyond 4 GiB */
        {24 + 3, 2},           /* e_entry in no segment */
        {56, 0},               /* no segments at all */
    };

    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct guest_memory memory = new_memory(64 * MIB);
        struct boot_options options = new_options();
        struct boot_info info;
        size_t bytes;

        fake_kernel_build(&kernel);
        kernel.bytes[lies[i].at] = lies[i].value;
        uint8_t *file = fake_bzimage(kernel.bytes, kernel.size, FAKE_GZIP, &bytes);
        options.kernel_path = fake_file(file, bytes);
        free(file);
        assert_int_equal(boot_load(&memory, &options, &info), -EINVAL);
        free_memory(&memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(load_puts_the_rewritten_kernel_where_it_is_linked, set_up),
        cmocka_unit_test_setup(load_tells_the_kernel_of_ram_initrd_command_line_and_seed, set_up),
        cmocka_unit_test_setup(load_marks_all_that_it_wrote, set_up),
        cmocka_unit_test_setup(registers_are_those_of_the_64_bit_entry, set_up),
        cmocka_unit_test_setup(load_into_too_little_ram_is_refused, set_up),
        cmocka_unit_test_setup(load_of_bad_files_and_lines_is_refused, set_up),
        cmocka_unit_test_setup(load_of_a_lying_elf_is_refused, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
