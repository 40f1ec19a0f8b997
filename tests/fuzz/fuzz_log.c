/*
 * The reader of log files. First byte: 0: the rest is the file; else a good head is put in front of the rest, and with
 * bit 1 checksums and sequence words are mended, which no fuzzer guesses.
 */
#include "fuzz.h"

#include "channel/link.h"
#include "channel/record.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEY        UINT64_C(0x0123456789abcdef)
#define HEAD_BYTES 128u
#define FILE_BYTES (1u << 20)

/* As docs/wire-format.md has it, not as link_file.c does. */
static void head_put(uint8_t *head)
{
    uint32_t version = WIRE_VERSION, crc;
    uint64_t key = KEY;

    memset(head, 0, HEAD_BYTES);
    memcpy(head, "FTVMMLOG", 8);
    memcpy(head + 8, &version, 4);
    memcpy(head + 16, &key, 8);
    crc = crc32c_keyed(KEY, head, HEAD_BYTES - 4);
    memcpy(head + HEAD_BYTES - 4, &crc, 4);
}

static bool head_is_whole(const uint8_t *head)
{
    uint64_t key;
    uint32_t crc;

    memcpy(&key, head + 16, 8);
    memcpy(&crc, head + HEAD_BYTES - 4, 4);
    return crc == crc32c_keyed(key, head, HEAD_BYTES - 4);
}

static void mend(uint8_t *frames, uint64_t bytes)
{
    uint64_t at = 0, lsn = 1;

    while (bytes - at >= FRAME_ALIGN_BYTES) {
        struct frame_header *header = (struct frame_header *)(frames + at);
        uint64_t whole = header->flags == FRAME_FLAG_PAD ? FRAME_ALIGN_BYTES : frame_bytes(header->bytes);

        if (whole > bytes - at || header->magic[0] == 0) /* a zero ends the mending */
            return;
        header->lsn = lsn;
        *(uint64_t *)(frames + at + whole - 8) = KEY ^ lsn;
        header->crc = crc32c(crc32c_keyed(KEY, header, offsetof(struct frame_header, crc)), header + 1,
                             whole - sizeof(*header));
        lsn += header->flags != FRAME_FLAG_PAD;
        if (header->flags == FRAME_FLAG_PAD && (header->bytes % FRAME_ALIGN_BYTES != 0 || header->bytes > bytes - at))
            return;
        at += header->flags == FRAME_FLAG_PAD && header->bytes > 0 ? header->bytes : whole;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static uint8_t *content;
    static int fd = -1;
    struct channel_options options = { .join_timeout_ns = 0 };
    struct channel_statistics statistics;
    struct channel_record record;
    struct channel *channel;
    char address[64];
    uint64_t records = 0, file_bytes;
    int result;

    if (bytes < 1 || bytes > FILE_BYTES)
        return 0;
    if (fd < 0) {
        fd = memfd_create("log", 0);
        content = aligned_alloc(FRAME_ALIGN_BYTES, HEAD_BYTES + FILE_BYTES);
    }
    file_bytes = bytes - 1;
    if (data[0] == 0) {
        memcpy(content, data + 1, file_bytes);
    } else {
        head_put(content);
        memcpy(content + HEAD_BYTES, data + 1, file_bytes);
        if ((data[0] & 2) != 0)
            mend(content + HEAD_BYTES, file_bytes);
        file_bytes += HEAD_BYTES;
    }
    fuzz_check(ftruncate(fd, 0) == 0 && pwrite(fd, content, file_bytes, 0) == (ssize_t)file_bytes);
    snprintf(address, sizeof(address), "file:/proc/self/fd/%d", fd);
    options.address = address;
    result = channel_open_receiver(&channel, &options);
    if (result != 0) {
        fuzz_check(data[0] == 0 && (result == -EPROTO || result == -EBADMSG) && channel == NULL);
        return 0;
    }
    fuzz_check(file_bytes >= HEAD_BYTES && memcmp(content, "FTVMMLOG", 8) == 0 && head_is_whole(content));
    while ((result = channel_next(channel, &record)) == 0) {
        fuzz_check(record.lsn == ++records);
        fuzz_check(record.bytes <= CHANNEL_PAYLOAD_MAX_BYTES);
        fuzz_touch(record.payload, record.bytes);
        channel_consume(channel);
        fuzz_check(channel_consumed_lsn(channel) == records);
    }
    channel_get_statistics(channel, &statistics);
    fuzz_check(statistics.records == records && statistics.record_bytes % FRAME_ALIGN_BYTES == 0);
    fuzz_check(HEAD_BYTES + statistics.record_bytes <= file_bytes);
    fuzz_check(result == -ENODATA || result == -EBADMSG);
    fuzz_check(channel_next(channel, &record) == result);
    channel_close(channel);
    return 0;
}
