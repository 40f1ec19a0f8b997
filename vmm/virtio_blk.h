/*
 * The guest's disk: virtio-blk (1af4:1042, virtio_pci.h) with one queue. A request is parsed, and what it writes copied
 * out of guest memory, within the port access that brings it; it gets the next number and goes to the disk's file
 * through a callback. It ends by virtio_blk_complete, an input, in the order of the numbers. Between the two nothing
 * touches guest memory. A request that needs no file (refused, or asking for the disk's name) ends at once.
 * Source: virtio 1.2, 5.2.
 */
#ifndef FTVMM_VMM_VIRTIO_BLK_H
#define FTVMM_VMM_VIRTIO_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/guest_memory.h"
#include "vmm/pci.h"
#include "vmm/virtio_pci.h"

#define VIRTIO_BLK_IRQ               10u
#define VIRTIO_BLK_QUEUE_SIZE        64u
#define VIRTIO_BLK_SECTOR_BYTES      512u
/* What the driver is told a request may have; together it fits into one record of the log. */
#define VIRTIO_BLK_SEGMENT_BYTES_MAX 4096u
#define VIRTIO_BLK_SEGMENTS_MAX      31u
#define VIRTIO_BLK_DATA_BYTES_MAX    (VIRTIO_BLK_SEGMENTS_MAX * VIRTIO_BLK_SEGMENT_BYTES_MAX)
/* Numbered and not yet complete. A guest that asks for more waits for one to end. */
#define VIRTIO_BLK_REQUESTS_MAX 64u

/* As the guest reads it; virtio 1.2, 5.2.6. */
enum virtio_blk_status {
    VIRTIO_BLK_OK = 0,
    VIRTIO_BLK_IOERR = 1,
    VIRTIO_BLK_UNSUPPORTED = 2,
};

enum virtio_blk_operation {
    VIRTIO_BLK_READ,
    VIRTIO_BLK_WRITE,
    VIRTIO_BLK_FLUSH, /* what was complete before is durable after */
};

struct virtio_blk_segment {
    uint64_t gpa;
    uint32_t bytes;
};

/* A request on its way: what the file is asked for, and where the answer goes. */
struct virtio_blk_request {
    uint64_t sector;
    uint32_t bytes;    /* of data; whole sectors inside the disk */
    uint8_t operation; /* enum virtio_blk_operation */
    bool durable;      /* write: durable when complete, since the driver knows no flush */
    uint16_t head;     /* of the descriptor chain */
    uint16_t segments; /* read: where the data go */
    uint64_t status_gpa;
    struct virtio_blk_segment segment[VIRTIO_BLK_SEGMENTS_MAX];
};

/* State part: no pointers, copy it to transfer it (together with card.state, pci.state, the PIC, and the data of the
 * writes under way). */
struct virtio_blk_state {
    uint64_t capacity_sectors;
    bool readonly;
    bool starved;             /* chains wait in the queue for a request to end */
    uint64_t submitted;       /* the next request's number; free-running */
    uint64_t completed;       /* the number that completes next */
    uint64_t orphaned;        /* those below were under way at the last reset: the guest has forgotten them */
    uint64_t refused;         /* ended at once with an error; counted for the operator */
    struct virtio_blk_request requests[VIRTIO_BLK_REQUESTS_MAX]; /* number modulo VIRTIO_BLK_REQUESTS_MAX */
};

/* Where requests go. `data`: VIRTIO_BLK_DATA_BYTES_MAX bytes that belong to this request until it is complete.
 * `submit`: the request is whole, its data (if it writes) in place. Both on the vCPU thread; neither may call back. */
struct virtio_blk_file {
    void *ctx;
    uint8_t *(*data)(void *ctx, uint64_t number);
    void (*submit)(void *ctx, uint64_t number, const struct virtio_blk_request *request);
};

struct virtio_blk {
    struct virtio_pci card;
    struct virtio_blk_state state;
    struct virtio_blk_file file;
};

/* Adds the disk to `pci` in `slot`, its BAR at I/O port `port` (a multiple of VIRTIO_PCI_BAR_BYTES). Borrows pci and
 * memory for its life. 0, or pci_add's errors. */
int virtio_blk_init(struct virtio_blk *blk, struct pci *pci, unsigned slot, uint16_t port, uint64_t capacity_sectors,
                    bool readonly, struct guest_memory *memory, const struct virtio_blk_file *file);

/* Ends request `number` with VIRTIO_BLK_OK or VIRTIO_BLK_IOERR, puts `data` (of a read that is OK; else unused) into
 * guest memory and interrupts the guest if it wishes. An input: log it at its position first. 0; -EPROTO if it is
 * not this number's turn, nothing changed. */
int virtio_blk_complete(struct virtio_blk *blk, uint64_t number, enum virtio_blk_status status, const uint8_t *data);

/* Takes what had to wait in the queue, if there is room now. Call it at every port access of the guest. */
void virtio_blk_continue(struct virtio_blk *blk);

#endif
