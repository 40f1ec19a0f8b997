/*
 * A guest without an operating system that works its disk as hard as it can: a driver for virtio-blk, and what
 * disk_guest.h says. Never sleeps, takes no interrupts. Runs at CPL 0 wherever it is put in memory: all of it is in one
 * section, it refers to itself relative to RIP only, and its variables have fixed addresses.
 */
#include "tests/unit/lockstep/disk_guest.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "tests/unit/lockstep/bare_guest.h"

#define GUEST __attribute__((section("disk_guest"), used))

#define DISK_PORT   0xC080u
#define DISK_ISR    (DISK_PORT + 0x40)
#define DISK_NOTIFY (DISK_PORT + 0x44)
#define DISK_SLOT   2u
#define CONSOLE     0x3F8u
#define SIZE        64u
#define SLOTS       16u
#define SAY_EACH    64u /* writes */

/* The guest's memory, from here on. */
#define AREA     DISK_GUEST_AREA
#define DESC     (AREA + 0x0000)
#define AVAIL    (AREA + 0x1000)
#define USED     (AREA + 0x2000)
#define STATE    DISK_GUEST_STATE
#define HEADERS  (AREA + 0x8000)  /* 256 bytes each, the status in the second half */
#define BUFFERS  (AREA + 0x10000) /* 4096 each */
#define HOLDS    (AREA + 0x30000) /* 8 for each cell: the last write asked for */

struct slot {
    uint64_t busy, type;
    uint64_t cell;
    uint64_t number; /* write: its own; flush: the highest write complete when it was asked; read: what the cell then held */
};

struct state {
    struct disk_guest_course course;
    uint64_t written, complete, durable, said;
    struct slot slots[SLOTS];
};

__asm__(".pushsection disk_guest, \"ax\"\n"
        "  mov $0x1880000, %rsp\n"
        "  jmp disk_guest_main\n"
        ".popsection\n");

GUEST_PART void say(uint8_t letter, uint64_t number)
{
    out8(CONSOLE, letter);
    for (int shift = 28; shift >= 0; shift -= 4) {
        uint8_t digit = number >> shift & 15;

        out8(CONSOLE, (uint8_t)(digit < 10 ? '0' + digit : 'a' + digit - 10));
    }
    out8(CONSOLE, '\n');
}

