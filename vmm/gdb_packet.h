/*
 * What gdb asks, and what it is answered (gdb's manual, appendix "gdb Remote Serial Protocol"): framing, and the packets of
 * a target that can be looked at and run on, never written. Pure: no socket, no vCPU.
 */
#ifndef FTVMM_VMM_GDB_PACKET_H
#define FTVMM_VMM_GDB_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/guest_memory.h"
#include "vmm/vcpu.h"

#define GDB_PACKET_BYTES 4096u /* longest that is taken; what gdb sends is shorter, as it is told */
#define GDB_REPLY_BYTES  4096u /* longest that is given, its end included */

/* The guest as it stands. */
struct gdb_view {
    const struct vcpu_state *vcpu;
    const struct guest_memory *memory;
    uint64_t position, time_ns;
    const char *exit; /* what made the position */
    bool ended;
    const struct vcpu_breakpoints *breakpoints;
};

enum gdb_action {
    GDB_STAY,      /* nothing but the reply */
    GDB_NO_ACKS,   /* the reply; no packet is acknowledged from then on */
    GDB_UNTIL,     /* the reply; and the next GDB_GO_ON is to this position */
    GDB_BREAK,     /* the reply; and there is a breakpoint more, at *until */
    GDB_CLEAR,     /* the reply; and there is no breakpoint any more */
    GDB_GO_ON,     /* run; the reply comes when the guest stops */
    GDB_STEP,      /* the same, to the next position */
    GDB_DETACH,    /* the reply, and gdb leaves; the replay goes on */
    GDB_KILL,      /* end of the replay; no reply */
};

/* Answers a packet of `bytes` bytes (its payload, without $ and checksum). *until: for GDB_UNTIL; for
 * GDB_BREAK the address. */
enum gdb_action gdb_answer(const struct gdb_view *view, const char *packet, size_t bytes, char reply[GDB_REPLY_BYTES],
                           uint64_t *until);

/* Text for gdb's console, as a packet's payload. */
void gdb_console_text(const char *text, char reply[GDB_REPLY_BYTES]);

/* Takes a stream apart. Zero-initialise. */
struct gdb_reader {
    char packet[GDB_PACKET_BYTES];
    size_t bytes;
    enum { GDB_BETWEEN, GDB_WITHIN, GDB_SUM_HIGH, GDB_SUM_LOW } state;
    uint8_t sum, told;
    bool too_long;
};

enum gdb_read {
    GDB_READ_MORE,
    GDB_READ_PACKET, /* `packet`, until the next byte */
    GDB_READ_BAD,    /* a packet whose checksum is wrong: to be sent again */
    GDB_READ_STOP,   /* Ctrl-C */
};

enum gdb_read gdb_read_byte(struct gdb_reader *reader, uint8_t byte);

/* A payload of printable ASCII as it travels; returns its length, or 0 if it has no room. */
size_t gdb_frame(const char *payload, char *out, size_t room);

#endif
