/*
 * The PC's interval timer: an 8254 (ports 0x40 to 0x43) clocked with 1,193,182 Hz, and the system control
 * port 0x61 that gates channel 2. Its output 0 drives PIC input 0. A pure function of virtual time: every
 * answer is computed from the tick at which a counter was loaded, so nothing drifts and no tick is simulated.
 * Source: Intel 82C54 data sheet (order 231244); IBM PC/AT technical reference, port 0x61.
 */
#ifndef FTVMM_VMM_PIT_H
#define FTVMM_VMM_PIT_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/pic.h"

#define PIT_HZ           UINT64_C(1193182)
#define PIT_PORT         0x40u /* to 0x43 */
#define PIT_CONTROL_PORT 0x61u
#define PIT_IRQ          0u
#define PIT_CHANNELS     3u

struct pit_channel {
    int64_t start_tick;    /* tick at which the running count was (or will be) loaded, one after the write; while
                              `held`: the ticks that were counted before */
    int64_t reload_tick;   /* modes 2 and 3: when next_count takes over */
    uint32_t count;        /* length of the running count in ticks, 1 to 65536 (10000 in BCD); 0: never written */
    uint32_t next_count;   /* written, but waits for reload_tick or (modes 1 and 5) a trigger; 0: none */
    uint16_t latched;      /* count held by a latch command */
    uint8_t latched_bytes; /* bytes of it still to be read */
    uint8_t status;        /* status held by a read-back command */
    bool status_latched;
    uint8_t mode;   /* 0 to 5 */
    uint8_t access; /* 1 low byte, 2 high byte, 3 low then high */
    bool bcd;
    bool gate;
    bool armed;      /* counting since a write or trigger; until then the output rests */
    bool held;       /* the gate is low, which stops modes 0, 2, 3 and 4 */
    bool write_high; /* the next byte written is the high one */
    bool read_high;  /* the next byte read is the high one */
    uint8_t write_low;
};

/* All state; copy it to transfer it. */
struct pit {
    struct pit_channel channels[PIT_CHANNELS];
    int64_t tick;    /* time of the last call, in PIT ticks since VM start */
    uint8_t control; /* port 0x61 bits 0 to 3 */
};

/* `now_ns` here and below: virtual time in ns since VM start, never going back (an earlier one counts as the
 * last one). All three counters rest until the guest programs them; channel 2's gate is low. */
void pit_init(struct pit *pit, uint64_t now_ns);

/* Brings the timer to `now_ns` and PIC input 0 to output 0's level; if output 0 rose in between, however
 * often, the PIC sees one edge. Call it whenever virtual time is fixed, and before pic_output is trusted. */
void pit_advance(struct pit *pit, uint64_t now_ns, struct pic *pic);

/* Earliest virtual time at which output 0 will rise: at it pit_advance raises the edge, one ns before it does
 * not. UINT64_MAX when it will not rise without the guest's doing. As of the last call with a time. */
uint64_t pit_deadline_ns(const struct pit *pit);

/* Port access to 0x40-0x43 and 0x61, `bytes` 1, 2 or 4 (split into byte accesses). Both advance first. */
uint32_t pit_read(struct pit *pit, uint16_t port, unsigned bytes, uint64_t now_ns, struct pic *pic);
void pit_write(struct pit *pit, uint16_t port, unsigned bytes, uint32_t value, uint64_t now_ns, struct pic *pic);

/* Could a guest have brought the timer into this state by `now_ns`? For a state that came from elsewhere. */
bool pit_fits(const struct pit *pit, uint64_t now_ns);

#endif
