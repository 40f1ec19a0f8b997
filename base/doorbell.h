/*
 * Wakes a polling thread from its sleep between looks. To ring costs an atomic addition, and a system call only if somebody
 * sleeps. One thread listens; any may ring. Zero-initialise.
 */
#ifndef FTVMM_BASE_DOORBELL_H
#define FTVMM_BASE_DOORBELL_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

struct doorbell {
    _Atomic uint32_t rings;
    _Atomic bool asleep;
};

/* The listener, before it looks for work: what it has heard so far. */
static inline uint32_t doorbell_heard(const struct doorbell *bell)
{
    return atomic_load_explicit(&bell->rings, memory_order_acquire); /* A1 pairs R1 */
}

/* After the work has been put where the listener looks. */
static inline void doorbell_ring(struct doorbell *bell)
{
    /* R1 pairs A1. Dekker with doorbell_sleep: it stores `asleep`, then the kernel looks at `rings`; we store that, then look
     * whether it sleeps. One of the two sees the other. */
    atomic_fetch_add_explicit(&bell->rings, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&bell->asleep, memory_order_seq_cst))
        syscall(SYS_futex, &bell->rings, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* The listener, when it has found nothing: sleeps so long, or until somebody rings who has not been heard before. */
static inline void doorbell_sleep(struct doorbell *bell, uint32_t heard, uint64_t ns)
{
    struct timespec timeout = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };

    atomic_store_explicit(&bell->asleep, true, memory_order_seq_cst);
    syscall(SYS_futex, &bell->rings, FUTEX_WAIT_PRIVATE, heard, &timeout, NULL, 0);
    atomic_store_explicit(&bell->asleep, false, memory_order_relaxed);
}

#endif
