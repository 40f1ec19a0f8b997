/* Set-up of a frame ring; what runs per frame is in the header. */
#include "dpdk-net/frame_ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The least that always has room for the longest frame: what is skipped at the end is shorter than the frame. */
#define ROOM_BYTES_MIN (1u << 18)
_Static_assert(ROOM_BYTES_MIN >= 2 * NET_SEGMENTED_MAX_BYTES, "the longest frame fits");

static void *new_pages(uint64_t bytes)
{
    uint64_t whole = (bytes + 127) & ~UINT64_C(127);
    void *memory = aligned_alloc(alignof(struct frame_ring), whole);

    if (memory != NULL)
        memset(memory, 0, whole);
    return memory;
}

int frame_ring_init(struct frame_ring *ring, uint32_t capacity, uint32_t frame_bytes)
{
    uint64_t room_bytes = ROOM_BYTES_MIN;

    memset(ring, 0, sizeof(*ring));
    while (room_bytes < (uint64_t)capacity * frame_bytes)
        room_bytes *= 2;
    ring->slots = new_pages((uint64_t)capacity * sizeof(struct frame_slot));
    ring->room = new_pages(room_bytes);
    ring->mask = capacity - 1;
    ring->room_mask = room_bytes - 1;
    if (ring->slots != NULL && ring->room != NULL)
        return 0;
    frame_ring_fini(ring);
    return -ENOMEM;
}

void frame_ring_fini(struct frame_ring *ring)
{
    free(ring->slots);
    free(ring->room);
    ring->slots = NULL;
    ring->room = NULL;
}
