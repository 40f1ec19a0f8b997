/*
 * The frame decoder over a ring with anything in it. First byte: bit 0: mend checksums and sequence words, which no
 * fuzzer guesses; bits 1 and 2: the ring's size. Second: how much of the ring counts as filled. Then the ring; what is
 * missing repeats from the start.
 */
#include "fuzz.h"

#include "channel/receive_ring.h"

#include <stdbool.h>
#include <string.h>

#define KEY UINT64_C(0x0123456789abcdef)

/* Bytes of the frame at `frame`, if it fits into `room`; else 0. */
static uint64_t length_of(const struct frame_header *header, uint64_t room)
{
    uint64_t whole = header->flags == FRAME_FLAG_PAD ? FRAME_ALIGN_BYTES : frame_bytes(header->bytes);

    return whole <= room ? whole : 0;
}

/* Gives frames, from the first on, the LSN, the sequence word and the checksum that are due, as far as the lengths that
 * stand there lead. */
static void mend(uint8_t *ring, uint64_t ring_bytes)
{
    uint64_t index = 0, lsn = 1, whole;

    while (index < ring_bytes) {
        struct frame_header *header = (struct frame_header *)(ring + index);

        whole = length_of(header, ring_bytes - index);
        if (whole == 0 || header->magic[0] == 0) /* a zero ends the mending, so that ends can be anything */
            return;
        header->lsn = lsn;
        *(uint64_t *)(ring + index + whole - 8) = KEY ^ lsn;
        header->crc = crc32c(crc32c_keyed(KEY, header, offsetof(struct frame_header, crc)), header + 1,
                             whole - sizeof(*header));
        index += header->flags == FRAME_FLAG_PAD ? ring_bytes : whole;
        lsn += header->flags != FRAME_FLAG_PAD;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint64_t ring_bytes, available, records = 0;
    struct receive_ring ring;
    struct ring_credit credit = { 0 };
    struct channel_record record;
    enum frame_state state;
    bool some;
    uint8_t *memory;

    if (bytes < 3)
        return 0;
    ring_bytes = UINT64_C(512) << (data[0] >> 1 & 3);
    some = data[1] != 0;
    available = some ? (uint64_t)data[1] * FRAME_ALIGN_BYTES : UINT64_MAX;
    memory = aligned_alloc(FRAME_ALIGN_BYTES, ring_bytes);
    for (uint64_t i = 0; i < ring_bytes; i++)
        memory[i] = data[2 + i % (bytes - 2)];
    if ((data[0] & 1) != 0)
        mend(memory, ring_bytes);
    receive_ring_init(&ring, memory, ring_bytes, KEY, &credit);
    for (;;) {
        uint64_t index = ring.index;
        struct channel_record again;

        state = receive_ring_look(&ring, some ? available - index : UINT64_MAX, &record);
        fuzz_check(state != FRAME_PAD);
        fuzz_check(ring.index % FRAME_ALIGN_BYTES == 0 && ring.index >= index);
        fuzz_check(!some || ring.index <= available);
        fuzz_check(ring.index == index || ring.index % ring_bytes == 0); /* a pad leads to the ring's start */
        if (state != FRAME_COMPLETE)
            break;
        fuzz_check(record.lsn == records + 1);
        fuzz_check(record.bytes <= CHANNEL_PAYLOAD_MAX_BYTES);
        fuzz_check((const uint8_t *)record.payload >= memory &&
                   (const uint8_t *)record.payload + record.bytes <= memory + ring_bytes);
        fuzz_check(receive_ring_look(&ring, 0, &again) == FRAME_COMPLETE);
        fuzz_check(memcmp(&again, &record, sizeof(record)) == 0);
        fuzz_touch(record.payload, record.bytes);
        receive_ring_consume(&ring);
        records++;
        fuzz_check(credit.lsn == records && credit.bytes == ring.index);
        /* A place holds one frame of one LSN. */
        fuzz_check(records <= ring_bytes / FRAME_ALIGN_BYTES);
    }
    free(memory);
    return 0;
}
