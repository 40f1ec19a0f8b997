/* A toy of a Linux kernel for the loader's tests. */
#include "fake_kernel.h"

#include <elf.h>
#include <lz4.h>
#include <lzma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define TEXT_OFFSET     0x1000u
#define RODATA_OFFSET   (TEXT_OFFSET + FAKE_TEXT_BYTES)
#define RODATA_VA       (FAKE_TEXT_VA + FAKE_TEXT_BYTES)
#define RODATA_BYTES    0x2000u
#define TABLES_OFFSET   (RODATA_OFFSET + RODATA_BYTES)
#define TABLES_VA       (RODATA_VA + RODATA_BYTES)
#define VDSO_OFFSET     (RODATA_OFFSET + 0x1000u)
#define SECTIONS_OFFSET 0x7000u

enum { NONE, TEXT, RODATA, ORC, ALTERNATIVES, REPLACEMENTS, INIT_DATA, NAMES, SECTION_COUNT };

static const char names[] = "\0.text\0.rodata\0.orc_unwind_ip\0.altinstructions\0.altinstr_replacement\0.init.data\0"
                            ".shstrtab";

static uint32_t name_of(const char *name)
{
    for (size_t i = 1; i < sizeof(names); i += strlen(names + i) + 1)
        if (strcmp(names + i, name) == 0)
            return (uint32_t)i;
    abort();
}

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof(value));
}

static void put_alternative(struct fake_kernel *kernel, unsigned index, uint64_t original_va, uint8_t original_bytes,
                            unsigned replacement, uint8_t replacement_bytes)
{
    uint8_t *at = kernel->alternatives + 12 * index;
    uint64_t va = TABLES_VA + (uint64_t)(at - (kernel->bytes + TABLES_OFFSET));
    uint64_t replacement_va =
        TABLES_VA + (uint64_t)(kernel->replacements - (kernel->bytes + TABLES_OFFSET)) + replacement;

    put32(at, (uint32_t)(original_va - va));
    put32(at + 4, (uint32_t)(replacement_va - (va + 4)));
    at[8] = (uint8_t)(0x30 + index);
    at[10] = original_bytes;
    at[11] = replacement_bytes;
}

static void put_idt(uint8_t *at, uint32_t vector, uint64_t handler_va)
{
    put32(at, vector);
    put32(at + 4, 0x10);
    put32(at + 8, 0x8e00);
    memcpy(at + 16, &handler_va, sizeof(handler_va));
}

static void build_vdso(struct fake_kernel *kernel)
{
    static const uint8_t code[] = {0x0f, 0x01, 0xf9, 0xc3};
    static const char vdso_names[] = "\0.text\0.shstrtab";
    Elf64_Ehdr header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                         .e_type = ET_DYN,
                         .e_machine = EM_X86_64,
                         .e_version = 1,
                         .e_shoff = 0x400,
                         .e_ehsize = sizeof(header),
                         .e_shentsize = sizeof(Elf64_Shdr),
                         .e_shnum = 3,
                         .e_shstrndx = 2};
    Elf64_Shdr sections[3] = {
        [1] = {.sh_name = 1,
               .sh_type = SHT_PROGBITS,
               .sh_flags = SHF_ALLOC | SHF_EXECINSTR,
               .sh_addr = 0x200,
               .sh_offset = 0x200,
               .sh_size = sizeof(code)},
        [2] = {.sh_name = 7, .sh_type = SHT_STRTAB, .sh_offset = 0x300, .sh_size = sizeof(vdso_names)},
    };

    kernel->vdso = kernel->bytes + VDSO_OFFSET;
    kernel->vdso_code = kernel->vdso + 0x200;
    memcpy(kernel->vdso, &header, sizeof(header));
    memcpy(kernel->vdso_code, code, sizeof(code));
    memcpy(kernel->vdso + 0x300, vdso_names, sizeof(vdso_names));
    memcpy(kernel->vdso + 0x400, sections, sizeof(sections));
}

static void build_text(struct fake_kernel *kernel)
{
    static const struct {
        size_t offset;
        uint8_t bytes[16];
        size_t count;
    } code[] = {
        {0x000, {0x90, 0xc3}, 2},
        {FAKE_RDTSC, {0x0f, 0x31, 0xc3}, 3},
        {FAKE_LOOK_ALIKE, {0xb8, 0x0f, 0x31, 0x90, 0x90, 0xc3}, 6},
        {FAKE_ALTERNATIVE, {0x0f, 0x31, 0x0f, 0x1f, 0x00, 0xc3}, 6},
        {FAKE_PADDING, {0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x0f, 0x1f, 0x44, 0, 0}, 16},
        {FAKE_WRITE_CR4, {0x31, 0xf6, 0x0f, 0x22, 0xe7, 0xc3}, 6},
        {FAKE_GP_ENTRY, {0x90, 0x90, 0x90, 0xfc, 0xc3}, 5},
        {FAKE_LAST, {0xc3}, 1},
    };

    memset(kernel->text, 0xcc, FAKE_TEXT_BYTES);
    for (size_t i = 0; i < sizeof(code) / sizeof(code[0]); i++) {
        uint8_t *anchor = kernel->orc + 4 * i;
        uint64_t va = TABLES_VA + (uint64_t)(anchor - (kernel->bytes + TABLES_OFFSET));

        memcpy(kernel->text + code[i].offset, code[i].bytes, code[i].count);
        put32(anchor, (uint32_t)(FAKE_TEXT_VA + code[i].offset - va));
    }
}

