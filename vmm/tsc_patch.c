/* Rewrites a kernel's RDTSCs, its CR4 writes and its #GP entry. First everything is found, then it is changed. */
#include "vmm/tsc_patch.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "vmm/code_sweep.h"
#include "vmm/elf_view.h"

#define GP_VECTOR  13
#define KERNEL_CS  0x10
#define PAGE_BYTES 4096u

/* One entry of .altinstructions, Linux 6.1 arch/x86/include/asm/alternative.h. Both offsets are relative to the
 * field itself. */
struct alt_entry {
    int32_t original_offset;
    int32_t replacement_offset;
    uint16_t feature;
    uint8_t original_bytes;
    uint8_t replacement_bytes;
} __attribute__((packed));

/* One entry of the table that fills the IDT, arch/x86/include/asm/desc_defs.h, struct idt_data. */
struct idt_entry {
    uint32_t vector;
    uint32_t segment;
    uint16_t bits; /* IST, type, privilege, present */
    uint8_t padding[6];
    uint64_t handler_va;
};

#define IDT_BITS_INTERRUPT_GATE 0x8e00 /* present, DPL 0, IST 0, 64-bit interrupt gate */
#define IDT_BITS_IST_AND_DPL    0x6007 /* what may differ between entries of the table */

struct edit {
    uint8_t *at;
    uint8_t bytes[16];
    uint8_t count;
};

struct patch {
    struct elf_view elf;
    const char *name;
    struct tsc_patch_report *report;
    uint64_t *anchors;
    size_t anchor_count;
    size_t anchor_room;
    struct edit *edits;
    size_t edit_count;
    size_t edit_room;
};

static int add_anchor(struct patch *patch, uint64_t va)
{
    if (patch->anchor_count == patch->anchor_room) {
        size_t room = patch->anchor_room ? patch->anchor_room * 2 : 4096;
        uint64_t *more = realloc(patch->anchors, room * sizeof(*more));

        if (more == NULL)
            return -ENOMEM;
        patch->anchors = more;
        patch->anchor_room = room;
    }
    patch->anchors[patch->anchor_count++] = va;
    return 0;
}

