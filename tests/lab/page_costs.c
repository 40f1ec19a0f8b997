/*
 * What making the pages of forced syncs smaller would cost and give: reads a log (`ftvmm record`) and does with each page that
 * its forced syncs carry what could be done with it: copying, digesting (XXH3), the record's checksum (CRC-32C), comparing it
 * with what it was when it travelled last, LZ4 there and back. Printed: ns a page of each (median), the bytes that LZ4 leaves,
 * and what of them has changed since: words of 8 bytes, lines of 64.
 *   page-costs LOG
 */
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "channel/channel.h"
#include "channel/record.h"
#include "vmm/event.h"
#include "vmm/pages.h"
#include "vmm/ram_digest.h"

enum work { WORK_COPY, WORK_XXH3, WORK_CRC, WORK_COMPARE, WORK_PACK, WORK_UNPACK, WORKS };
static const char *const names[] = { "copy", "xxh3", "crc32c", "compare", "lz4", "lz4 back" };

#define SAMPLES_MAX (1u << 20)
#define PAGES_MAX   (1u << 22) /* 16 GiB of guest */

static struct {
    uint64_t pages, zero_pages, packed_bytes, smaller_by_half;
    uint64_t again, changed_lines, changed_words; /* pages of which there was a copy, and what of them was new */
    uint64_t ever;                                /* that had travelled before, copy or not */
    bool travelled[PAGES_MAX];
    uint32_t ns[WORKS][SAMPLES_MAX]; /* of the first pages */
    uint64_t sink;
} costs;

static void count_changes(const uint8_t *page, const uint8_t *before)
{
    const uint64_t *now = (const void *)page, *then = (const void *)before;

    for (unsigned line = 0; line < GUEST_PAGE_BYTES / 64; line++) {
        unsigned words = 0;

        for (unsigned i = 0; i < 8; i++)
            words += *now++ != *then++;
        costs.changed_words += words;
        costs.changed_lines += words > 0;
    }
}

static void work_page(const uint8_t *page, const uint8_t *before)
{
    static uint8_t copy[GUEST_PAGE_BYTES], packed[LZ4_COMPRESSBOUND(GUEST_PAGE_BYTES)];
    int packed_bytes = 0;

    for (enum work work = 0; work < WORKS; work++) {
        uint64_t began_ns = clock_now_ns();

        switch (work) {
        case WORK_COPY: memcpy(copy, page, GUEST_PAGE_BYTES); break;
        case WORK_XXH3: costs.sink += page_digest(page, 0); break;
        case WORK_CRC: costs.sink += crc32c(0, page, GUEST_PAGE_BYTES); break;
        case WORK_COMPARE:
            if (before != NULL)
                count_changes(page, before);
            break;
        case WORK_PACK:
            packed_bytes = LZ4_compress_default((const char *)page, (char *)packed, GUEST_PAGE_BYTES, sizeof(packed));
            break;
        case WORK_UNPACK:
            if (LZ4_decompress_safe((const char *)packed, (char *)copy, packed_bytes, sizeof(copy)) != GUEST_PAGE_BYTES)
                fprintf(stderr, "page-costs: a page does not come back\n");
            break;
        case WORKS: break;
        }
        if (costs.pages < SAMPLES_MAX)
            costs.ns[work][costs.pages] = (uint32_t)(clock_now_ns() - began_ns);
    }
    costs.pages++;
    costs.again += before != NULL;
    costs.packed_bytes += (uint64_t)packed_bytes;
    costs.smaller_by_half += packed_bytes < (int)GUEST_PAGE_BYTES / 2;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/* `copies` are those of whoever replays, and make the record's pages whole; `before` are ours, one record behind. */
static int work_record(const struct channel_record *record, struct page_copies *copies, struct page_copies *before)
{
    static _Alignas(8) uint8_t whole[CHANNEL_PAYLOAD_MAX_BYTES];
    const uint8_t *at = whole, *end = whole + pages_whole_bytes(record->payload, record->bytes);

    if (pages_make_whole(copies, record->payload, record->bytes, whole) < 0)
        return -1;
    while (at < end) {
        struct event_page head;

        memcpy(&head, at, sizeof(head));
        at += sizeof(head);
        if (head.bytes == 0) {
            costs.zero_pages++;
            continue;
        }
        if (head.gpa / GUEST_PAGE_BYTES < PAGES_MAX) {
            costs.ever += costs.travelled[head.gpa / GUEST_PAGE_BYTES];
            costs.travelled[head.gpa / GUEST_PAGE_BYTES] = true;
        }
        work_page(at, page_copies_find(before, head.gpa / GUEST_PAGE_BYTES));
        memcpy(page_copies_take(before, head.gpa / GUEST_PAGE_BYTES), at, GUEST_PAGE_BYTES);
        at += head.bytes;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct page_copies *copies, *before;
    struct channel_record record;
    struct channel *channel;

    if (argc != 2) {
        fprintf(stderr, "usage: page-costs LOG\n");
        return 2;
    }
    if (channel_open_log(&channel, argv[1]) < 0 || page_copies_open(&copies) < 0 || page_copies_open(&before) < 0)
        return 1;
    while (channel_next(channel, &record) == 0) {
        if (event_check(&record) < 0 ||
            (record.kind == EVENT_PAGES && record.position != 0 && work_record(&record, copies, before) < 0))
            return 1;
        channel_consume(channel);
    }
    channel_close(channel);
    page_copies_close(copies);
    page_copies_close(before);
    if (costs.pages == 0) {
        fprintf(stderr, "page-costs: no forced sync in this log carries a page\n");
        return 1;
    }
    printf("pages %llu, of zeroes besides %llu; digest of all %llx\n", (unsigned long long)costs.pages,
           (unsigned long long)costs.zero_pages, (unsigned long long)costs.sink);
    for (enum work work = 0; work < WORKS; work++) {
        size_t samples = costs.pages < SAMPLES_MAX ? costs.pages : SAMPLES_MAX;

        qsort(costs.ns[work], samples, sizeof(costs.ns[work][0]), compare);
        printf("%-9s %8u ns a page\n", names[work], costs.ns[work][samples / 2]);
    }
    printf("lz4 leaves %.0f bytes of 4096; less than half of %.0f %% of the pages\n",
           (double)costs.packed_bytes / (double)costs.pages, 100.0 * (double)costs.smaller_by_half / (double)costs.pages);
    if (costs.again > 0)
        printf("%llu had travelled before; there was a copy of %llu, of which %.1f words had changed, in %.1f lines\n",
               (unsigned long long)costs.ever, (unsigned long long)costs.again, (double)costs.changed_words / (double)costs.again,
               (double)costs.changed_lines / (double)costs.again);
    return 0;
}
