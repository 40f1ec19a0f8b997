/* The check of event records: two bytes of kind, then the payload. What passes is taken apart as the backup does, and
 * printed. */
#include "fuzz.h"

#include "vmm/event.h"
#include "vmm/pages.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <string.h>

/* As a backup that has got some of the pages before, if the record has changes of them. */
static void take_pages(const struct channel_record *record)
{
    size_t bytes = pages_whole_bytes(record->payload, record->bytes);
    struct page_copies *copies;
    struct channel_record whole = *record;
    void *out = malloc(bytes > 0 ? bytes : 1);

    fuzz_check(bytes <= CHANNEL_PAYLOAD_MAX_BYTES);
    fuzz_check(page_copies_open(&copies) == 0);
    for (uint64_t page = 0; page < 16; page++)
        memset(page_copies_take(copies, page), (int)page, GUEST_PAGE_BYTES);
    whole.payload = out;
    whole.bytes = (uint32_t)bytes;
    if (pages_make_whole(copies, record->payload, record->bytes, out) == 0) {
        fuzz_check(event_check(&whole) == 0);
        fuzz_check(pages_whole_bytes(out, bytes) == bytes);
    }
    page_copies_close(copies);
    free(out);
}

static void number(void *ctx, const char *name, uint64_t value)
{
    (void)ctx;
    fuzz_touch(name, strlen(name));
    fuzz_touch(&value, sizeof(value));
}

static void text(void *ctx, const char *name, const char *value)
{
    (void)ctx;
    fuzz_touch(name, strlen(name));
    fuzz_touch(value, strlen(value));
}

static const struct event_reader reader = { .number = number, .hex = number, .text = text };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct channel_record record = { .lsn = 1, .position = 1 };
    const struct event_start *start;
    uint8_t *payload;
    bool known;

    if (bytes < 2 || bytes - 2 > CHANNEL_PAYLOAD_MAX_BYTES)
        return 0;
    record.kind = (uint16_t)(data[0] | data[1] << 8);
    record.bytes = (uint32_t)(bytes - 2);
    /* As a payload lies in a ring: aligned, and nothing behind it that is its own. */
    payload = malloc(bytes - 2 > 0 ? bytes - 2 : 1);
    memcpy(payload, data + 2, bytes - 2);
    record.payload = payload;
    known = strcmp(event_name(record.kind), "unknown") != 0;
    if (event_check(&record) == 0) {
        fuzz_check(known);
        event_read(&record, &reader);
        switch ((enum event_kind)record.kind) {
        case EVENT_START:
            start = record.payload;
            fuzz_check(start->cpuid_entries <= EVENT_CPUID_MAX);
            fuzz_touch(start + 1, start->cpuid_entries * sizeof(struct kvm_cpuid_entry2));
            break;
        case EVENT_TIME: fuzz_touch(payload, sizeof(struct event_time)); break;
        case EVENT_FRAME: fuzz_check(record.bytes >= sizeof(struct event_frame) + 14); break;
        case EVENT_LINK: fuzz_check(((const struct event_link *)payload)->up <= 1); break;
        case EVENT_CONSOLE: fuzz_check(record.bytes > 0); break;
        case EVENT_OUTPUT: fuzz_touch(payload, sizeof(struct event_output)); break;
        case EVENT_PROGRESS: fuzz_touch(payload, sizeof(struct event_progress)); break;
        case EVENT_DISK:
            fuzz_touch(payload, sizeof(struct event_disk) + ((const struct event_disk *)payload)->bytes);
            break;
        case EVENT_SECTORS:
            fuzz_touch(payload, sizeof(struct event_sectors));
            fuzz_check(((const struct event_sectors *)payload)->bytes <= EVENT_SECTORS_MAX_BYTES);
            break;
        case EVENT_MACHINE: fuzz_touch(payload, sizeof(struct event_machine)); break;
        case EVENT_HANDOVER: fuzz_touch(payload, sizeof(struct event_handover)); break;
        case EVENT_PAGES: take_pages(&record); break;
        case EVENT_PLACE: fuzz_touch(payload, sizeof(struct event_place)); break;
        case EVENT_STRETCH: fuzz_touch(payload, sizeof(struct event_stretch)); break;
        case EVENT_SYNC:
            fuzz_check(record.bytes <= sizeof(struct vcpu_state));
            fuzz_touch(payload, EVENT_SYNC_BYTES_MIN);
            break;
        case EVENT_VERIFY: fuzz_touch(payload, sizeof(struct vcpu_registers)); break;
        case EVENT_SEGMENT_PAGES: fuzz_check(record.bytes % sizeof(struct event_segment_page) == 0); break;
        case EVENT_SEGMENT: fuzz_touch(payload, sizeof(struct event_segment)); break;
        case EVENT_END: fuzz_touch(payload, sizeof(struct event_end)); break;
        }
    }
    free(payload);
    return 0;
}
