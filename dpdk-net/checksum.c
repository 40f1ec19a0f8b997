/* The Internet checksum, and its completion in frames from a local sender; see checksum.h. */
#include "dpdk-net/checksum.h"

#include <string.h>

#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

uint32_t checksum_add(uint32_t sum, const void *data, size_t bytes)
{
    const uint8_t *byte = data;

    for (; bytes > 1; bytes -= 2, byte += 2)
        sum += (uint32_t)byte[0] << 8 | byte[1];
    if (bytes == 1)
        sum += (uint32_t)byte[0] << 8;
    return sum;
}

uint16_t checksum_fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static uint16_t load_be16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

bool checksum_finish(uint8_t *frame, size_t bytes)
{
    size_t ip_at = 14, segment_at, segment_bytes, field_at;
    uint16_t type, pseudo, sum;
    uint8_t protocol;
    uint32_t addresses;

    if (bytes < ip_at + 20)
        return false;
    type = load_be16(frame + 12);
    if (type == 0x8100) { /* one 802.1Q tag */
        ip_at += 4;
        type = load_be16(frame + 16);
    }
    if (type == 0x0800 && bytes >= ip_at + 20) {
        size_t header_bytes = (frame[ip_at] & 15u) * 4u, total_bytes = load_be16(frame + ip_at + 2);

        if (frame[ip_at] >> 4 != 4 || header_bytes < 20 || total_bytes < header_bytes || bytes < ip_at + total_bytes)
            return false;
        if ((load_be16(frame + ip_at + 6) & 0x3fff) != 0)
            return false; /* a fragment's checksum covers more than is here */
        protocol = frame[ip_at + 9];
        segment_at = ip_at + header_bytes;
        segment_bytes = total_bytes - header_bytes;
        addresses = checksum_add(0, frame + ip_at + 12, 8);
    } else if (type == 0x86dd && bytes >= ip_at + 40) {
        protocol = frame[ip_at + 6]; /* extension headers: left alone */
        segment_at = ip_at + 40;
        segment_bytes = load_be16(frame + ip_at + 4);
        if (bytes < segment_at + segment_bytes)
            return false;
        addresses = checksum_add(0, frame + ip_at + 8, 32);
    } else {
        return false;
    }
    if (protocol == PROTOCOL_TCP && segment_bytes >= 20)
        field_at = segment_at + 16;
    else if (protocol == PROTOCOL_UDP && segment_bytes >= 8)
        field_at = segment_at + 6;
    else
        return false;
    pseudo = checksum_fold(addresses + protocol + (uint32_t)segment_bytes);
    if (load_be16(frame + field_at) != pseudo)
        return false;
    /* The field counts as the pseudo-header here, so a sum that is right already comes out as 0xffff. */
    sum = checksum_fold(checksum_add(0, frame + segment_at, segment_bytes));
    if (checksum_fold((uint32_t)sum + pseudo) == 0xffff)
        return false;
    sum = (uint16_t)~sum;
    if (sum == 0 && protocol == PROTOCOL_UDP)
        sum = 0xffff; /* RFC 768: a transmitted zero means "none" */
    frame[field_at] = (uint8_t)(sum >> 8);
    frame[field_at + 1] = (uint8_t)sum;
    return true;
}
