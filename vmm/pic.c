/* The 8259A pair: priority resolution, acknowledge, and the command words. */
#include "vmm/pic.h"

#include <string.h>

#include "vmm/state_check.h"

#define PIC_CASCADE_INPUT        2u
#define PIC_MASTER_ELCR_WRITABLE 0xF8u /* inputs 0, 1, 2 are always edge triggered; PIIX3, 2.5.13 */
#define PIC_SLAVE_ELCR_WRITABLE  0xDEu /* so are 8 and 13 */
#define PIC_FIRMWARE_SLAVE_ELCR  0x0Cu /* inputs 10 and 11 */
#define PIC_SPURIOUS_INPUT       7u

#define ICW1_SELECT               0x10u
#define ICW1_SINGLE               0x02u
#define ICW1_NEEDS_ICW4           0x01u
#define ICW4_SPECIAL_FULLY_NESTED 0x10u
#define ICW4_AUTO_EOI             0x02u
#define OCW3_SELECT               0x08u

enum { PIC_MASTER, PIC_SLAVE };

static int chip_request(const struct pic *pic, unsigned which);

/* The IRR: level inputs show their line, edge inputs their latch, the cascade input the slave's output. */
static uint8_t chip_pending(const struct pic *pic, unsigned which)
{
    const struct pic_chip *chip = &pic->chips[which];
    uint8_t pending = (chip->lines & chip->level_triggered) | (chip->edges & (uint8_t)~chip->level_triggered);

    if (which == PIC_MASTER && chip_request(pic, PIC_SLAVE) >= 0)
        pending |= 1u << PIC_CASCADE_INPUT;
    return pending;
}

/* 0 for the most urgent input, the one after `lowest`, to 7. */
static unsigned chip_rank(const struct pic_chip *chip, int input)
{
    return ((unsigned)input + 7u - chip->lowest) & 7u;
}

/* The most urgent input among `set`, or -1. */
static int chip_highest(const struct pic_chip *chip, uint8_t set)
{
    for (unsigned rank = 0; rank < 8; rank++) {
        unsigned input = (chip->lowest + 1u + rank) & 7u;

        if (set & (1u << input))
            return (int)input;
    }
    return -1;
}

/* The input for which the chip raises INT now, or -1. */
static int chip_request(const struct pic *pic, unsigned which)
{
    const struct pic_chip *chip = &pic->chips[which];
    uint8_t blocking = chip->in_service;
    int request;
    int served;

    if (chip->init_step != 0)
        return -1;
    request = chip_highest(chip, chip_pending(pic, which) & (uint8_t)~chip->mask);
    if (request < 0)
        return -1;
    if (chip->special_mask)
        blocking &= (uint8_t)~chip->mask;
    /* The master lets the slave through again, which sorts its own inputs; 8259A, special fully nested mode. */
    if (chip->special_fully_nested && which == PIC_MASTER)
        blocking &= (uint8_t) ~(1u << PIC_CASCADE_INPUT);
    served = chip_highest(chip, blocking);
    if (served < 0)
        return request;
    return chip_rank(chip, request) < chip_rank(chip, served) ? request : -1;
}

/* What INTA does to one chip for `input`. */
static void chip_acknowledge(struct pic_chip *chip, unsigned input)
{
    chip->edges &= (uint8_t) ~(1u << input);
    if (!chip->auto_eoi)
        chip->in_service |= 1u << input;
    else if (chip->rotate_on_auto_eoi)
        chip->lowest = (uint8_t)input;
}

void pic_init(struct pic *pic)
{
    memset(pic, 0, sizeof(*pic));
    for (unsigned which = PIC_MASTER; which <= PIC_SLAVE; which++) {
        pic->chips[which].mask = 0xFF;
        pic->chips[which].lowest = 7;
    }
    pic->chips[PIC_MASTER].vector_base = 0x08;
    pic->chips[PIC_MASTER].elcr_writable = PIC_MASTER_ELCR_WRITABLE;
    pic->chips[PIC_SLAVE].vector_base = 0x70;
    pic->chips[PIC_SLAVE].elcr_writable = PIC_SLAVE_ELCR_WRITABLE;
    pic->chips[PIC_SLAVE].level_triggered = PIC_FIRMWARE_SLAVE_ELCR;
}

