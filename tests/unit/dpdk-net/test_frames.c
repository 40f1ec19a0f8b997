/* What is learned from the guest's frames, the announcements byte by byte, and the checksum completion. */
#include "support.h"

#include "dpdk-net/announce.h"
#include "dpdk-net/checksum.h"

static const uint8_t everybody[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
static const uint8_t link_local[16] = { 0xfe, 0x80, [8] = 0x50, 0x54, 0x00, 0xff, 0xfe, 0x12, 0x34, 0x56 };
static const uint8_t global[16] = { 0x20, 0x01, 0x0d, 0xb8, [15] = 0x02 };

static struct announce guest(void)
{
    struct announce announce = { 0 };

    announce_set_mac(&announce, guest_mac);
    return announce;
}

static void learn_arp(struct announce *announce, const uint8_t from[6], uint8_t last)
{
    uint8_t frame[60] = { 0 };
    const uint8_t head[10] = { 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1 };

    memcpy(frame, everybody, 6);
    memcpy(frame + 6, from, 6);
    memcpy(frame + 12, head, sizeof(head));
    memcpy(frame + 22, from, 6);
    memcpy(frame + 28, (uint8_t[]){ 192, 168, 7, last }, 4);
    announce_learn(announce, frame, sizeof(frame));
}

static void learn_ipv4(struct announce *announce, const uint8_t source[4])
{
    uint8_t frame[60] = { 0 };

    memcpy(frame, other_mac, 6);
    memcpy(frame + 6, guest_mac, 6);
    frame[12] = 0x08;
    frame[14] = 0x45;
    memcpy(frame + 26, source, 4);
    announce_learn(announce, frame, sizeof(frame));
}

/* type 0: not NDP but TCP. */
static void learn_ipv6(struct announce *announce, const uint8_t source[16], uint8_t type, const uint8_t target[16])
{
    uint8_t frame[86] = { 0 };

    memcpy(frame, other_mac, 6);
    memcpy(frame + 6, guest_mac, 6);
    frame[12] = 0x86;
    frame[13] = 0xdd;
    frame[14] = 0x60;
    frame[19] = 32;
    frame[20] = type != 0 ? 58 : 6;
    frame[21] = 255;
    memcpy(frame + 22, source, 16);
    frame[54] = type;
    memcpy(frame + 62, target, 16);
    announce_learn(announce, frame, sizeof(frame));
}

static unsigned count(const struct announce *announce)
{
    uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES];
    unsigned frames = 0;

    while (announce_build(announce, frames, frame) > 0)
        frames++;
    return frames;
}

static void rarp_is_as_specified(void **state)
{
    struct announce announce = guest();
    uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES];
    const uint8_t expected[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x80, 0x35,
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x03,             /* Ethernet, IPv4, 6, 4, reverse request */
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x00, 0x00, 0x00, 0x00, /* sender */
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x00, 0x00, 0x00, 0x00, /* target */
    };

    (void)state;
    assert_int_equal(announce_build(&announce, 0, frame), 60);
    assert_memory_equal(frame, expected, 60);
    assert_int_equal(announce_build(&announce, 1, frame), 0);
}

static void gratuitous_arp_is_as_specified(void **state)
{
    struct announce announce = guest();
    uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES];
    const uint8_t expected[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x08, 0x06,
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01,
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192,  168,  7,    9,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 192,  168,  7,    9,
    };

    (void)state;
    learn_arp(&announce, guest_mac, 9);
    assert_int_equal(announce_build(&announce, 1, frame), 60);
    assert_memory_equal(frame, expected, 60);
    assert_int_equal(announce_build(&announce, 2, frame), 0);
}

static void unsolicited_na_is_as_specified(void **state)
{
    struct announce announce = guest();
    uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES];
    const uint8_t expected[86] = {
        0x33, 0x33, 0x00, 0x00, 0x00, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x86, 0xdd,
        0x60, 0x00, 0x00, 0x00, 0x00, 0x20, 0x3a, 0xff,
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0x00, 0xff, 0xfe, 0x12, 0x34, 0x56,
        0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
        0x88, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00,
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0x00, 0xff, 0xfe, 0x12, 0x34, 0x56,
        0x02, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56,
    };

    (void)state;
    learn_ipv6(&announce, link_local, 135, global);
    assert_int_equal(announce_build(&announce, 1, frame), 86);
    /* a receiver's check: all of it with the pseudo-header gives 0xffff */
    assert_int_equal(checksum_fold(checksum_add(58 + 32, frame + 22, 32 + 32)), 0xffff);
    memset(frame + 56, 0, 2);
    assert_memory_equal(frame, expected, 86);
    assert_int_equal(announce_build(&announce, 2, frame), 0);
}

static void claims_outrank_mere_use(void **state)
{
    struct announce announce = guest();
    uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES];

    (void)state;
    learn_ipv4(&announce, (uint8_t[]){ 172, 17, 0, 2 });
    learn_ipv6(&announce, global, 0, global);
    assert_int_equal(count(&announce), 3);
    announce_build(&announce, 1, frame);
    assert_memory_equal(frame + 28, ((uint8_t[]){ 172, 17, 0, 2 }), 4);
    learn_arp(&announce, guest_mac, 9);
    learn_ipv6(&announce, link_local, 136, link_local);
    assert_int_equal(count(&announce), 3);
    announce_build(&announce, 1, frame);
    assert_memory_equal(frame + 28, ((uint8_t[]){ 192, 168, 7, 9 }), 4);
    announce_build(&announce, 2, frame);
    assert_memory_equal(frame + 22, link_local, 16);
}

