/*
 * The PC's interrupt controller: two 8259A chips, the second cascaded on input 2 of the first, with the
 * edge/level registers (ELCR) of the PIIX. A pure state machine: no clock, no I/O, no pointers.
 * Source: Intel 8259A data sheet (order 231468); Intel 82371SB (PIIX3) data sheet, ELCR1 and ELCR2.
 */
#ifndef FTVMM_VMM_PIC_H
#define FTVMM_VMM_PIC_H

#include <stdbool.h>
#include <stdint.h>

#define PIC_LINES       16u
#define PIC_MASTER_PORT 0x20u  /* and 0x21 */
#define PIC_SLAVE_PORT  0xA0u  /* and 0xA1 */
#define PIC_ELCR_PORT   0x4D0u /* and 0x4D1 */

struct pic_chip {
    uint8_t lines;           /* levels of the eight inputs now */
    uint8_t edges;           /* latched rises of edge-triggered inputs, the IRR's edge part */
    uint8_t in_service;      /* ISR */
    uint8_t mask;            /* IMR, OCW1 */
    uint8_t level_triggered; /* this chip's half of ELCR, one bit an input */
    uint8_t elcr_writable;
    uint8_t vector_base; /* ICW2, low three bits clear */
    uint8_t cascade;     /* ICW3 as written */
    uint8_t lowest;      /* input with the lowest priority now; 7 unless rotated */
    uint8_t init_step;   /* the ICW expected next at the odd port: 2, 3 or 4; 0 when initialised */
    bool needs_icw4;
    bool single;
    bool auto_eoi;
    bool rotate_on_auto_eoi;
    bool special_fully_nested;
    bool special_mask;
    bool poll;     /* OCW3 poll command given: the next read acknowledges */
    bool read_isr; /* OCW3: even port reads ISR instead of IRR */
};

/* All state; copy it to transfer it. vCPU thread only, like every device here. */
struct pic {
    struct pic_chip chips[2]; /* master, slave */
};

/* Power-on state, all masked, with what a PC's firmware leaves: lines 10 and 11, which PCI uses, level
 * triggered. A Linux guest without ACPI and $PIR table relies on that. */
void pic_init(struct pic *pic);

/*
 * Sets the level of input `irq` (0 to 15, not 2; others are ignored). Edge-triggered inputs latch a request
 * at the rise and forget it when the line falls before it is acknowledged, as the data sheet demands. ICW1's
 * LTIM bit has no effect, as in the PIIX: ELCR alone chooses between edge and level.
 */
void pic_set_line(struct pic *pic, unsigned irq, bool level);

/* True while INTR to the processor is raised: pic_acknowledge would give a real interrupt. */
bool pic_output(const struct pic *pic);

/* The processor's two INTA cycles: marks the interrupt in service, returns its vector. With no request left
 * it is the spurious vector of input 7, which sets no in-service bit. (Hardware shows a spurious 15 when the
 * slave loses its request between the two cycles; here they are one step, so it cannot happen.) */
uint8_t pic_acknowledge(struct pic *pic);

/* Port access, `bytes` 1, 2 or 4; a wide access touches port, port+1, ... as on the ISA bus, bytes that are
 * none of the PIC's read 0xFF and ignore writes. A read can change state (poll command). */
uint32_t pic_read(struct pic *pic, uint16_t port, unsigned bytes);
void pic_write(struct pic *pic, uint16_t port, unsigned bytes, uint32_t value);

/* Could a guest have brought the chips into this state, as far as they rely on it? For a state that came from elsewhere. */
bool pic_fits(const struct pic *pic);

#endif