static int compare_va(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void sort_anchors(struct patch *patch)
{
    if (patch->anchor_count > 0)
        qsort(patch->anchors, patch->anchor_count, sizeof(*patch->anchors), compare_va);
}

static int add_edit(struct patch *patch, uint8_t *at, const uint8_t *bytes, size_t count)
{
    if (patch->edit_count == patch->edit_room) {
        size_t room = patch->edit_room ? patch->edit_room * 2 : 256;
        struct edit *more = realloc(patch->edits, room * sizeof(*more));

        if (more == NULL)
            return -ENOMEM;
        patch->edits = more;
        patch->edit_room = room;
    }
    struct edit *edit = &patch->edits[patch->edit_count++];

    edit->at = at;
    edit->count = (uint8_t)count;
    memcpy(edit->bytes, bytes, count);
    return 0;
}

static void apply_edits(struct patch *patch)
{
    for (size_t i = 0; i < patch->edit_count; i++)
        memcpy(patch->edits[i].at, patch->edits[i].bytes, patch->edits[i].count);
}

static void patch_free(struct patch *patch)
{
    free(patch->anchors);
    free(patch->edits);
}

static bool is_code(const struct elf_section *section)
{
    return section->type == SHT_PROGBITS && (section->flags & SHF_ALLOC) && (section->flags & SHF_EXECINSTR);
}

/* ---- anchors ---- */

/* The alternatives of `elf`: what may be written over an instruction at boot, and over which. */
struct alternatives {
    struct elf_section table;
    struct elf_section replacements;
    size_t count;
};

/* False: the table is of a shape that we do not know. None at all: true, count 0. */
static bool find_alternatives(const struct elf_view *elf, struct alternatives *alternatives)
{
    memset(alternatives, 0, sizeof(*alternatives));
    if (!elf_view_find(elf, ".altinstructions", &alternatives->table))
        return true;
    if (alternatives->table.data == NULL || alternatives->table.size % sizeof(struct alt_entry) != 0)
        return false;
    if (!elf_view_find(elf, ".altinstr_replacement", &alternatives->replacements))
        return false;
    alternatives->count = alternatives->table.size / sizeof(struct alt_entry);
    return true;
}

static struct alt_entry alternative_at(const struct alternatives *alternatives, size_t index, uint64_t *original_va,
                                       uint64_t *replacement_va)
{
    struct alt_entry entry;
    uint64_t va = alternatives->table.va + index * sizeof(entry);

    memcpy(&entry, alternatives->table.data + index * sizeof(entry), sizeof(entry));
    *original_va = va + (uint64_t)(int64_t)entry.original_offset;
    *replacement_va = va + offsetof(struct alt_entry, replacement_offset) + (uint64_t)(int64_t)entry.replacement_offset;
    return entry;
}

/* The starts and ends of the originals, in pairs. */
static int add_original_anchors(struct patch *patch, const struct alternatives *alternatives)
{
    for (size_t i = 0; i < alternatives->count; i++) {
        uint64_t original_va, replacement_va;
        struct alt_entry entry = alternative_at(alternatives, i, &original_va, &replacement_va);

        if (add_anchor(patch, original_va) < 0 || add_anchor(patch, original_va + entry.original_bytes) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* .orc_unwind_ip: one place for each change of the stack's shape, always between two instructions; objtool wrote
 * it when it had decoded the whole kernel. Linux Documentation/x86/orc-unwinder.rst. Where an alternative may be
 * written over the code, the place may be between instructions of the alternative and inside one of the original:
 * those are left out. To be called when only the ends of the alternatives' originals, in pairs, are in anchors. */
static int add_orc_anchors(struct patch *patch)
{
    size_t originals = patch->anchor_count / 2, original = 0;
    struct elf_section orc;
    uint64_t last_va = 0;

    qsort(patch->anchors, originals, 2 * sizeof(*patch->anchors), compare_va);
    if (!elf_view_find(&patch->elf, ".orc_unwind_ip", &orc) || orc.data == NULL || orc.size < 4) {
        report_error("%s has no ORC unwind table (.orc_unwind_ip), without which its code cannot be told from bytes; "
                     "take a kernel built with CONFIG_UNWINDER_ORC, as Debian's are",
                     patch->name);
        return -ENOTSUP;
    }
    for (uint64_t at = 0; at + 4 <= orc.size; at += 4) {
        int32_t relative;

        memcpy(&relative, orc.data + at, sizeof(relative));
        uint64_t va = orc.va + at + (uint64_t)(int64_t)relative;
        if (va < last_va) {
            report_error("%s: its ORC unwind table is not sorted; take a kernel whose build has run to its end",
                         patch->name);
            return -ENOTSUP;
        }
        last_va = va;
        while (original < originals && patch->anchors[2 * original + 1] <= va)
            original++;
        if (original < originals && patch->anchors[2 * original] < va)
            continue;
        if (add_anchor(patch, va) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int add_replacement_anchors(struct patch *patch, const struct alternatives *alternatives)
{
    const struct elf_section *replacements = &alternatives->replacements;

    for (size_t i = 0; i < alternatives->count; i++) {
        uint64_t original_va, replacement_va;
        struct alt_entry entry = alternative_at(alternatives, i, &original_va, &replacement_va);

        if (entry.replacement_bytes > entry.original_bytes ||
            (entry.replacement_bytes > 0 &&
             (replacement_va < replacements->va ||
              replacement_va - replacements->va > replacements->size - entry.replacement_bytes))) {
            report_error("%s: entry %zu of .altinstructions makes no sense as Linux 6.1 lays it out; take a kernel of "
                         "the 6.1 series, as Debian 12's",
                         patch->name, i);
            return -ENOTSUP;
        }
        if (entry.replacement_bytes > 0 &&
            (add_anchor(patch, replacement_va) < 0 || add_anchor(patch, replacement_va + entry.replacement_bytes) < 0))
            return -ENOMEM;
    }
    return 0;
}

/* ---- RDTSC ---- */

static const uint8_t in_rdtsc[2] = {0xe5, TSC_PORT_RDTSC};
static const uint8_t in_rdtscp[3] = {0xe5, TSC_PORT_RDTSCP, 0x90};

static int replace_site(void *ctx, const struct code_range *range, const struct code_site *site)
{
    struct patch *patch = ctx;
    uint8_t *at = (uint8_t *)(uintptr_t)range->bytes + site->offset;

    return site->rdtscp ? add_edit(patch, at, in_rdtscp, sizeof(in_rdtscp))
                        : add_edit(patch, at, in_rdtsc, sizeof(in_rdtsc));
}

static struct code_range section_range(const struct patch *patch, const struct elf_section *section, bool is64)
{
    return (struct code_range){.name = section->name,
                               .bytes = section->data,
                               .size = section->size,
                               .va = section->va,
                               .is64 = is64,
                               .anchors = patch->anchors,
                               .anchor_count = patch->anchor_count};
}

static void count_section(struct tsc_patch_report *report, const char *label, const struct code_counts *counts)
{
    struct tsc_patch_section *line = NULL;

    for (uint32_t i = 0; i < report->section_count; i++)
        if (strncmp(report->sections[i].name, label, sizeof(line->name) - 1) == 0)
            line = &report->sections[i];
    if (line == NULL && report->section_count == TSC_PATCH_SECTIONS)
        return; /* counted in the sums */
    if (line == NULL) {
        line = &report->sections[report->section_count++];
        strncpy(line->name, label, sizeof(line->name) - 1);
    }
    line->rdtsc += counts->rdtsc;
    line->rdtscp += counts->rdtscp;
    line->inside += counts->inside;
}

static int sweep_section(struct patch *patch, const char *label, const struct elf_section *section, bool is64)
{
    struct tsc_patch_report *report = patch->report;
    struct code_range range = section_range(patch, section, is64);
    struct code_counts counts = {0};
    int rc;

    range.name = label;
    rc = code_sweep(&range, replace_site, patch, &counts);
    if (rc < 0)
        return rc;
    report->sites += counts.rdtsc + counts.rdtscp;
    report->inside += counts.inside;
    if (counts.rdtsc + counts.rdtscp + counts.inside > 0)
        count_section(report, label, &counts);
    return 0;
}

static int sweep_kernel(struct patch *patch)
{
    for (uint32_t i = 0; i < patch->elf.section_count; i++) {
        struct elf_section section;

        if (!elf_view_section(&patch->elf, i, &section)) {
            report_error("%s: ELF section %u lies outside the file; the image is damaged", patch->name, i);
            return -EINVAL;
        }
        if (!is_code(&section))
            continue;
        int rc = sweep_section(patch, section.name, &section, true);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- vDSO ---- */

/* A vDSO is a small shared library in the kernel's data, page-aligned; its code runs in user mode. The kernel is
 * told not to map it (vdso=0), and TSD would catch it; rewritten it faults even so. */
static int sweep_vdso(struct patch *patch, uint8_t *bytes, size_t room)
{
    struct patch vdso = {.name = "a vDSO image", .report = patch->report};
    struct alternatives alternatives;
    const char *label;
    int rc = 0;

    if (!elf_view_open(&vdso.elf, bytes, room) || vdso.elf.type != ET_DYN ||
        vdso.elf.machine != (vdso.elf.is64 ? EM_X86_64 : EM_386))
        return 0; /* something else with the same magic */
    label = vdso.elf.is64 ? "vDSO (64-bit)" : "vDSO (32-bit)";
    if (!find_alternatives(&vdso.elf, &alternatives)) {
        report_error("%s: the alternatives of the %s are of an unknown shape", patch->name, label);
        return -ENOTSUP;
    }
    rc = add_original_anchors(&vdso, &alternatives);
    if (rc == 0)
        rc = add_replacement_anchors(&vdso, &alternatives);
    sort_anchors(&vdso);
    for (uint32_t i = 0; rc == 0 && i < vdso.elf.section_count; i++) {
        struct elf_section section;

        if (elf_view_section(&vdso.elf, i, &section) && is_code(&section))
            rc = sweep_section(&vdso, label, &section, vdso.elf.is64);
    }
    for (size_t i = 0; rc == 0 && i < vdso.edit_count; i++)
        rc = add_edit(patch, vdso.edits[i].at, vdso.edits[i].bytes, vdso.edits[i].count);
    patch_free(&vdso);
    return rc;
}

static int sweep_vdsos(struct patch *patch)
{
    for (uint32_t i = 0; i < patch->elf.section_count; i++) {
        struct elf_section section;

        if (!elf_view_section(&patch->elf, i, &section) || section.data == NULL || is_code(&section) ||
            !(section.flags & SHF_ALLOC))
            continue;
        for (uint64_t at = -section.va % PAGE_BYTES; at + PAGE_BYTES <= section.size; at += PAGE_BYTES)
            if (memcmp(section.data + at, ELFMAG, SELFMAG) == 0) {
                int rc = sweep_vdso(patch, section.data + at, section.size - at);
                if (rc < 0)
                    return rc;
            }
    }
    return 0;
}

/* ---- CR4.TSD ---- */

/* native_write_cr4(val) of arch/x86/kernel/cpu/common.c begins: xor %esi,%esi; mov %rdi,%cr4. It is the only place
 * that loads CR4 from an argument register, and all later changes of CR4 go through it. */
static const uint8_t write_cr4_head[5] = {0x31, 0xf6, 0x0f, 0x22, 0xe7};
#define WRITE_CR4_MOV 2 /* offset of the mov, to which the function also jumps back */
#define CAVE_BYTES    7

/* The padding in front of the function takes: xor %esi,%esi; or $CR4.TSD,%edi; jmp to the mov. */
static const uint8_t cave[CAVE_BYTES] = {0x31, 0xf6, 0x83, 0xcf, 0x04, 0xeb, WRITE_CR4_MOV};
static const uint8_t jump_to_cave[2] = {0xeb, 0x100 - (CAVE_BYTES + 2)};

/* Length of the no-op of Linux's and the assembler's making at `at`, 0 if it is none. */
static size_t nop_bytes(const uint8_t *at, size_t room)
{
    size_t i = 0;

    while (i < room && (at[i] == 0x66 || at[i] == 0x2e))
        i++;
    if (i < room && at[i] == 0x90)
        return i + 1;
    if (room - i < 3 || at[i] != 0x0f || at[i + 1] != 0x1f)
        return 0;
    uint8_t mod = at[i + 2] >> 6, rm = at[i + 2] & 7;
    size_t bytes = i + 3 + (mod != 3 && rm == 4) + (mod == 1 ? 1 : mod == 2 ? 4 : 0);

    return mod == 3 || (mod == 0 && rm == 5) || bytes > room ? 0 : bytes;
}

/* Do no-ops, and nothing else, fill the `bytes` before `end`? They may begin earlier. */
static bool padding_before(const struct code_range *range, size_t end, size_t bytes)
{
    for (size_t start = end - bytes, back = 0; back < 16 && start > 0; back++, start--) {
        size_t at = start;

        if (!code_starts_at(range, start))
            continue;
        while (at < end) {
            size_t nop = nop_bytes(range->bytes + at, end - at);

            if (nop == 0)
                break;
            at += nop;
        }
        if (at == end)
            return true;
    }
    return false;
}

static int hook_write_cr4(struct patch *patch, const struct elf_section *text)
{
    struct code_range range = section_range(patch, text, true);
    size_t found = 0, loads = 0, entry = 0;

    for (size_t at = 0; at + sizeof(write_cr4_head) <= text->size; at++) {
        const uint8_t *mov = memchr(text->data + at, 0x0f, text->size - at - 2);

        if (mov == NULL)
            break;
        at = (size_t)(mov - text->data);
        if (mov[1] != 0x22 || mov[2] != 0xe7 || !code_starts_at(&range, at))
            continue;
        loads++;
        if (at >= WRITE_CR4_MOV && memcmp(mov - WRITE_CR4_MOV, write_cr4_head, sizeof(write_cr4_head)) == 0) {
            found++;
            entry = at - WRITE_CR4_MOV;
        }
    }
    if (found != 1 || loads != 1) {
        report_error("%s: native_write_cr4 was sought by its first instructions; found: %zu, and %zu loads of CR4 from "
                     "RDI, where 1 and 1 are due; user programs' RDTSC cannot be held, take Debian 12's 6.1 kernel",
                     patch->name, found, loads);
        return -ENOTSUP;
    }
    if (entry < CAVE_BYTES + 16 || !code_starts_at(&range, entry) || !padding_before(&range, entry, CAVE_BYTES)) {
        report_error("%s: no %d bytes of padding in front of native_write_cr4 at 0x%llx, where CR4.TSD is to be set; "
                     "take Debian 12's 6.1 kernel",
                     patch->name, CAVE_BYTES, (unsigned long long)(text->va + entry));
        return -ENOTSUP;
    }
    patch->report->write_cr4_va = text->va + entry;
    if (add_edit(patch, text->data + entry - CAVE_BYTES, cave, sizeof(cave)) < 0 ||
        add_edit(patch, text->data + entry, jump_to_cave, sizeof(jump_to_cave)) < 0)
        return -ENOMEM;
    return 0;
}

/* ---- #GP ---- */

static bool idt_entry_at(const struct elf_section *section, uint64_t offset, struct idt_entry *entry)
{
    static const uint8_t zeros[sizeof(entry->padding)];

    if (offset > section->size || section->size - offset < sizeof(*entry))
        return false;
    memcpy(entry, section->data + offset, sizeof(*entry));
    return entry->segment == KERNEL_CS && entry->vector < 256 && memcmp(entry->padding, zeros, sizeof(zeros)) == 0 &&
           (entry->bits & ~IDT_BITS_IST_AND_DPL) == IDT_BITS_INTERRUPT_GATE;
}

/* Looks through the kernel's data for the table that fills the IDT, for its entry of #GP. */
static int find_gp_entry(struct patch *patch, const struct elf_section *text, uint64_t *gp_va)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < patch->elf.section_count; i++) {
        struct elf_section section;

        if (!elf_view_section(&patch->elf, i, &section) || section.data == NULL || section.type != SHT_PROGBITS ||
            is_code(&section) || !(section.flags & SHF_ALLOC))
            continue;
        for (uint64_t at = -section.va % 8; at + sizeof(struct idt_entry) <= section.size; at += 8) {
            struct idt_entry entry, neighbour;

            if (section.data[at] != GP_VECTOR || !idt_entry_at(&section, at, &entry) || entry.vector != GP_VECTOR ||
                entry.bits != IDT_BITS_INTERRUPT_GATE || entry.handler_va < text->va ||
                entry.handler_va - text->va >= text->size)
                continue;
            if (!idt_entry_at(&section, at - sizeof(entry), &neighbour) &&
                !idt_entry_at(&section, at + sizeof(entry), &neighbour))
                continue; /* a table has neighbours */
            if (found++ > 0 && *gp_va != entry.handler_va)
                found = 1000;
            *gp_va = entry.handler_va;
        }
    }
    if (found == 1)
        return 0;
    report_error("%s: the table that fills the IDT has %s entry for #GP; user programs' RDTSC cannot be caught, take "
                 "Debian 12's 6.1 kernel",
                 patch->name, found == 0 ? "no" : "more than one");
    return -ENOTSUP;
}

/* The handler begins with ASM_CLAC: three bytes of no-op, which an alternative replaces by CLAC on CPUs with SMAP.
 * The guest's CPU has none. OUT goes into both, so that the hook stays even if the alternative is applied. */
static int hook_gp_entry(struct patch *patch, const struct elf_section *text, const struct alternatives *alternatives)
{
    static const uint8_t clac[3] = {0x0f, 0x01, 0xca};
    static const uint8_t hook[3] = {0xe6, TSC_PORT_USER_GP, 0x90};
    struct code_range range = section_range(patch, text, true);
    uint64_t gp_va = 0;
    size_t found = 0;
    int rc = find_gp_entry(patch, text, &gp_va);

    if (rc < 0)
        return rc;
    uint8_t *entry = text->data + (gp_va - text->va);
    bool slot = gp_va - text->va + 3 <= text->size && code_starts_at(&range, gp_va - text->va) &&
                ((entry[0] == 0x90 && entry[1] == 0x90 && entry[2] == 0x90) || nop_bytes(entry, 3) == 3);

    for (size_t i = 0; slot && i < alternatives->count; i++) {
        uint64_t original_va, replacement_va;
        struct alt_entry alternative = alternative_at(alternatives, i, &original_va, &replacement_va);

        if (original_va >= gp_va + 3 || original_va + alternative.original_bytes <= gp_va)
            continue;
        uint8_t *replacement = alternatives->replacements.data + (replacement_va - alternatives->replacements.va);

        found += original_va == gp_va && alternative.original_bytes == 3 && alternative.replacement_bytes == 3 &&
                         memcmp(replacement, clac, 3) == 0
                     ? 1
                     : 1000;
        if (add_edit(patch, replacement, hook, sizeof(hook)) < 0)
            return -ENOMEM;
    }
    if (!slot || found != 1) {
        report_error("%s: the #GP entry at 0x%llx does not begin with the no-op slot for CLAC (bytes %02x %02x %02x, "
                     "%zu alternatives); user programs' RDTSC cannot be caught, take Debian 12's 6.1 kernel",
                     patch->name, (unsigned long long)gp_va, entry[0], entry[1], entry[2], found);
        return -ENOTSUP;
    }
    patch->report->gp_entry_va = gp_va;
    return add_edit(patch, entry, hook, sizeof(hook));
}

/* ---- */

int tsc_patch_kernel(uint8_t *elf, size_t bytes, struct tsc_patch_report *report)
{
    struct patch patch = {.name = "the kernel", .report = report};
    struct alternatives alternatives;
    struct elf_section text;
    int rc;

    memset(report, 0, sizeof(*report));
    if (!elf_view_open(&patch.elf, elf, bytes) || !patch.elf.is64 || patch.elf.machine != EM_X86_64 ||
        patch.elf.type != ET_EXEC) {
        report_error("the kernel's image is no ELF executable for x86-64");
        return -EINVAL;
    }
    if (!elf_view_find(&patch.elf, ".text", &text) || text.data == NULL || text.size < PAGE_BYTES) {
        report_error("the kernel's image has no .text section");
        return -EINVAL;
    }
    if (!find_alternatives(&patch.elf, &alternatives) || alternatives.count == 0 ||
        alternatives.replacements.data == NULL) {
        report_error("the kernel's .altinstructions are missing or not laid out as in Linux 6.1; take Debian 12's 6.1 "
                     "kernel");
        return -ENOTSUP;
    }
    rc = add_original_anchors(&patch, &alternatives);
    if (rc == 0)
        rc = add_orc_anchors(&patch);
    if (rc == 0)
        rc = add_replacement_anchors(&patch, &alternatives);
    sort_anchors(&patch);
    if (rc == 0)
        rc = sweep_kernel(&patch);
    if (rc == 0)
        rc = sweep_vdsos(&patch);
    if (rc == 0)
        rc = hook_write_cr4(&patch, &text);
    if (rc == 0)
        rc = hook_gp_entry(&patch, &text, &alternatives);
    if (rc == 0 && report->sites == 0) {
        report_error("the kernel has no RDTSC at all, which no Linux for x86-64 is; it is refused");
        rc = -ENOTSUP;
    }
    if (rc == 0)
        apply_edits(&patch);
    if (rc == -ENOMEM)
        report_error("no memory to look through the kernel's code");
    patch_free(&patch);
    return rc;
}

/* A module is not linked yet: addresses are offsets in sections, so anchors are its function symbols, section by
 * section. */
static int add_symbol_anchors(struct patch *patch, uint32_t section_index)
{
    struct elf_section symbols;

    if (!elf_view_find(&patch->elf, ".symtab", &symbols) || symbols.data == NULL)
        return 0;
    for (uint64_t at = 0; at + sizeof(Elf64_Sym) <= symbols.size; at += sizeof(Elf64_Sym)) {
        Elf64_Sym symbol;

        memcpy(&symbol, symbols.data + at, sizeof(symbol));
        if (symbol.st_shndx == section_index && ELF64_ST_TYPE(symbol.st_info) == STT_FUNC &&
            add_anchor(patch, symbol.st_value) < 0)
            return -ENOMEM;
    }
    return 0;
}

int tsc_patch_module(uint8_t *elf, size_t bytes, const char *name, uint32_t *sites)
{
    struct tsc_patch_report report = {0};
    struct patch patch = {.name = name, .report = &report};
    int rc = 0;

    if (!elf_view_open(&patch.elf, elf, bytes) || !patch.elf.is64 || patch.elf.machine != EM_X86_64 ||
        patch.elf.type != ET_REL) {
        report_error("%s is no kernel module for x86-64", name);
        return -EINVAL;
    }
    for (uint32_t i = 0; rc == 0 && i < patch.elf.section_count; i++) {
        struct elf_section section;

        if (!elf_view_section(&patch.elf, i, &section)) {
            report_error("%s: ELF section %u lies outside the file; the module is damaged", name, i);
            rc = -EINVAL;
        } else if (is_code(&section)) {
            patch.anchor_count = 0;
            rc = add_symbol_anchors(&patch, i);
            sort_anchors(&patch);
            if (rc == 0)
                rc = sweep_section(&patch, name, &section, true);
        }
    }
    if (rc == 0) {
        apply_edits(&patch);
        *sites += report.sites;
    }
    patch_free(&patch);
    return rc;
}
