/* Sends and takes over a running guest; see transfer.h. */
#include "vmm/transfer.h"

#include <errno.h>
#include <string.h>

#include "base/report.h"
#include "vmm/lockstep.h"
#include "vmm/pages.h"

static int open_record(struct transfer *transfer, enum event_kind kind, uint64_t position, size_t bytes, void **payload)
{
    int rc;

    while ((rc = channel_reserve(transfer->channel, (uint16_t)kind, position, bytes, payload)) == -EAGAIN) {
        rc = transfer->pause(transfer->ctx, true);
        if (rc < 0)
            return rc;
    }
    return rc;
}

static uint64_t seal_record(struct transfer *transfer, size_t bytes)
{
    COUNT_ADD(transfer->sent_bytes, bytes);
    return channel_commit(transfer->channel);
}

uint64_t transfer_left_bytes(const struct transfer *transfer)
{
    const struct lockstep *ls = transfer->ls;
    uint64_t pages = 0;

    for (uint64_t i = 0; i < pages_words(&ls->machine.memory); i++)
        pages += (uint64_t)__builtin_popcountll(transfer->pages[i]);
    return pages * GUEST_PAGE_BYTES + (ls->disk != NULL ? disk_uncopied(ls->disk) * DISK_BLOCK_BYTES : 0);
}

uint64_t transfer_all_bytes(const struct transfer *transfer)
{
    const struct lockstep *ls = transfer->ls;
    bool copied = ls->disk != NULL && disk_mode_of(ls->disk) == DISK_MIRRORED;

    return ls->machine.memory.bytes + (copied ? disk_sectors(ls->disk) * 512 : 0);
}

int transfer_start(struct transfer *transfer, const struct event_start *start)
{
    const struct kvm_cpuid2 *cpuid = vcpu_cpuid(&transfer->ls->machine.vcpu);
    size_t cpuid_bytes = cpuid->nent * sizeof(cpuid->entries[0]);
    void *payload;
    int rc = open_record(transfer, EVENT_START, 0, sizeof(*start) + cpuid_bytes, &payload);

    if (rc < 0)
        return rc;
    memcpy(payload, start, sizeof(*start));
    ((struct event_start *)payload)->cpuid_entries = cpuid->nent;
    memcpy((uint8_t *)payload + sizeof(*start), cpuid->entries, cpuid_bytes);
    seal_record(transfer, sizeof(*start) + cpuid_bytes);
    return transfer->pause(transfer->ctx, false);
}

int transfer_list(struct transfer *transfer, const struct event_segment_page *list, size_t count)
{
    void *payload;
    int rc = open_record(transfer, EVENT_SEGMENT_PAGES, 0, count * sizeof(list[0]), &payload);

    if (rc < 0)
        return rc;
    memcpy(payload, list, count * sizeof(list[0]));
    seal_record(transfer, count * sizeof(list[0]));
    return transfer->pause(transfer->ctx, false);
}

int transfer_registers(struct transfer *transfer, uint64_t position, const struct kvm_regs *regs)
{
    struct vcpu_registers *registers;
    void *payload;
    int rc = open_record(transfer, EVENT_VERIFY, position, sizeof(*registers), &payload);

    if (rc < 0)
        return rc;
    registers = payload;
    memset(registers, 0, sizeof(*registers));
    registers->regs = *regs;
    seal_record(transfer, sizeof(*registers));
    return transfer->pause(transfer->ctx, false);
}

int transfer_stretch(struct transfer *transfer, const struct event_stretch *stretch)
{
    void *payload;
    int rc = open_record(transfer, EVENT_STRETCH, 0, sizeof(*stretch), &payload);

    if (rc < 0)
        return rc;
    memcpy(payload, stretch, sizeof(*stretch));
    seal_record(transfer, sizeof(*stretch));
    return 0;
}

/* Of what travels in one record, so that both sides digest the same bytes, whatever the guest writes meanwhile. */
static void digest_pages(struct lockstep *ls, const void *payload, size_t bytes)
{
    const uint8_t *at = payload, *end = at + bytes;

    while (at < end) {
        const struct event_page *head = (const void *)at;

        at += sizeof(*head);
        verify_page(ls->verify, head->gpa / GUEST_PAGE_BYTES, head->bytes != 0 ? at : NULL);
        at += head->bytes;
    }
}

