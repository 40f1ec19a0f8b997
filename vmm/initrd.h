/* Goes through an initrd for kernel modules, and takes the RDTSCs out of them. */
#ifndef FTVMM_VMM_INITRD_H
#define FTVMM_VMM_INITRD_H

#include <stddef.h>
#include <stdint.h>

/*
 * Walks the uncompressed cpio archive (format newc) in place and rewrites the RDTSCs of every kernel module in it
 * (*.ko; tsc_patch.h). 0, with the numbers of modules and of RDTSCs rewritten; or, said in words: -EINVAL (not such
 * an archive, or damaged), -ENOTSUP (compressed, or holds compressed modules, whose code cannot be seen), -EILSEQ,
 * -ENOMEM. `name` is for the sentences. Any thread.
 * Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
 */
int initrd_patch_modules(uint8_t *archive, size_t bytes, const char *name, uint32_t *modules, uint32_t *sites);

#endif
