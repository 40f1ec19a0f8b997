/*
 * What the disk's guest (disk_guest.c) writes where, for the test that looks at the images. It has up to 16 requests under
 * way, checks what it reads, and says on the console, a line each: "D" and the number of a write, eight hex digits: this
 * write and all before it are durable; "S" and a number: so often it has read all its cells; "W" and a cell: it has read
 * there what it has never written. Numbers of writes are 1, 2, 3 ...
 */
#ifndef FTVMM_TESTS_DISK_GUEST_H
#define FTVMM_TESTS_DISK_GUEST_H

#include <stddef.h>
#include <stdint.h>

/* A cell is what a request is about. They lie apart, so that they are all over the disk. */
#define DISK_GUEST_CELLS       256u
#define DISK_GUEST_CELL_BYTES  512u
#define DISK_GUEST_APART_BYTES 295424u
/* The image: and a MiB that the guest does not use. */
#define DISK_GUEST_IMAGE_BYTES (DISK_GUEST_CELLS * DISK_GUEST_APART_BYTES + (1u << 20))

/* Where in memory it lies what the guest does next: whoever changes that makes another guest of it. */
#define DISK_GUEST_AREA  0x1800000ul
#define DISK_GUEST_STATE (DISK_GUEST_AREA + 0x3000)
struct disk_guest_course {
    uint64_t random; /* the clock is mixed in */
    uint64_t read;   /* cells */
};

static inline __attribute__((always_inline)) uint64_t disk_guest_mix(uint64_t number)
{
    number = (number ^ number >> 31) * 0x9E3779B97F4A7C15ul;
    number = (number ^ number >> 29) * 0xBF58476D1CE4E5B9ul;
    return number ^ number >> 32;
}

/* Where a write goes; every other one among a few, so that requests overlap. */
static inline __attribute__((always_inline)) uint32_t disk_guest_cell(uint64_t number)
{
    uint64_t mixed = disk_guest_mix(number);

    return (uint32_t)((mixed >> 8) % (mixed & 1 ? 16 : DISK_GUEST_CELLS));
}

/* What each word of the cell then holds; 0 before the first write. */
static inline __attribute__((always_inline)) uint64_t disk_guest_word(uint64_t number, uint32_t cell)
{
    return number == 0 ? 0 : (uint64_t)cell << 40 | number;
}

/* The code, wherever it is put: the section's, as the linker tells. It begins at its beginning. */
extern const uint8_t __start_disk_guest[], __stop_disk_guest[];

#endif
