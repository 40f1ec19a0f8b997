/* Set-up of a frame ring; what runs per frame is in the header. */
#include "dpdk-net/frame_ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int frame_ring_init(struct frame_ring *ring, uint32_t capacity)
{
    size_t bytes = (size_t)capacity * sizeof(struct frame_slot);

    memset(ring, 0, sizeof(*ring));
    ring->slots = aligned_alloc(alignof(struct frame_ring), (bytes + 127) & ~(size_t)127);
    if (ring->slots == NULL)
        return -ENOMEM;
    memset(ring->slots, 0, bytes);
    ring->mask = capacity - 1;
    return 0;
}

void frame_ring_fini(struct frame_ring *ring)
{
    free(ring->slots);
    ring->slots = NULL;
}
