/* The bounce queue's producer: what arrives is filtered, made whole, and queued; see receive.h. */
#include "dpdk-net/receive.h"

#include <string.h>

#include "dpdk-net/checksum.h"
#include "dpdk-net/counter.h"

#define ETHERNET_HEADER_BYTES 14u
#define ADDRESSES_BYTES 12u
#define TAG_BYTES 4u

int receive_init(struct receive *receive, uint32_t capacity, uint32_t frame_max_bytes, const uint8_t mac[6])
{
    static const uint8_t nobody[6];

    memset(receive, 0, sizeof(*receive));
    net_filter_init(&receive->filter, mac);
    receive->filter.promiscuous = memcmp(mac, nobody, 6) == 0;
    receive->frame_max_bytes = frame_max_bytes;
    return frame_ring_init(&receive->ring, capacity, frame_max_bytes);
}

void receive_fini(struct receive *receive)
{
    frame_ring_fini(&receive->ring);
}

unsigned receive_room(struct receive *receive, unsigned most)
{
    while (most > 0 && !frame_ring_has_room(&receive->ring, most, (uint64_t)(most + 2) * receive->frame_max_bytes))
        most--; /* two more: what is skipped at the end, and the rounding */
    return most;
}

bool receive_put(struct receive *receive, const struct receive_frame *frame)
{
    size_t bytes = frame->bytes + (frame->tagged ? TAG_BYTES : 0);
    struct frame_slot *slot;

    if (!frame->whole || frame->bytes < ETHERNET_HEADER_BYTES || bytes > receive->frame_max_bytes) {
        counter_add(&receive->dropped_oversize, 1);
        return false;
    }
    if (!net_filter_takes(&receive->filter, frame->data)) {
        counter_add(&receive->other_station, 1);
        return false;
    }
    slot = frame_ring_reserve(&receive->ring, (uint32_t)bytes);
    if (slot == NULL) {
        counter_add(&receive->dropped_full, 1);
        return false;
    }
    slot->queued_ns = frame->arrived_ns;
    if (frame->tagged) {
        const uint8_t tag[TAG_BYTES] = { 0x81, 0x00, (uint8_t)(frame->vlan >> 8), (uint8_t)frame->vlan };

        memcpy(slot->data, frame->data, ADDRESSES_BYTES);
        memcpy(slot->data + ADDRESSES_BYTES, tag, TAG_BYTES);
        memcpy(slot->data + ADDRESSES_BYTES + TAG_BYTES, (const uint8_t *)frame->data + ADDRESSES_BYTES,
               frame->bytes - ADDRESSES_BYTES);
    } else {
        memcpy(slot->data, frame->data, bytes);
    }
    /* Looked at here, once, and not by the guest, which runs on both hosts. */
    slot->checksum_right = frame->checksum_right || checksum_examine(slot->data, bytes) == CHECKSUM_RIGHT;
    frame_ring_publish(&receive->ring);
    counter_add(&receive->received, 1);
    counter_add(&receive->received_bytes, bytes);
    return true;
}
