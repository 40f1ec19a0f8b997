/*
 * Takes the time-stamp counter away from a kernel image, so that every reading of it becomes an input: stock KVM
 * cannot make RDTSC exit to user space. Every RDTSC and RDTSCP of the kernel is rewritten, in place and at the
 * same length, as a port read; and a user program's faults (CR4.TSD is kept set), with #GP reporting to the VMM.
 * docs/determinism.md tells why it is done this way.
 */
#ifndef FTVMM_VMM_TSC_PATCH_H
#define FTVMM_VMM_TSC_PATCH_H

#include <stddef.h>
#include <stdint.h>

/* What the rewritten instructions do: IN EAX, imm8 instead of RDTSC and RDTSCP; OUT imm8, AL at the #GP entry.
 * No PC device answers at these ports. */
#define TSC_PORT_RDTSC 0xF5u
#define TSC_PORT_RDTSCP 0xF8u
#define TSC_PORT_USER_GP 0xF6u

struct tsc_patch_report {
    unsigned rdtsc_sites, rdtscp_sites; /* rewritten */
    unsigned pairs_left;                /* the same bytes inside other instructions, left alone */
    uint64_t gp_entry;                  /* address of the kernel's #GP entry */
};

/*
 * Rewrites the vmlinux at `elf`. All or nothing in effect: if a place cannot be found without doubt it says
 * which, and returns -ENOTSUP; the image must then not be run. -EINVAL: no proper 64-bit ELF.
 */
int tsc_patch_kernel(uint8_t *elf, size_t bytes, struct tsc_patch_report *report);

#endif
