/* Looks at an ELF file in memory: every offset is checked before it is used. */
#include "vmm/elf_view.h"

#include <string.h>

static bool inside(const struct elf_view *view, uint64_t offset, uint64_t bytes)
{
    return offset <= view->size && bytes <= view->size - offset;
}

bool elf_view_open(struct elf_view *view, uint8_t *bytes, size_t size)
{
    *view = (struct elf_view){.bytes = bytes, .size = size};
    if (size < sizeof(Elf32_Ehdr) || memcmp(bytes, ELFMAG, SELFMAG) != 0 || bytes[EI_DATA] != ELFDATA2LSB)
        return false;
    view->is64 = bytes[EI_CLASS] == ELFCLASS64;
    if (view->is64) {
        Elf64_Ehdr header;

        if (size < sizeof(header))
            return false;
        memcpy(&header, bytes, sizeof(header));
        view->type = header.e_type;
        view->machine = header.e_machine;
        view->entry = header.e_entry;
        view->section_count = header.e_shnum;
        view->section_table = header.e_shoff;
        view->segment_count = header.e_phnum;
        view->segment_table = header.e_phoff;
        view->name_section = header.e_shstrndx;
        return (header.e_shnum == 0 || header.e_shentsize == sizeof(Elf64_Shdr)) &&
               (header.e_phnum == 0 || header.e_phentsize == sizeof(Elf64_Phdr)) &&
               inside(view, header.e_shoff, (uint64_t)header.e_shnum * sizeof(Elf64_Shdr)) &&
               inside(view, header.e_phoff, (uint64_t)header.e_phnum * sizeof(Elf64_Phdr));
    }
    if (bytes[EI_CLASS] != ELFCLASS32)
        return false;
    Elf32_Ehdr header;

    memcpy(&header, bytes, sizeof(header));
    view->type = header.e_type;
    view->machine = header.e_machine;
    view->entry = header.e_entry;
    view->section_count = header.e_shnum;
    view->section_table = header.e_shoff;
    view->name_section = header.e_shstrndx;
    return (header.e_shnum == 0 || header.e_shentsize == sizeof(Elf32_Shdr)) &&
           inside(view, header.e_shoff, (uint64_t)header.e_shnum * sizeof(Elf32_Shdr));
}

static bool read_section(const struct elf_view *view, uint32_t index, struct elf_section *section, uint32_t *name)
{
    *section = (struct elf_section){0};
    if (index >= view->section_count)
        return false;
    if (view->is64) {
        Elf64_Shdr header;

        memcpy(&header, view->bytes + view->section_table + index * sizeof(header), sizeof(header));
        *name = header.sh_name;
        section->type = header.sh_type;
        section->flags = header.sh_flags;
        section->va = header.sh_addr;
        section->offset = header.sh_offset;
        section->size = header.sh_size;
        section->link = header.sh_link;
        section->info = header.sh_info;
    } else {
        Elf32_Shdr header;

        memcpy(&header, view->bytes + view->section_table + index * sizeof(header), sizeof(header));
        *name = header.sh_name;
        section->type = header.sh_type;
        section->flags = header.sh_flags;
        section->va = header.sh_addr;
        section->offset = header.sh_offset;
        section->size = header.sh_size;
        section->link = header.sh_link;
        section->info = header.sh_info;
    }
    if (section->type == SHT_NOBITS || section->type == SHT_NULL)
        return true;
    if (!inside(view, section->offset, section->size))
        return false;
    section->data = view->bytes + section->offset;
    return true;
}

bool elf_view_section(const struct elf_view *view, uint32_t index, struct elf_section *section)
{
    struct elf_section names;
    uint32_t name, unused;

    if (!read_section(view, index, section, &name))
        return false;
    if (!read_section(view, view->name_section, &names, &unused) || names.data == NULL || name >= names.size)
        return true; /* nameless */
    for (size_t i = 0; i + 1 < sizeof(section->name) && name + i < names.size && names.data[name + i] != 0; i++)
        section->name[i] = (char)names.data[name + i];
    return true;
}

bool elf_view_find(const struct elf_view *view, const char *name, struct elf_section *section)
{
    for (uint32_t i = 0; i < view->section_count; i++)
        if (elf_view_section(view, i, section) && strcmp(section->name, name) == 0)
            return true;
    return false;
}

bool elf_view_segment(const struct elf_view *view, uint32_t index, Elf64_Phdr *segment)
{
    if (!view->is64 || index >= view->segment_count)
        return false;
    memcpy(segment, view->bytes + view->segment_table + index * sizeof(*segment), sizeof(*segment));
    return segment->p_type != PT_LOAD ||
           (segment->p_filesz <= segment->p_memsz && inside(view, segment->p_offset, segment->p_filesz));
}
