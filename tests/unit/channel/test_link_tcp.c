/*
 * tcp, against a peer that speaks the wire format by hand: bytes in any pieces give the same records; whoever does not
 * keep to the protocol is cut off in words; damage is never delivered.
 */
#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/words.h"

#include "base/clock.h"
#include "channel/channel.h"
#include "channel/control.h"
#include "channel/join_socket.h"
#include "channel/record.h"
#include "channel/ring_memory.h"
#include "channel/send_ring.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define RING_BYTES (1u << 20)
#define LIMIT_NS   (20 * NS_PER_S)

static char address[64];
static struct sockaddr_in where;

struct head {
    uint32_t kind, bytes;
};

/* ---- a receiver of the product's, and a sender by hand ---- */

struct pair {
    struct channel_options options;
    struct channel *channel; /* the product's end */
    int result;
    int fd; /* our end */
    uint64_t frame_key;
    struct send_ring ring;
    struct ring_credit credit;
    uint8_t *memory;
};

static struct channel_options options_of(void)
{
    return (struct channel_options){ .address = address, .ring_bytes = RING_BYTES, .join_timeout_ns = 5 * NS_PER_S,
                                     .hello = { .vm = "guest", .generation = 7 } };
}

static void *open_receiver(void *argument)
{
    struct pair *pair = argument;

    pair->result = channel_open_receiver(&pair->channel, &pair->options);
    return NULL;
}

static void *open_sender(void *argument)
{
    struct pair *pair = argument;

    pair->result = channel_open_sender(&pair->channel, &pair->options);
    return NULL;
}

/* The product's end in a thread of its own, ours by the joining functions, for the wire from there on is what counts. */
static void pair_open(struct pair *pair, bool product_sends)
{
    struct join_side ours;
    struct join_socket join = { .name = address, .address = (const struct sockaddr *)&where,
                                .address_bytes = sizeof(where), .ours = &ours, .memory_fd = -1 };
    pthread_t thread;

    memset(pair, 0, sizeof(*pair));
    pair->options = options_of();
    ours = join_side_of(&pair->options);
    join.deadline = join_deadline_of(&pair->options);
    pthread_create(&thread, NULL, product_sends ? open_sender : open_receiver, pair);
    assert_int_equal(product_sends ? join_socket_receive_side(&join) : join_socket_send_side(&join), 0);
    pthread_join(thread, NULL);
    assert_int_equal(pair->result, 0);
    pair->fd = join.fd;
    if (join.listener >= 0)
        close(join.listener);
    pair->frame_key = join.log.key;
    pair->memory = ring_memory_open(RING_BYTES, "test's ring");
    assert_non_null(pair->memory);
    send_ring_init(&pair->ring, pair->memory, RING_BYTES, pair->frame_key, &pair->credit);
}

static void pair_close(struct pair *pair)
{
    close(pair->fd);
    channel_close(pair->channel);
    ring_memory_close(pair->memory, RING_BYTES);
}

static void write_all(int fd, const void *data, size_t bytes)
{
    uint64_t deadline_ns = clock_now_ns() + LIMIT_NS;

    for (size_t done = 0; done < bytes;) {
        ssize_t sent = send(fd, (const uint8_t *)data + done, bytes - done, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent > 0)
            done += (size_t)sent;
        else if (clock_now_ns() > deadline_ns || (errno != EAGAIN))
            fail_msg("cannot write: %s", strerror(errno));
    }
}

static void swallow_answers(int fd)
{
    uint8_t waste[4096];

    while (recv(fd, waste, sizeof(waste), MSG_DONTWAIT) > 0)
        ;
}

/* Bytes [from, to) of the ring, which may wrap. */
static void ring_copy(const struct pair *pair, uint64_t from, uint64_t to, uint8_t *out)
{
    for (uint64_t i = from; i < to; i++)
        *out++ = pair->memory[i & (RING_BYTES - 1)];
}

static void put(struct pair *pair, uint64_t lsn, size_t bytes)
{
    void *payload;

    assert_int_equal(send_ring_reserve(&pair->ring, 3, lsn * 10, bytes, &payload), 0);
    memset(payload, (int)(lsn & 0xff), bytes);
    assert_int_equal(send_ring_commit(&pair->ring), lsn);
}

static void send_chunk(struct pair *pair, uint64_t from, uint64_t to)
{
    static uint8_t bytes[RING_BYTES];
    struct head head = { .kind = 1, .bytes = (uint32_t)(to - from) };

    ring_copy(pair, from, to, bytes);
    write_all(pair->fd, &head, sizeof(head));
    write_all(pair->fd, bytes, to - from);
}

