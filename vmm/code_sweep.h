/*
 * Finds the RDTSC and RDTSCP instructions in a stretch of x86 code with a disassembler, and tells them from the
 * same bytes inside other instructions.
 *
 * x86 code can be read from any byte, and means something else from each. So the sweep does not trust itself: it
 * leans on anchors, addresses that the kernel's own tables (ORC unwind table, alternatives, function symbols) name
 * as starts of instructions. Around each suspicious pair of bytes it decodes from some anchors before it up to the
 * first anchor after it, and must step on every one of them. If it steps over one, or meets bytes that are no
 * instruction, nobody can say what the pair means, and the code is refused.
 */
#ifndef FTVMM_VMM_CODE_SWEEP_H
#define FTVMM_VMM_CODE_SWEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct code_range {
    const char *name; /* for the sentences */
    const uint8_t *bytes;
    size_t size;
    uint64_t va;             /* of the first byte */
    bool is64;               /* 64-bit or 32-bit code */
    const uint64_t *anchors; /* addresses, ascending; those outside the range are ignored */
    size_t anchor_count;
};

struct code_site {
    size_t offset; /* in the range */
    bool rdtscp;
};

/* Called for each RDTSC and RDTSCP, in ascending order. 0 to go on; else the sweep ends with that value. */
typedef int code_visit(void *ctx, const struct code_range *range, const struct code_site *site);

struct code_counts {
    uint32_t rdtsc;
    uint32_t rdtscp;
    uint32_t inside; /* the bytes of one, in the middle of other instructions */
};

/*
 * Sweeps the range and adds to `counts`. 0; -EILSEQ, in words: the code around some bytes cannot be told for
 * certain, or an RDTSC wears a prefix, so that it cannot be replaced in place; or what `visit` returned.
 * Reads only. Any thread.
 */
int code_sweep(const struct code_range *range, code_visit *visit, void *ctx, struct code_counts *counts);

/* Does an instruction start at `offset`, judged in the same way? */
bool code_starts_at(const struct code_range *range, size_t offset);

#endif
