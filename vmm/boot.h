/* Loads a Debian kernel into guest memory, made deterministic, and tells how the vCPU enters it. */
#ifndef FTVMM_VMM_BOOT_H
#define FTVMM_VMM_BOOT_H

#include <linux/kvm.h>
#include <stdint.h>

#include "vmm/guest_memory.h"
#include "vmm/tsc_patch.h"

/*
 * What the kernel must be told so that its machine is the one we model: no APIC, ACPI or HPET, a 1 GHz counter
 * that needs no calibration, no address randomisation, no vDSO (its RDTSC would fault; the system call does not),
 * randomness from the boot protocol's seed only, and PCI by ports.
 */
#define BOOT_DEFAULT_COMMAND_LINE                                                                                      \
    "console=ttyS0 nolapic noapic acpi=off nokaslr mitigations=off reboot=t panic=1 randomize_kstack_offset=off "      \
    "no_timer_check nohpet tsc=reliable tsc_early_khz=1000000 lpj=4000000 i8042.noaux i8042.nokbd i8042.nopnp "        \
    "random.trust_cpu=off random.trust_bootloader=on io_delay=none pci=conf1 vdso=0"

struct boot_options {
    const char *kernel_path;
    const char *initrd_path; /* may be NULL */
    const char *command_line;
    uint8_t rng_seed[32];
};

struct boot_info {
    uint64_t entry; /* physical address of the kernel's 64-bit entry */
    struct tsc_patch_report patches;
};

/*
 * Lays out kernel, initrd, command line, boot parameters, GDT and page tables in `memory`, which is all zeroes.
 * 0 or -errno, said in words: files missing or damaged, a kernel that cannot be made deterministic, too little
 * memory. Source: Documentation/x86/boot.rst, "64-bit Boot Protocol".
 */
int boot_load(struct guest_memory *memory, const struct boot_options *options, struct boot_info *info);

/* The vCPU's registers at the entry. `sregs` comes as KVM_GET_SREGS gave it. */
void boot_set_registers(const struct boot_info *info, struct kvm_sregs *sregs, struct kvm_regs *regs);

#endif
