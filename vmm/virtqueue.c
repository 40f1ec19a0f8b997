/* Split virtqueue: checks, chain walk, and the used ring. */
#include "vmm/virtqueue.h"

#include <errno.h>
#include <string.h>

#include "vmm/state_check.h"

#define DESCRIPTOR_BYTES       16u
#define DESCRIPTOR_NEXT        1u
#define DESCRIPTOR_WRITE       2u
#define DESCRIPTOR_INDIRECT    4u
#define RING_HEADER_BYTES      4u /* flags and idx of either ring */
#define RING_INDEX_OFFSET      2u
#define AVAILABLE_ENTRY_BYTES  2u
#define USED_ENTRY_BYTES       8u
#define RING_EVENT_BYTES       2u
#define AVAILABLE_NO_INTERRUPT 1u
#define USED_NO_NOTIFY         1u

/* As in guest memory; virtio 1.2, 2.7.5. Little endian, as the host is (x86-64). */
struct descriptor {
    uint64_t gpa;
    uint32_t bytes;
    uint16_t flags;
    uint16_t next;
};
_Static_assert(sizeof(struct descriptor) == DESCRIPTOR_BYTES, "descriptor layout is the guest's");

static int queue_break(struct virtqueue *queue, enum virtqueue_fault fault)
{
    queue->fault = (uint8_t)fault;
    return -EPROTO;
}

static bool queue_runs(const struct virtqueue *queue)
{
    return queue->enabled && queue->fault == VIRTQUEUE_WHOLE;
}

static uint64_t available_bytes(const struct virtqueue *queue)
{
    return RING_HEADER_BYTES + (uint64_t)queue->size * AVAILABLE_ENTRY_BYTES + RING_EVENT_BYTES;
}

static uint64_t used_bytes(const struct virtqueue *queue)
{
    return RING_HEADER_BYTES + (uint64_t)queue->size * USED_ENTRY_BYTES + RING_EVENT_BYTES;
}

/* Ring fields. virtqueue_enable saw that the rings lie inside RAM, which does not shrink. */
static uint16_t read_u16(const struct guest_memory *memory, uint64_t gpa)
{
    uint16_t value;

    memcpy(&value, memory->base + gpa, sizeof(value));
    return value;
}

static void write_bytes(struct guest_memory *memory, uint64_t gpa, const void *source, uint32_t bytes)
{
    memcpy(memory->base + gpa, source, bytes);
    guest_memory_mark(memory, gpa, bytes);
}

void virtqueue_init(struct virtqueue *queue, uint16_t size)
{
    memset(queue, 0, sizeof(*queue));
    queue->size = size;
}

static bool size_is_bad(const struct virtqueue *queue)
{
    return queue->size == 0 || queue->size > VIRTQUEUE_SIZE_MAX || (queue->size & (queue->size - 1)) != 0;
}

static bool rings_are_misaligned(const struct virtqueue *queue)
{
    return queue->descriptors_gpa % 16 != 0 || queue->available_gpa % 2 != 0 || queue->used_gpa % 4 != 0;
}

static bool rings_are_inside(const struct virtqueue *queue, const struct guest_memory *memory)
{
    return guest_memory_at(memory, queue->descriptors_gpa, (uint64_t)queue->size * DESCRIPTOR_BYTES) != NULL &&
           guest_memory_at(memory, queue->available_gpa, available_bytes(queue)) != NULL &&
           guest_memory_at(memory, queue->used_gpa, used_bytes(queue)) != NULL;
}

int virtqueue_enable(struct virtqueue *queue, const struct guest_memory *memory, bool event_idx, bool indirect)
{
    queue->event_idx = event_idx;
    queue->indirect = indirect;
    if (size_is_bad(queue))
        return queue_break(queue, VIRTQUEUE_BAD_SIZE);
    if (rings_are_misaligned(queue))
        return queue_break(queue, VIRTQUEUE_MISALIGNED);
    if (!rings_are_inside(queue, memory))
        return queue_break(queue, VIRTQUEUE_RING_OUTSIDE);
    queue->enabled = true;
    return 0;
}

bool virtqueue_fits(const struct virtqueue *queue, const struct guest_memory *memory)
{
    if (!STATE_BOOL_FITS(queue->enabled) || !STATE_BOOL_FITS(queue->event_idx) || !STATE_BOOL_FITS(queue->indirect) ||
        queue->fault > VIRTQUEUE_INDIRECT_SIZE)
        return false;
    return !queue->enabled ||
           (!size_is_bad(queue) && !rings_are_misaligned(queue) && rings_are_inside(queue, memory));
}

uint16_t virtqueue_waiting(const struct virtqueue *queue, const struct guest_memory *memory)
{
    if (!queue_runs(queue))
        return 0;
    return (uint16_t)(read_u16(memory, queue->available_gpa + RING_INDEX_OFFSET) - queue->available_next);
}

