/* Finds RDTSC and RDTSCP in x86 code: Zydis decodes, anchors keep it honest. */
#include "vmm/code_sweep.h"

#include <Zydis/Zydis.h>
#include <errno.h>
#include <string.h>

#include "base/report.h"

#define ANCHORS_BEFORE 3 /* so that a walk is already known to be in step when it meets the bytes in question */

/* Offset of the anchor `index` places after the first inside the range; the range's own start and end count. */
struct anchors {
    const struct code_range *range;
    size_t first; /* of range->anchors that is > range->va */
    size_t count; /* of those strictly inside */
};

static size_t lower_bound(const uint64_t *values, size_t count, uint64_t value)
{
    size_t low = 0;

    while (count > 0) {
        size_t half = count / 2;

        if (values[low + half] < value) {
            low += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return low;
}

static struct anchors anchors_inside(const struct code_range *range)
{
    struct anchors a = {.range = range, .first = lower_bound(range->anchors, range->anchor_count, range->va + 1)};

    a.count = lower_bound(range->anchors, range->anchor_count, range->va + range->size) - a.first;
    return a;
}

/* Anchor 0 is the start of the range, anchor count+1 its end. */
static size_t anchor_offset(const struct anchors *a, size_t index)
{
    if (index == 0)
        return 0;
    if (index > a->count)
        return a->range->size;
    return a->range->anchors[a->first + index - 1] - a->range->va;
}

/* The last anchor at or before `offset`. */
static size_t anchor_before(const struct anchors *a, size_t offset)
{
    uint64_t va = a->range->va + offset;

    return lower_bound(a->range->anchors + a->first, a->count, va + 1);
}

enum verdict { VERDICT_UNSURE, VERDICT_INSIDE, VERDICT_START };

/* What instruction holds the byte at `offset`, and where does it begin? */
static enum verdict judge(const ZydisDecoder *decoder, const struct anchors *a, size_t offset,
                          ZydisDecodedInstruction *holder)
{
    const struct code_range *range = a->range;
    size_t last = anchor_before(a, offset);
    size_t anchor = last > ANCHORS_BEFORE ? last - ANCHORS_BEFORE : 0;
    size_t at = anchor_offset(a, anchor);
    enum verdict verdict = VERDICT_UNSURE;

    /* Anchors may repeat; up to and including the first one beyond the byte. */
    while (anchor <= a->count && anchor_offset(a, anchor) <= offset) {
        size_t next = anchor_offset(a, ++anchor);

        while (at < next) {
            ZydisDecodedInstruction instruction;

            if (!ZYAN_SUCCESS(
                    ZydisDecoderDecodeInstruction(decoder, NULL, range->bytes + at, range->size - at, &instruction)))
                return VERDICT_UNSURE;
            if (at <= offset && offset < at + instruction.length) {
                *holder = instruction;
                verdict = at == offset ? VERDICT_START : VERDICT_INSIDE;
            }
            at += instruction.length;
        }
        if (at != next)
            return VERDICT_UNSURE; /* stepped over an anchor */
    }
    return verdict;
}

static void decoder_init(ZydisDecoder *decoder, bool is64)
{
    ZydisDecoderInit(decoder, is64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
                     is64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
}

static bool looks_like_tsc(const uint8_t *at, size_t bytes, bool *rdtscp)
{
    *rdtscp = bytes >= 3 && at[0] == 0x0f && at[1] == 0x01 && at[2] == 0xf9;
    return *rdtscp || (bytes >= 2 && at[0] == 0x0f && at[1] == 0x31);
}

int code_sweep(const struct code_range *range, code_visit *visit, void *ctx, struct code_counts *counts)
{
    struct anchors anchors = anchors_inside(range);
    ZydisDecoder decoder;
    size_t at = 0;

    decoder_init(&decoder, range->is64);
    while (at < range->size) {
        const uint8_t *found = memchr(range->bytes + at, 0x0f, range->size - at);
        struct code_site site;

        if (found == NULL)
            break;
        site.offset = (size_t)(found - range->bytes);
        at = site.offset + 1;
        if (!looks_like_tsc(found, range->size - site.offset, &site.rdtscp))
            continue;

        ZydisDecodedInstruction holder;
        enum verdict verdict = judge(&decoder, &anchors, site.offset, &holder);
        bool is_tsc = verdict != VERDICT_UNSURE &&
                      (holder.mnemonic == ZYDIS_MNEMONIC_RDTSC || holder.mnemonic == ZYDIS_MNEMONIC_RDTSCP);

        if (verdict == VERDICT_UNSURE || (is_tsc && holder.length != (site.rdtscp ? 3 : 2))) {
            report_error("%s at 0x%llx: %s; a guest whose time is not all under control cannot be run in lockstep, "
                         "so this kernel is refused",
                         range->name, (unsigned long long)(range->va + site.offset),
                         is_tsc ? "an RDTSC with a prefix, which cannot be replaced in place"
                                : "bytes that may be an RDTSC or the inside of another instruction");
            return -EILSEQ;
        }
        if (!is_tsc) {
            counts->inside++;
            continue;
        }
        if (site.rdtscp)
            counts->rdtscp++;
        else
            counts->rdtsc++;
        int rc = visit != NULL ? visit(ctx, range, &site) : 0;
        if (rc != 0)
            return rc;
    }
    return 0;
}

bool code_starts_at(const struct code_range *range, size_t offset)
{
    struct anchors anchors = anchors_inside(range);
    ZydisDecodedInstruction holder;
    ZydisDecoder decoder;

    decoder_init(&decoder, range->is64);
    return offset < range->size && judge(&decoder, &anchors, offset, &holder) == VERDICT_START;
}