static void what_is_no_address_is_not_learned(void **state)
{
    static const uint8_t unspecified[16], loopback[16] = { [15] = 1 }, multicast[16] = { 0xff, 0x02, [15] = 1 };
    struct announce announce = guest();
    uint8_t runt[20] = { 0 };

    (void)state;
    learn_ipv4(&announce, (uint8_t[]){ 0, 0, 0, 0 });
    learn_ipv4(&announce, (uint8_t[]){ 127, 0, 0, 1 });
    learn_ipv4(&announce, (uint8_t[]){ 224, 0, 0, 1 });
    learn_ipv4(&announce, (uint8_t[]){ 255, 255, 255, 255 });
    learn_ipv6(&announce, unspecified, 135, link_local); /* duplicate address detection */
    learn_ipv6(&announce, loopback, 0, loopback);
    learn_ipv6(&announce, multicast, 0, multicast);
    learn_arp(&announce, other_mac, 9); /* not the guest's */
    memcpy(runt + 6, guest_mac, 6);
    for (unsigned type = 0; type < 3; type++) {
        memcpy(runt + 12, (uint8_t[3][2]){ { 8, 0 }, { 8, 6 }, { 0x86, 0xdd } }[type], 2);
        for (size_t bytes = 0; bytes <= sizeof(runt); bytes++)
            announce_learn(&announce, runt, bytes);
    }
    assert_int_equal(count(&announce), 1);
}

static void many_addresses_keep_the_latest(void **state)
{
    struct announce announce = guest();
    uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES];
    bool seen[100] = { false };

    (void)state;
    for (int round = 0; round < 3; round++)
        for (uint8_t i = 1; i < 100; i++)
            learn_arp(&announce, guest_mac, i);
    assert_int_equal(count(&announce), 1 + ANNOUNCE_ADDRESSES);
    for (unsigned i = 1; announce_build(&announce, i, frame) > 0; i++)
        seen[frame[31]] = true;
    for (uint8_t i = 100 - ANNOUNCE_ADDRESSES; i < 100; i++)
        assert_true(seen[i]);
}

/* ---- checksums ---- */

/* TCP over IPv4, 5 bytes of data, with the field as an offloading sender leaves it. */
static size_t build_partial_tcp(uint8_t *frame)
{
    size_t segment_bytes = 20 + 5;
    uint16_t pseudo;

    frame_fill(frame, 60, guest_mac, other_mac, 0);
    memset(frame + 12, 0, 60 - 12);
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[17] = (uint8_t)(20 + segment_bytes);
    frame[20] = 0x40; /* don't fragment */
    frame[23] = 6;
    memcpy(frame + 26, (uint8_t[]){ 10, 0, 0, 1, 10, 0, 0, 2 }, 8);
    memcpy(frame + 34, (uint8_t[]){ 0x12, 0x34, 0x18, 0xeb, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18 }, 14);
    memcpy(frame + 54, "odd!\n", 5);
    pseudo = checksum_fold(checksum_add(6 + (uint32_t)segment_bytes, frame + 26, 8));
    frame[50] = (uint8_t)(pseudo >> 8);
    frame[51] = (uint8_t)pseudo;
    return 60; /* one byte of padding, which is no part of it */
}

static uint16_t tcp_check(const uint8_t *frame)
{
    return checksum_fold(checksum_add(checksum_add(6 + 25, frame + 26, 8), frame + 34, 25));
}

static void partial_checksum_is_finished(void **state)
{
    uint8_t frame[60], before[60];
    size_t bytes = build_partial_tcp(frame);

    (void)state;
    assert_int_not_equal(tcp_check(frame), 0xffff);
    assert_int_equal(checksum_examine(frame, bytes), CHECKSUM_RIGHT);
    assert_int_equal(tcp_check(frame), 0xffff);
    memcpy(before, frame, sizeof(frame));
    assert_int_equal(checksum_examine(frame, bytes), CHECKSUM_RIGHT); /* once is enough */
    assert_memory_equal(frame, before, sizeof(frame));
}

static void wrong_checksum_stays_wrong(void **state)
{
    uint8_t frame[60], before[60];
    size_t bytes = build_partial_tcp(frame);

    (void)state;
    frame[51] ^= 1;
    memcpy(before, frame, sizeof(frame));
    assert_int_equal(checksum_examine(frame, bytes), CHECKSUM_WRONG);
    assert_memory_equal(frame, before, sizeof(frame));
}

static void cut_or_fragmented_frames_are_left_alone(void **state)
{
    uint8_t frame[60], before[60];
    size_t whole = build_partial_tcp(frame);

    (void)state;
    memcpy(before, frame, sizeof(frame));
    for (size_t bytes = 0; bytes < 14 + 20 + 25; bytes++)
        assert_int_equal(checksum_examine(frame, bytes), CHECKSUM_UNKNOWN);
    frame[20] = 0x20; /* more fragments */
    before[20] = 0x20;
    assert_int_equal(checksum_examine(frame, whole), CHECKSUM_UNKNOWN);
    assert_memory_equal(frame, before, sizeof(frame));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rarp_is_as_specified),
        cmocka_unit_test(gratuitous_arp_is_as_specified),
        cmocka_unit_test(unsolicited_na_is_as_specified),
        cmocka_unit_test(claims_outrank_mere_use),
        cmocka_unit_test(what_is_no_address_is_not_learned),
        cmocka_unit_test(many_addresses_keep_the_latest),
        cmocka_unit_test(partial_checksum_is_finished),
        cmocka_unit_test(wrong_checksum_stays_wrong),
        cmocka_unit_test(cut_or_fragmented_frames_are_left_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
