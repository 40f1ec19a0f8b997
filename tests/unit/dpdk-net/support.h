/* What the tests of dpdk-net share: cmocka's includes in its order, and frames. */
#ifndef FTVMM_TESTS_DPDK_NET_SUPPORT_H
#define FTVMM_TESTS_DPDK_NET_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <string.h>

#include <cmocka.h>

#define SKIPPED 77

#include "dpdk-net/net.h"

/* Nothing is left to be done to a frame. */
static const struct net_offload finished __attribute__((unused));
static bool checksum_right __attribute__((unused)); /* of the frame last received */

static const uint8_t guest_mac[6] = { 0x52, 0x54, 0x00, 0x12, 0x34, 0x56 };
static const uint8_t other_mac[6] = { 0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc };

/* A frame of an experimental type (IEEE 802, 0x88b5) whose payload repeats `value`. */
static inline void frame_fill(uint8_t *frame, size_t bytes, const uint8_t to[6], const uint8_t from[6], uint32_t value)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, from, 6);
    frame[12] = 0x88;
    frame[13] = 0xb5;
    for (size_t i = 14; i < bytes; i++)
        frame[i] = (uint8_t)(value >> (i % 4 * 8));
}

static inline uint32_t frame_value(const uint8_t *frame)
{
    return (uint32_t)frame[16] | (uint32_t)frame[17] << 8 | (uint32_t)frame[18] << 16 | (uint32_t)frame[19] << 24;
}

#endif
