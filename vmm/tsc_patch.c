/*
 * Finds and rewrites what reads the time-stamp counter in a kernel image; see tsc_patch.h.
 *
 * Where does an instruction begin? The kernel's own unwind table (.orc_unwind_ip) names addresses that are
 * instruction boundaries, a few instructions apart. A byte pair that looks like RDTSC is decoded with a
 * disassembler from the boundary before it, and the decoding must meet the boundary after it: then the pair is
 * an instruction, or it is not, without doubt. Where there is doubt the image is refused.
 */
#include "vmm/tsc_patch.h"

#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "base/report.h"

/* struct alt_instr of Linux 5.x to 6.2 (arch/x86/include/asm/alternative.h), packed. */
struct alternative {
    int32_t original, replacement; /* relative to the field's own address */
    uint16_t cpuid;
    uint8_t original_bytes, replacement_bytes;
} __attribute__((packed));

/* struct paravirt_patch_site (arch/x86/include/asm/paravirt_types.h). */
struct paravirt_site {
    uint64_t original;
    uint8_t type, original_bytes;
    uint8_t reserved[6];
};

struct image {
    uint8_t *elf;
    size_t bytes;
    const Elf64_Shdr *sections;
    unsigned section_count;
    const char *names;
    size_t names_bytes;
    uint64_t *boundaries; /* instruction addresses from the unwind table, ascending */
    size_t boundary_count;
    ZydisDecoder decoder;
    struct tsc_patch_report *report;
};

static int refuse(const char *what)
{
    report_error("this kernel cannot be made deterministic: %s; Debian 12's linux-image-cloud-amd64 is known to work",
                 what);
    return -ENOTSUP;
}

static int open_elf(struct image *image)
{
    const Elf64_Ehdr *head = (const void *)image->elf;
    const Elf64_Shdr *names;

    if (image->bytes < sizeof(*head) || memcmp(head->e_ident, ELFMAG, SELFMAG) != 0 ||
        head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_machine != EM_X86_64 ||
        head->e_shentsize != sizeof(Elf64_Shdr) || head->e_shoff > image->bytes || head->e_shoff % 8 != 0 ||
        head->e_shnum > (image->bytes - head->e_shoff) / sizeof(Elf64_Shdr) || head->e_shstrndx >= head->e_shnum) {
        report_error("the unpacked kernel is no x86-64 ELF image with sections");
        return -EINVAL;
    }
    image->sections = (const void *)(image->elf + head->e_shoff);
    image->section_count = head->e_shnum;
    for (unsigned i = 0; i < image->section_count; i++) {
        const Elf64_Shdr *section = &image->sections[i];

        if (section->sh_type != SHT_NOBITS &&
            (section->sh_offset > image->bytes || section->sh_size > image->bytes - section->sh_offset)) {
            report_error("the unpacked kernel's section %u lies outside the file", i);
            return -EINVAL;
        }
    }
    names = &image->sections[head->e_shstrndx];
    image->names = (const char *)image->elf + names->sh_offset;
    image->names_bytes = names->sh_size;
    return 0;
}

static const Elf64_Shdr *find_section(const struct image *image, const char *name)
{
    size_t length = strlen(name) + 1;

    for (unsigned i = 0; i < image->section_count; i++) {
        const Elf64_Shdr *section = &image->sections[i];

        if (section->sh_type == SHT_PROGBITS && section->sh_name < image->names_bytes &&
            image->names_bytes - section->sh_name >= length &&
            memcmp(image->names + section->sh_name, name, length) == 0)
            return section;
    }
    return NULL;
}

static uint8_t *section_bytes(const struct image *image, const Elf64_Shdr *section)
{
    return image->elf + section->sh_offset;
}

