/* Unpacks the kernel that a Linux distribution ships (a bzImage) into the ELF image inside it. */
#ifndef FTVMM_VMM_BZIMAGE_H
#define FTVMM_VMM_BZIMAGE_H

#include <stddef.h>
#include <stdint.h>

#define BZIMAGE_UNPACKED_MAX_BYTES     ((size_t)512 << 20) /* no kernel comes near; a damaged size field does */
#define BZIMAGE_SETUP_HEADER_OFFSET    0x1f1u              /* Linux Documentation/arch/x86/boot.rst */
#define BZIMAGE_SETUP_HEADER_MAX_BYTES 0x90u               /* room in boot_params */

/* Zero-initialise. Owns `vmlinux`. */
struct bzimage {
    uint8_t *vmlinux; /* the ELF image, followed by what else the payload holds (relocations) */
    size_t vmlinux_bytes;
    uint8_t setup_header[BZIMAGE_SETUP_HEADER_MAX_BYTES]; /* as in the file from 0x1f1, zero-padded */
    uint16_t protocol;                                    /* boot protocol version, 0x20c or newer */
    const char *compression;                              /* "gzip", "xz", "lz4" or "zstd" */
    char version[64]; /* the kernel's own words, cut at the first blank; may be empty */
};

/*
 * Reads and unpacks the file `path`. 0, or, said in words: -ENOENT and the like (does not open), -EINVAL (not a
 * bzImage), -EBADMSG (truncated or damaged), -ENOTSUP (protocol too old, unknown compression), -EFBIG, -ENOMEM.
 * Any thread. bzimage_close frees it.
 * Source: Linux Documentation/arch/x86/boot.rst, "The Linux/x86 Boot Protocol".
 */
int bzimage_open(struct bzimage *image, const char *path);
/* The same from memory, which is only read; `name` is for the sentences. */
int bzimage_parse(struct bzimage *image, const uint8_t *file, size_t bytes, const char *name);
void bzimage_close(struct bzimage *image);

#endif
