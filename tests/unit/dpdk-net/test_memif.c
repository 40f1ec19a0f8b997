/* memif: a peer that is not there takes no frame (kept, then dropped after a long time), and one that is does. */
#include "support.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "dpdk-net/net.h"

#define FRAME_BYTES 60u
#define WAIT_NS (10 * NS_PER_S)

static struct net *net_new(const char *format)
{
    struct net_options options = { 0 };
    char port[128];
    struct net *net;

    snprintf(port, sizeof(port), format, (int)getpid());
    options.port = port;
    memcpy(options.mac, guest_mac, 6);
    assert_int_equal(net_open(&net, &options), 0);
    return net;
}

static void hold_value(struct net *net, uint32_t value)
{
    uint8_t frame[FRAME_BYTES];

    frame_fill(frame, sizeof(frame), guest_mac, other_mac, value);
    assert_int_equal(net_hold(net, frame, sizeof(frame), &finished, 1, clock_now_ns()), 0);
}

static void refused_frames_wait_then_make_room(void **state)
{
    struct net *net = net_new("memif:/tmp/ftvmm-test-alone-%d.sock");
    uint64_t start_ns = clock_now_ns();
    struct net_statistics statistics;

    (void)state;
    hold_value(net, 0);
    hold_value(net, 1);
    while (clock_now_ns() - start_ns < 800 * NS_PER_MS) {
        net_poll_live(net, 1);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_int_equal(net_sent_count(net), 0); /* still kept */
    while (net_sent_count(net) == 0 && clock_now_ns() - start_ns < WAIT_NS) {
        net_poll_live(net, 1);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_true(clock_now_ns() - start_ns >= NS_PER_S);
    assert_int_equal(net_sent_count(net), 2);
    hold_value(net, 2);
    net_poll_live(net, 1);
    assert_int_equal(net_sent_count(net), 2); /* a new one gets a time of its own */
    net_get_statistics(net, &statistics);
    assert_int_equal(statistics.dropped_transmit, 2);
    assert_int_equal(statistics.transmitted, 0);
    net_close(net);
}

static void frames_cross_between_two_ports(void **state)
{
    struct net *server = net_new("memif:/tmp/ftvmm-test-pair-%d.sock");
    struct net *client = net_new("memif:/tmp/ftvmm-test-pair-%d.sock,client");
    uint64_t deadline_ns = clock_now_ns() + WAIT_NS;
    uint32_t back = 0, forth = 0;

    (void)state;
    for (uint32_t i = 0; i < 100; i++) {
        hold_value(server, i);
        hold_value(client, 1000 + i);
    }
    while ((back < 100 || forth < 100) && clock_now_ns() < deadline_ns) {
        const uint8_t *frame;
        size_t bytes;

        if (net_poll_live(server, 1) + net_poll_live(client, 1) == 0)
            clock_sleep_ns(NS_PER_MS);
        for (; (frame = net_receive_peek(client, &bytes, &checksum_right)) != NULL; net_receive_pop(client))
            assert_int_equal(frame_value(frame), forth++);
        for (; (frame = net_receive_peek(server, &bytes, &checksum_right)) != NULL; net_receive_pop(server))
            assert_int_equal(frame_value(frame), 1000 + back++);
    }
    assert_int_equal(forth, 100);
    assert_int_equal(back, 100);
    net_close(client);
    clock_sleep_ns(100 * NS_PER_MS); /* see cable_close in test_ports.c */
    net_close(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_frames_wait_then_make_room),
        cmocka_unit_test(frames_cross_between_two_ports),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
