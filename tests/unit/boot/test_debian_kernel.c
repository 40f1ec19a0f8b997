/* The rewriting of the kernel that Debian ships, held against a second opinion. */
#include "tests/unit/cmocka_prelude.h"

#include <Zydis/Zydis.h>
#include <errno.h>
#include <unistd.h>

#include "vmm/boot.h"
#include "vmm/bzimage.h"
#include "vmm/elf_view.h"
#include "vmm/tsc_patch.h"

#define MIB ((uint64_t)1 << 20)

static char kernel_path[512], initrd_path[512];

/* Second opinion: one long sweep from the section's start, byte by byte where it does not decode. In the kernel's
 * code it is in step almost everywhere, and it shares nothing with the anchors' method but the decoder. */
static unsigned count_by_long_sweep(const struct elf_section *section)
{
    ZydisDecoder decoder;
    unsigned count = 0;

    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (size_t at = 0; at < section->size;) {
        ZydisDecodedInstruction instruction;

        if (!ZYAN_SUCCESS(
                ZydisDecoderDecodeInstruction(&decoder, NULL, section->data + at, section->size - at, &instruction))) {
            at++;
            continue;
        }
        count += instruction.mnemonic == ZYDIS_MNEMONIC_RDTSC || instruction.mnemonic == ZYDIS_MNEMONIC_RDTSCP;
        at += instruction.length;
    }
    return count;
}

static unsigned kernel_count(const struct elf_view *elf)
{
    unsigned count = 0;

    for (uint32_t i = 0; i < elf->section_count; i++) {
        struct elf_section section;

        assert_true(elf_view_section(elf, i, &section));
        if (section.type == SHT_PROGBITS && (section.flags & SHF_EXECINSTR))
            count += count_by_long_sweep(&section);
    }
    return count;
}

static void debian_kernel_has_no_rdtsc_afterwards(void **state)
{
    struct tsc_patch_report report;
    struct bzimage image;
    struct elf_view elf;
    unsigned in_kernel = 0;

    (void)state;
    assert_int_equal(bzimage_open(&image, kernel_path), 0);
    assert_true(elf_view_open(&elf, image.vmlinux, image.vmlinux_bytes));
    uint8_t *before = malloc(image.vmlinux_bytes);
    memcpy(before, image.vmlinux, image.vmlinux_bytes);
    unsigned expected = kernel_count(&elf);
    assert_int_equal(tsc_patch_kernel(image.vmlinux, image.vmlinux_bytes, &report), 0);
    for (uint32_t i = 0; i < report.section_count; i++)
        if (strncmp(report.sections[i].name, "vDSO", 4) != 0)
            in_kernel += report.sections[i].rdtsc + report.sections[i].rdtscp;
    assert_int_equal(in_kernel, expected);
    assert_true(report.sites > in_kernel); /* the vDSOs have some too */
    assert_int_equal(kernel_count(&elf), 0);

    /* Nothing else changed: 2 or 3 bytes a site, 9 for CR4, 3 + 3 for #GP. */
    size_t changed = 0;
    for (size_t i = 0; i < image.vmlinux_bytes; i++)
        changed += before[i] != image.vmlinux[i];
    assert_in_range(changed, 2 * report.sites, 3 * report.sites + 15);
    free(before);
    bzimage_close(&image);
}

static void debian_kernel_and_guest_initrd_load(void **state)
{
    struct guest_memory memory = {.base = calloc(1, 256 * MIB), .bytes = 256 * MIB};
    struct boot_options options = {
        .kernel_path = kernel_path, .initrd_path = initrd_path, .command_line = BOOT_DEFAULT_COMMAND_LINE};
    struct boot_info info;
    uint16_t word;

    (void)state;
    assert_int_equal(boot_load(&memory, &options, &info), 0);
    assert_int_equal(info.entry_gpa, 0x1000000);
    assert_true(info.kernel_end_gpa <= info.initrd_gpa);
    assert_true(info.module_count >= 4);
    memcpy(&word, memory.base + (info.tsc.gp_entry_va - UINT64_C(0xffffffff80000000)), 2);
    assert_int_equal(word, 0xf6e6); /* OUT 0xF6, AL where the guest will run it */
    free(memory.base);
}

static void debian_kernel_into_64_mib_is_refused(void **state)
{
    struct guest_memory memory = {.base = calloc(1, 64 * MIB), .bytes = 64 * MIB};
    struct boot_options options = {.kernel_path = kernel_path, .command_line = ""};
    struct boot_info info;

    (void)state;
    assert_int_equal(boot_load(&memory, &options, &info), -ENOSPC);
    free(memory.base);
}

int main(void)
{
    const char *cache = getenv("FTVMM_CACHE");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(debian_kernel_has_no_rdtsc_afterwards),
        cmocka_unit_test(debian_kernel_and_guest_initrd_load),
        cmocka_unit_test(debian_kernel_into_64_mib_is_refused),
    };

    snprintf(kernel_path, sizeof(kernel_path), "%s/guest/vmlinuz", cache ? cache : "/var/cache/ftvmm");
    snprintf(initrd_path, sizeof(initrd_path), "%s/guest/initrd", cache ? cache : "/var/cache/ftvmm");
    if (access(kernel_path, R_OK) != 0 || access(initrd_path, R_OK) != 0) {
        printf("skipped: no %s; run scripts/guest-image first\n", kernel_path);
        return TEST_SKIP;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
