/* Loads kernel, initrd, boot parameters, page tables and descriptors; sets the registers of the 64-bit entry. */
#include "vmm/boot.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/report.h"
#include "vmm/bzimage.h"
#include "vmm/elf_view.h"
#include "vmm/initrd.h"

/* Low memory, below the 640 KB that a PC has there; the kernel copies or reserves what it needs of it. */
#define GDT_GPA           0x6000u
#define BOOT_PARAMS_GPA   0x7000u
#define SETUP_DATA_GPA    0x8000u
#define PAGE_TABLE_GPA    0x9000u /* PML4, PDPT and four page directories: 4 GiB, one to one */
#define COMMAND_LINE_GPA  0x20000u
#define COMMAND_LINE_ROOM 0x10000u
#define LOW_MEMORY_END    0x9fc00u
#define HIGH_MEMORY_START 0x100000u

#define PAGE_DIRECTORIES     4
#define PTE_PRESENT_WRITABLE 0x3u
#define PTE_LARGE            0x80u

#define BOOT_CS             0x10 /* boot.rst, 64-bit boot protocol */
#define BOOT_DS             0x18
#define LOADER_TYPE_UNKNOWN 0xff
#define SETUP_TYPE_RNG_SEED 9 /* SETUP_RNG_SEED of Linux 6.0 and newer; older headers lack it */
#define SEED_BYTES          32
#define WORKING_ROOM_BYTES  (16u << 20) /* what a kernel wants at least beside its image and its initrd */

#define CR0_PE       0x1u
#define CR0_ET       0x10u
#define CR0_PG       0x80000000u
#define CR4_PAE      0x20u
#define EFER_LME     0x100u
#define EFER_LMA     0x400u
#define RFLAGS_FIXED 0x2u

static void *place(struct guest_memory *memory, uint64_t gpa, uint64_t bytes)
{
    void *at = guest_memory_at(memory, gpa, bytes);

    if (at != NULL)
        guest_memory_mark(memory, gpa, bytes);
    return at;
}

static int too_little_memory(const struct guest_memory *memory, uint64_t needed, const char *what)
{
    report_error("%llu MiB of guest memory are too little: %s needs %llu MiB; give at least that (--memory)",
                 (unsigned long long)(memory->bytes >> 20), what, (unsigned long long)((needed + (1 << 20) - 1) >> 20));
    return -ENOSPC;
}

/* Checks the kernel's segments; *end becomes the first address behind them. */
static int check_segments(const struct elf_view *elf, uint64_t *end)
{
    bool entry_loaded = false;

    *end = 0;
    for (uint32_t i = 0; i < elf->segment_count; i++) {
        Elf64_Phdr segment;

        if (!elf_view_segment(elf, i, &segment)) {
            report_error("the kernel's ELF segment %u lies outside the image: the file is damaged", i);
            return -EINVAL;
        }
        if (segment.p_type != PT_LOAD || segment.p_memsz == 0)
            continue;
        if (segment.p_paddr < HIGH_MEMORY_START || segment.p_memsz > UINT32_MAX || segment.p_paddr > UINT32_MAX) {
            report_error("the kernel's ELF segment %u wants %llu bytes at 0x%llx, which is no place for a kernel: the "
                         "file is damaged",
                         i, (unsigned long long)segment.p_memsz, (unsigned long long)segment.p_paddr);
            return -EINVAL;
        }
        if (segment.p_paddr + segment.p_memsz > *end)
            *end = segment.p_paddr + segment.p_memsz;
        entry_loaded |= elf->entry >= segment.p_paddr && elf->entry - segment.p_paddr < segment.p_filesz;
    }
    if (entry_loaded)
        return 0;
    report_error("the kernel's entry 0x%llx lies in none of its segments: the file is damaged",
                 (unsigned long long)elf->entry);
    return -EINVAL;
}

/* Copies the kernel's segments to the physical addresses they are linked for. */
static int load_kernel(struct guest_memory *memory, const struct elf_view *elf, struct boot_info *info)
{
    int rc = check_segments(elf, &info->kernel_end_gpa);

    if (rc < 0)
        return rc;
    if (info->kernel_end_gpa + WORKING_ROOM_BYTES > memory->bytes)
        return too_little_memory(memory, info->kernel_end_gpa + WORKING_ROOM_BYTES, "this kernel");
    for (uint32_t i = 0; i < elf->segment_count; i++) {
        Elf64_Phdr segment;

        if (!elf_view_segment(elf, i, &segment) || segment.p_type != PT_LOAD || segment.p_filesz == 0)
            continue;
        memcpy(place(memory, segment.p_paddr, segment.p_filesz), elf->bytes + segment.p_offset, segment.p_filesz);
    }
    info->entry_gpa = elf->entry;
    return 0;
}

