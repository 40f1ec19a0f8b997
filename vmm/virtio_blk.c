/* virtio-blk: requests out of the queue, answers into it. */
#include "vmm/virtio_blk.h"

#include <errno.h>
#include <string.h>

#define DEVICE_ID_BLOCK   2u /* virtio 1.2, 5 */
#define PCI_CLASS_STORAGE 0x010000u
#define QUEUE             0u

#define FEATURE_SIZE_MAX (UINT64_C(1) << 1)
#define FEATURE_SEG_MAX  (UINT64_C(1) << 2)
#define FEATURE_READONLY (UINT64_C(1) << 5)
#define FEATURE_BLK_SIZE (UINT64_C(1) << 6)
#define FEATURE_FLUSH    (UINT64_C(1) << 9)

/* virtio 1.2, 5.2.6. */
#define TYPE_IN     0u
#define TYPE_OUT    1u
#define TYPE_FLUSH  4u
#define TYPE_GET_ID 8u
#define ID_BYTES    20u

struct request_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};
_Static_assert(sizeof(struct request_header) == 16, "header layout is the guest's");

/* Gives a chain back with its status, which is the last byte that the device may write. */
static void answer(struct virtio_blk *blk, const struct virtqueue_chain *chain, uint32_t data_bytes, uint8_t status)
{
    virtqueue_chain_write(chain, blk->card.memory, chain->writable_bytes - 1, &status, 1);
    virtqueue_push(&blk->card.state.queues[QUEUE], blk->card.memory, chain->head, data_bytes + 1);
}

static void refuse(struct virtio_blk *blk, const struct virtqueue_chain *chain, uint8_t status)
{
    blk->state.refused++;
    answer(blk, chain, 0, status);
}

static void answer_id(struct virtio_blk *blk, const struct virtqueue_chain *chain)
{
    static const char id[ID_BYTES] = "ftvmm";
    uint32_t room = chain->writable_bytes - 1;

    answer(blk, chain, virtqueue_chain_write(chain, blk->card.memory, 0, id, room < ID_BYTES ? room : ID_BYTES),
           VIRTIO_BLK_OK);
}

/* Whole sectors, inside the disk, and no more than the driver was told? */
static bool range_fits(const struct virtio_blk *blk, uint64_t sector, uint32_t bytes)
{
    uint64_t sectors = bytes / VIRTIO_BLK_SECTOR_BYTES;

    return bytes != 0 && bytes % VIRTIO_BLK_SECTOR_BYTES == 0 && bytes <= VIRTIO_BLK_DATA_BYTES_MAX &&
           sector <= blk->state.capacity_sectors && sectors <= blk->state.capacity_sectors - sector;
}

/* Where a read's data go: the writable buffers but for the status byte, which ends the last one. False: too many. */
static bool keep_segments(struct virtio_blk_request *request, const struct virtqueue_chain *chain)
{
    uint32_t left = request->bytes;

    for (unsigned i = chain->readable; left != 0; i++) {
        const struct virtqueue_buffer *buffer = &chain->buffers[i];
        uint32_t bytes = buffer->bytes < left ? buffer->bytes : left;

        if (request->segments == VIRTIO_BLK_SEGMENTS_MAX)
            return false;
        request->segment[request->segments++] = (struct virtio_blk_segment){.gpa = buffer->gpa, .bytes = bytes};
        left -= bytes;
    }
    return true;
}

static void take_request(struct virtio_blk *blk, const struct virtqueue_chain *chain)
{
    struct virtio_blk_state *state = &blk->state;
    struct virtio_blk_request *request = &state->requests[state->submitted % VIRTIO_BLK_REQUESTS_MAX];
    const struct virtqueue_buffer *last = &chain->buffers[chain->readable + chain->writable - 1];
    struct request_header header;

    virtqueue_chain_read(chain, 0, &header, sizeof(header));
    memset(request, 0, sizeof(*request));
    request->head = chain->head;
    request->status_gpa = last->gpa + last->bytes - 1;
    request->sector = header.sector;
    switch (header.type) {
    case TYPE_IN:
        request->operation = VIRTIO_BLK_READ;
        request->bytes = chain->writable_bytes - 1;
        if (!range_fits(blk, header.sector, request->bytes) || !keep_segments(request, chain)) {
            refuse(blk, chain, VIRTIO_BLK_IOERR);
            return;
        }
        break;
    case TYPE_OUT:
        request->operation = VIRTIO_BLK_WRITE;
        request->bytes = chain->readable_bytes - (uint32_t)sizeof(header);
        request->durable = !(blk->card.state.driver_features & FEATURE_FLUSH);
        if (state->readonly || !range_fits(blk, header.sector, request->bytes)) {
            refuse(blk, chain, VIRTIO_BLK_IOERR);
            return;
        }
        virtqueue_chain_read(chain, sizeof(header), blk->file.data(blk->file.ctx, state->submitted), request->bytes);
        break;
    case TYPE_FLUSH:
        request->operation = VIRTIO_BLK_FLUSH;
        request->sector = 0;
        break;
    case TYPE_GET_ID:
        answer_id(blk, chain);
        return;
    default:
        refuse(blk, chain, VIRTIO_BLK_UNSUPPORTED);
        return;
    }
    blk->file.submit(blk->file.ctx, state->submitted++, request);
}

