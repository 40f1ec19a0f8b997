/* Counters that one thread writes and others glance at: nothing is read on the strength of them, so all is relaxed. */
#ifndef FTVMM_BASE_COUNT_H
#define FTVMM_BASE_COUNT_H

#include <stdatomic.h>

#define COUNT_ADD(counter, n) atomic_fetch_add_explicit(&(counter), (n), memory_order_relaxed)
#define COUNT_SET(counter, n) atomic_store_explicit(&(counter), (n), memory_order_relaxed)
#define COUNT_GET(counter) atomic_load_explicit(&(counter), memory_order_relaxed)

#endif