/* Reads `bytes` of `fd` to `at`. */
static int read_all(int fd, uint8_t *at, uint64_t bytes)
{
    while (bytes > 0) {
        ssize_t got = read(fd, at, bytes < (1u << 30) ? bytes : 1u << 30);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        at += got;
        bytes -= (uint64_t)got;
    }
    return 0;
}

/* Puts the initrd at the end of RAM, as boot loaders do: the kernel unpacks it far from there. */
static int load_initrd(struct guest_memory *memory, const char *path, uint32_t address_max,
                       struct boot_info *info)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    int rc;

    if (fd < 0 || fstat(fd, &st) < 0) {
        rc = -errno;
        report_error("initrd '%s' does not open: %s; scripts/guest-image makes one from Debian's packages", path,
                     strerror(-rc));
        goto out;
    }
    if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        report_error("initrd '%s' is %s", path, S_ISREG(st.st_mode) ? "an empty file" : "not a file");
        rc = -EINVAL;
        goto out;
    }
    uint64_t bytes = (uint64_t)st.st_size;
    uint64_t top = memory->bytes < (uint64_t)address_max + 1 ? memory->bytes : (uint64_t)address_max + 1;
    /* twice: the archive, and what it unpacks to */
    uint64_t needed = info->kernel_end_gpa + WORKING_ROOM_BYTES + 2 * bytes;

    if (bytes > UINT32_MAX / 4 || needed > top) {
        rc = too_little_memory(memory, needed, "this kernel with this initrd");
        goto out;
    }
    info->initrd_bytes = bytes;
    info->initrd_gpa = (top - bytes) & ~(uint64_t)(GUEST_PAGE_BYTES - 1);
    uint8_t *at = place(memory, info->initrd_gpa, bytes);
    rc = read_all(fd, at, bytes);
    if (rc < 0) {
        report_error("initrd '%s' cannot be read: %s", path, strerror(-rc));
        goto out;
    }
    rc = initrd_patch_modules(at, bytes, path, &info->module_count, &info->module_sites);
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

static int load_command_line(struct guest_memory *memory, const char *text, uint32_t room)
{
    size_t length = strlen(text);

    if (room == 0 || room >= COMMAND_LINE_ROOM)
        room = COMMAND_LINE_ROOM - 1;
    if (length > room) {
        report_error("the kernel's command line of %zu bytes is too long; this kernel takes %u", length, room);
        return -E2BIG;
    }
    memcpy(place(memory, COMMAND_LINE_GPA, length + 1), text, length + 1);
    return 0;
}

/* Tells the kernel of RAM, initrd, command line and its first randomness. */
static void write_boot_params(struct guest_memory *memory, const struct bzimage *image, const uint8_t *seed,
                              const struct boot_info *info)
{
    struct boot_params *params = place(memory, BOOT_PARAMS_GPA, sizeof(*params));
    struct setup_data *data = place(memory, SETUP_DATA_GPA, sizeof(*data) + SEED_BYTES);
    const struct boot_e820_entry map[] = {
        {.addr = 0, .size = LOW_MEMORY_END, .type = 1},
        {.addr = LOW_MEMORY_END, .size = 0xa0000 - LOW_MEMORY_END, .type = 2},
        {.addr = 0xf0000, .size = 0x10000, .type = 2},
        {.addr = HIGH_MEMORY_START, .size = memory->bytes - HIGH_MEMORY_START, .type = 1},
    };

    memset(params, 0, sizeof(*params));
    memcpy(&params->hdr, image->setup_header, sizeof(params->hdr));
    params->hdr.type_of_loader = LOADER_TYPE_UNKNOWN;
    params->hdr.cmd_line_ptr = COMMAND_LINE_GPA;
    params->hdr.ramdisk_image = (uint32_t)info->initrd_gpa;
    params->hdr.ramdisk_size = (uint32_t)info->initrd_bytes;
    params->hdr.setup_data = SETUP_DATA_GPA;
    memcpy(params->e820_table, map, sizeof(map));
    params->e820_entries = sizeof(map) / sizeof(map[0]);

    data->next = 0;
    data->type = SETUP_TYPE_RNG_SEED;
    data->len = SEED_BYTES;
    memcpy(data->data, seed, SEED_BYTES);
}

