/* Kernel modules inside cpio archives. */
#include "tests/unit/cmocka_prelude.h"

#include <elf.h>
#include <errno.h>

#include "vmm/initrd.h"

static uint8_t archive[1 << 16];
static size_t archive_bytes;

static void add(const char *name, uint32_t mode, const void *data, size_t bytes)
{
    char header[111];
    size_t name_bytes = strlen(name) + 1;

    snprintf(header, sizeof(header), "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1u, mode, 0u, 0u, 1u,
             0u, (unsigned)bytes, 0u, 0u, 0u, 0u, (unsigned)name_bytes, 0u);
    memcpy(archive + archive_bytes, header, 110);
    memcpy(archive + archive_bytes + 110, name, name_bytes);
    archive_bytes = (archive_bytes + 110 + name_bytes + 3) & ~(size_t)3;
    if (bytes > 0)
        memcpy(archive + archive_bytes, data, bytes);
    archive_bytes = (archive_bytes + bytes + 3) & ~(size_t)3;
}

struct module {
    Elf64_Ehdr header;
    uint8_t code[64];
    Elf64_Sym symbols[2];
    char names[64];
    Elf64_Shdr sections[4];
};

/* One function at 4 in .text, behind bytes that would swallow its first. */
static struct module make_module(const char *code, size_t bytes)
{
    struct module m = {
        .header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                   .e_type = ET_REL,
                   .e_machine = EM_X86_64,
                   .e_shoff = offsetof(struct module, sections),
                   .e_shentsize = sizeof(Elf64_Shdr),
                   .e_shnum = 4,
                   .e_shstrndx = 3},
        .names = "\0.text\0.symtab\0.shstrtab",
        .symbols = {[1] = {.st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC), .st_shndx = 1, .st_value = 4}},
        .sections =
            {
                [1] = {.sh_name = 1,
                       .sh_type = SHT_PROGBITS,
                       .sh_flags = SHF_ALLOC | SHF_EXECINSTR,
                       .sh_offset = offsetof(struct module, code),
                       .sh_size = 4 + bytes},
                [2] = {.sh_name = 7,
                       .sh_type = SHT_SYMTAB,
                       .sh_offset = offsetof(struct module, symbols),
                       .sh_size = sizeof(m.symbols),
                       .sh_entsize = sizeof(Elf64_Sym)},
                [3] = {.sh_name = 15,
                       .sh_type = SHT_STRTAB,
                       .sh_offset = offsetof(struct module, names),
                       .sh_size = sizeof(m.names)},
            },
    };

    memset(m.code, 0x90, 4);
    memcpy(m.code + 4, code, bytes);
    return m;
}

static int patch(uint32_t *modules, uint32_t *sites)
{
    return initrd_patch_modules(archive, archive_bytes, "test.cpio", modules, sites);
}

static void initrd_modules_lose_their_rdtsc(void **state)
{
    struct module guilty = make_module("\x0f\x31\xb8\x0f\x31\x00\x00\x0f\x01\xf9\xc3", 11);
    struct module innocent = make_module("\xb8\x0f\x31\x00\x00\xc3", 6);
    uint32_t modules, sites;
    const uint8_t *found;

    (void)state;
    archive_bytes = 0;
    add("lib", 0040755, NULL, 0);
    add("lib/guilty.ko", 0100644, &guilty, sizeof(guilty));
    add("lib/innocent.ko", 0100644, &innocent, sizeof(innocent));
    add("bin/rdtsc", 0100755, "\x0f\x31", 2); /* a program is the #GP hook's affair */
    add("TRAILER!!!", 0, NULL, 0);
    memset(archive + archive_bytes, 0, 256); /* padded, and a second archive behind */
    archive_bytes += 256;
    add("more/innocent.ko", 0100644, &innocent, sizeof(innocent));
    assert_int_equal(patch(&modules, &sites), 0);
    assert_int_equal(modules, 3);
    assert_int_equal(sites, 2);
    found = memmem(archive, archive_bytes, "\xe5\xf5\xb8\x0f\x31\x00\x00\xe5\xf8\x90\xc3", 11);
    assert_non_null(found);
    assert_non_null(memmem(archive, archive_bytes, &innocent, sizeof(innocent)));
    assert_null(memmem(archive, archive_bytes, &guilty, sizeof(guilty)));
}

static void initrd_with_a_module_that_cannot_be_told_is_refused(void **state)
{
    struct module m = make_module("\x0f\x31\xc3", 3);
    uint32_t modules, sites;

    (void)state;
    m.code[3] = 0xb8; /* data in front, which would swallow the function's start */
    archive_bytes = 0;
    add("a.ko", 0100644, &m, sizeof(m));
    assert_int_equal(patch(&modules, &sites), -EILSEQ);

    archive_bytes = 0;
    add("a.ko", 0100644, "no ELF file", 11);
    assert_int_equal(patch(&modules, &sites), -EINVAL);
}

static void initrd_that_hides_modules_is_refused(void **state)
{
    uint32_t modules, sites;

    (void)state;
    archive_bytes = 0;
    add("lib/a.ko.xz", 0100644,
        "\xfd"
        "7zXZ",
        5);
    assert_int_equal(patch(&modules, &sites), -ENOTSUP);

    archive_bytes = 0;
    add("microcode", 0100644, "x", 1);
    memcpy(archive + archive_bytes, "\x28\xb5\x2f\xfd rest", 9); /* as initramfs-tools packs the second half */
    archive_bytes += 9;
    assert_int_equal(patch(&modules, &sites), -ENOTSUP);
}

static void initrd_cut_anywhere_is_refused_or_whole(void **state)
{
    struct module m = make_module("\x0f\x31\xc3", 3);
    uint32_t modules, sites;

    (void)state;
    archive_bytes = 0;
    add("a", 0100644, "hello", 5);
    size_t first = archive_bytes;
    add("a.ko", 0100644, &m, sizeof(m));
    size_t whole = archive_bytes;
    for (size_t cut = 1; cut < whole; cut++) {
        uint8_t *exact = malloc(cut);

        memcpy(exact, archive, cut);
        int rc = initrd_patch_modules(exact, cut, "cut.cpio", &modules, &sites);
        /* Only padding may be missing. */
        if (cut != first && !(cut >= first - 3 && cut < first) && cut < whole - 3)
            assert_int_equal(rc, -EINVAL);
        free(exact);
    }
}

static void initrd_of_nonsense_is_refused(void **state)
{
    uint32_t modules, sites;

    (void)state;
    archive_bytes = 200;
    memset(archive, 'x', archive_bytes);
    assert_int_equal(patch(&modules, &sites), -EINVAL);
    archive_bytes = 0;
    add("a", 0100644, "hello", 5);
    memset(archive + 6 + 8 * 6, 'f', 8); /* file size */
    assert_int_equal(patch(&modules, &sites), -EINVAL);
    memset(archive + 6 + 8 * 6, 'z', 8);
    assert_int_equal(patch(&modules, &sites), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initrd_modules_lose_their_rdtsc),
        cmocka_unit_test(initrd_with_a_module_that_cannot_be_told_is_refused),
        cmocka_unit_test(initrd_that_hides_modules_is_refused),
        cmocka_unit_test(initrd_cut_anywhere_is_refused_or_whole),
        cmocka_unit_test(initrd_of_nonsense_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