static int compare_addresses(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Addresses inside [from, from + bytes) are boundaries of code that may replace what stands there, not of the
 * original: they become `from`, which is one. */
static void merge_boundaries(struct image *image, uint64_t from, uint64_t bytes)
{
    size_t low = 0, high = image->boundary_count;

    while (low < high) { /* first boundary beyond `from` */
        size_t middle = (low + high) / 2;

        if (image->boundaries[middle] <= from)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < image->boundary_count && image->boundaries[low] < from + bytes; low++)
        image->boundaries[low] = from;
}

static int merge_replaced_boundaries(struct image *image)
{
    const Elf64_Shdr *table = find_section(image, ".altinstructions");
    const Elf64_Shdr *paravirt = find_section(image, ".parainstructions");

    if (table == NULL || table->sh_size % sizeof(struct alternative) != 0)
        return refuse("its table of alternative instructions has an unknown layout");
    for (size_t i = 0; i < table->sh_size / sizeof(struct alternative); i++) {
        struct alternative entry;
        uint64_t field = table->sh_addr + i * sizeof(entry);

        memcpy(&entry, section_bytes(image, table) + i * sizeof(entry), sizeof(entry));
        merge_boundaries(image, field + (uint64_t)(int64_t)entry.original, entry.original_bytes);
    }
    for (size_t i = 0; paravirt != NULL && i < paravirt->sh_size / sizeof(struct paravirt_site); i++) {
        struct paravirt_site site;

        memcpy(&site, section_bytes(image, paravirt) + i * sizeof(site), sizeof(site));
        merge_boundaries(image, site.original, site.original_bytes);
    }
    return 0;
}

static int read_boundaries(struct image *image)
{
    const Elf64_Shdr *section = find_section(image, ".orc_unwind_ip");
    const uint8_t *at;

    if (section == NULL || section->sh_size < 4)
        return refuse("it has no unwind table (.orc_unwind_ip) that tells where instructions begin");
    at = section_bytes(image, section);
    image->boundary_count = section->sh_size / 4;
    image->boundaries = malloc(image->boundary_count * sizeof(uint64_t));
    if (image->boundaries == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < image->boundary_count; i++) {
        int32_t relative;

        memcpy(&relative, at + i * 4, sizeof(relative));
        image->boundaries[i] = section->sh_addr + i * 4 + (uint64_t)(int64_t)relative;
    }
    qsort(image->boundaries, image->boundary_count, sizeof(uint64_t), compare_addresses);
    return merge_replaced_boundaries(image);
}

/* The unwind table's boundaries around `address`, limited to the section. */
static void run_around(const struct image *image, const Elf64_Shdr *section, uint64_t address, uint64_t *from,
                       uint64_t *to)
{
    size_t low = 0, high = image->boundary_count;

    while (low < high) { /* first boundary beyond the address */
        size_t middle = (low + high) / 2;

        if (image->boundaries[middle] <= address)
            low = middle + 1;
        else
            high = middle;
    }
    *from = low > 0 && image->boundaries[low - 1] >= section->sh_addr ? image->boundaries[low - 1] : section->sh_addr;
    *to = section->sh_addr + section->sh_size;
    if (low < image->boundary_count && image->boundaries[low] < *to)
        *to = image->boundaries[low];
}

enum verdict { IS_INSTRUCTION, IS_INSIDE, IS_UNKNOWN };

/* Decodes [from, to) of code at `code`: does an instruction begin at `at`? */
static enum verdict decode_run(const struct image *image, const uint8_t *code, size_t from, size_t to, size_t at)
{
    bool begins = false;

    while (from < to) {
        ZydisDecodedInstruction instruction;

        if (from == at)
            begins = true;
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&image->decoder, NULL, code + from, to - from, &instruction)))
            return IS_UNKNOWN;
        if (begins && from == at && instruction.mnemonic != ZYDIS_MNEMONIC_RDTSC &&
            instruction.mnemonic != ZYDIS_MNEMONIC_RDTSCP)
            return IS_UNKNOWN; /* a prefix in front, or not what the bytes seemed */
        from += instruction.length;
    }
    if (from != to)
        return IS_UNKNOWN;
    return begins ? IS_INSTRUCTION : IS_INSIDE;
}

static size_t is_rdtsc(const uint8_t *at, size_t left)
{
    if (left >= 2 && at[0] == 0x0F && at[1] == 0x31)
        return 2;
    if (left >= 3 && at[0] == 0x0F && at[1] == 0x01 && at[2] == 0xF9)
        return 3;
    return 0;
}

static void rewrite(struct image *image, uint8_t *at, size_t bytes)
{
    at[0] = 0xE5; /* IN EAX, imm8 */
    if (bytes == 2) {
        at[1] = TSC_PORT_RDTSC;
        image->report->rdtsc_sites++;
    } else {
        at[1] = TSC_PORT_RDTSCP;
        at[2] = 0x90;
        image->report->rdtscp_sites++;
    }
}