static void send_control(struct pair *pair, uint64_t bytes)
{
    struct control_block block = { .counter = 1, .bytes = bytes };
    struct head head = { .kind = 0, .bytes = sizeof(block) };

    block.crc = crc32c_keyed(pair->frame_key, &block, offsetof(struct control_block, crc));
    write_all(pair->fd, &head, sizeof(head));
    write_all(pair->fd, &block, sizeof(block));
}

static int next(struct pair *pair, struct channel_record *record)
{
    uint64_t deadline_ns = clock_now_ns() + LIMIT_NS;
    int result;

    while ((result = channel_next(pair->channel, record)) == -EAGAIN && clock_now_ns() < deadline_ns) {
        if (channel_poll(pair->channel) != 0)
            return channel_next(pair->channel, record) == -EAGAIN ? -EPIPE : -EIO;
        swallow_answers(pair->fd);
    }
    return result;
}

static size_t size_of(uint64_t lsn)
{
    return lsn % 97 == 0 ? CHANNEL_PAYLOAD_MAX_BYTES : lsn * 2654435761u % 3000;
}

/* ---- tests ---- */

/* Chunks of any size, each written in pieces of any size: heads torn, frames torn, pads alone, laps. */
static void bytes_in_any_pieces_give_the_same_records(void **state)
{
    static uint8_t wire[RING_BYTES + 64];
    uint64_t seed = test_seed("link_tcp"), lsn = 0, sent = 0, delivered = 0, records = 3000;
    struct pair pair;

    (void)state;
    pair_open(&pair, false);
    while (delivered < records) {
        struct channel_record record;
        uint64_t batch = 1 + test_random(&seed) % 40;
        int result;

        while (lsn < records && batch-- > 0) {
            void *payload;

            if (send_ring_reserve(&pair.ring, 3, (lsn + 1) * 10, size_of(lsn + 1), &payload) != 0)
                break;
            memset(payload, (int)((lsn + 1) & 0xff), size_of(lsn + 1));
            lsn = send_ring_commit(&pair.ring);
        }
        while (sent < pair.ring.head) {
            uint64_t to = sent + 1 + test_random(&seed) % (test_random(&seed) % 8 == 0 ? 200000 : 700);
            struct head head = { .kind = 1 };
            size_t bytes, done = 0;

            to = to < pair.ring.head ? to : pair.ring.head;
            head.bytes = (uint32_t)(to - sent);
            memcpy(wire, &head, sizeof(head));
            ring_copy(&pair, sent, to, wire + sizeof(head));
            bytes = sizeof(head) + (to - sent);
            while (done < bytes) {
                size_t piece = 1 + test_random(&seed) % (bytes > 2000 ? 60000 : 90);

                piece = piece < bytes - done ? piece : bytes - done;
                write_all(pair.fd, wire + done, piece);
                done += piece;
                if (test_random(&seed) % 3 != 0)
                    channel_poll(pair.channel);
                /* Looks amidst everything: what is not whole must not be there. */
                while ((result = channel_next(pair.channel, &record)) == 0) {
                    const uint8_t *payload = record.payload;

                    delivered++;
                    assert_int_equal(record.lsn, delivered);
                    assert_int_equal(record.bytes, size_of(delivered));
                    assert_int_equal(record.position, delivered * 10);
                    for (uint32_t i = 0; i < record.bytes; i++)
                        assert_int_equal(payload[i], delivered & 0xff);
                    channel_consume(pair.channel);
                }
                assert_int_equal(result, -EAGAIN);
            }
            sent = to;
        }
        swallow_answers(pair.fd);
        /* Credit as the receiver would give it: what it has consumed. */
        atomic_store(&pair.credit.bytes, pair.channel->receive.index);
        channel_poll(pair.channel);
    }
    assert_int_equal(delivered, records);
    assert_true(pair.ring.head > 5 * RING_BYTES);
    pair_close(&pair);
}