/* The first 4 GiB, one to one, in pages of 2 MiB. */
static void write_page_tables(struct guest_memory *memory)
{
    uint64_t *tables = place(memory, PAGE_TABLE_GPA, (2 + PAGE_DIRECTORIES) * GUEST_PAGE_BYTES);
    const size_t entries = GUEST_PAGE_BYTES / sizeof(*tables);

    tables[0] = (PAGE_TABLE_GPA + GUEST_PAGE_BYTES) | PTE_PRESENT_WRITABLE;
    for (size_t i = 0; i < PAGE_DIRECTORIES; i++)
        tables[entries + i] = (PAGE_TABLE_GPA + (2 + i) * GUEST_PAGE_BYTES) | PTE_PRESENT_WRITABLE;
    for (size_t i = 0; i < PAGE_DIRECTORIES * entries; i++)
        tables[2 * entries + i] = (uint64_t)i << 21 | PTE_LARGE | PTE_PRESENT_WRITABLE;
}

static void write_gdt(struct guest_memory *memory)
{
    const uint64_t gdt[] = {
        [BOOT_CS / 8] = 0x00af9b000000ffff, /* flat 64-bit code, DPL 0, accessed */
        [BOOT_DS / 8] = 0x00cf93000000ffff, /* flat data, DPL 0, accessed */
    };

    memcpy(place(memory, GDT_GPA, sizeof(gdt)), gdt, sizeof(gdt));
}

int boot_load(struct guest_memory *memory, const struct boot_options *options, struct boot_info *info)
{
    struct bzimage image = {0};
    struct setup_header header;
    struct elf_view elf;
    int rc;

    memset(info, 0, sizeof(*info));
    rc = bzimage_open(&image, options->kernel_path);
    if (rc == 0)
        rc = tsc_patch_kernel(image.vmlinux, image.vmlinux_bytes, &info->tsc);
    if (rc < 0)
        goto out;
    memcpy(info->kernel_version, image.version, sizeof(info->kernel_version));
    memcpy(&header, image.setup_header, sizeof(header));
    if (!elf_view_open(&elf, image.vmlinux, image.vmlinux_bytes))
        report_bug("the kernel's ELF header was right a moment ago");
    rc = load_kernel(memory, &elf, info);
    if (rc == 0 && options->initrd_path != NULL)
        rc = load_initrd(memory, options->initrd_path, header.initrd_addr_max, info);
    if (rc == 0)
        rc = load_command_line(memory, options->command_line, header.cmdline_size);
    if (rc < 0)
        goto out;
    info->boot_params_gpa = BOOT_PARAMS_GPA;
    info->gdt_gpa = GDT_GPA;
    info->page_table_gpa = PAGE_TABLE_GPA;
    write_boot_params(memory, &image, options->rng_seed, info);
    write_page_tables(memory);
    write_gdt(memory);
    report_info("guest kernel %s (%s): %u RDTSC rewritten, %u look-alikes left, #GP hook at 0x%llx; %u modules with %u",
                info->kernel_version, image.compression, info->tsc.sites, info->tsc.inside,
                (unsigned long long)info->tsc.gp_entry_va, info->module_count, info->module_sites);
out:
    bzimage_close(&image);
    return rc;
}

void boot_set_registers(const struct boot_info *info, struct kvm_sregs *sregs, struct kvm_regs *regs)
{
    const struct kvm_segment data = {
        .selector = BOOT_DS, .limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};

    memset(regs, 0, sizeof(*regs));
    regs->rip = info->entry_gpa;
    regs->rsi = info->boot_params_gpa;
    regs->rflags = RFLAGS_FIXED;

    sregs->cs = (struct kvm_segment){
        .selector = BOOT_CS, .limit = 0xffffffff, .type = 0xb, .present = 1, .s = 1, .l = 1, .g = 1};
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->tr = (struct kvm_segment){.limit = 0xffff, .type = 0xb, .present = 1}; /* VMX wants a busy TSS */
    sregs->ldt = (struct kvm_segment){.limit = 0xffff, .type = 2, .present = 1};
    sregs->gdt = (struct kvm_dtable){.base = info->gdt_gpa, .limit = BOOT_DS + 7};
    sregs->idt = (struct kvm_dtable){.base = 0, .limit = 0}; /* an early fault is a triple fault, not a riddle */
    sregs->cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs->cr3 = info->page_table_gpa;
    sregs->cr4 = CR4_PAE;
    sregs->efer = EFER_LME | EFER_LMA;
}
