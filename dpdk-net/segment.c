/* Cutting a large TCP segment into frames; see segment.h. Source: RFC 9293, 3.1; RFC 791; RFC 8200; RFC 3168, 6.1.2. */
#include "dpdk-net/segment.h"

#include <errno.h>
#include <string.h>

#include "dpdk-net/checksum.h"

#define ETHERNET_BYTES 14u
#define TAG_BYTES 4u
#define IPV4_BYTES 20u
#define IPV6_BYTES 40u
#define TCP_BYTES 20u
#define PROTOCOL_TCP 6u
#define TCP_FIN 0x01u
#define TCP_PSH 0x08u
#define TCP_CWR 0x80u

static uint32_t get16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *at)
{
    return get16(at) << 16 | get16(at + 2);
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

/* The IP header fits what the offload says, and TCP begins where it says. */
static bool ip_fits(const struct segments *segments, size_t bytes)
{
    const uint8_t *ip = segments->frame + segments->ip_at;

    if (segments->tcp_at < segments->ip_at + (segments->ipv6 ? IPV6_BYTES : IPV4_BYTES) ||
        bytes < segments->tcp_at + TCP_BYTES)
        return false;
    if (segments->ipv6) /* between the two there may be extension headers, which every segment gets */
        return ip[0] >> 4 == 6 && bytes - segments->ip_at - IPV6_BYTES <= UINT16_MAX;
    return ip[0] >> 4 == 4 && segments->ip_at + (ip[0] & 15u) * 4 == segments->tcp_at && ip[9] == PROTOCOL_TCP &&
           (get16(ip + 6) & 0x3fff) == 0 /* a fragment */ && bytes - segments->ip_at <= UINT16_MAX;
}

int segments_parse(struct segments *segments, const uint8_t *frame, size_t bytes, const struct net_offload *offload,
                   size_t frame_max_bytes)
{
    uint32_t type, tcp_bytes;

    *segments = (struct segments){ .frame = frame, .ip_at = ETHERNET_BYTES, .tcp_at = offload->checksum_start,
                                   .segment_bytes = offload->segment_bytes };
    if (bytes < ETHERNET_BYTES + TAG_BYTES || bytes > UINT32_MAX || offload->segment_bytes == 0)
        return -EINVAL;
    type = get16(frame + 12);
    if (type == 0x8100) { /* one 802.1Q tag */
        segments->ip_at += TAG_BYTES;
        type = get16(frame + 16);
    }
    segments->ipv6 = offload->segmentation == NET_TCP6;
    if (type != (segments->ipv6 ? 0x86ddu : 0x0800u) || !ip_fits(segments, bytes))
        return -EINVAL;
    tcp_bytes = (frame[segments->tcp_at + 12] >> 4) * 4u;
    segments->payload_at = segments->tcp_at + tcp_bytes;
    if (tcp_bytes < TCP_BYTES || bytes < segments->payload_at ||
        segments->payload_at + (size_t)segments->segment_bytes > frame_max_bytes)
        return -EINVAL;
    segments->payload_bytes = (uint32_t)bytes - segments->payload_at;
    segments->count = (segments->payload_bytes + segments->segment_bytes - 1) / segments->segment_bytes;
    if (segments->count == 0) /* headers alone: one segment without payload */
        segments->count = 1;
    return 0;
}

static uint32_t payload_of(const struct segments *segments, uint32_t index)
{
    uint32_t rest = segments->payload_bytes - index * segments->segment_bytes;

    return rest < segments->segment_bytes ? rest : segments->segment_bytes;
}

size_t segments_bytes(const struct segments *segments, uint32_t index)
{
    return segments->payload_at + payload_of(segments, index);
}

static void build_ip(const struct segments *segments, uint32_t index, uint8_t *ip, uint32_t bytes)
{
    if (segments->ipv6) {
        put16(ip + 4, bytes - IPV6_BYTES);
        return;
    }
    put16(ip + 2, bytes);
    put16(ip + 4, get16(ip + 4) + index); /* as Linux counts the segments of one */
    put16(ip + 10, 0);
    put16(ip + 10, (uint16_t)~checksum_fold(checksum_add(0, ip, segments->tcp_at - segments->ip_at)));
}

size_t segments_build(const struct segments *segments, uint32_t index, uint8_t *room)
{
    uint32_t payload_bytes = payload_of(segments, index);
    uint32_t bytes = segments->payload_at + payload_bytes, tcp_bytes = bytes - segments->tcp_at;
    uint8_t *ip = room + segments->ip_at, *tcp = room + segments->tcp_at;
    uint32_t sum;

    memcpy(room, segments->frame, segments->payload_at);
    memcpy(room + segments->payload_at,
           segments->frame + segments->payload_at + (size_t)index * segments->segment_bytes, payload_bytes);
    build_ip(segments, index, ip, bytes - segments->ip_at);
    put32(tcp + 4, get32(tcp + 4) + index * segments->segment_bytes);
    if (index + 1 < segments->count)
        tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (index > 0)
        tcp[13] &= (uint8_t)~TCP_CWR;
    put16(tcp + 16, 0);
    sum = checksum_add(PROTOCOL_TCP + tcp_bytes, ip + (segments->ipv6 ? 8 : 12), segments->ipv6 ? 32 : 8);
    put16(tcp + 16, (uint16_t)~checksum_fold(checksum_add(sum, tcp, tcp_bytes)));
    return bytes;
}