void fake_kernel_build(struct fake_kernel *kernel)
{
    static const uint8_t replacements[] = {0x0f, 0x01, 0xca, 0x0f, 0xae, 0xe8, 0x0f, 0x31, 0x0f, 0x01, 0xf9};
    Elf64_Ehdr header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                         .e_type = ET_EXEC,
                         .e_machine = EM_X86_64,
                         .e_version = 1,
                         .e_entry = FAKE_TEXT_GPA,
                         .e_phoff = 64,
                         .e_shoff = SECTIONS_OFFSET,
                         .e_ehsize = sizeof(header),
                         .e_phentsize = sizeof(Elf64_Phdr),
                         .e_phnum = 2,
                         .e_shentsize = sizeof(Elf64_Shdr),
                         .e_shnum = SECTION_COUNT,
                         .e_shstrndx = NAMES};
    Elf64_Phdr segments[2] = {
        {.p_type = PT_LOAD,
         .p_flags = PF_R | PF_X,
         .p_offset = TEXT_OFFSET,
         .p_vaddr = FAKE_TEXT_VA,
         .p_paddr = FAKE_TEXT_GPA,
         .p_filesz = FAKE_TEXT_BYTES + RODATA_BYTES,
         .p_memsz = FAKE_TEXT_BYTES + RODATA_BYTES},
        {.p_type = PT_LOAD,
         .p_flags = PF_R | PF_W,
         .p_offset = TABLES_OFFSET,
         .p_vaddr = TABLES_VA,
         .p_paddr = FAKE_TEXT_GPA + FAKE_TEXT_BYTES + RODATA_BYTES,
         .p_filesz = 0x1000,
         .p_memsz = 0x400000},
    };
    const uint64_t flags = SHF_ALLOC;
    Elf64_Shdr sections[SECTION_COUNT] = {
        [TEXT] = {.sh_name = name_of(".text"),
                  .sh_type = SHT_PROGBITS,
                  .sh_flags = flags | SHF_EXECINSTR,
                  .sh_addr = FAKE_TEXT_VA,
                  .sh_offset = TEXT_OFFSET,
                  .sh_size = FAKE_TEXT_BYTES},
        [RODATA] = {.sh_name = name_of(".rodata"),
                    .sh_type = SHT_PROGBITS,
                    .sh_flags = flags,
                    .sh_addr = RODATA_VA,
                    .sh_offset = RODATA_OFFSET,
                    .sh_size = RODATA_BYTES},
        [ORC] = {.sh_name = name_of(".orc_unwind_ip"),
                 .sh_type = SHT_PROGBITS,
                 .sh_flags = flags,
                 .sh_addr = TABLES_VA,
                 .sh_offset = TABLES_OFFSET,
                 .sh_size = 4 * FAKE_ORC_ENTRIES},
        [ALTERNATIVES] = {.sh_name = name_of(".altinstructions"),
                          .sh_type = SHT_PROGBITS,
                          .sh_flags = flags,
                          .sh_addr = TABLES_VA + 0x100,
                          .sh_offset = TABLES_OFFSET + 0x100,
                          .sh_size = 3 * 12},
        [REPLACEMENTS] = {.sh_name = name_of(".altinstr_replacement"),
                          .sh_type = SHT_PROGBITS,
                          .sh_flags = flags | SHF_EXECINSTR,
                          .sh_addr = TABLES_VA + 0x200,
                          .sh_offset = TABLES_OFFSET + 0x200,
                          .sh_size = sizeof(replacements)},
        [INIT_DATA] = {.sh_name = name_of(".init.data"),
                       .sh_type = SHT_PROGBITS,
                       .sh_flags = flags | SHF_WRITE,
                       .sh_addr = TABLES_VA + 0x300,
                       .sh_offset = TABLES_OFFSET + 0x300,
                       .sh_size = 0x100},
        [NAMES] = {.sh_name = name_of(".shstrtab"),
                   .sh_type = SHT_STRTAB,
                   .sh_offset = SECTIONS_OFFSET + 0x400,
                   .sh_size = sizeof(names)},
    };

    memset(kernel, 0, sizeof(*kernel));
    kernel->size = sizeof(kernel->bytes);
    kernel->text = kernel->bytes + TEXT_OFFSET;
    kernel->orc = kernel->bytes + TABLES_OFFSET;
    kernel->alternatives = kernel->bytes + TABLES_OFFSET + 0x100;
    kernel->replacements = kernel->bytes + TABLES_OFFSET + 0x200;
    kernel->idt = kernel->bytes + TABLES_OFFSET + 0x320;
    memcpy(kernel->bytes, &header, sizeof(header));
    memcpy(kernel->bytes + 64, segments, sizeof(segments));
    memcpy(kernel->bytes + SECTIONS_OFFSET, sections, sizeof(sections));
    memcpy(kernel->bytes + SECTIONS_OFFSET + 0x400, names, sizeof(names));
    memcpy(kernel->replacements, replacements, sizeof(replacements));
    build_text(kernel);
    put_alternative(kernel, 0, FAKE_TEXT_VA + FAKE_GP_ENTRY, 3, 0, 3);
    put_alternative(kernel, 1, FAKE_TEXT_VA + FAKE_ALTERNATIVE, 5, 3, 5);
    put_alternative(kernel, 2, FAKE_TEXT_VA + FAKE_ALTERNATIVE, 5, 8, 3);
    put_idt(kernel->idt, 12, FAKE_TEXT_VA + FAKE_LAST);
    put_idt(kernel->idt + 24, 13, FAKE_TEXT_VA + FAKE_GP_ENTRY);
    put_idt(kernel->idt + 48, 14, FAKE_TEXT_VA + FAKE_LAST);
    build_vdso(kernel);
}

