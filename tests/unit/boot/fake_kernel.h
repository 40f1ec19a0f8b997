/* A toy of a Linux kernel: an ELF image with just what the loader looks for, and bzImages around it. */
#ifndef FTVMM_TESTS_BOOT_FAKE_KERNEL_H
#define FTVMM_TESTS_BOOT_FAKE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#define FAKE_TEXT_VA    UINT64_C(0xffffffff81000000)
#define FAKE_TEXT_GPA   UINT64_C(0x1000000)
#define FAKE_TEXT_BYTES 0x2000u

/* Offsets in .text. */
#define FAKE_RDTSC       0x100 /* rdtsc; ret */
#define FAKE_LOOK_ALIKE  0x140 /* mov eax, 0x9090310f; ret */
#define FAKE_ALTERNATIVE 0x180 /* rdtsc; nop, or lfence; rdtsc, or rdtscp */
#define FAKE_PADDING     0x1f0 /* 16 bytes of no-ops */
#define FAKE_WRITE_CR4   0x200 /* xor esi, esi; mov cr4, rdi; ret */
#define FAKE_GP_ENTRY    0x240 /* nop; nop; nop; cld; ret */
#define FAKE_LAST        0x280 /* ret; int3 to the end */

struct fake_kernel {
    uint8_t bytes[0x9000];
    size_t size;
    uint8_t *text;
    uint8_t *replacements; /* CLAC, lfence; rdtsc, rdtscp */
    uint8_t *orc;          /* FAKE_ORC_ENTRIES of 4 bytes */
    uint8_t *alternatives; /* 3 of 12 bytes */
    uint8_t *idt;          /* 3 entries of 24 bytes: #SS, #GP, #PF */
    uint8_t *vdso;         /* a page-aligned ELF library, whose code is: rdtscp; ret */
    uint8_t *vdso_code;
};

#define FAKE_ORC_ENTRIES 8

void fake_kernel_build(struct fake_kernel *kernel);

enum fake_packing { FAKE_GZIP, FAKE_XZ, FAKE_LZ4, FAKE_ZSTD, FAKE_BZIP2_MAGIC, FAKE_NONSENSE, FAKE_PACKINGS };

/* A bzImage around `payload`; the caller frees it. */
uint8_t *fake_bzimage(const uint8_t *payload, size_t bytes, enum fake_packing packing, size_t *out_bytes);
/* Writes `bytes` to a new file in the test's temporary directory; returns its path (static storage, eight kept). */
const char *fake_file(const void *bytes, size_t count);

#endif