static int patch_code(struct image *image, const char *name)
{
    const Elf64_Shdr *section = find_section(image, name);
    uint8_t *code;

    if (section == NULL)
        return 0;
    code = section_bytes(image, section);
    for (size_t at = 0; at + 1 < section->sh_size; at++) {
        size_t bytes = is_rdtsc(code + at, section->sh_size - at);
        uint64_t from, to;
        char sentence[128];

        if (bytes == 0)
            continue;
        run_around(image, section, section->sh_addr + at, &from, &to);
        switch (decode_run(image, code, from - section->sh_addr, to - section->sh_addr, at)) {
        case IS_INSTRUCTION:
            rewrite(image, code + at, bytes);
            break;
        case IS_INSIDE:
            image->report->pairs_left++;
            break;
        case IS_UNKNOWN:
            snprintf(sentence, sizeof(sentence), "the bytes at 0x%llx (%s) may or may not read the counter",
                     (unsigned long long)(section->sh_addr + at), name);
            return refuse(sentence);
        }
    }
    return 0;
}

/* Replacement code is copied over other code at boot; each piece begins where its table entry says. */
static int patch_alternatives(struct image *image)
{
    const Elf64_Shdr *table = find_section(image, ".altinstructions");
    const Elf64_Shdr *code = find_section(image, ".altinstr_replacement");
    unsigned pairs = 0, met = 0;
    uint8_t *bytes;

    if (table == NULL || code == NULL)
        return refuse("it has no table of alternative instructions");
    if (table->sh_size % sizeof(struct alternative) != 0)
        return refuse("its table of alternative instructions has an unknown layout");
    bytes = section_bytes(image, code);
    for (size_t at = 0; at + 1 < code->sh_size; at++)
        pairs += is_rdtsc(bytes + at, code->sh_size - at) != 0;
    for (size_t i = 0; i < table->sh_size / sizeof(struct alternative); i++) {
        struct alternative entry;
        uint64_t field = table->sh_addr + i * sizeof(entry) + offsetof(struct alternative, replacement);
        uint64_t start;

        memcpy(&entry, section_bytes(image, table) + i * sizeof(entry), sizeof(entry));
        start = field + (uint64_t)(int64_t)entry.replacement - code->sh_addr;
        if (entry.replacement_bytes == 0)
            continue;
        if (start > code->sh_size || entry.replacement_bytes > code->sh_size - start)
            return refuse("its table of alternative instructions has an unknown layout");
        for (size_t at = 0; at < entry.replacement_bytes; at++) {
            size_t length = is_rdtsc(bytes + start + at, entry.replacement_bytes - at);

            if (length == 0)
                continue;
            if (decode_run(image, bytes + start, 0, entry.replacement_bytes, at) != IS_INSTRUCTION)
                return refuse("a piece of alternative code may or may not read the counter");
            rewrite(image, bytes + start + at, length);
            met++;
        }
    }
    return met == pairs ? 0 : refuse("some alternative code reads the counter and is in no table");
}

/* A pattern of bytes; -1 stands for any. */
static bool matches(const uint8_t *at, const int16_t *pattern, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (pattern[i] >= 0 && at[i] != pattern[i])
            return false;
    return true;
}

/* The one place in `section` where the pattern stands; NULL if there is none or several. */
static uint8_t *find_one(const struct image *image, const char *name, const int16_t *pattern, size_t length)
{
    const Elf64_Shdr *section = find_section(image, name);
    uint8_t *found = NULL;

    if (section == NULL)
        return NULL;
    for (size_t at = 0; at + length <= section->sh_size; at++)
        if (matches(section_bytes(image, section) + at, pattern, length)) {
            if (found != NULL)
                return NULL;
            found = section_bytes(image, section) + at;
        }
    return found;
}

#define ANY -1
#define FIND_ONE(image, section, pattern) find_one(image, section, pattern, sizeof(pattern) / sizeof((pattern)[0]))

