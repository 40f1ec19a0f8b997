/*
 * What a guest leaves to be done to a frame, done: checksum and segmentation of anything. First the 8 bytes of struct
 * net_offload, then the frame.
 */
#include "fuzz.h"

#include "dpdk-net/checksum.h"
#include "dpdk-net/net.h"
#include "dpdk-net/segment.h"

#include <stdlib.h>
#include <string.h>

#define FRAME_MAX_BYTES (NET_LINK_BYTES + NET_MTU_DEFAULT)

static void cut_up(const uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
    struct segments segments;
    uint64_t payload_bytes = 0;

    if (segments_parse(&segments, frame, bytes, offload, FRAME_MAX_BYTES) != 0)
        return;
    fuzz_check(segments.count >= 1 && segments.payload_at <= bytes);
    for (uint32_t i = 0; i < segments.count; i++) {
        size_t expected = segments_bytes(&segments, i);
        uint8_t *room = malloc(expected);

        fuzz_check(expected <= FRAME_MAX_BYTES);
        fuzz_check(segments_build(&segments, i, room) == expected);
        fuzz_check(memcmp(room, frame, 12) == 0); /* for whom, and from whom */
        payload_bytes += expected - segments.payload_at;
        free(room);
    }
    fuzz_check(payload_bytes == bytes - segments.payload_at); /* nothing is lost, nothing comes twice */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct net_offload offload;
    uint8_t *frame;

    if (bytes <= sizeof(offload) || bytes > NET_SEGMENTED_MAX_BYTES)
        return 0;
    memcpy(&offload, data, sizeof(offload));
    bytes -= sizeof(offload);
    frame = malloc(bytes);
    memcpy(frame, data + sizeof(offload), bytes);
    cut_up(frame, bytes, &offload);
    (void)checksum_complete(frame, bytes, offload.checksum_start, offload.checksum_offset);
    if (checksum_examine(frame, bytes) == CHECKSUM_RIGHT)
        fuzz_check(checksum_examine(frame, bytes) == CHECKSUM_RIGHT); /* what was finished stays so */
    free(frame);
    return 0;
}
