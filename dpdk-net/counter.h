/* Event counters: one writer, any readers. */
#ifndef FTVMM_DPDK_NET_COUNTER_H
#define FTVMM_DPDK_NET_COUNTER_H

#include <stdatomic.h>
#include <stdint.h>

/* Relaxed: a count orders nothing. Load and store, not fetch_add: there is one writer, so no locked bus. */
static inline void counter_add(_Atomic uint64_t *counter, uint64_t more)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);

    atomic_store_explicit(counter, value + more, memory_order_relaxed);
}

static inline uint64_t counter_read(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

#endif
