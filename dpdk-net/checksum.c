/* The Internet checksum, checked and completed in frames; see checksum.h. */
#include "dpdk-net/checksum.h"

#include <errno.h>
#include <string.h>

#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

uint32_t checksum_add(uint32_t sum, const void *data, size_t bytes)
{
    const uint8_t *byte = data;
    uint64_t native = 0; /* words as this host reads them; swapped once at the end (RFC 1071, 2 (B)) */
    uint32_t word;

    for (; bytes >= 4; bytes -= 4, byte += 4) {
        memcpy(&word, byte, 4);
        native += word;
    }
    if (bytes >= 2) {
        native += (uint32_t)byte[0] | (uint32_t)byte[1] << 8;
        bytes -= 2;
        byte += 2;
    }
    if (bytes == 1)
        native += byte[0];
    native = (native & UINT32_MAX) + (native >> 32);
    native = (native & 0xffff) + (native >> 16 & 0xffff) + (native >> 32);
    native = (native & 0xffff) + (native >> 16);
    native = (native & 0xffff) + (native >> 16);
    return sum + ((uint32_t)(native & 0xff) << 8 | (uint32_t)native >> 8);
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

/* The complement of `sum`; never 0, which in UDP would mean "none" (RFC 768) and elsewhere is the same number. */
static void store_field(uint8_t *field, uint16_t sum)
{
    uint16_t value = sum == 0xffff ? 0xffff : (uint16_t)~sum;

    field[0] = (uint8_t)(value >> 8);
    field[1] = (uint8_t)value;
}

enum checksum_state checksum_examine(uint8_t *frame, size_t bytes)
{
    size_t ip_at = 14, segment_at, segment_bytes, field_at;
    uint16_t type, pseudo, field, sum;
    uint8_t protocol;
    uint32_t addresses;

    if (bytes < ip_at + 20)
        return CHECKSUM_UNKNOWN;
    type = load_be16(frame + 12);
    if (type == 0x8100) { /* one 802.1Q tag */
        ip_at += 4;
        type = load_be16(frame + 16);
    }
    if (type == 0x0800 && bytes >= ip_at + 20) {
        size_t header_bytes = (frame[ip_at] & 15u) * 4u, total_bytes = load_be16(frame + ip_at + 2);

        if (frame[ip_at] >> 4 != 4 || header_bytes < 20 || total_bytes < header_bytes || bytes < ip_at + total_bytes)
            return CHECKSUM_UNKNOWN;
        if ((load_be16(frame + ip_at + 6) & 0x3fff) != 0)
            return CHECKSUM_UNKNOWN; /* a fragment's checksum covers more than is here */
        protocol = frame[ip_at + 9];
        segment_at = ip_at + header_bytes;
        segment_bytes = total_bytes - header_bytes;
        addresses = checksum_add(0, frame + ip_at + 12, 8);
    } else if (type == 0x86dd && bytes >= ip_at + 40) {
        protocol = frame[ip_at + 6]; /* extension headers: left alone */
        segment_at = ip_at + 40;
        segment_bytes = load_be16(frame + ip_at + 4);
        if (bytes < segment_at + segment_bytes)
            return CHECKSUM_UNKNOWN;
        addresses = checksum_add(0, frame + ip_at + 8, 32);
    } else {
        return CHECKSUM_UNKNOWN;
    }
    if (protocol == PROTOCOL_TCP && segment_bytes >= 20)
        field_at = segment_at + 16;
    else if (protocol == PROTOCOL_UDP && segment_bytes >= 8)
        field_at = segment_at + 6;
    else
        return CHECKSUM_UNKNOWN;
    pseudo = checksum_fold(addresses + protocol + (uint32_t)segment_bytes);
    field = load_be16(frame + field_at);
    if (field == 0 && protocol == PROTOCOL_UDP && type == 0x0800)
        return CHECKSUM_UNKNOWN; /* RFC 768: none was made */
    sum = checksum_fold(checksum_add(0, frame + segment_at, segment_bytes));
    if (checksum_fold((uint32_t)sum + pseudo) == 0xffff)
        return CHECKSUM_RIGHT;
    if (field != pseudo)
        return CHECKSUM_WRONG;
    /* The field was added, too, and is the pseudo-header: that is what shall be in the sum. */
    store_field(frame + field_at, sum);
    return CHECKSUM_RIGHT;
}

int checksum_complete(uint8_t *frame, size_t bytes, size_t start, size_t offset)
{
    if (start > bytes || offset > bytes || start + offset + 2 > bytes)
        return -EINVAL;
    store_field(frame + start + offset, checksum_fold(checksum_add(0, frame + start, bytes - start)));
    return 0;
}