static int send_pages(struct transfer *transfer)
{
    const struct guest_memory *memory = &transfer->ls->machine.memory;
    struct pages_batch batch;
    uint64_t page = 0;

    while (pages_take(&batch, memory, NULL, transfer->pages, &page)) {
        void *payload;
        int rc = open_record(transfer, EVENT_PAGES, 0, batch.bytes, &payload);

        if (rc < 0) { /* these have not gone: another round may take them */
            for (unsigned i = 0; i < batch.count; i++)
                transfer->pages[batch.heads[i].gpa / GUEST_PAGE_BYTES / 64] |=
                    UINT64_C(1) << (batch.heads[i].gpa / GUEST_PAGE_BYTES % 64);
            return rc;
        }
        pages_write(&batch, memory, NULL, payload);
        digest_pages(transfer->ls, payload, batch.bytes);
        seal_record(transfer, batch.bytes);
        for (unsigned i = 0; i < batch.count; i++)
            COUNT_ADD(*(batch.heads[i].bytes == 0 ? &transfer->zero_pages : &transfer->sent_pages), 1);
        rc = transfer->pause(transfer->ctx, false);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int send_blocks(struct transfer *transfer)
{
    static uint8_t data[DISK_BLOCK_BYTES]; /* one transfer at a time, and one thread at a time on it */
    struct disk *disk = transfer->ls->disk;
    struct event_sectors head = { 0 };
    uint64_t block = 0;
    bool zero;
    int rc;

    _Static_assert(DISK_BLOCK_BYTES <= EVENT_SECTORS_MAX_BYTES, "a block of the disk is a record");
    while ((rc = disk_copy(disk, &block, data, &head.offset, &head.bytes, &zero)) > 0) {
        size_t bytes = sizeof(head) + (zero ? 0 : head.bytes);
        void *payload;

        head.zero = zero;
        rc = open_record(transfer, EVENT_SECTORS, 0, bytes, &payload);
        if (rc < 0) { /* as in send_pages */
            disk_mark(disk, head.offset, head.bytes);
            return rc;
        }
        memcpy(payload, &head, sizeof(head));
        memcpy((uint8_t *)payload + sizeof(head), data, bytes - sizeof(head));
        seal_record(transfer, bytes);
        COUNT_ADD(transfer->sent_blocks, 1);
        rc = transfer->pause(transfer->ctx, false);
        if (rc < 0)
            return rc;
    }
    return rc;
}

int transfer_round(struct transfer *transfer)
{
    struct lockstep *ls = transfer->ls;
    int rc = 0;

    if (ls->disk != NULL && disk_mode_of(ls->disk) == DISK_MIRRORED)
        rc = send_blocks(transfer);
    return rc < 0 ? rc : send_pages(transfer);
}

int transfer_machine(struct transfer *transfer, uint64_t *lsn)
{
    static struct event_machine event; /* saved before the ring is asked: saving may fail, a record cannot be undone */
    struct lockstep *ls = transfer->ls;
    void *payload;
    int rc = machine_state_save(&ls->machine, &event.machine);

    event.machine.position++;
    event.frames_built = ls->frames_built;
    event.output_digest = ls->output_digest;
    event.register_chain = ls->register_chain;
    if (rc == 0)
        rc = open_record(transfer, EVENT_MACHINE, event.machine.position, sizeof(event), &payload);
    if (rc < 0)
        return rc;
    memcpy(payload, &event, sizeof(event));
    *lsn = seal_record(transfer, sizeof(event));
    return 0;
}

static int take_pages(struct lockstep *ls, const struct channel_record *record)
{
    int rc = pages_load(&ls->machine.memory, record->payload, record->bytes);

    if (rc == 0)
        digest_pages(ls, record->payload, record->bytes);
    return rc;
}

static int take_sectors(struct lockstep *ls, const struct event_sectors *sectors)
{
    if (ls->disk == NULL || disk_mode_of(ls->disk) != DISK_MIRRORED) {
        report_error("the log brings the contents of a disk, and this host has no copy of one; give both hosts the same "
                     "--disk");
        return -EBADMSG;
    }
    return disk_put(ls->disk, sectors->offset, sectors->zero ? NULL : (const uint8_t *)(sectors + 1), sectors->bytes);
}

static int take_machine(struct lockstep *ls, const struct channel_record *record)
{
    const struct event_machine *event = record->payload;
    int rc;

    if (event->machine.position != record->position) {
        report_error("the log brings a machine that stands at position %llu in a record for position %llu",
                     (unsigned long long)event->machine.position, (unsigned long long)record->position);
        return -EBADMSG;
    }
    rc = machine_state_load(&ls->machine, &event->machine);
    if (rc == 0 && ls->disk != NULL) {
        if (disk_mode_of(ls->disk) == DISK_MIRRORED)
            rc = disk_settle(ls->disk);
        disk_begin_at(ls->disk, event->machine.disk.completed);
    }
    ls->frames_built = event->frames_built;
    /* A machine that takes this one's place may have held frames already; they are all forgotten (heal.c). */
    ls->frames_before = event->frames_built - (ls->net != NULL ? net_held_count(ls->net) : 0);
    ls->output_digest = event->output_digest;
    ls->register_chain = event->register_chain;
    forced_sync_begin(ls);
    verify_begin(ls->verify, ls);
    COUNT_SET(ls->virtual_ns, event->machine.time_ns);
    return rc;
}

int transfer_take(struct lockstep *ls, const struct channel_record *record, bool *whole)
{
    *whole = false;
    switch (record->kind) {
    case EVENT_PAGES: return take_pages(ls, record);
    case EVENT_SECTORS: return take_sectors(ls, record->payload);
    case EVENT_MACHINE:
        *whole = true;
        return take_machine(ls, record);
    default:
        report_error("the log has a %s record in the midst of a transfer, where none can be", event_name(record->kind));
        return -EBADMSG;
    }
}
