/* Writing and reading the looks in a TIME record; see time_pack.h. */
#include "vmm/time_pack.h"

#include <errno.h>
#include <string.h>

#define NUMBER_BYTES_MAX 10u /* 64 bits in sevens */

/* Seven bits a byte, the lowest first, the topmost bit of all but the last set. Returns how many bytes. */
static size_t put_number(uint8_t *to, uint64_t value)
{
    size_t bytes = 0;

    for (; value > 0x7f; value >>= 7)
        to[bytes++] = (uint8_t)(value | 0x80);
    to[bytes++] = (uint8_t)value;
    return bytes;
}

static bool take_number(struct time_reader *reader, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; reader->at < reader->end && shift < 64; shift += 7) {
        uint8_t byte = *reader->at++;

        if (shift == 63 && byte > 1)
            return false;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

bool time_pack_add(struct time_pack *pack, uint64_t position, uint64_t time_ns)
{
    uint8_t look[2 * NUMBER_BYTES_MAX];
    size_t bytes;

    if (pack->count == 0) {
        memcpy(pack->payload, &time_ns, TIME_PACK_FIRST_BYTES);
        pack->bytes = TIME_PACK_FIRST_BYTES;
        pack->first_position = position;
        pack->first_ns = time_ns;
    } else {
        if ((time_ns - pack->last_ns) % TIME_STEP_NS != 0)
            return false;
        bytes = put_number(look, position - pack->last_position);
        bytes += put_number(look + bytes, (time_ns - pack->last_ns) / TIME_STEP_NS);
        if (pack->bytes + bytes > TIME_PACK_BYTES_MAX)
            return false;
        memcpy(pack->payload + pack->bytes, look, bytes);
        pack->bytes += bytes;
    }
    pack->count++;
    pack->last_position = position;
    pack->last_ns = time_ns;
    return true;
}

void time_pack_clear(struct time_pack *pack)
{
    pack->count = 0;
    pack->bytes = 0;
}

bool time_reader_begin(struct time_reader *reader, uint64_t position, const void *payload, size_t bytes)
{
    if (bytes < TIME_PACK_FIRST_BYTES || bytes > TIME_PACK_BYTES_MAX)
        return false;
    memcpy(&reader->time_ns, payload, TIME_PACK_FIRST_BYTES);
    reader->position = position;
    reader->at = (const uint8_t *)payload + TIME_PACK_FIRST_BYTES;
    reader->end = (const uint8_t *)payload + bytes;
    return true;
}

int time_reader_next(struct time_reader *reader)
{
    uint64_t positions, steps;

    if (reader->at == reader->end)
        return 0;
    if (!take_number(reader, &positions) || !take_number(reader, &steps) || positions > UINT64_MAX - reader->position ||
        steps > (UINT64_MAX - reader->time_ns) / TIME_STEP_NS)
        return -EBADMSG;
    reader->position += positions;
    reader->time_ns += steps * TIME_STEP_NS;
    return 1;
}
