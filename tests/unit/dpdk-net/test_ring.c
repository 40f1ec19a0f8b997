/* The whole of net.c over DPDK's ring port, whose output is its own input: no privilege, no interface. */
#include "support.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "dpdk-net/net.h"

#define FRAME_BYTES 64u

static struct net *net_new(uint32_t hold_frames, uint32_t receive_frames)
{
    static unsigned number;
    struct net_options options = { .hold_frames = hold_frames, .receive_frames = receive_frames };
    char port[32];
    struct net *net;

    snprintf(port, sizeof(port), "net_ring%u", number++);
    options.port = port;
    memcpy(options.mac, guest_mac, 6);
    assert_int_equal(net_open(&net, &options), 0);
    return net;
}

static int hold_value(struct net *net, uint32_t value, uint64_t lsn)
{
    uint8_t frame[FRAME_BYTES];

    frame_fill(frame, sizeof(frame), guest_mac, other_mac, value);
    return net_hold(net, frame, sizeof(frame), &finished, lsn, clock_now_ns());
}

/* The value of the next frame that came back, or -1. */
static int64_t take_value(struct net *net)
{
    size_t bytes;
    const uint8_t *frame = net_receive_peek(net, &bytes, &checksum_right);
    int64_t value;

    if (frame == NULL)
        return -1;
    assert_int_equal(bytes, FRAME_BYTES);
    value = frame_value(frame);
    net_receive_pop(net);
    return value;
}

static void live_sends_acked_frames_in_order_and_holds_the_rest(void **state)
{
    struct net *net = net_new(0, 0);
    struct net_statistics statistics;
    uint64_t before_ns = clock_now_ns();

    (void)state;
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(hold_value(net, i, 10 + i / 2), 0);
    net_poll_live(net, 9);
    assert_int_equal(net_sent_count(net), 0);
    assert_false(net_receive_waiting(net));
    net_poll_live(net, 11);
    net_poll_live(net, 11);
    assert_int_equal(net_sent_count(net), 4);
    assert_int_equal(net_held_count(net), 6);
    assert_true(net_receive_waiting(net));
    assert_true(net_receive_since_ns(net) >= before_ns && net_receive_since_ns(net) <= clock_now_ns());
    for (int64_t i = 0; i < 4; i++)
        assert_int_equal(take_value(net), i);
    assert_int_equal(take_value(net), -1);
    assert_int_equal(net_poll_live(net, 11), 0);
    net_get_statistics(net, &statistics);
    assert_int_equal(statistics.transmitted, 4);
    assert_int_equal(statistics.transmitted_bytes, 4 * FRAME_BYTES);
    assert_int_equal(statistics.received, 4);
    assert_int_equal(statistics.received_bytes, 4 * FRAME_BYTES);
    assert_int_equal(net_hold_histogram(net)->samples, 4);
    assert_true(net_hold_histogram(net)->max > 0);
    assert_int_equal(net_send_histogram(net)->samples, 4);
    assert_int_equal(net_pass_histogram(net)->samples, 0); /* each had to be acknowledged */
    net_close(net);
}

static void standby_forgets_then_live_sends_what_is_left(void **state)
{
    struct net *net = net_new(0, 0);
    struct net_statistics statistics;

    (void)state;
    for (uint32_t i = 0; i < 5; i++)
        hold_value(net, i, 0);
    net_poll_standby(net, 2);
    assert_int_equal(net_sent_count(net), 2);
    net_poll_standby(net, 3);
    assert_int_equal(net_sent_count(net), 3);
    net_poll_live(net, UINT64_MAX);
    net_poll_live(net, UINT64_MAX);
    assert_int_equal(net_sent_count(net), 5);
    assert_int_equal(take_value(net), 3);
    assert_int_equal(take_value(net), 4);
    assert_int_equal(take_value(net), -1);
    net_get_statistics(net, &statistics);
    assert_int_equal(statistics.transmitted, 2);
    assert_int_equal(net_pass_histogram(net)->samples, 2);
    assert_int_equal(net_hold_histogram(net)->samples, 0);
    net_close(net);
}

