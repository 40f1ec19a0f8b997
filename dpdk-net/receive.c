/* The bounce queue's producer: what arrives is filtered, made whole, and queued; see receive.h. */
#include "dpdk-net/receive.h"

#include <string.h>

#include "base/clock.h"
#include "dpdk-net/checksum.h"
#include "dpdk-net/counter.h"

#define ETHERNET_HEADER_BYTES 14u
#define ADDRESSES_BYTES 12u
#define TAG_BYTES 4u

int receive_init(struct receive *receive, uint32_t capacity, const uint8_t mac[6])
{
    static const uint8_t nobody[6];

    memset(receive, 0, sizeof(*receive));
    memcpy(receive->mac, mac, 6);
    receive->for_anybody = memcmp(mac, nobody, 6) == 0;
    return frame_ring_init(&receive->ring, capacity);
}

void receive_fini(struct receive *receive)
{
    frame_ring_fini(&receive->ring);
}

/* A promiscuous port also hears what is meant for others, and every frame that the guest gets costs a
 * record in the log, so the NIC's own address filter is done here. */
static bool is_for_guest(const struct receive *receive, const uint8_t *data)
{
    return (data[0] & 1) != 0 || receive->for_anybody || memcmp(data, receive->mac, 6) == 0;
}

bool receive_put(struct receive *receive, const struct receive_frame *frame)
{
    size_t bytes = frame->bytes + (frame->tagged ? TAG_BYTES : 0);
    struct frame_slot *slot;

    if (!frame->whole || frame->bytes < ETHERNET_HEADER_BYTES || bytes > NET_FRAME_MAX_BYTES) {
        counter_add(&receive->dropped_oversize, 1);
        return false;
    }
    if (!is_for_guest(receive, frame->data)) {
        counter_add(&receive->other_station, 1);
        return false;
    }
    slot = frame_ring_reserve(&receive->ring);
    if (slot == NULL) {
        counter_add(&receive->dropped_full, 1);
        return false;
    }
    slot->bytes = (uint32_t)bytes;
    slot->queued_ns = clock_now_ns();
    if (frame->tagged) {
        const uint8_t tag[TAG_BYTES] = { 0x81, 0x00, (uint8_t)(frame->vlan >> 8), (uint8_t)frame->vlan };

        memcpy(slot->data, frame->data, ADDRESSES_BYTES);
        memcpy(slot->data + ADDRESSES_BYTES, tag, TAG_BYTES);
        memcpy(slot->data + ADDRESSES_BYTES + TAG_BYTES, (const uint8_t *)frame->data + ADDRESSES_BYTES,
               frame->bytes - ADDRESSES_BYTES);
    } else {
        memcpy(slot->data, frame->data, bytes);
    }
    checksum_finish(slot->data, bytes);
    frame_ring_publish(&receive->ring);
    counter_add(&receive->received, 1);
    counter_add(&receive->received_bytes, bytes);
    return true;
}
