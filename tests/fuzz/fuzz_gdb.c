/*
 * What gdb, or whoever connects in its place, may send to a replay: a stream of anything, taken apart and answered. The
 * guest looked at is paged, by tables that the first bytes of the input make up.
 */
#include "fuzz.h"

#include "vmm/gdb_packet.h"

#include <string.h>

#define RAM_BYTES   (16u * 4096u)
#define TABLE_BYTES 64u /* of the input: eight entries, one of each table twice */

static uint8_t ram[RAM_BYTES];
static struct vcpu_state vcpu;
static struct vcpu_breakpoints breakpoints;

static void answer(const struct gdb_view *view, struct gdb_reader *reader)
{
    char reply[GDB_REPLY_BYTES], packet[GDB_REPLY_BYTES + 8];
    struct gdb_reader back = { 0 };
    uint64_t until = 0;
    size_t bytes;

    memset(reply, 0x55, sizeof(reply));
    switch (gdb_answer(view, reader->packet, reader->bytes, reply, &until)) {
    case GDB_UNTIL:
        fuzz_check(until > view->position);
        break;
    case GDB_BREAK:
        fuzz_check(breakpoints.count < 4);
        breakpoints.count++;
        break;
    case GDB_CLEAR:
        breakpoints.count = 0;
        break;
    case GDB_STAY:
    case GDB_NO_ACKS:
    case GDB_DETACH:
        break;
    case GDB_GO_ON:
    case GDB_STEP:
    case GDB_KILL:
        return; /* no reply now */
    }
    /* What is answered has a frame, and is read as it was. */
    fuzz_check(memchr(reply, '\0', sizeof(reply)) != NULL);
    bytes = gdb_frame(reply, packet, sizeof(packet));
    fuzz_check(bytes >= 4);
    for (size_t i = 0; i < bytes; i++)
        fuzz_check(gdb_read_byte(&back, (uint8_t)packet[i]) == (i + 1 < bytes ? GDB_READ_MORE : GDB_READ_PACKET));
    fuzz_check(back.too_long || strcmp(back.packet, reply) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const struct gdb_view view = {
        .vcpu = &vcpu, .memory = &(const struct guest_memory){ .base = ram, .bytes = RAM_BYTES }, .position = 4711,
        .exit = "io", .breakpoints = &breakpoints,
    };
    struct gdb_reader reader = { 0 };

    if (bytes < TABLE_BYTES + 1)
        return 0;
    memset(ram, 0, sizeof(ram));
    for (unsigned i = 0; i < TABLE_BYTES / 8; i++) /* the first entry and the last of four tables */
        memcpy(ram + (i / 2 + 1) * 4096 + (i % 2) * 511 * 8, data + 8 * i, 8);
    vcpu.sregs.cr3 = 4096;
    vcpu.sregs.cr0 = (uint64_t)(data[TABLE_BYTES] & 1) << 31;
    for (size_t i = TABLE_BYTES + 1; i < bytes; i++)
        if (gdb_read_byte(&reader, data[i]) == GDB_READ_PACKET)
            answer(&view, &reader);
    return 0;
}
