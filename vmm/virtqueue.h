/*
 * The device's side of a split virtqueue in guest memory. The guest may be hostile: every address, index, length
 * and flag is checked before use, every loop is bounded by the queue's size, and the first violation breaks the
 * queue for good (until reset). The guest does not run meanwhile (one vCPU, same thread), so nothing changes
 * between check and use, and the outcome depends on guest memory alone.
 * Source: virtio 1.2, 2.6 and 2.7.
 */
#ifndef FTVMM_VMM_VIRTQUEUE_H
#define FTVMM_VMM_VIRTQUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/guest_memory.h"

#define VIRTQUEUE_SIZE_MAX 256u

/* Why a queue broke; VIRTQUEUE_WHOLE while it has not. */
enum virtqueue_fault {
    VIRTQUEUE_WHOLE,
    VIRTQUEUE_BAD_SIZE,         /* 0, not a power of two, or too large */
    VIRTQUEUE_MISALIGNED,       /* descriptor table 16, available ring 2, used ring 4 */
    VIRTQUEUE_RING_OUTSIDE,     /* a ring lies outside RAM */
    VIRTQUEUE_INDEX_JUMP,       /* available index is more than the queue's size ahead */
    VIRTQUEUE_HEAD_OUTSIDE,     /* ring entry or next names no descriptor */
    VIRTQUEUE_CHAIN_LOOP,       /* chain longer than its table */
    VIRTQUEUE_CHAIN_TOO_LONG,   /* more buffers than the queue's size, or 4 GiB and more in all */
    VIRTQUEUE_BUFFER_OUTSIDE,   /* a buffer lies outside RAM */
    VIRTQUEUE_BUFFER_EMPTY,     /* zero length */
    VIRTQUEUE_BUFFER_ORDER,     /* device-readable after device-writable */
    VIRTQUEUE_INDIRECT_REFUSED, /* indirect without the feature, nested, or together with NEXT */
    VIRTQUEUE_INDIRECT_SIZE,    /* indirect table empty, of odd length, larger than the queue, or outside RAM */
};

/* All state; copy it to transfer it. */
struct virtqueue {
    uint64_t descriptors_gpa;
    uint64_t available_gpa;
    uint64_t used_gpa;
    uint16_t size;           /* chosen by the driver; <= VIRTQUEUE_SIZE_MAX */
    uint16_t available_next; /* free-running: next ring entry to take */
    uint16_t used_next;      /* free-running: next used entry to write */
    uint16_t used_signalled; /* used_next at the last interrupt decision */
    bool enabled;
    bool event_idx;
    bool indirect;
    uint8_t fault; /* enum virtqueue_fault */
};

struct virtqueue_buffer {
    uint8_t *hva;
    uint64_t gpa;
    uint32_t bytes;
};

/* One descriptor chain: `readable` buffers for the device to read, then `writable` to write. Pointers are good
 * until the guest runs again. */
struct virtqueue_chain {
    uint16_t head;
    uint16_t readable;
    uint16_t writable;
    uint32_t readable_bytes;
    uint32_t writable_bytes;
    struct virtqueue_buffer buffers[VIRTQUEUE_SIZE_MAX];
};

/* Reset state, with the size the device offers. */
void virtqueue_init(struct virtqueue *queue, uint16_t size);

/* Checks the rings that the driver set and starts the queue with the negotiated features. 0, or -EPROTO:
 * broken, see `fault`. */
int virtqueue_enable(struct virtqueue *queue, const struct guest_memory *memory, bool event_idx, bool indirect);

/* Entries waiting by the guest's index: 0 if none, not enabled or broken. More than `size` means that the next
 * virtqueue_pop will break the queue. Changes nothing. */
uint16_t virtqueue_waiting(const struct virtqueue *queue, const struct guest_memory *memory);

/* Takes the next chain: 1, 0 if there is none, -EPROTO if the queue is or now gets broken. */
int virtqueue_pop(struct virtqueue *queue, const struct guest_memory *memory, struct virtqueue_chain *chain);

/* Returns a chain to the driver with `written_bytes` written into it. Marks the used ring's pages. */
void virtqueue_push(struct virtqueue *queue, struct guest_memory *memory, uint16_t head, uint32_t written_bytes);

/* Copies into the chain's writable buffers from `offset` on and marks the pages. Returns bytes copied, fewer
 * than asked only when the chain ends. */
uint32_t virtqueue_chain_write(const struct virtqueue_chain *chain, struct guest_memory *memory, uint32_t offset,
                               const void *source, uint32_t bytes);

/* Copies out of the chain's readable buffers from `offset` on. Returns bytes copied, as above. */
uint32_t virtqueue_chain_read(const struct virtqueue_chain *chain, uint32_t offset, void *target, uint32_t bytes);

/* Asks the driver to notify (or not) when it makes further buffers available. */
void virtqueue_set_notify(struct virtqueue *queue, struct guest_memory *memory, bool wanted);

/* True if the driver wants an interrupt for what was pushed since the last call. */
bool virtqueue_interrupt_due(struct virtqueue *queue, const struct guest_memory *memory);

/* A fault as a sentence for the operator. */
const char *virtqueue_fault_text(enum virtqueue_fault fault);

/* Could a driver have brought the queue into this state, its rings in this memory? For a state that came from elsewhere. */
bool virtqueue_fits(const struct virtqueue *queue, const struct guest_memory *memory);

#endif
