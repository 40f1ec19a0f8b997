/* Builds any record in the ring; send_ring.h has the short way for most. */
#include "channel/send_ring.h"

#include "base/report.h"

#include <errno.h>
#include <string.h>

void send_ring_init(struct send_ring *ring, void *base, uint64_t ring_bytes, uint64_t key,
                    struct ring_credit *credit)
{
    memset(ring, 0, sizeof(*ring));
    ring->base = base;
    ring->ring_bytes = ring_bytes;
    ring->key = key;
    ring->credit = credit;
    ring->next_lsn = 1;
    ring->open_bytes = SEND_RING_NOT_OPEN;
}

int send_ring_reserve(struct send_ring *ring, uint16_t kind, uint64_t position, size_t bytes, void **payload)
{
    uint64_t need = frame_bytes(bytes), to_end, pad, credit;

    if (bytes > CHANNEL_PAYLOAD_MAX_BYTES)
        return -EMSGSIZE;
    if (send_ring_open(ring, kind, position, bytes, payload))
        return 0;
    to_end = ring->ring_bytes - (ring->head & (ring->ring_bytes - 1));
    pad = need > to_end ? to_end : 0;
    /* S1 acquire, pairs with R1 in receive_ring.h (or with the link's V3): the receiver's reads of the old
     * frames come before our writes of new ones in their place. */
    credit = atomic_load_explicit(&ring->credit->bytes, memory_order_acquire);
    if (ring->head - credit > ring->ring_bytes)
        return -EPIPE;
    if (ring->head + pad + need - credit > ring->ring_bytes) {
        /* relaxed: a count, nothing is read on the strength of it */
        atomic_fetch_add_explicit(&ring->stalls, 1, memory_order_relaxed);
        return -EAGAIN;
    }
    if (pad != 0) {
        ring->open_kind = kind;
        ring->open_position = position;
        ring->open_bytes = (uint32_t)bytes | SEND_RING_BEHIND_PAD;
        *payload = ring->base + sizeof(struct frame_header);
        return 0;
    }
    ring->place = send_ring_at(ring, ring->head);
    ring->limit = to_end < credit + ring->ring_bytes - ring->head ? ring->head + to_end : credit + ring->ring_bytes;
    send_ring_open(ring, kind, position, bytes, payload);
    return 0;
}

uint64_t send_ring_commit(struct send_ring *ring)
{
    uint64_t lsn = ring->next_lsn, index = ring->head;
    uint32_t bytes = ring->open_bytes;
    uint8_t *place = ring->place;

    if (bytes == SEND_RING_NOT_OPEN)
        report_bug("channel: commit without a reserved record after LSN %llu", (unsigned long long)(lsn - 1));
    if ((bytes & SEND_RING_BEHIND_PAD) != 0) {
        bytes &= ~SEND_RING_BEHIND_PAD;
        /* Not before: a receiver may see the pad at once, and a record that is only reserved may be forgotten. */
        index += ring->ring_bytes - (index & (ring->ring_bytes - 1));
        frame_seal_pad(send_ring_at(ring, ring->head), ring->key, lsn, index - ring->head);
        place = ring->base;
        ring->limit = index; /* of the lap before; the next one looks again */
    }
    frame_seal(place, ring->key, lsn, ring->open_position, ring->open_kind, bytes);
    send_ring_close(ring, index, place, frame_bytes(bytes));
    return lsn;
}

uint64_t send_ring_cut(const struct send_ring *ring, uint64_t from, uint64_t to, uint64_t at_most_bytes)
{
    uint64_t end = from, cut = from;

    if (to - from <= at_most_bytes)
        return to;
    while (end != to && (cut == from || end - from < at_most_bytes)) {
        const struct frame_header *header = (const struct frame_header *)send_ring_at(ring, end);
        bool pad = header->flags == FRAME_FLAG_PAD;

        end += pad ? header->bytes : frame_bytes(header->bytes);
        if (!pad && (cut == from || end - from <= at_most_bytes))
            cut = end;
    }
    return cut;
}
