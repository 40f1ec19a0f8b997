/* The output rule, per frame; see hold.h. Knows no DPDK: net.c moves what this releases. */
#include "dpdk-net/hold.h"

#include <errno.h>
#include <string.h>

#include "dpdk-net/counter.h"

#define ETHERNET_HEADER_BYTES 14u

/* A guest with TSO sends frames of up to 64 KiB, so room is for more than the wire's size. */
#define MEAN_FRAME_BYTES 8192u

int hold_init(struct hold *hold, uint32_t capacity, uint32_t frame_max_bytes)
{
    memset(hold, 0, sizeof(*hold));
    hold->frame_max_bytes = frame_max_bytes;
    return frame_ring_init(&hold->ring, capacity,
                           frame_max_bytes > MEAN_FRAME_BYTES ? frame_max_bytes : MEAN_FRAME_BYTES);
}

void hold_fini(struct hold *hold)
{
    frame_ring_fini(&hold->ring);
}

bool hold_crowded(struct hold *hold)
{
    return !frame_ring_has_room(&hold->ring, (hold->ring.mask + 1) / 2, (hold->ring.room_mask + 1) / 2);
}

int hold_put(struct hold *hold, const void *frame, size_t bytes, const struct net_offload *offload, uint64_t lsn,
             uint64_t now_ns)
{
    /* relaxed: only this thread writes it */
    uint64_t number = atomic_load_explicit(&hold->next_number, memory_order_relaxed);
    size_t most = offload->segmentation == NET_WHOLE ? hold->frame_max_bytes : NET_SEGMENTED_MAX_BYTES;
    struct frame_slot *slot = NULL;
    int error = 0;

    if (bytes < ETHERNET_HEADER_BYTES || bytes > most) {
        counter_add(&hold->refused_size, 1);
        error = -EMSGSIZE;
    } else if ((slot = frame_ring_reserve(&hold->ring, (uint32_t)bytes)) == NULL) {
        counter_add(&hold->refused_full, 1);
        error = -ENOBUFS;
    } else {
        slot->number = number;
        slot->lsn = lsn;
        slot->queued_ns = now_ns;
        slot->offload = *offload;
        memcpy(slot->data, frame, bytes);
        frame_ring_publish(&hold->ring);
    }
    /* R3 pairs A3 in update_gone: the frame is in the ring before its number counts as given */
    atomic_store_explicit(&hold->next_number, number + 1, memory_order_release);
    return error;
}

/* Refused frames have numbers but no slots, so the number is not the ring's index. */
static void update_gone(struct hold *hold)
{
    /* A3 pairs R3: a ring found empty after this load holds none of the frames numbered below `next` */
    uint64_t next = atomic_load_explicit(&hold->next_number, memory_order_acquire);
    const struct frame_slot *oldest = frame_ring_at(&hold->ring, 0);

    /* R4 pairs A4 in net_sent_count: what happened to the frames before the claim that they are gone */
    atomic_store_explicit(&hold->gone_number, oldest != NULL ? oldest->number : next, memory_order_release);
}

const struct frame_slot *hold_releasable(struct hold *hold, uint64_t offset, uint64_t acked_lsn)
{
    const struct frame_slot *slot = frame_ring_at(&hold->ring, offset);

    return slot != NULL && slot->lsn <= acked_lsn ? slot : NULL;
}

void hold_measure(struct hold *hold, uint64_t count, uint64_t now_ns, struct histogram *waited_ns)
{
    for (uint64_t i = 0; i < count; i++) {
        const struct frame_slot *slot = frame_ring_at(&hold->ring, i);

        histogram_record(waited_ns, now_ns > slot->queued_ns ? now_ns - slot->queued_ns : 0);
    }
}

void hold_release(struct hold *hold, uint64_t count)
{
    frame_ring_release(&hold->ring, count);
    update_gone(hold);
}

unsigned hold_forget(struct hold *hold, uint64_t sent_count, void (*seen)(void *ctx, const struct frame_slot *slot),
                     void *ctx)
{
    const struct frame_slot *slot;
    unsigned forgotten = 0;

    if (sent_count > hold->forget_below)
        hold->forget_below = sent_count;
    while ((slot = frame_ring_at(&hold->ring, forgotten)) != NULL && slot->number < hold->forget_below) {
        if (seen != NULL)
            seen(ctx, slot);
        forgotten++;
    }
    if (forgotten > 0)
        frame_ring_release(&hold->ring, forgotten);
    update_gone(hold);
    return forgotten;
}
