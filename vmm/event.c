/* Names of event records, whether one is well-formed, and what it says to people. */
#include "vmm/event.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/report.h"
#include "vmm/frame_text.h"
#include "vmm/guest_clock.h"
#include "vmm/guest_memory.h"
#include "vmm/time_pack.h"
#include "vmm/vcpu.h"
#include "vmm/virtio_blk.h"
#include "vmm/virtio_net.h"

_Static_assert(sizeof(struct event_disk) + VIRTIO_BLK_DATA_BYTES_MAX <= CHANNEL_PAYLOAD_MAX_BYTES,
               "a read fits a record");
_Static_assert(sizeof(struct event_machine) <= CHANNEL_PAYLOAD_MAX_BYTES, "the machine fits a record");
_Static_assert(sizeof(struct event_sectors) + EVENT_SECTORS_MAX_BYTES <= CHANNEL_PAYLOAD_MAX_BYTES,
               "a block of the disk fits a record");

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
    case EVENT_HANDOVER: return "handover";
    case EVENT_DISK: return "disk";
    case EVENT_LINK: return "link";
    case EVENT_SECTORS: return "sectors";
    case EVENT_MACHINE: return "machine";
    case EVENT_PLACE: return "place";
    case EVENT_STRETCH: return "stretch";
    }
    return "unknown";
}

uint16_t event_kind_named(const char *name, size_t count)
{
    for (uint16_t kind = 1; kind < EVENT_KIND_ROOM; kind++) {
        const char *known = event_name(kind);

        if (strlen(known) == count && memcmp(known, name, count) == 0 && strcmp(known, "unknown") != 0)
            return kind;
    }
    return 0;
}

const char *event_end_name(uint32_t reason)
{
    switch (reason) {
    case EVENT_END_SHUTDOWN: return "shutdown";
    case EVENT_END_HALTED: return "halted";
    case EVENT_END_STOPPED: return "stopped";
    default: return NULL;
    }
}

static bool start_fits(const struct channel_record *record)
{
    const struct event_start *start = record->payload;

    return record->bytes >= sizeof(*start) && start->cpuid_entries <= EVENT_CPUID_MAX && start->verify <= 1 &&
           start->kept <= 1 && start->transfer <= (start->kept ? EVENT_TRANSFER_DONE : 1) &&
           start->clock <= GUEST_CLOCK_STEP &&
           record->bytes == sizeof(*start) + start->cpuid_entries * sizeof(struct kvm_cpuid_entry2);
}

static bool page_fits(const struct event_page *page, bool whole)
{
    const uint64_t *words = (const void *)(page + 1);
    unsigned stretches, changed = 0;

    if (page->form == EVENT_PAGE_WHOLE)
        return page->bytes == 0 || page->bytes == GUEST_PAGE_BYTES;
    if (whole || page->form != EVENT_PAGE_DELTA || page->bytes < 8 || page->bytes > EVENT_DELTA_BYTES_MAX ||
        words[0] >> EVENT_STRETCHES != 0)
        return false;
    stretches = (unsigned)__builtin_popcountll(words[0]);
    if (page->bytes < 8 + 8 * stretches)
        return false;
    for (unsigned i = 1; i <= stretches; i++)
        changed += (unsigned)__builtin_popcountll(words[i]);
    return page->bytes == 8 * (1 + stretches + changed);
}