static bool has_room(const struct virtio_blk_state *state)
{
    return state->submitted - state->completed < VIRTIO_BLK_REQUESTS_MAX;
}

static void take_waiting(struct virtio_blk *blk)
{
    struct virtqueue *queue = &blk->card.state.queues[QUEUE];
    struct guest_memory *memory = blk->card.memory;
    struct virtqueue_chain chain;
    int popped = 0;

    if (!virtio_pci_runs(&blk->card))
        return;
    /* No more than a ringful, as in virtio_net.c: answers may make further chains appear. */
    for (unsigned i = 0; i < VIRTQUEUE_SIZE_MAX && has_room(&blk->state); i++) {
        popped = virtqueue_pop(queue, memory, &chain);
        if (popped <= 0)
            break;
        if (chain.readable_bytes < sizeof(struct request_header) || chain.writable_bytes == 0) {
            popped = -EPROTO; /* no header, or nowhere to tell the guest so */
            break;
        }
        take_request(blk, &chain);
    }
    blk->state.starved = popped >= 0 && !has_room(&blk->state);
    virtqueue_set_notify(queue, memory, true);
    virtio_pci_signal(&blk->card, QUEUE);
    if (popped < 0)
        virtio_pci_break(&blk->card);
}

void virtio_blk_continue(struct virtio_blk *blk)
{
    if (blk->state.starved && has_room(&blk->state))
        take_waiting(blk);
}

int virtio_blk_complete(struct virtio_blk *blk, uint64_t number, enum virtio_blk_status status, const uint8_t *data)
{
    struct virtio_blk_state *state = &blk->state;
    struct guest_memory *memory = blk->card.memory;
    const struct virtio_blk_request *request = &state->requests[number % VIRTIO_BLK_REQUESTS_MAX];
    uint32_t written = 1;
    uint8_t byte = (uint8_t)status;

    if (number != state->completed || number == state->submitted)
        return -EPROTO;
    state->completed++;
    if (number < state->orphaned || !virtio_pci_runs(&blk->card))
        return 0;
    if (request->operation == VIRTIO_BLK_READ && status == VIRTIO_BLK_OK) {
        for (unsigned i = 0; i < request->segments; i++) {
            const struct virtio_blk_segment *segment = &request->segment[i];

            memcpy(memory->base + segment->gpa, data, segment->bytes); /* inside RAM when parsed, and RAM stays */
            guest_memory_mark(memory, segment->gpa, segment->bytes);
            data += segment->bytes;
        }
        written += request->bytes;
    }
    memory->base[request->status_gpa] = byte;
    guest_memory_mark(memory, request->status_gpa, 1);
    virtqueue_push(&blk->card.state.queues[QUEUE], memory, request->head, written);
    virtio_pci_signal(&blk->card, QUEUE);
    return 0;
}

static void blk_start(void *ctx)
{
    take_waiting(ctx);
}

static void blk_notify(void *ctx, unsigned queue)
{
    (void)queue; /* there is one */
    take_waiting(ctx);
}

static void blk_reset(void *ctx)
{
    struct virtio_blk *blk = ctx;

    blk->state.orphaned = blk->state.submitted;
    blk->state.starved = false;
}

/* virtio 1.2, 5.2.4: capacity, size_max, seg_max, geometry (not offered), blk_size. Little endian, as the host is. */
static void blk_config(void *ctx, uint8_t *config)
{
    const struct virtio_blk *blk = ctx;
    uint32_t size_max = VIRTIO_BLK_SEGMENT_BYTES_MAX, seg_max = VIRTIO_BLK_SEGMENTS_MAX;
    uint32_t blk_size = VIRTIO_BLK_SECTOR_BYTES;

    memcpy(config, &blk->state.capacity_sectors, 8);
    memcpy(config + 8, &size_max, 4);
    memcpy(config + 12, &seg_max, 4);
    memcpy(config + 20, &blk_size, 4);
}

int virtio_blk_init(struct virtio_blk *blk, struct pci *pci, unsigned slot, uint16_t port, uint64_t capacity_sectors,
                    bool readonly, struct guest_memory *memory, const struct virtio_blk_file *file)
{
    static const struct virtio_pci_model model = {
        .device_id = DEVICE_ID_BLOCK,
        .class_code = PCI_CLASS_STORAGE,
        .queues = 1,
        .queue_size = VIRTIO_BLK_QUEUE_SIZE,
        .config_bytes = 24,
        .config = blk_config,
        .start = blk_start,
        .notify = blk_notify,
        .reset = blk_reset,
    };
    uint64_t features = FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH;

    memset(blk, 0, sizeof(*blk));
    blk->state.capacity_sectors = capacity_sectors;
    blk->state.readonly = readonly;
    blk->file = *file;
    return virtio_pci_init(&blk->card, pci, slot, port, VIRTIO_BLK_IRQ, &model,
                           features | (readonly ? FEATURE_READONLY : 0), memory, blk);
}