/* Adds one buffer to the chain. */
static int chain_add(struct virtqueue *queue, const struct guest_memory *memory, struct virtqueue_chain *chain,
                     const struct descriptor *descriptor)
{
    unsigned filled = (unsigned)chain->readable + chain->writable;
    struct virtqueue_buffer *buffer = &chain->buffers[filled];

    if (filled == queue->size ||
        (uint64_t)chain->readable_bytes + chain->writable_bytes + descriptor->bytes > UINT32_MAX)
        return queue_break(queue, VIRTQUEUE_CHAIN_TOO_LONG);
    if (descriptor->bytes == 0)
        return queue_break(queue, VIRTQUEUE_BUFFER_EMPTY);
    buffer->gpa = descriptor->gpa;
    buffer->bytes = descriptor->bytes;
    buffer->hva = guest_memory_at(memory, descriptor->gpa, descriptor->bytes);
    if (buffer->hva == NULL)
        return queue_break(queue, VIRTQUEUE_BUFFER_OUTSIDE);
    if (descriptor->flags & DESCRIPTOR_WRITE) {
        chain->writable++;
        chain->writable_bytes += descriptor->bytes;
    } else if (chain->writable != 0) {
        return queue_break(queue, VIRTQUEUE_BUFFER_ORDER);
    } else {
        chain->readable++;
        chain->readable_bytes += descriptor->bytes;
    }
    return 0;
}

/* Follows the chain from `chain->head`, through at most one indirect table, which ends it. */
static int chain_walk(struct virtqueue *queue, const struct guest_memory *memory, struct virtqueue_chain *chain)
{
    uint64_t table_gpa = queue->descriptors_gpa;
    uint32_t table_size = queue->size;
    uint32_t index = chain->head;
    uint32_t steps = 0;
    bool in_indirect = false;

    for (;;) {
        struct descriptor descriptor;
        int err;

        if (index >= table_size)
            return queue_break(queue, VIRTQUEUE_HEAD_OUTSIDE);
        if (steps++ == table_size)
            return queue_break(queue, VIRTQUEUE_CHAIN_LOOP);
        memcpy(&descriptor, memory->base + table_gpa + (uint64_t)index * DESCRIPTOR_BYTES, sizeof(descriptor));
        if (descriptor.flags & DESCRIPTOR_INDIRECT) {
            if (!queue->indirect || in_indirect || (descriptor.flags & DESCRIPTOR_NEXT))
                return queue_break(queue, VIRTQUEUE_INDIRECT_REFUSED);
            if (descriptor.bytes == 0 || descriptor.bytes % DESCRIPTOR_BYTES != 0 ||
                descriptor.bytes / DESCRIPTOR_BYTES > queue->size ||
                guest_memory_at(memory, descriptor.gpa, descriptor.bytes) == NULL)
                return queue_break(queue, VIRTQUEUE_INDIRECT_SIZE);
            table_gpa = descriptor.gpa;
            table_size = descriptor.bytes / DESCRIPTOR_BYTES;
            index = 0;
            steps = 0;
            in_indirect = true;
            continue;
        }
        err = chain_add(queue, memory, chain, &descriptor);
        if (err != 0)
            return err;
        if (!(descriptor.flags & DESCRIPTOR_NEXT))
            return 0;
        index = descriptor.next;
    }
}

int virtqueue_pop(struct virtqueue *queue, const struct guest_memory *memory, struct virtqueue_chain *chain)
{
    uint16_t waiting;
    uint64_t entry;
    int err;

    if (queue->fault != VIRTQUEUE_WHOLE)
        return -EPROTO;
    waiting = virtqueue_waiting(queue, memory);
    if (waiting == 0)
        return 0;
    if (waiting > queue->size)
        return queue_break(queue, VIRTQUEUE_INDEX_JUMP);
    entry = RING_HEADER_BYTES + (uint64_t)(queue->available_next % queue->size) * AVAILABLE_ENTRY_BYTES;
    chain->head = read_u16(memory, queue->available_gpa + entry);
    chain->readable = 0;
    chain->writable = 0;
    chain->readable_bytes = 0;
    chain->writable_bytes = 0;
    err = chain_walk(queue, memory, chain);
    if (err != 0)
        return err;
    queue->available_next++;
    return 1;
}

void virtqueue_push(struct virtqueue *queue, struct guest_memory *memory, uint16_t head, uint32_t written_bytes)
{
    uint32_t entry[2] = {head, written_bytes};
    uint64_t offset = RING_HEADER_BYTES + (uint64_t)(queue->used_next % queue->size) * USED_ENTRY_BYTES;

    if (!queue_runs(queue))
        return;
    write_bytes(memory, queue->used_gpa + offset, entry, sizeof(entry));
    queue->used_next++;
    write_bytes(memory, queue->used_gpa + RING_INDEX_OFFSET, &queue->used_next, sizeof(queue->used_next));
}

