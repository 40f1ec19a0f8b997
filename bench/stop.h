/* SIGINT and SIGTERM end a measurement in order: what was measured is kept. The second one kills. */
#ifndef FTVMM_BENCH_STOP_H
#define FTVMM_BENCH_STOP_H

#include <signal.h>

extern volatile sig_atomic_t stop_wanted;

/* From here on they set stop_wanted. `flags`: SA_RESTART, or 0 for who waits in a call that they must interrupt. */
void stop_on_signals(int flags);

#endif
