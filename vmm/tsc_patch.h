/*
 * Rewrites a Linux kernel, before it is loaded, so that the guest never reads the host's time-stamp counter.
 *
 * KVM gives user space no exit for RDTSC, but one for every port access. So:
 *
 *   RDTSC          0F 31     -> IN EAX, 0xF5        E5 F5      same length, one exit; the VMM supplies EAX as the
 *   RDTSCP         0F 01 F9  -> IN EAX, 0xF8; NOP   E5 F8 90   port's data and sets RDX (and RCX)
 *   CR4 writes     native_write_cr4() gets "or edi, CR4.TSD": a user program's RDTSC then raises #GP for ever,
 *                  whatever the rest of the kernel (cpu_init, prctl PR_SET_TSC) does to the bit
 *   #GP entry      the no-op slot for CLAC at its start becomes OUT 0xF6, AL (E6 F6): the VMM sees every #GP first
 *                  and answers those that a user program's RDTSC caused (user_tsc.h)
 *
 * All places are found by what they are, not by address; a place that is missing or ambiguous refuses the kernel.
 */
#ifndef FTVMM_VMM_TSC_PATCH_H
#define FTVMM_VMM_TSC_PATCH_H

#include <stddef.h>
#include <stdint.h>

/* Ports that no PC device claims and that fit the one-byte IN and OUT. */
#define TSC_PORT_RDTSC   0xf5 /* read, 4 bytes: EAX; set RDX too */
#define TSC_PORT_USER_GP 0xf6 /* written, 1 byte: the guest is at its #GP entry */
#define TSC_PORT_RDTSCP  0xf8 /* read, 4 bytes: EAX; set RDX and RCX too */

#define TSC_PATCH_SECTIONS 12

struct tsc_patch_section {
    char name[32];
    uint32_t rdtsc;
    uint32_t rdtscp;
    uint32_t inside; /* the same bytes inside other instructions: left alone */
};

struct tsc_patch_report {
    struct tsc_patch_section sections[TSC_PATCH_SECTIONS]; /* code sections with anything to tell */
    uint32_t section_count;
    uint32_t sites;        /* RDTSC and RDTSCP rewritten, over all */
    uint32_t inside;       /* left alone, over all */
    uint64_t gp_entry_va;  /* where OUT 0xF6 was written */
    uint64_t write_cr4_va; /* native_write_cr4 */
};

/*
 * Rewrites the ELF image of a Linux kernel for x86-64 in place. 0; or, said in words and with the image
 * unchanged: -EINVAL (not such an image), -ENOTSUP (a place is missing or ambiguous), -EILSEQ (code that cannot be
 * told for certain), -ENOMEM. Any thread.
 */
int tsc_patch_kernel(uint8_t *elf, size_t bytes, struct tsc_patch_report *report);

/* Rewrites the RDTSC and RDTSCP of one kernel module (a .ko file); adds to *sites. Errors as above; `name` is for
 * the sentences. A module that is changed loses its signature; Debian's kernel then loads it and says "tainted". */
int tsc_patch_module(uint8_t *elf, size_t bytes, const char *name, uint32_t *sites);

#endif