static void whoever_does_not_keep_to_the_protocol_is_cut_off_in_words(void **state)
{
    static const struct {
        struct head head;
        const char *said;
    } cases[] = {
        { { .kind = 1, .bytes = RING_BYTES + 1 }, "more than it has credit for" },
        { { .kind = 1, .bytes = UINT32_MAX }, "more than it has credit for" },
        { { .kind = 2, .bytes = 64 }, "unknown kind or length" },
        { { .kind = 0, .bytes = 63 }, "unknown kind or length" },
        { { .kind = 0, .bytes = 0 }, "unknown kind or length" },
        { { .kind = 0, .bytes = 64 }, "control block is damaged" }, /* of zeroes */
    };
    const uint8_t zeroes[64] = { 0 };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct channel_record record;
        struct pair pair;

        pair_open(&pair, false);
        put(&pair, 1, 100);
        send_chunk(&pair, 0, pair.ring.head);
        write_all(pair.fd, &cases[i].head, sizeof(cases[i].head));
        write_all(pair.fd, zeroes, sizeof(zeroes));
        words_begin();
        assert_int_equal(next(&pair, &record), 0); /* what came before is good */
        channel_consume(pair.channel);
        assert_int_equal(next(&pair, &record), -EPIPE);
        assert_non_null(strstr(words_end(), cases[i].said));
        assert_int_equal(channel_fence(pair.channel), 0);
        assert_int_equal(channel_next(pair.channel, &record), -ENODATA);
        pair_close(&pair);
    }
}

static void damage_is_never_delivered_and_what_came_before_it_is(void **state)
{
    uint64_t seed = test_seed("link_tcp damage");

    (void)state;
    for (int round = 0; round < 200; round++) {
        uint64_t bad = 1 + test_random(&seed) % 6, begin = 0, end = 0, bit, lsn = 0;
        struct channel_record record;
        struct pair pair;
        int result;

        pair_open(&pair, false);
        for (uint64_t i = 1; i <= 6; i++) {
            uint64_t before = pair.ring.head;

            put(&pair, i, test_random(&seed) % 500);
            if (i == bad) {
                begin = before;
                end = pair.ring.head;
            }
        }
        bit = begin * 8 + test_random(&seed) % ((end - begin) * 8);
        pair.memory[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        send_chunk(&pair, 0, pair.ring.head);
        send_control(&pair, pair.ring.head); /* a length that was damaged waits for more than there is */
        words_begin();
        while ((result = next(&pair, &record)) == 0) {
            assert_int_equal(record.lsn, ++lsn);
            channel_consume(pair.channel);
        }
        assert_int_equal(lsn, bad - 1);
        assert_int_equal(result, -EBADMSG);
        assert_int_equal(channel_next(pair.channel, &record), -EBADMSG);
        assert_non_null(strstr(words_end(), "is damaged"));
        pair_close(&pair);
    }
}

/* A receiver that claims to have seen, or consumed, what was never sent. */
static void receiver_that_claims_too_much_is_cut_off_and_acks_nothing(void **state)
{
    (void)state;
    for (int claim = 0; claim < 3; claim++) {
        struct control_block block = { .counter = 1 };
        struct head head = { .kind = 0, .bytes = sizeof(block) };
        struct pair pair;
        uint64_t deadline_ns = clock_now_ns() + LIMIT_NS;
        void *payload;

        pair_open(&pair, true);
        assert_int_equal(channel_reserve(pair.channel, 1, 1, 10, &payload), 0);
        assert_int_equal(channel_commit(pair.channel), 1);
        block.lsn = claim == 0 ? 2 : 0;
        block.bytes = claim == 1 ? 128 : 0;
        block.seen_lsn = claim == 2 ? 2 : 1;
        block.crc = crc32c_keyed(pair.frame_key, &block, offsetof(struct control_block, crc));
        words_begin();
        write_all(pair.fd, &head, sizeof(head));
        write_all(pair.fd, &block, sizeof(block));
        while (channel_poll(pair.channel) == 0)
            assert_true(clock_now_ns() < deadline_ns);
        assert_non_null(strstr(words_end(), "what was never sent"));
        assert_int_equal(channel_acked_lsn(pair.channel), 0);
        pair_close(&pair);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_in_any_pieces_give_the_same_records),
        cmocka_unit_test(whoever_does_not_keep_to_the_protocol_is_cut_off_in_words),
        cmocka_unit_test(damage_is_never_delivered_and_what_came_before_it_is),
        cmocka_unit_test(receiver_that_claims_too_much_is_cut_off_and_acks_nothing),
    };

    where = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) },
                                  .sin_port = htons((uint16_t)(10000 + (int)getpid() % 10000)) };
    snprintf(address, sizeof(address), "tcp:127.0.0.1:%u", ntohs(where.sin_port));
    return cmocka_run_group_tests_name("link tcp", tests, NULL, NULL);
}