GUEST_PART void start_card(void)
{
    volatile uint16_t *available = (void *)AVAIL;

    available[0] = VRING_AVAIL_F_NO_INTERRUPT;
    out32(0xCF8, 0x80000004 | DISK_SLOT << 11);
    out16(0xCFC, 5); /* I/O space and bus master */
    out8(DISK_PORT + VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    out32(DISK_PORT + VIRTIO_PCI_COMMON_GFSELECT, 0);
    out32(DISK_PORT + VIRTIO_PCI_COMMON_GF, 1u << VIRTIO_BLK_F_FLUSH);
    out32(DISK_PORT + VIRTIO_PCI_COMMON_GFSELECT, 1);
    out32(DISK_PORT + VIRTIO_PCI_COMMON_GF, 1); /* VERSION_1 */
    out8(DISK_PORT + VIRTIO_PCI_COMMON_STATUS,
         VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    out16(DISK_PORT + VIRTIO_PCI_COMMON_Q_SELECT, 0);
    out16(DISK_PORT + VIRTIO_PCI_COMMON_Q_SIZE, SIZE);
    out32(DISK_PORT + VIRTIO_PCI_COMMON_Q_DESCLO, DESC);
    out32(DISK_PORT + VIRTIO_PCI_COMMON_Q_AVAILLO, AVAIL);
    out32(DISK_PORT + VIRTIO_PCI_COMMON_Q_USEDLO, USED);
    out16(DISK_PORT + VIRTIO_PCI_COMMON_Q_ENABLE, 1);
    out8(DISK_PORT + VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                                   VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

GUEST_PART void ask(volatile struct state *state, unsigned number)
{
    volatile struct slot *slot = &state->slots[number];
    volatile struct virtio_blk_outhdr *header = (void *)(HEADERS + 256ul * number);
    volatile struct vring_desc *desc = (void *)(DESC + 48ul * number);
    volatile uint64_t *words = (void *)(BUFFERS + 4096ul * number), *holds = (void *)HOLDS;
    volatile uint16_t *available = (void *)AVAIL;
    uint64_t kind = (state->course.random = disk_guest_mix(state->course.random + 1)) % 8;

    slot->busy = 1;
    if (kind < 3) {
        slot->type = VIRTIO_BLK_T_IN;
        slot->cell = state->course.read++ % DISK_GUEST_CELLS;
        slot->number = holds[slot->cell];
    } else if (kind < 7) {
        slot->type = VIRTIO_BLK_T_OUT;
        slot->number = ++state->written;
        slot->cell = disk_guest_cell(slot->number);
        holds[slot->cell] = slot->number;
        for (unsigned i = 0; i < DISK_GUEST_CELL_BYTES / 8; i++)
            words[i] = disk_guest_word(slot->number, (uint32_t)slot->cell);
    } else {
        slot->type = VIRTIO_BLK_T_FLUSH;
        slot->cell = 0;
        slot->number = state->complete;
    }
    header->type = (uint32_t)slot->type;
    header->ioprio = 0;
    header->sector = slot->cell * (DISK_GUEST_APART_BYTES / 512);
    *(volatile uint8_t *)((uint64_t)header + 128) = 0xEE;
    desc[0].addr = (uint64_t)header;
    desc[0].len = 16;
    desc[0].flags = VRING_DESC_F_NEXT;
    desc[0].next = (uint16_t)(3 * number + (slot->type == VIRTIO_BLK_T_FLUSH ? 2 : 1));
    desc[1].addr = (uint64_t)words;
    desc[1].len = DISK_GUEST_CELL_BYTES;
    desc[1].flags = VRING_DESC_F_NEXT | (slot->type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0);
    desc[1].next = (uint16_t)(3 * number + 2);
    desc[2].addr = (uint64_t)header + 128;
    desc[2].len = 1;
    desc[2].flags = VRING_DESC_F_WRITE;
    available[2 + available[1] % SIZE] = (uint16_t)(3 * number);
    available[1] = (uint16_t)(available[1] + 1);
}

/* Not older than what was there when it was asked for; newer only by what has been asked for meanwhile. */
GUEST_PART void check_read(const volatile struct slot *slot, unsigned number)
{
    volatile uint64_t *words = (void *)(BUFFERS + 4096ul * number), *holds = (void *)HOLDS;
    uint64_t found = words[0] & 0xFFFFFFFFFFul;

    if (found < slot->number || found > holds[slot->cell] ||
        (found != 0 && disk_guest_cell(found) != slot->cell))
        say('W', slot->cell);
    for (unsigned i = 0; i < DISK_GUEST_CELL_BYTES / 8; i++)
        if (words[i] != disk_guest_word(found, (uint32_t)slot->cell)) {
            say('W', slot->cell);
            return;
        }
}

GUEST_PART void ended(volatile struct state *state, unsigned number)
{
    volatile struct slot *slot = &state->slots[number];

    if (*(volatile uint8_t *)(HEADERS + 256ul * number + 128) != VIRTIO_BLK_S_OK)
        say('W', slot->cell);
    slot->busy = 0;
    if (slot->type == VIRTIO_BLK_T_OUT) {
        state->complete = slot->number;
    } else if (slot->type == VIRTIO_BLK_T_IN) {
        check_read(slot, number);
        if (slot->cell == DISK_GUEST_CELLS - 1)
            say('S', state->course.read / DISK_GUEST_CELLS);
    } else {
        state->durable = slot->number;
        if (state->durable >= state->said + SAY_EACH) {
            state->said = state->durable;
            say('D', state->durable);
        }
    }
}

GUEST void disk_guest_main(void);
GUEST void disk_guest_main(void)
{
    volatile struct state *state = (void *)STATE;
    volatile uint16_t *used_index = (void *)(USED + 2);
    volatile struct vring_used_elem *used = (void *)(USED + 4);
    uint16_t taken = 0;

    start_card();
    for (;;) {
        unsigned asked = 0;

        state->course.random ^= now_ns();
        (void)in8(DISK_ISR);
        for (; *used_index != taken; taken++)
            ended(state, used[taken % SIZE].id / 3 % SLOTS);
        for (unsigned number = 0; number < SLOTS; number++)
            if (!state->slots[number].busy) {
                ask(state, number);
                asked++;
            }
        if (asked > 0)
            out16(DISK_NOTIFY, 0);
    }
}