void pic_set_line(struct pic *pic, unsigned irq, bool level)
{
    struct pic_chip *chip;
    uint8_t bit = (uint8_t)(1u << (irq & 7u));

    if (irq >= PIC_LINES || irq == PIC_CASCADE_INPUT)
        return;
    chip = &pic->chips[irq / 8];
    if (!level) {
        chip->lines &= (uint8_t)~bit;
        chip->edges &= (uint8_t)~bit;
    } else if (!(chip->lines & bit)) {
        chip->lines |= bit;
        chip->edges |= bit;
    }
}

bool pic_output(const struct pic *pic)
{
    return chip_request(pic, PIC_MASTER) >= 0;
}

uint8_t pic_acknowledge(struct pic *pic)
{
    int input = chip_request(pic, PIC_MASTER);
    unsigned which = PIC_MASTER;

    if (input < 0)
        return pic->chips[PIC_MASTER].vector_base | PIC_SPURIOUS_INPUT;
    if (input == PIC_CASCADE_INPUT) {
        int slave_input = chip_request(pic, PIC_SLAVE);

        chip_acknowledge(&pic->chips[PIC_MASTER], PIC_CASCADE_INPUT);
        input = slave_input;
        which = PIC_SLAVE;
    }
    chip_acknowledge(&pic->chips[which], (unsigned)input);
    return pic->chips[which].vector_base | (uint8_t)input;
}

static void chip_end_of_interrupt(struct pic_chip *chip, uint8_t command)
{
    unsigned operation = command >> 5;
    int input = command & 7;

    switch (operation) {
    case 0: /* rotate in automatic EOI mode, clear */
    case 4: /* and set */
        chip->rotate_on_auto_eoi = operation == 4;
        break;
    case 1: /* non-specific EOI */
    case 5: /* and rotate */
        /* In special mask mode it does not reach masked bits. */
        input = chip_highest(chip, chip->special_mask ? chip->in_service & (uint8_t)~chip->mask : chip->in_service);
        if (input < 0)
            break;
        chip->in_service &= (uint8_t) ~(1u << input);
        if (operation == 5)
            chip->lowest = (uint8_t)input;
        break;
    case 3: /* specific EOI */
    case 7: /* and rotate */
        chip->in_service &= (uint8_t) ~(1u << input);
        if (operation == 7)
            chip->lowest = (uint8_t)input;
        break;
    case 6: /* set priority */
        chip->lowest = (uint8_t)input;
        break;
    default: /* 2: no operation */
        break;
    }
}

static void chip_write_command(struct pic_chip *chip, uint8_t value)
{
    if (value & ICW1_SELECT) {
        /* 8259A, ICW1: the edge latches, IMR and ISR clear, input 7 gets the lowest priority, IRR is read. */
        chip->edges = 0;
        chip->in_service = 0;
        chip->mask = 0;
        chip->lowest = 7;
        chip->auto_eoi = false;
        chip->rotate_on_auto_eoi = false;
        chip->special_fully_nested = false;
        chip->special_mask = false;
        chip->poll = false;
        chip->read_isr = false;
        chip->single = value & ICW1_SINGLE;
        chip->needs_icw4 = value & ICW1_NEEDS_ICW4;
        chip->init_step = 2;
    } else if (value & OCW3_SELECT) {
        if (value & 0x40)
            chip->special_mask = value & 0x20;
        if (value & 0x04)
            chip->poll = true;
        else if (value & 0x02)
            chip->read_isr = value & 0x01;
    } else {
        chip_end_of_interrupt(chip, value);
    }
}

