/* A program of this machine that is run for what it says. */
#ifndef FTVMM_BENCH_CHILD_H
#define FTVMM_BENCH_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* It dies with the thread that has started it, and is driven by that thread. */
struct child {
    pid_t pid;
    int output; /* where its words come from */
    char *text; /* the caller's: what of them fits into `size` bytes, ended by a 0; the rest is lost */
    size_t size, used;
};

/* Starts argv[0], found as a shell would; `errors_too`: what it writes to standard error is among its words. 0 or
 * -errno; not installed comes out at its end. */
int child_start(struct child *child, char *const argv[], bool errors_too, char *text, size_t size);
/* Waits up to 20 ms for words. false: there will be no more. */
bool child_listen(struct child *child);
/* Waits for its end; kills it if `result`, how the caller fared so far, is not 0. That result, its exit status,
 * -ENOENT: it does not start here, or -EIO: a signal has ended it. */
int child_end(struct child *child, int result);

/* All three: as child_end, or -errno of child_start, or -ETIMEDOUT: it had not said all within the limit. */
int child_run(char *const argv[], bool errors_too, char *text, size_t size, uint64_t limit_ns);

#endif