/* Keeps CR4.TSD (bit 2) set from the first moment on, so that RDTSC faults outside the kernel. */
static int patch_cr4(struct image *image)
{
    /* startup_64: mov $0,%ecx; or $(PAE|PGE),%ecx */
    static const int16_t startup[] = { 0xB9, 0, 0, 0, 0, 0x81, 0xC9, 0xA0, 0, 0, 0 };
    /* cr4_update_irqsoff(set, clear): mov %rdi,%rax; mov %rsi,%rdi; mov %gs:cr4,%rdx; not %rdi; and %rdx,%rdi;
     * or %rax,%rdi */
    static const int16_t update[] = { 0x48, 0x89, 0xF8, 0x48, 0x89, 0xF7, 0x65, 0x48, 0x8B, 0x15, ANY, ANY,
                                      ANY,  ANY,  0x48, 0xF7, 0xD7, 0x48, 0x21, 0xD7, 0x48, 0x09, 0xC7 };
    /* xchg %edi,%eax; mov %esi,%edi; and $~TSD,%edi: the same, and TSD is never among the bits to clear. CR4's
     * bits are all below 32. */
    static const uint8_t update_now[] = { 0x97, 0x89, 0xF7, 0x83, 0xE7, 0xFB };
    /* cr4_toggle_bits_irqsoff(TSD) when tasks with and without PR_SET_TSC change: mov %gs:cr4,%rdi; xor $4,%rdi;
     * mov %rdi,%gs:cr4 */
    static const int16_t toggle[] = { 0x65, 0x48, 0x8B, 0x3D, ANY,  ANY,  ANY,  ANY,
                                      0x48, 0x83, 0xF7, 0x04, 0x65, 0x48, 0x89, 0x3D };
    uint8_t *first = FIND_ONE(image, ".text", startup);
    uint8_t *function = FIND_ONE(image, ".text", update);
    uint8_t *toggler = FIND_ONE(image, ".text", toggle);

    if (first == NULL)
        return refuse("the place where it first loads CR4 is not found");
    if (function == NULL)
        return refuse("its function that changes CR4 is not found");
    if (toggler == NULL)
        return refuse("its switch of CR4.TSD between tasks is not found");
    first[7] |= 0x04;
    memcpy(function, update_now, sizeof(update_now));
    toggler[10] = 0xCF; /* or $4,%rdi */
    return 0;
}

/* The #GP entry is named by the table from which the kernel fills its IDT: { 13, __KERNEL_CS, interrupt gate }. */
static int patch_gp_entry(struct image *image)
{
    static const int16_t gate[] = { 13, 0, 0, 0, 0x10, 0, 0, 0, 0x00, 0x8E, ANY, ANY, ANY, ANY, ANY, ANY,
                                    ANY, ANY, ANY, ANY, 0xFF, 0xFF, 0xFF, 0xFF };
    /* The slot of CLAC (three no-ops, as the guest's CPU has no SMAP), then CLD and the call to error_entry. */
    static const int16_t entry[] = { 0x90, 0x90, 0x90, 0xFC, 0xE8 };
    const uint8_t *found = FIND_ONE(image, ".init.data", gate);
    const Elf64_Shdr *text = find_section(image, ".text");
    uint64_t address;
    uint8_t *code;

    if (found == NULL || text == NULL)
        return refuse("its table of exception entries is not found");
    memcpy(&address, found + 16, sizeof(address));
    if (address < text->sh_addr || address + sizeof(entry) / sizeof(entry[0]) > text->sh_addr + text->sh_size)
        return refuse("its #GP entry lies outside its code");
    code = section_bytes(image, text) + (address - text->sh_addr);
    if (!matches(code, entry, sizeof(entry) / sizeof(entry[0])))
        return refuse("its #GP entry does not begin as expected");
    code[0] = 0xE6; /* OUT imm8, AL */
    code[1] = TSC_PORT_USER_GP;
    image->report->gp_entry = address;
    return 0;
}

int tsc_patch_kernel(uint8_t *elf, size_t bytes, struct tsc_patch_report *report)
{
    static const char *const code_sections[] = { ".text", ".init.text", ".exit.text", ".altinstr_aux" };
    struct image image = { .elf = elf, .bytes = bytes, .report = report };
    int rc;

    *report = (struct tsc_patch_report){ 0 };
    ZydisDecoderInit(&image.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    rc = open_elf(&image);
    if (rc == 0)
        rc = read_boundaries(&image);
    for (size_t i = 0; rc == 0 && i < sizeof(code_sections) / sizeof(code_sections[0]); i++)
        rc = patch_code(&image, code_sections[i]);
    if (rc == 0)
        rc = patch_alternatives(&image);
    if (rc == 0)
        rc = patch_cr4(&image);
    if (rc == 0)
        rc = patch_gp_entry(&image);
    free(image.boundaries);
    return rc;
}