/* No more than would fit if all were whole. */
static bool pages_fit(const struct channel_record *record)
{
    const uint8_t *at = record->payload;
    const uint8_t *end = at + record->bytes;

    for (size_t pages = 0; at < end; pages++) {
        const struct event_page *page = (const void *)at;

        if (pages == PAGES_PER_RECORD || (size_t)(end - at) < sizeof(*page) || page->gpa % GUEST_PAGE_BYTES != 0 ||
            (size_t)(end - at) - sizeof(*page) < page->bytes || !page_fits(page, record->position == 0))
            return false;
        at += sizeof(*page) + page->bytes;
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

static bool frame_fits(const struct channel_record *record)
{
    const struct event_frame *frame = record->payload;

    return record->bytes >= sizeof(*frame) + VIRTIO_NET_FRAME_BYTES_MIN &&
           record->bytes <= sizeof(*frame) + EVENT_FRAME_MAX_BYTES && (frame->flags & ~EVENT_FRAME_CHECKSUM_RIGHT) == 0;
}

static bool time_fits(const struct channel_record *record)
{
    struct time_reader reader;
    int rc;

    if (!time_reader_begin(&reader, record->position, record->payload, record->bytes))
        return false;
    do
        rc = time_reader_next(&reader);
    while (rc > 0);
    return rc == 0;
}

static bool link_fits(const struct channel_record *record)
{
    const struct event_link *link = record->payload;

    return record->bytes == sizeof(*link) && link->up <= 1;
}

static bool sectors_fit(const struct channel_record *record)
{
    const struct event_sectors *sectors = record->payload;

    return record->bytes >= sizeof(*sectors) && sectors->zero <= 1 && sectors->bytes != 0 &&
           sectors->bytes <= EVENT_SECTORS_MAX_BYTES && sectors->bytes % VIRTIO_BLK_SECTOR_BYTES == 0 &&
           sectors->offset % VIRTIO_BLK_SECTOR_BYTES == 0 &&
           record->bytes == sizeof(*sectors) + (sectors->zero ? 0 : sectors->bytes);
}

static bool place_fits(const struct channel_record *record)
{
    const struct event_place *place = record->payload;

    return record->bytes == sizeof(*place) && (place->clock == GUEST_CLOCK_PMU || place->clock == GUEST_CLOCK_STEP);
}

int event_check(const struct channel_record *record)
{
    bool fits = false;

    switch ((enum event_kind)record->kind) {
    case EVENT_START: fits = start_fits(record); break;
    case EVENT_TIME: fits = time_fits(record); break;
    case EVENT_FRAME: fits = frame_fits(record); break;
    case EVENT_CONSOLE: fits = record->bytes >= 1 && record->bytes <= EVENT_CONSOLE_MAX_BYTES; break;
    case EVENT_OUTPUT: fits = record->bytes == sizeof(struct event_output); break;
    case EVENT_PROGRESS: fits = record->bytes == sizeof(struct event_progress); break;
    case EVENT_PAGES: fits = pages_fit(record); break;
    case EVENT_SYNC:
        fits = record->bytes >= EVENT_SYNC_BYTES_MIN && record->bytes <= sizeof(struct vcpu_state) && record->bytes % 8 == 0;
        break;
    case EVENT_VERIFY: fits = record->bytes == sizeof(struct vcpu_registers); break;
    case EVENT_SEGMENT_PAGES: fits = record->bytes % sizeof(struct event_segment_page) == 0; break;
    case EVENT_SEGMENT: fits = record->bytes == sizeof(struct event_segment); break;
    case EVENT_END: fits = record->bytes == sizeof(struct event_end); break;
    case EVENT_HANDOVER: fits = record->bytes == sizeof(struct event_handover); break;
    case EVENT_DISK: fits = disk_fits(record); break;
    case EVENT_LINK: fits = link_fits(record); break;
    case EVENT_SECTORS: fits = sectors_fit(record); break;
    case EVENT_MACHINE: fits = record->bytes == sizeof(struct event_machine); break;
    case EVENT_PLACE: fits = place_fits(record); break;
    case EVENT_STRETCH: fits = record->bytes == sizeof(struct event_stretch); break;
    }
    if (fits)
        return 0;
    report_error("the log holds a record that this version cannot mean: LSN %llu, kind %u (%s), %u bytes; "
                 "run the same ftvmm on both hosts",
                 (unsigned long long)record->lsn, record->kind, event_name(record->kind), record->bytes);
    return -EBADMSG;
}

void event_printable(const void *bytes, size_t count, char *text)
{
    static const char plain[] = "\n\r\t\"\\", escaped[] = "nrt\"\\", digits[] = "0123456789abcdef";
    const uint8_t *from = bytes;

    for (size_t i = 0; i < count; i++) {
        const char *special = memchr(plain, from[i], sizeof(plain) - 1);

        if (special != NULL) {
            *text++ = '\\';
            *text++ = escaped[special - plain];
        } else if (from[i] >= 0x20 && from[i] < 0x7f) {
            *text++ = (char)from[i];
        } else {
            *text++ = '\\';
            *text++ = 'x';
            *text++ = digits[from[i] >> 4];
            *text++ = digits[from[i] & 15];
        }
    }
    *text = '\0';
}

/* The CPU's own name, from the leaves that hold it (Intel SDM 2A, CPUID 80000002H). */
static void read_cpu_name(const struct kvm_cpuid_entry2 *entries, uint32_t count, const struct event_reader *reader)
{
    char name[49] = { 0 }, text[4 * 48 + 1];
    uint32_t leaf = 0x80000002;

    for (uint32_t i = 0; i < count && leaf <= 0x80000004; i++)
        if (entries[i].function == leaf)
            memcpy(name + 16 * (leaf++ - 0x80000002), &entries[i].eax, 16); /* EAX, EBX, ECX, EDX lie in a row */
    event_printable(name, strlen(name), text);
    reader->text(reader->ctx, "cpu", text);
}

static void read_start(const struct event_start *start, const struct event_reader *reader)
{
    const struct kvm_cpuid_entry2 *entries = (const void *)(start + 1);
    time_t seconds = (time_t)start->unix_seconds;
    char text[64] = "out of range";
    struct tm date;

    if (gmtime_r(&seconds, &date) != NULL)
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &date);
    reader->text(reader->ctx, "clock", text);
    reader->number(reader->ctx, "time_ns", start->time_ns);
    reader->hex(reader->ctx, "seed_digest", XXH3_64bits(start->rng_seed, sizeof(start->rng_seed)));
    reader->number(reader->ctx, "verify", start->verify);
    reader->number(reader->ctx, "transfer", start->transfer);
    reader->number(reader->ctx, "kept", start->kept);
    reader->text(reader->ctx, "guest_clock", guest_clock_name(start->clock));
    reader->number(reader->ctx, "cpuid_leaves", start->cpuid_entries);
    reader->hex(reader->ctx, "cpuid_digest", XXH3_64bits(entries, start->cpuid_entries * sizeof(entries[0])));
    read_cpu_name(entries, start->cpuid_entries, reader);
}

static const struct event_page *next_page(const struct event_page *page)
{
    return (const void *)((const uint8_t *)(page + 1) + page->bytes);
}

static bool is_page(const struct channel_record *record, const struct event_page *page)
{
    return (const uint8_t *)page < (const uint8_t *)record->payload + record->bytes;
}

void event_count_pages(const struct channel_record *record, struct event_page_count *count)
{
    for (const struct event_page *page = record->payload; is_page(record, page); page = next_page(page)) {
        count->pages++;
        count->zero_pages += page->bytes == 0;
        count->delta_pages += page->form == EVENT_PAGE_DELTA;
    }
}

static void read_pages(const struct channel_record *record, const struct event_reader *reader)
{
    const struct event_page *first = record->payload, *last = first;
    struct event_page_count count = { 0 };

    event_count_pages(record, &count);
    reader->number(reader->ctx, "pages", count.pages);
    reader->number(reader->ctx, "zero_pages", count.zero_pages);
    reader->number(reader->ctx, "delta_pages", count.delta_pages);
    if (count.pages == 0)
        return;
    while (is_page(record, next_page(last)))
        last = next_page(last);
    reader->hex(reader->ctx, "first_gpa", first->gpa);
    reader->hex(reader->ctx, "last_gpa", last->gpa);
}

static void read_registers(const struct kvm_regs *regs, const struct kvm_sregs *sregs,
                           const struct event_reader *reader)
{
    reader->hex(reader->ctx, "rip", regs->rip);
    reader->hex(reader->ctx, "rflags", regs->rflags);
    reader->hex(reader->ctx, "rsp", regs->rsp);
    reader->hex(reader->ctx, "cr3", sregs->cr3);
}

static void read_vcpu(const struct vcpu_state *state, const struct event_reader *reader)
{
    read_registers(&state->regs, &state->sregs, reader);
    reader->hex(reader->ctx, "vcpu_digest", vcpu_state_digest(state));
}

static void read_sync(const struct channel_record *record, const struct event_reader *reader)
{
    struct vcpu_state state = { 0 };

    memcpy(&state, record->payload, record->bytes);
    read_vcpu(&state, reader);
}

static void read_frame(const struct channel_record *record, const struct event_reader *reader)
{
    const struct event_frame *frame = record->payload;
    size_t bytes = record->bytes - sizeof(*frame);
    char text[FRAME_TEXT_BYTES];

    frame_text((const uint8_t *)(frame + 1), bytes, text);
    reader->number(reader->ctx, "frame_bytes", bytes);
    reader->number(reader->ctx, "checksum_right", frame->flags & EVENT_FRAME_CHECKSUM_RIGHT);
    reader->text(reader->ctx, "frame", text);
}

static void read_console(const struct channel_record *record, const struct event_reader *reader)
{
    char text[4 * EVENT_CONSOLE_MAX_BYTES + 1];

    event_printable(record->payload, record->bytes, text);
    reader->text(reader->ctx, "typed", text);
}

static void read_time(const struct channel_record *record, const struct event_reader *reader)
{
    struct time_reader looks;
    uint64_t count = 1;

    if (!time_reader_begin(&looks, record->position, record->payload, record->bytes))
        return;
    reader->number(reader->ctx, "time_ns", looks.time_ns);
    while (time_reader_next(&looks) > 0)
        count++;
    if (count == 1)
        return;
    reader->number(reader->ctx, "looks", count);
    reader->number(reader->ctx, "last_position", looks.position);
    reader->number(reader->ctx, "last_time_ns", looks.time_ns);
}

static void read_output(const struct event_output *output, const struct event_reader *reader)
{
    reader->number(reader->ctx, "frames_built", output->frames_built);
    reader->number(reader->ctx, "frames_held", output->frames_held);
    reader->hex(reader->ctx, "digest", output->digest);
    reader->hex(reader->ctx, "registers", output->register_chain);
}

static void read_segment_pages(const struct channel_record *record, const struct event_reader *reader)
{
    const struct event_segment_page *pages = record->payload;
    size_t count = record->bytes / sizeof(pages[0]);

    reader->number(reader->ctx, "pages", count);
    if (count == 0)
        return;
    reader->hex(reader->ctx, "first_gpa", pages[0].page * GUEST_PAGE_BYTES);
    reader->hex(reader->ctx, "last_gpa", pages[count - 1].page * GUEST_PAGE_BYTES);
}

static void read_segment(const struct event_segment *segment, const struct event_reader *reader)
{
    reader->hex(reader->ctx, "ram_digest", segment->ram_digest);
    read_vcpu(&segment->vcpu, reader);
}

static void read_end(const struct event_end *end, const struct event_reader *reader)
{
    const char *reason = event_end_name(end->reason);

    reader->text(reader->ctx, "reason", reason != NULL ? reason : "unknown");
    reader->hex(reader->ctx, "ram_digest", end->ram_digest);
    reader->hex(reader->ctx, "vcpu_digest", end->vcpu_digest);
}

static void read_disk(const struct event_disk *disk, const struct event_reader *reader)
{
    reader->number(reader->ctx, "request", disk->number);
    reader->text(reader->ctx, "status", disk->status == VIRTIO_BLK_OK ? "ok" : "error");
    reader->hex(reader->ctx, "digest", disk->digest);
    reader->number(reader->ctx, "read_bytes", disk->bytes);
}

static void read_sectors(const struct event_sectors *sectors, const struct event_reader *reader)
{
    reader->number(reader->ctx, "offset", sectors->offset);
    reader->number(reader->ctx, "image_bytes", sectors->bytes);
    reader->number(reader->ctx, "zero", sectors->zero);
}

static void read_machine(const struct event_machine *machine, const struct event_reader *reader)
{
    reader->number(reader->ctx, "frames_built", machine->frames_built);
    reader->hex(reader->ctx, "digest", machine->output_digest);
    reader->number(reader->ctx, "time_ns", machine->machine.time_ns);
    reader->number(reader->ctx, "halted", machine->machine.halted);
    read_vcpu(&machine->machine.vcpu, reader);
}

static void read_place(const struct event_place *place, const struct event_reader *reader)
{
    reader->text(reader->ctx, "guest_clock", guest_clock_name(place->clock));
    reader->number(reader->ctx, "count", place->count);
    reader->hex(reader->ctx, "rip", place->rip);
    reader->hex(reader->ctx, "rcx", place->rcx);
    reader->hex(reader->ctx, "registers", place->digest);
}

void event_read(const struct channel_record *record, const struct event_reader *reader)
{
    const void *payload = record->payload;
    const struct vcpu_registers *registers = payload;

    switch ((enum event_kind)record->kind) {
    case EVENT_START: read_start(payload, reader); return;
    case EVENT_TIME: read_time(record, reader); return;
    case EVENT_FRAME: read_frame(record, reader); return;
    case EVENT_CONSOLE: read_console(record, reader); return;
    case EVENT_OUTPUT: read_output(payload, reader); return;
    case EVENT_PROGRESS:
        reader->number(reader->ctx, "frames_sent", ((const struct event_progress *)payload)->frames_sent);
        reader->hex(reader->ctx, "registers", ((const struct event_progress *)payload)->register_chain);
        return;
    case EVENT_HANDOVER:
        reader->number(reader->ctx, "frames_sent", ((const struct event_handover *)payload)->frames_sent);
        return;
    case EVENT_DISK: read_disk(payload, reader); return;
    case EVENT_LINK:
        reader->text(reader->ctx, "link", ((const struct event_link *)payload)->up ? "up" : "down");
        return;
    case EVENT_SECTORS: read_sectors(payload, reader); return;
    case EVENT_MACHINE: read_machine(payload, reader); return;
    case EVENT_PLACE: read_place(payload, reader); return;
    case EVENT_STRETCH: reader->number(reader->ctx, "stretch", ((const struct event_stretch *)payload)->number); return;
    case EVENT_PAGES: read_pages(record, reader); return;
    case EVENT_SYNC: read_sync(record, reader); return;
    case EVENT_VERIFY: read_registers(&registers->regs, &registers->sregs, reader); return;
    case EVENT_SEGMENT_PAGES: read_segment_pages(record, reader); return;
    case EVENT_SEGMENT: read_segment(payload, reader); return;
    case EVENT_END: read_end(payload, reader); return;
    }
    report_bug("event_check has let a record of kind %u pass", record->kind);
}
