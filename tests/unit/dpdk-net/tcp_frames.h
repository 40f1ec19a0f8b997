/* TCP frames for the tests of segmentation: as a guest with offloads builds them, and put together again. */
#ifndef FTVMM_TESTS_TCP_FRAMES_H
#define FTVMM_TESTS_TCP_FRAMES_H

#include "support.h"

#include <arpa/inet.h>

#include "dpdk-net/checksum.h"

struct tcp_shape {
    bool ipv6, tagged;
    uint8_t ip_option_words, tcp_option_words; /* IPv4 only; both */
    uint8_t flags;
    uint32_t sequence, payload_bytes;
    uint16_t segment_bytes; /* 0: not to be cut up, its checksum alone is missing */
};

static inline void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline uint32_t get16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static inline void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static inline uint32_t get32(const uint8_t *at)
{
    return get16(at) << 16 | get16(at + 2);
}

static inline uint32_t tcp_ip_at(const struct tcp_shape *shape)
{
    return shape->tagged ? 18 : 14;
}

static inline uint32_t tcp_at(const struct tcp_shape *shape)
{
    return tcp_ip_at(shape) + (shape->ipv6 ? 40 : 20 + 4u * shape->ip_option_words);
}

static inline uint32_t tcp_payload_at(const struct tcp_shape *shape)
{
    return tcp_at(shape) + 20 + 4u * shape->tcp_option_words;
}

static inline uint8_t tcp_payload_byte(uint32_t sequence)
{
    return (uint8_t)(sequence * 7 + (sequence >> 8) * 13 + (sequence >> 16));
}

/* The frame from the guest to the other station; its bytes. */
static inline size_t tcp_build(const struct tcp_shape *shape, uint8_t *frame, struct net_offload *offload)
{
    uint32_t ip_at = tcp_ip_at(shape), at = tcp_at(shape), payload_at = tcp_payload_at(shape);
    uint32_t bytes = payload_at + shape->payload_bytes, sum;
    uint8_t *ip = frame + ip_at, *tcp = frame + at;

    memset(frame, 0, payload_at);
    memcpy(frame, other_mac, 6);
    memcpy(frame + 6, guest_mac, 6);
    if (shape->tagged)
        put32(frame + 12, 0x8100002a);
    put16(ip - 2, shape->ipv6 ? 0x86dd : 0x0800);
    if (shape->ipv6) {
        ip[0] = 0x60;
        put16(ip + 4, bytes - ip_at - 40);
        ip[6] = 6;
        ip[7] = 64;
        memset(ip + 8, 0x21, 16);
        memset(ip + 24, 0x42, 16);
    } else {
        ip[0] = (uint8_t)(0x45 + shape->ip_option_words);
        put16(ip + 2, bytes - ip_at);
        put16(ip + 4, 0xfff0); /* wraps */
        ip[6] = 0x40;
        ip[8] = 64;
        ip[9] = 6;
        put32(ip + 12, 0x0a090802);
        put32(ip + 16, 0x0a090801);
        memset(ip + 20, 1, 4u * shape->ip_option_words);
        put16(ip + 10, (uint16_t)~checksum_fold(checksum_add(0, ip, at - ip_at)));
    }
    put16(tcp, 40000);
    put16(tcp + 2, 6379);
    put32(tcp + 4, shape->sequence);
    put32(tcp + 8, 0x01020304);
    tcp[12] = (uint8_t)((5 + shape->tcp_option_words) << 4);
    tcp[13] = shape->flags;
    put16(tcp + 14, 0x7fff);
    memset(tcp + 20, 1, 4u * shape->tcp_option_words);
    for (uint32_t i = 0; i < shape->payload_bytes; i++)
        frame[payload_at + i] = tcp_payload_byte(shape->sequence + i);
    sum = checksum_add(6 + bytes - at, ip + (shape->ipv6 ? 8 : 12), shape->ipv6 ? 32 : 8);
    put16(tcp + 16, checksum_fold(sum));
    *offload = (struct net_offload){
        .segmentation = shape->segment_bytes == 0 ? NET_WHOLE : shape->ipv6 ? NET_TCP6 : NET_TCP4,
        .checksum_missing = 1,
        .checksum_start = (uint16_t)at,
        .checksum_offset = 16,
        .segment_bytes = shape->segment_bytes,
    };
    return bytes;
}

/* Checks segment number `index`, whose payload begins `done` behind the first; returns its payload's bytes. */
static inline uint32_t tcp_check_segment(const struct tcp_shape *shape, const uint8_t *frame, size_t bytes, uint32_t index,
                                         uint32_t done)
{
    uint32_t ip_at = tcp_ip_at(shape), at = tcp_at(shape), payload_at = tcp_payload_at(shape), payload;
    const uint8_t *ip = frame + ip_at, *tcp = frame + at;
    uint8_t expected_flags = shape->flags, copy[NET_SEGMENTED_MAX_BYTES];

    assert_true(bytes >= payload_at);
    payload = (uint32_t)bytes - payload_at;
    assert_memory_equal(frame, other_mac, 6);
    assert_memory_equal(frame + 6, guest_mac, 6);
    if (shape->tagged)
        assert_int_equal(get32(frame + 12), 0x8100002a);
    if (shape->ipv6) {
        assert_int_equal(get16(ip + 4), bytes - ip_at - 40);
    } else {
        assert_int_equal(get16(ip + 2), bytes - ip_at);
        assert_int_equal(get16(ip + 4), (0xfff0 + index) & 0xffff);
        assert_int_equal(checksum_fold(checksum_add(0, ip, at - ip_at)), 0xffff);
    }
    assert_int_equal(get32(tcp + 4), shape->sequence + done);
    if (done + payload < shape->payload_bytes) {
        assert_int_equal(payload, shape->segment_bytes);
        expected_flags &= 0xf6; /* FIN and PSH belong to the last */
    }
    if (index > 0)
        expected_flags &= 0x7f; /* CWR to the first */
    assert_int_equal(tcp[13], expected_flags);
    memcpy(copy, frame, bytes);
    assert_int_equal(checksum_examine(copy, bytes), CHECKSUM_RIGHT);
    assert_memory_equal(copy, frame, bytes); /* it was right and was not made so just now */
    for (uint32_t i = 0; i < payload; i++)
        if (frame[payload_at + i] != tcp_payload_byte(shape->sequence + done + i))
            fail_msg("segment %u, payload byte %u", index, i);
    return payload;
}

#endif
