/* The 64-bit boot protocol: what lies where in guest memory before the first instruction; see boot.h. */
#include "vmm/boot.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/report.h"
#include "vmm/bzimage.h"

/* Below the first megabyte, where no kernel lies. */
#define GDT_GPA 0x1000u
#define BOOT_PARAMS_GPA 0x7000u
#define STACK_GPA 0x8000u
#define PML4_GPA 0x9000u /* then one page of pointers and four page directories: 4 GiB in 2 MiB pages */
#define COMMAND_LINE_GPA 0x20000u
#define COMMAND_LINE_MAX_BYTES 2048u
#define SEED_GPA 0x21000u
#define LOW_MEMORY_END 0x9FC00u
#define HIGH_MEMORY_START 0x100000u

#define KERNEL_CS 0x10u
#define KERNEL_DS 0x18u

static int load_segments(struct guest_memory *memory, const struct bzimage *image, uint64_t *end_gpa)
{
    const Elf64_Ehdr *head = (const void *)image->elf;

    *end_gpa = 0;
    if (head->e_phentsize != sizeof(Elf64_Phdr) || head->e_phoff > image->elf_bytes ||
        head->e_phnum > (image->elf_bytes - head->e_phoff) / sizeof(Elf64_Phdr)) {
        report_error("the unpacked kernel's program headers lie outside the file");
        return -EINVAL;
    }
    for (unsigned i = 0; i < head->e_phnum; i++) {
        Elf64_Phdr segment;
        void *to;

        memcpy(&segment, image->elf + head->e_phoff + i * sizeof(segment), sizeof(segment));
        if (segment.p_type != PT_LOAD)
            continue;
        if (segment.p_filesz > segment.p_memsz || segment.p_offset > image->elf_bytes ||
            segment.p_filesz > image->elf_bytes - segment.p_offset || segment.p_paddr < HIGH_MEMORY_START) {
            report_error("the unpacked kernel's segment %u makes no sense", i);
            return -EINVAL;
        }
        to = guest_memory_at(memory, segment.p_paddr, segment.p_memsz);
        if (to == NULL) {
            report_error("the kernel needs %llu MiB of guest memory and has %llu; give more (--memory)",
                         (unsigned long long)((segment.p_paddr + segment.p_memsz) >> 20) + 1,
                         (unsigned long long)(memory->bytes >> 20));
            return -ENOMEM;
        }
        memcpy(to, image->elf + segment.p_offset, segment.p_filesz);
        if (segment.p_paddr + segment.p_memsz > *end_gpa)
            *end_gpa = segment.p_paddr + segment.p_memsz;
    }
    return 0;
}