static void chip_write_data(struct pic_chip *chip, uint8_t value)
{
    switch (chip->init_step) {
    case 2:
        chip->vector_base = value & 0xF8;
        chip->init_step = !chip->single ? 3 : chip->needs_icw4 ? 4 : 0;
        break;
    case 3:
        chip->cascade = value;
        chip->init_step = chip->needs_icw4 ? 4 : 0;
        break;
    case 4:
        chip->special_fully_nested = value & ICW4_SPECIAL_FULLY_NESTED;
        chip->auto_eoi = value & ICW4_AUTO_EOI;
        chip->init_step = 0;
        break;
    default:
        chip->mask = value;
        break;
    }
}

/* A poll read is an acknowledge of this chip alone; 8259A, poll command. */
static uint8_t chip_poll(struct pic *pic, unsigned which)
{
    int input = chip_request(pic, which);

    pic->chips[which].poll = false;
    if (input < 0)
        return 0;
    chip_acknowledge(&pic->chips[which], (unsigned)input);
    return 0x80u | (uint8_t)input;
}

static uint8_t chip_read(struct pic *pic, unsigned which, bool data_port)
{
    const struct pic_chip *chip = &pic->chips[which];

    if (chip->poll)
        return chip_poll(pic, which);
    if (data_port)
        return chip->mask;
    return chip->read_isr ? chip->in_service : chip_pending(pic, which);
}

static uint8_t pic_read_byte(struct pic *pic, uint32_t port)
{
    switch (port) {
    case PIC_MASTER_PORT:
    case PIC_MASTER_PORT + 1:
        return chip_read(pic, PIC_MASTER, port & 1);
    case PIC_SLAVE_PORT:
    case PIC_SLAVE_PORT + 1:
        return chip_read(pic, PIC_SLAVE, port & 1);
    case PIC_ELCR_PORT:
    case PIC_ELCR_PORT + 1:
        return pic->chips[port - PIC_ELCR_PORT].level_triggered;
    default:
        return 0xFF;
    }
}

static void pic_write_byte(struct pic *pic, uint32_t port, uint8_t value)
{
    struct pic_chip *chip = &pic->chips[PIC_MASTER];

    switch (port) {
    case PIC_SLAVE_PORT:
        chip = &pic->chips[PIC_SLAVE];
        /* fall through */
    case PIC_MASTER_PORT:
        chip_write_command(chip, value);
        break;
    case PIC_SLAVE_PORT + 1:
        chip = &pic->chips[PIC_SLAVE];
        /* fall through */
    case PIC_MASTER_PORT + 1:
        chip_write_data(chip, value);
        break;
    case PIC_ELCR_PORT:
    case PIC_ELCR_PORT + 1:
        chip = &pic->chips[port - PIC_ELCR_PORT];
        chip->level_triggered = value & chip->elcr_writable;
        break;
    default:
        break;
    }
}

uint32_t pic_read(struct pic *pic, uint16_t port, unsigned bytes)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < bytes && i < 4; i++)
        value |= (uint32_t)pic_read_byte(pic, (uint32_t)port + i) << (8 * i);
    return value;
}

void pic_write(struct pic *pic, uint16_t port, unsigned bytes, uint32_t value)
{
    for (unsigned i = 0; i < bytes && i < 4; i++)
        pic_write_byte(pic, (uint32_t)port + i, (uint8_t)(value >> (8 * i)));
}

bool pic_fits(const struct pic *pic)
{
    for (unsigned i = 0; i < 2; i++) {
        const struct pic_chip *chip = &pic->chips[i];

        if (chip->lowest > 7 || chip->init_step == 1 || chip->init_step > 4 || !STATE_BOOL_FITS(chip->needs_icw4) ||
            !STATE_BOOL_FITS(chip->single) || !STATE_BOOL_FITS(chip->auto_eoi) ||
            !STATE_BOOL_FITS(chip->rotate_on_auto_eoi) || !STATE_BOOL_FITS(chip->special_fully_nested) ||
            !STATE_BOOL_FITS(chip->special_mask) || !STATE_BOOL_FITS(chip->poll) || !STATE_BOOL_FITS(chip->read_isr))
            return false;
    }
    return true;
}
