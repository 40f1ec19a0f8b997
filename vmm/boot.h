/* Loads a Debian kernel and an initrd into an empty machine, as a boot loader would. */
#ifndef FTVMM_VMM_BOOT_H
#define FTVMM_VMM_BOOT_H

#include <linux/kvm.h>
#include <stdint.h>

#include "vmm/guest_memory.h"
#include "vmm/tsc_patch.h"

/*
 * What makes an unmodified kernel fit the machine: no APIC, ACPI, HPET or i8042; a TSC of 1 GHz that is to be
 * believed; delays that need no port access; randomness from the VMM's seed alone; a triple fault as the end.
 * vdso=0 because a system call reads the clock with one exit, where a vDSO's RDTSC costs a #GP and then one.
 */
#define BOOT_DEFAULT_COMMAND_LINE                                                                                      \
    "console=ttyS0 nolapic noapic acpi=off pci=conf1,nomsi nokaslr mitigations=off reboot=t panic=1 "                  \
    "randomize_kstack_offset=off no_timer_check nohpet tsc=reliable tsc_early_khz=1000000 lpj=4000000 "                \
    "i8042.noaux i8042.nokbd i8042.nopnp random.trust_cpu=off random.trust_bootloader=on io_delay=none vdso=0"

struct boot_options {
    const char *kernel_path;  /* a bzImage of Debian 12 (Linux 6.1) */
    const char *initrd_path;  /* an uncompressed cpio archive; NULL: none */
    const char *command_line; /* at most as long as the kernel takes (2047 bytes for 6.1) */
    uint8_t rng_seed[32];     /* all of the guest's initial randomness */
};

struct boot_info {
    uint64_t entry_gpa;
    uint64_t boot_params_gpa;
    uint64_t gdt_gpa;
    uint64_t page_table_gpa;
    uint64_t kernel_end_gpa; /* first byte that the kernel's image does not use */
    uint64_t initrd_gpa;     /* 0: none */
    uint64_t initrd_bytes;
    uint32_t module_count; /* kernel modules seen in the initrd */
    uint32_t module_sites; /* RDTSCs rewritten in them */
    char kernel_version[64];
    struct tsc_patch_report tsc;
};

/*
 * Unpacks, rewrites (tsc_patch.h) and loads the kernel, its initrd and all that the 64-bit boot protocol asks for
 * into `memory`, which must be zero, and marks what it wrote as dirty. 0; or, said in words: -ENOENT and the like,
 * -EINVAL, -EBADMSG, -ENOTSUP, -EILSEQ (see bzimage.h, tsc_patch.h), -E2BIG (the command line is too long),
 * -ENOSPC (the machine has too little RAM), -ENOMEM. vCPU thread.
 * Source: Linux Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL".
 */
int boot_load(struct guest_memory *memory, const struct boot_options *options, struct boot_info *info);

/* Makes of a vCPU's registers after reset those at the kernel's 64-bit entry. *sregs: in and out; *regs: out. */
void boot_set_registers(const struct boot_info *info, struct kvm_sregs *sregs, struct kvm_regs *regs);

#endif
