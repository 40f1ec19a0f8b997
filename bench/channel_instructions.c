/*
 * channel-instructions N BYTES: moves N records of BYTES payload over shm:, one after the other, both ends on one
 * thread, so that what valgrind counts is the same in every run. bench/channel_instructions.sh runs it.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "channel/channel.h"

#define RING_BYTES (1u << 20)
#define JOIN_NS (60 * NS_PER_S) /* valgrind is slow */

static void *receiver_open(void *argument)
{
    struct channel *channel = NULL;

    return channel_open_receiver(&channel, argument) == 0 ? channel : NULL;
}

/* Records that came out as they went in. */
static uint64_t move_records(struct channel *sender, struct channel *receiver, uint64_t count, size_t bytes)
{
    uint8_t content[CHANNEL_PAYLOAD_MAX_BYTES];
    uint64_t good = 0;

    memset(content, 0x5a, bytes);
    for (uint64_t i = 0; i < count; i++) {
        struct channel_record record;
        void *payload;

        if (channel_reserve(sender, 1, i, bytes, &payload) != 0)
            break;
        memcpy(payload, content, bytes);
        channel_commit(sender);
        if (channel_next(receiver, &record) != 0)
            break;
        good += record.position == i && record.bytes == bytes && memcmp(record.payload, content, bytes) == 0;
        channel_consume(receiver);
    }
    return good;
}

int main(int argc, char **argv)
{
    uint64_t count = argc == 3 ? strtoull(argv[1], NULL, 10) : 0, begin_ns, good;
    size_t bytes = argc == 3 ? strtoull(argv[2], NULL, 10) : 0;
    char address[64];
    struct channel_options options = { .address = address, .ring_bytes = RING_BYTES, .join_timeout_ns = JOIN_NS,
                                       .hello = { .vm = "instructions", .generation = 1 } };
    struct channel *sender = NULL;
    pthread_t thread;
    void *receiver;

    if (count == 0 || bytes == 0 || bytes > CHANNEL_PAYLOAD_MAX_BYTES) {
        fprintf(stderr, "usage: channel-instructions RECORDS PAYLOAD_BYTES\n");
        return 2;
    }
    snprintf(address, sizeof(address), "shm:channel-instructions-%ld", (long)getpid());
    if (pthread_create(&thread, NULL, receiver_open, &options) != 0)
        return 1;
    if (channel_open_sender(&sender, &options) != 0 || pthread_join(thread, &receiver) != 0 || receiver == NULL)
        return 1;
    begin_ns = clock_now_ns();
    good = move_records(sender, receiver, count, bytes);
    printf("both_ends_ns_per_record %.1f\n", (double)(clock_now_ns() - begin_ns) / (double)count);
    channel_close(sender);
    channel_close(receiver);
    return good == count ? 0 : 1;
}
