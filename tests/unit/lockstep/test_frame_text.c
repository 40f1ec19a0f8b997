/* A line about a frame: known ones, and random ones in blocks of exactly their size. */
#include "tests/unit/cmocka_prelude.h"

#include "vmm/frame_text.h"

#define ETHERNET 0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 4, 5, 6

static void expect(const uint8_t *frame, size_t bytes, const char *text)
{
    char found[FRAME_TEXT_BYTES];
    uint8_t *exact = malloc(bytes);

    memcpy(exact, frame, bytes);
    frame_text(exact, bytes, found);
    free(exact);
    assert_string_equal(found, text);
}

static void frame_known_protocols_are_named(void **state)
{
    static const uint8_t arp[42] = { ETHERNET, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 1, 1, 1, 1, 1, 1,
                                     10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2 };
    static const uint8_t udp[46] = { ETHERNET, 0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1,
                                     10, 0, 0, 2, 0, 53, 0x10, 0, 0, 12 };
    static const uint8_t ping[42] = { ETHERNET, 0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1,
                                      10, 0, 0, 2, 8 };
    static const uint8_t fragment[42] = { ETHERNET, 0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 2, 64, 6, 0, 0, 10, 0, 0, 1,
                                          10, 0, 0, 2 };
    static const uint8_t ipv6[58] = { ETHERNET, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 4, 58, 255, 0xfe, 0x80, 0, 0, 0, 0, 0, 0,
                                      0, 0, 0, 0, 0, 0, 0, 1, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 133 };
    static const uint8_t other[14] = { ETHERNET, 0x88, 0xcc };

    (void)state;
    expect(arp, sizeof(arp), "arp who has 10.0.0.2, asks 10.0.0.1");
    expect(udp, sizeof(udp), "ipv4 udp 10.0.0.1:53 > 10.0.0.2:4096 data 4");
    expect(ping, sizeof(ping), "ipv4 icmp 10.0.0.1 > 10.0.0.2 type 8 code 0");
    expect(fragment, sizeof(fragment), "ipv4 10.0.0.1 > 10.0.0.2 protocol 6 fragment");
    expect(ipv6, sizeof(ipv6), "ipv6 icmp fe80::1 > ff02::2 type 133 code 0");
    expect(other, sizeof(other), "type 0x88cc, 52:54:00:04:05:06 > 52:54:00:01:02:03");
    expect(udp, 20, "type 0x0800, 52:54:00:04:05:06 > 52:54:00:01:02:03"); /* cut in the IP header */
    expect(udp, 36, "ipv4 10.0.0.1 > 10.0.0.2 protocol 17");               /* cut in the UDP header */
    expect(other, 13, "no whole Ethernet header");
}

static void frame_of_any_bytes_is_not_read_beyond_its_end(void **state)
{
    static const uint8_t types[][2] = { { 8, 0 }, { 8, 6 }, { 0x86, 0xdd } };
    static const uint8_t protocols[] = { 1, 6, 17, 58, 0 };
    uint64_t seed = test_seed("frame text");

    (void)state;
    for (unsigned round = 0; round < 200000; round++) {
        size_t bytes = 1 + test_random(&seed) % 90;
        uint8_t *frame = malloc(bytes); /* of its own: a sanitizer sees a byte too far */
        char text[FRAME_TEXT_BYTES];

        for (size_t i = 0; i < bytes; i++)
            frame[i] = (uint8_t)test_random(&seed);
        if (bytes > 40) {
            memcpy(frame + 12, types[test_random(&seed) % 3], 2);
            frame[14] = (uint8_t)(frame[14] & 0x0f) | (test_random(&seed) % 4 ? 0x40 : 0);
            frame[frame[12] == 8 ? 23 : 20] = protocols[test_random(&seed) % 5];
        }
        frame_text(frame, bytes, text);
        assert_in_range(strlen(text), 1, FRAME_TEXT_BYTES - 1);
        for (const char *at = text; *at != '\0'; at++)
            assert_in_range((uint8_t)*at, 0x20, 0x7e);
        free(frame);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frame_known_protocols_are_named),
        cmocka_unit_test(frame_of_any_bytes_is_not_read_beyond_its_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
