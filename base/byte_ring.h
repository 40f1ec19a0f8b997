/* A small lock-free ring of bytes between one producer thread and one consumer thread (console traffic). */
#ifndef FTVMM_BASE_BYTE_RING_H
#define FTVMM_BASE_BYTE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BYTE_RING_BYTES (64u * 1024u) /* a power of two */

/* Zero-initialise. Indices run freely. */
struct byte_ring {
    _Alignas(128) _Atomic uint64_t tail; /* written by the producer */
    _Alignas(128) _Atomic uint64_t head; /* written by the consumer */
    _Alignas(128) uint8_t bytes[BYTE_RING_BYTES];
};

/* Producer. False if full. */
static inline bool byte_ring_put(struct byte_ring *ring, uint8_t byte)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* our own */

    /* A1 pairs R1: the consumer has read the slot before we write it again. */
    if (tail - atomic_load_explicit(&ring->head, memory_order_acquire) == BYTE_RING_BYTES)
        return false;
    ring->bytes[tail % BYTE_RING_BYTES] = byte;
    /* R2 pairs A2: the byte before the index. */
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    return true;
}

/* Consumer. Takes at most `room` bytes; returns how many. */
static inline size_t byte_ring_take(struct byte_ring *ring, uint8_t *out, size_t room)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); /* our own */
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire); /* A2 pairs R2 */
    size_t count = 0;

    while (head != tail && count < room)
        out[count++] = ring->bytes[head++ % BYTE_RING_BYTES];
    /* R1 pairs A1. */
    atomic_store_explicit(&ring->head, head, memory_order_release);
    return count;
}

static inline bool byte_ring_empty(const struct byte_ring *ring)
{
    return atomic_load_explicit(&ring->head, memory_order_relaxed) ==
           atomic_load_explicit(&ring->tail, memory_order_relaxed); /* a hint only */
}

#endif