static void live_never_sends_what_the_peer_was_ahead_with(void **state)
{
    struct net *net = net_new(0, 0);

    (void)state;
    net_poll_standby(net, 2); /* the peer has sent two; this host has built none of them yet */
    for (uint32_t i = 0; i < 4; i++)
        hold_value(net, i, 0);
    net_poll_live(net, UINT64_MAX);
    net_poll_live(net, UINT64_MAX);
    assert_int_equal(take_value(net), 2);
    assert_int_equal(take_value(net), 3);
    assert_int_equal(take_value(net), -1);
    net_close(net);
}

static void standby_drops_what_arrives(void **state)
{
    struct net *net = net_new(0, 0);

    (void)state;
    hold_value(net, 1, 0);
    net_poll_live(net, UINT64_MAX); /* on its way back, or back already */
    while (take_value(net) >= 0)
        ;
    hold_value(net, 2, 0);
    net_announce(net); /* a broadcast that comes back */
    assert_true(net_poll_standby(net, 0) > 0);
    assert_false(net_receive_waiting(net));
    net_close(net);
}

static void what_has_no_room_waits_in_the_port(void **state)
{
    struct net *net = net_new(64, 4);
    struct net_statistics statistics;

    (void)state;
    for (uint32_t i = 0; i < 20; i++)
        hold_value(net, i, 0);
    for (int i = 0; i < 4; i++)
        net_poll_live(net, UINT64_MAX);
    net_get_statistics(net, &statistics);
    assert_int_equal(statistics.received, 4);
    for (int64_t i = 0; i < 20; i++) {
        assert_int_equal(take_value(net), i);
        net_poll_live(net, UINT64_MAX);
    }
    net_get_statistics(net, &statistics);
    assert_int_equal(statistics.received, 20);
    assert_int_equal(statistics.dropped_receive_full, 0);
    net_close(net);
}

static void hold_queue_full_is_counted(void **state)
{
    struct net *net = net_new(4, 0);
    struct net_statistics statistics;

    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(hold_value(net, i, 5), 0);
    assert_int_equal(hold_value(net, 4, 5), -ENOBUFS);
    net_get_statistics(net, &statistics);
    assert_int_equal(statistics.dropped_hold_full, 1);
    assert_int_equal(net_held_count(net), 5);
    net_poll_live(net, 5);
    assert_int_equal(net_sent_count(net), 5);
    assert_int_equal(hold_value(net, 5, 5), 0);
    net_close(net);
}

static void announce_reaches_the_wire(void **state)
{
    struct net *net = net_new(0, 0);
    uint8_t arp[60] = { 0 };
    const uint8_t head[10] = { 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1 };
    const uint8_t *frame;
    size_t bytes;

    (void)state;
    memset(arp, 0xff, 6); /* the guest asks for somebody, and so tells its own address */
    memcpy(arp + 6, guest_mac, 6);
    memcpy(arp + 12, head, sizeof(head));
    memcpy(arp + 22, guest_mac, 6);
    memcpy(arp + 28, (uint8_t[]){ 10, 1, 2, 3 }, 4);
    assert_int_equal(net_hold(net, arp, sizeof(arp), &finished, 7, clock_now_ns()), 0);
    net_announce(net); /* learns from frames that still wait, too */
    net_poll_live(net, 0);
    frame = net_receive_peek(net, &bytes, &checksum_right);
    assert_non_null(frame);
    assert_int_equal(frame[12] << 8 | frame[13], 0x8035);
    net_receive_pop(net);
    frame = net_receive_peek(net, &bytes, &checksum_right);
    assert_non_null(frame);
    assert_int_equal(frame[12] << 8 | frame[13], 0x0806);
    assert_memory_equal(frame + 28, ((uint8_t[]){ 10, 1, 2, 3 }), 4);
    assert_memory_equal(frame + 38, ((uint8_t[]){ 10, 1, 2, 3 }), 4);
    net_receive_pop(net);
    assert_false(net_receive_waiting(net));
    net_close(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(live_sends_acked_frames_in_order_and_holds_the_rest),
        cmocka_unit_test(standby_forgets_then_live_sends_what_is_left),
        cmocka_unit_test(live_never_sends_what_the_peer_was_ahead_with),
        cmocka_unit_test(standby_drops_what_arrives),
        cmocka_unit_test(what_has_no_room_waits_in_the_port),
        cmocka_unit_test(hold_queue_full_is_counted),
        cmocka_unit_test(announce_reaches_the_wire),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