uint32_t virtqueue_chain_write(const struct virtqueue_chain *chain, struct guest_memory *memory, uint32_t offset,
                               const void *source, uint32_t bytes)
{
    uint32_t copied = 0;

    for (unsigned i = chain->readable; i < (unsigned)chain->readable + chain->writable && copied < bytes; i++) {
        const struct virtqueue_buffer *buffer = &chain->buffers[i];
        uint32_t part;

        if (offset >= buffer->bytes) {
            offset -= buffer->bytes;
            continue;
        }
        part = buffer->bytes - offset < bytes - copied ? buffer->bytes - offset : bytes - copied;
        memcpy(buffer->hva + offset, (const uint8_t *)source + copied, part);
        guest_memory_mark(memory, buffer->gpa + offset, part);
        copied += part;
        offset = 0;
    }
    return copied;
}

uint32_t virtqueue_chain_read(const struct virtqueue_chain *chain, uint32_t offset, void *target, uint32_t bytes)
{
    uint32_t copied = 0;

    for (unsigned i = 0; i < chain->readable && copied < bytes; i++) {
        const struct virtqueue_buffer *buffer = &chain->buffers[i];
        uint32_t part;

        if (offset >= buffer->bytes) {
            offset -= buffer->bytes;
            continue;
        }
        part = buffer->bytes - offset < bytes - copied ? buffer->bytes - offset : bytes - copied;
        memcpy((uint8_t *)target + copied, buffer->hva + offset, part);
        copied += part;
        offset = 0;
    }
    return copied;
}

void virtqueue_set_notify(struct virtqueue *queue, struct guest_memory *memory, bool wanted)
{
    uint16_t value;

    if (!queue_runs(queue))
        return;
    if (queue->event_idx) {
        /* An event index already passed is not met again for 65,535 entries; virtio 1.2, 2.7.10. */
        value = wanted ? queue->available_next : (uint16_t)(queue->available_next - 1);
        write_bytes(memory, queue->used_gpa + used_bytes(queue) - RING_EVENT_BYTES, &value, sizeof(value));
    } else {
        value = wanted ? 0 : USED_NO_NOTIFY;
        write_bytes(memory, queue->used_gpa, &value, sizeof(value));
    }
}

bool virtqueue_interrupt_due(struct virtqueue *queue, const struct guest_memory *memory)
{
    uint16_t before = queue->used_signalled;
    uint16_t event;

    /* What was returned before the queue broke is still announced. */
    if (!queue->enabled || queue->used_next == before)
        return false;
    queue->used_signalled = queue->used_next;
    if (!queue->event_idx)
        return !(read_u16(memory, queue->available_gpa) & AVAILABLE_NO_INTERRUPT);
    event = read_u16(memory, queue->available_gpa + available_bytes(queue) - RING_EVENT_BYTES);
    /* The driver's event index lies among the entries just used; virtio 1.2, 2.7.7.2. */
    return (uint16_t)(queue->used_next - event - 1) < (uint16_t)(queue->used_next - before);
}

const char *virtqueue_fault_text(enum virtqueue_fault fault)
{
    switch (fault) {
    case VIRTQUEUE_WHOLE:
        return "no fault";
    case VIRTQUEUE_BAD_SIZE:
        return "the queue size is 0, no power of two, or more than 256";
    case VIRTQUEUE_MISALIGNED:
        return "a ring is misaligned (descriptors need 16, available 2, used 4 bytes)";
    case VIRTQUEUE_RING_OUTSIDE:
        return "a ring lies outside guest RAM";
    case VIRTQUEUE_INDEX_JUMP:
        return "the available index ran ahead by more than the queue's size";
    case VIRTQUEUE_HEAD_OUTSIDE:
        return "an index names no descriptor of its table";
    case VIRTQUEUE_CHAIN_LOOP:
        return "a descriptor chain has a loop";
    case VIRTQUEUE_CHAIN_TOO_LONG:
        return "a chain has more buffers than the queue's size, or 4 GiB or more";
    case VIRTQUEUE_BUFFER_OUTSIDE:
        return "a buffer lies outside guest RAM";
    case VIRTQUEUE_BUFFER_EMPTY:
        return "a buffer has length 0";
    case VIRTQUEUE_BUFFER_ORDER:
        return "a device-readable buffer follows a device-writable one";
    case VIRTQUEUE_INDIRECT_REFUSED:
        return "an indirect descriptor was not negotiated, nested, or combined with NEXT";
    case VIRTQUEUE_INDIRECT_SIZE:
        return "an indirect table is empty, of odd length, larger than the queue, or outside guest RAM";
    }
    return "unknown fault";
}
