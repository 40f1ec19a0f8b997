/* Looks at an ELF file in memory without believing a word of it. 32- and 64-bit, little endian. */
#ifndef FTVMM_VMM_ELF_VIEW_H
#define FTVMM_VMM_ELF_VIEW_H

#include <elf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Borrows `bytes`; the headers were checked to lie inside. */
struct elf_view {
    uint8_t *bytes;
    size_t size;
    bool is64;
    uint16_t type;    /* ET_* */
    uint16_t machine; /* EM_* */
    uint64_t entry;
    uint32_t section_count;
    uint32_t segment_count;
    uint64_t section_table;
    uint64_t segment_table;
    uint32_t name_section;
};

struct elf_section {
    char name[32]; /* cut if longer */
    uint32_t type; /* SHT_* */
    uint64_t flags;
    uint64_t va;
    uint64_t offset;
    uint64_t size; /* of SHT_NOBITS too */
    uint8_t *data; /* NULL for SHT_NOBITS */
    uint32_t link;
    uint32_t info;
};

/* False: not an ELF file, or its headers lie outside. Any thread. */
bool elf_view_open(struct elf_view *view, uint8_t *bytes, size_t size);
/* Section `index`; false if it lies outside the file. */
bool elf_view_section(const struct elf_view *view, uint32_t index, struct elf_section *section);
/* The first section of that name; false if there is none. */
bool elf_view_find(const struct elf_view *view, const char *name, struct elf_section *section);
/* Program header `index` (64-bit files only); false if it, or what it loads, lies outside the file. */
bool elf_view_segment(const struct elf_view *view, uint32_t index, Elf64_Phdr *segment);

#endif