/* At the top of memory, page-aligned, as boot loaders do. */
static int load_initrd(struct guest_memory *memory, const char *path, uint64_t kernel_end, uint64_t *gpa,
                       uint64_t *bytes)
{
    struct stat status;
    uint64_t done = 0;
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int rc = 0;

    if (fd < 0 || fstat(fd, &status) < 0) {
        rc = -errno;
        report_error("the initrd '%s' does not open: %s", path, strerror(-rc));
        goto out;
    }
    *bytes = (uint64_t)status.st_size;
    if (!S_ISREG(status.st_mode) || *bytes == 0 || *bytes > memory->bytes ||
        (memory->bytes - *bytes) / GUEST_PAGE_BYTES * GUEST_PAGE_BYTES < kernel_end) {
        report_error("the initrd '%s' (%lld bytes) does not fit beside the kernel in %llu MiB of guest memory; give "
                     "more (--memory)", path, (long long)status.st_size, (unsigned long long)(memory->bytes >> 20));
        rc = -ENOMEM;
        goto out;
    }
    *gpa = (memory->bytes - *bytes) / GUEST_PAGE_BYTES * GUEST_PAGE_BYTES;
    while (done < *bytes && (got = read(fd, memory->base + *gpa + done, *bytes - done)) > 0)
        done += (uint64_t)got;
    if (done < *bytes) {
        rc = got < 0 ? -errno : -EIO;
        report_error("the initrd '%s' cannot be read: %s", path, strerror(-rc));
    }
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

static void fill_e820(struct boot_params *params, const struct guest_memory *memory)
{
    params->e820_table[0] = (struct boot_e820_entry){ .addr = 0, .size = LOW_MEMORY_END, .type = 1 };
    params->e820_table[1] = (struct boot_e820_entry){
        .addr = HIGH_MEMORY_START, .size = memory->bytes - HIGH_MEMORY_START, .type = 1
    };
    params->e820_entries = 2;
}

static void fill_seed(struct guest_memory *memory, const struct boot_options *options)
{
    struct setup_data *data = (void *)(memory->base + SEED_GPA);

    data->next = 0;
    data->type = SETUP_RNG_SEED;
    data->len = sizeof(options->rng_seed);
    memcpy(data->data, options->rng_seed, sizeof(options->rng_seed));
}

/* Identity map of the first 4 GiB. */
static void fill_page_tables(struct guest_memory *memory)
{
    uint64_t *pml4 = (void *)(memory->base + PML4_GPA);
    uint64_t *pointers = pml4 + 512, *directories = pml4 + 1024;

    pml4[0] = (PML4_GPA + 0x1000) | 3;
    for (uint64_t i = 0; i < 4; i++)
        pointers[i] = (PML4_GPA + 0x2000 + i * 0x1000) | 3;
    for (uint64_t i = 0; i < 4 * 512; i++)
        directories[i] = i << 21 | 0x83; /* present, writable, 2 MiB */
}

static void fill_gdt(struct guest_memory *memory)
{
    uint64_t *gdt = (void *)(memory->base + GDT_GPA);

    gdt[KERNEL_CS / 8] = 0x00AF9B000000FFFF; /* 64-bit code */
    gdt[KERNEL_DS / 8] = 0x00CF93000000FFFF;
}

static int fill_boot_params(struct guest_memory *memory, const struct boot_options *options,
                            const struct bzimage *image, uint64_t initrd_gpa, uint64_t initrd_bytes)
{
    struct boot_params *params = (void *)(memory->base + BOOT_PARAMS_GPA);
    size_t header_end = 0x202u + image->header[0x201];

    if (strlen(options->command_line) >= COMMAND_LINE_MAX_BYTES) {
        report_error("the kernel's command line has %zu bytes, %u is the most; shorten --append",
                     strlen(options->command_line), COMMAND_LINE_MAX_BYTES - 1);
        return -EINVAL;
    }
    memcpy(&params->hdr, image->header + 0x1f1, header_end - 0x1f1 < sizeof(params->hdr) ? header_end - 0x1f1
                                                                                         : sizeof(params->hdr));
    strcpy((char *)memory->base + COMMAND_LINE_GPA, options->command_line);
    params->hdr.type_of_loader = 0xff;
    params->hdr.cmd_line_ptr = COMMAND_LINE_GPA;
    params->hdr.ramdisk_image = (uint32_t)initrd_gpa;
    params->hdr.ramdisk_size = (uint32_t)initrd_bytes;
    params->hdr.setup_data = SEED_GPA;
    fill_e820(params, memory);
    return 0;
}

int boot_load(struct guest_memory *memory, const struct boot_options *options, struct boot_info *info)
{
    uint64_t kernel_end, initrd_gpa = 0, initrd_bytes = 0;
    struct bzimage image = { 0 };
    int rc;

    *info = (struct boot_info){ 0 };
    rc = bzimage_read(&image, options->kernel_path);
    if (rc == 0)
        rc = tsc_patch_kernel(image.elf, image.elf_bytes, &info->patches);
    if (rc == 0)
        rc = load_segments(memory, &image, &kernel_end);
    if (rc == 0 && options->initrd_path != NULL)
        rc = load_initrd(memory, options->initrd_path, kernel_end, &initrd_gpa, &initrd_bytes);
    if (rc == 0)
        rc = fill_boot_params(memory, options, &image, initrd_gpa, initrd_bytes);
    if (rc == 0) {
        info->entry = ((const Elf64_Ehdr *)image.elf)->e_entry;
        fill_seed(memory, options);
        fill_page_tables(memory);
        fill_gdt(memory);
        report_info("kernel loaded: %u RDTSC and %u RDTSCP rewritten, %u look-alikes left, #GP entry at 0x%llx",
                    info->patches.rdtsc_sites, info->patches.rdtscp_sites, info->patches.pairs_left,
                    (unsigned long long)info->patches.gp_entry);
    }
    bzimage_fini(&image);
    return rc;
}

void boot_set_registers(const struct boot_info *info, struct kvm_sregs *sregs, struct kvm_regs *regs)
{
    const struct kvm_segment code = { .limit = UINT32_MAX, .selector = KERNEL_CS, .type = 11, .present = 1, .s = 1,
                                      .l = 1, .g = 1 };
    const struct kvm_segment data = { .limit = UINT32_MAX, .selector = KERNEL_DS, .type = 3, .present = 1, .s = 1,
                                      .db = 1, .g = 1 };

    sregs->cs = code;
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->tr = (struct kvm_segment){ .limit = 0x67, .type = 11, .present = 1 };
    sregs->gdt = (struct kvm_dtable){ .base = GDT_GPA, .limit = 4 * 8 - 1 };
    sregs->idt = (struct kvm_dtable){ 0 };
    sregs->cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
    sregs->cr3 = PML4_GPA;
    sregs->cr4 = 0x20; /* PAE */
    sregs->efer = 0x500; /* LMA LME */
    *regs = (struct kvm_regs){ .rip = info->entry, .rsi = BOOT_PARAMS_GPA, .rsp = STACK_GPA, .rflags = 2 };
}
