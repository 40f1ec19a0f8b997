/* Names and well-formedness of event records. */
#include "vmm/event.h"

#include <errno.h>
#include <linux/kvm.h>

#include "base/report.h"
#include "vmm/guest_memory.h"
#include "vmm/vcpu.h"
#include "vmm/virtio_blk.h"

_Static_assert(sizeof(struct event_disk) + VIRTIO_BLK_DATA_BYTES_MAX <= CHANNEL_PAYLOAD_MAX_BYTES,
               "a read fits a record");

const char *event_name(uint16_t kind)
{
    switch ((enum event_kind)kind) {
    case EVENT_START: return "start";
    case EVENT_TIME: return "time";
    case EVENT_FRAME: return "frame";
    case EVENT_CONSOLE: return "console";
    case EVENT_OUTPUT: return "output";
    case EVENT_PROGRESS: return "progress";
    case EVENT_PAGES: return "pages";
    case EVENT_SYNC: return "sync";
    case EVENT_VERIFY: return "verify";
    case EVENT_SEGMENT_PAGES: return "segment-pages";
    case EVENT_SEGMENT: return "segment";
    case EVENT_END: return "end";
    case EVENT_DISK: return "disk";
    }
    return "unknown";
}

static bool start_fits(const struct channel_record *record)
{
    const struct event_start *start = record->payload;

    return record->bytes >= sizeof(*start) && start->cpuid_entries <= EVENT_CPUID_MAX &&
           record->bytes == sizeof(*start) + start->cpuid_entries * sizeof(struct kvm_cpuid_entry2);
}

static bool pages_fit(const struct channel_record *record)
{
    const uint8_t *at = record->payload;
    const uint8_t *end = at + record->bytes;

    while (at < end) {
        const struct event_page *page = (const void *)at;

        if ((size_t)(end - at) < sizeof(*page) || page->gpa % GUEST_PAGE_BYTES != 0)
            return false;
        if (page->bytes != 0 && page->bytes != GUEST_PAGE_BYTES)
            return false;
        at += sizeof(*page);
        if ((size_t)(end - at) < page->bytes)
            return false;
        at += page->bytes;
    }
    return true;
}

static bool disk_fits(const struct channel_record *record)
{
    const struct event_disk *disk = record->payload;

    return record->bytes >= sizeof(*disk) && disk->bytes <= VIRTIO_BLK_DATA_BYTES_MAX &&
           record->bytes == sizeof(*disk) + disk->bytes &&
           (disk->status == VIRTIO_BLK_OK || (disk->status == VIRTIO_BLK_IOERR && disk->bytes == 0));
}

int event_check(const struct channel_record *record)
{
    bool fits = false;

    switch ((enum event_kind)record->kind) {
    case EVENT_START: fits = start_fits(record); break;
    case EVENT_TIME: fits = record->bytes == sizeof(struct event_time); break;
    case EVENT_FRAME: fits = record->bytes >= 14 && record->bytes <= 65536; break;
    case EVENT_CONSOLE: fits = record->bytes >= 1 && record->bytes <= 4096; break;
    case EVENT_OUTPUT: fits = record->bytes == sizeof(struct event_output); break;
    case EVENT_PROGRESS: fits = record->bytes == sizeof(struct event_progress); break;
    case EVENT_PAGES: fits = pages_fit(record); break;
    case EVENT_SYNC: fits = record->bytes == sizeof(struct vcpu_state); break;
    case EVENT_VERIFY: fits = record->bytes == sizeof(struct vcpu_registers); break;
    case EVENT_SEGMENT_PAGES: fits = record->bytes % sizeof(struct event_segment_page) == 0; break;
    case EVENT_SEGMENT: fits = record->bytes == sizeof(struct event_segment); break;
    case EVENT_END: fits = record->bytes == sizeof(struct event_end); break;
    case EVENT_DISK: fits = disk_fits(record); break;
    }
    if (fits)
        return 0;
    report_error("the log holds a record that this version cannot mean: LSN %llu, kind %u (%s), %u bytes; "
                 "run the same ftvmm on both hosts",
                 (unsigned long long)record->lsn, record->kind, event_name(record->kind), record->bytes);
    return -EBADMSG;
}
