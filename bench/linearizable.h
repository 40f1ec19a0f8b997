/*
 * Is a history of operations on one integer linearizable: is there one order of them, each somewhere between its call and
 * its return, in which each has the outcome that it had? Several objects are checked one by one, which is as good
 * (Herlihy and Wing, 1990). The search is Wing and Gong's with Lowe's memory of where it has been.
 */
#ifndef FTVMM_BENCH_LINEARIZABLE_H
#define FTVMM_BENCH_LINEARIZABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum linearizable_kind { LINEARIZABLE_READ, LINEARIZABLE_WRITE, LINEARIZABLE_INCREMENT };

#define LINEARIZABLE_PENDING UINT64_MAX

/* What one process did; a process does one after the other. */
struct linearizable_operation {
    uint32_t process;
    enum linearizable_kind kind;
    int64_t value;      /* that it read or wrote, or that the increment came to */
    uint64_t call_ns;
    uint64_t return_ns; /* LINEARIZABLE_PENDING: no answer, so it may have happened, at any time, or not; for a read or an
                           increment `value` means nothing then. It is its process's last */
};

/* Where the search got stuck that came farthest. */
struct linearizable_failure {
    size_t placed;                            /* operations in order before */
    struct linearizable_operation operation;  /* the first to return of those that then fit nowhere */
    int64_t value;                            /* that the object had */
};

/*
 * `operations` in any order; `initial`: the value before all of them. 1: linearizable; 0: not, and `failure` says where, if
 * it is not NULL; -EINVAL: a process has two at once, or one that returns before its call; -E2BIG: undecided after
 * `states_max` different states; -ENOMEM.
 */
int linearizable_check(const struct linearizable_operation *operations, size_t count, int64_t initial, size_t states_max,
                       struct linearizable_failure *failure);

#endif
