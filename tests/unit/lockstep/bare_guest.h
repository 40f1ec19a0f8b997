/*
 * What guests without an operating system share: how their code is kept in one section, port I/O, and the clock. Functions
 * that are part of their caller, so that the guest stays in one piece wherever it is put in memory.
 */
#ifndef FTVMM_TESTS_UNIT_LOCKSTEP_BARE_GUEST_H
#define FTVMM_TESTS_UNIT_LOCKSTEP_BARE_GUEST_H

#include <stdint.h>

#define GUEST_PART static inline __attribute__((always_inline))

#define TSC_PORT 0xF5u /* what ftvmm makes of RDTSC */

GUEST_PART void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

GUEST_PART void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

GUEST_PART void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

GUEST_PART uint8_t in8(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

GUEST_PART uint64_t now_ns(void)
{
    uint32_t low;
    uint64_t high;

    __asm__ volatile("inl %2, %0" : "=a"(low), "=d"(high) : "i"(TSC_PORT) : "memory");
    return high << 32 | low;
}

#endif