static size_t pack(const uint8_t *in, size_t bytes, enum fake_packing packing, uint8_t *out, size_t room)
{
    size_t used = 0;

    switch (packing) {
    case FAKE_GZIP: {
        z_stream stream = {
            .next_in = (uint8_t *)(uintptr_t)in, .avail_in = (uInt)bytes, .next_out = out, .avail_out = (uInt)room};
        if (deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK ||
            deflate(&stream, Z_FINISH) != Z_STREAM_END)
            abort();
        used = stream.total_out;
        deflateEnd(&stream);
        return used; /* the size is in gzip's own trailer */
    }
    case FAKE_XZ:
        if (lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, NULL, in, bytes, out, &used, room) != LZMA_OK)
            abort();
        break;
    case FAKE_LZ4: { /* two blocks and more, if the input is larger than one */
        put32(out, 0x184c2102);
        used = 4;
        for (size_t at = 0; at < bytes; at += 8 << 20) {
            int chunk = (int)(bytes - at < 8 << 20 ? bytes - at : 8 << 20);
            int got =
                LZ4_compress_default((const char *)in + at, (char *)out + used + 4, chunk, (int)(room - used - 4));
            put32(out + used, (uint32_t)got);
            used += 4 + (size_t)got;
        }
        break;
    }
    case FAKE_ZSTD:
        used = ZSTD_compress(out, room, in, bytes, 3);
        break;
    case FAKE_BZIP2_MAGIC:
        memcpy(out, "BZh91AY", 7);
        used = 7;
        break;
    case FAKE_NONSENSE:
    case FAKE_PACKINGS:
        memcpy(out, "nonsense", 8);
        used = 8;
        break;
    }
    put32(out + used, (uint32_t)bytes);
    return used + 4;
}

uint8_t *fake_bzimage(const uint8_t *payload, size_t bytes, enum fake_packing packing, size_t *out_bytes)
{
    const size_t setup = 2 * 512, offset = 0x40, room = bytes + bytes / 2 + 4096;
    uint8_t *file = calloc(1, setup + offset + room);
    size_t packed;

    if (file == NULL)
        abort();
    packed = pack(payload, bytes, packing, file + setup + offset, room);
    file[0x1f1] = 1; /* setup sectors */
    file[0x1fe] = 0x55, file[0x1ff] = 0xaa;
    file[0x200] = 0xeb, file[0x201] = 0x6a; /* jump over the header: it ends at 0x26c */
    memcpy(file + 0x202, "HdrS", 4);
    file[0x206] = 0x0f, file[0x207] = 0x02; /* protocol 2.15 */
    file[0x20e] = 0x80, file[0x20f] = 0x01; /* version at 0x380 */
    file[0x211] = 1;                        /* loaded high */
    put32(file + 0x22c, 0x7fffffff);        /* initrd_addr_max */
    file[0x236] = 1;                        /* 64-bit entry */
    put32(file + 0x238, 2047);              /* command line */
    put32(file + 0x248, (uint32_t)offset);
    put32(file + 0x24c, (uint32_t)packed);
    strcpy((char *)file + 0x380, "6.1.0-fake (builder@host)");
    *out_bytes = setup + offset + packed;
    return file;
}

static char paths[8][64];
static unsigned path_next;

static void remove_files(void)
{
    for (unsigned i = 0; i < 8; i++)
        if (paths[i][0] != 0)
            unlink(paths[i]);
}

const char *fake_file(const void *bytes, size_t count)
{
    static int registered;
    char *path = paths[path_next++ % 8];
    int fd;

    if (!registered++)
        atexit(remove_files);
    if (path[0] != 0)
        unlink(path);
    strcpy(path, "/tmp/ftvmm-test-boot-XXXXXX");
    fd = mkstemp(path);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t)count || close(fd) != 0)
        abort();
    return path;
}
