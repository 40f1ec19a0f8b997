/* `ftvmm log`: what a recording holds, for people and for programs. Needs neither the guest nor KVM. */
#ifndef FTVMM_VMM_LOG_H
#define FTVMM_VMM_LOG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct log_options {
    const char *path;
    bool json;              /* one object a line */
    bool summary;           /* the summary alone */
    uint64_t kinds;         /* bit n: print records of kind n; 0: all. The summary counts all in any case */
    uint64_t from, to;      /* positions, both included */
};

/*
 * Prints the log to `out` as far as it goes. The process's exit status: 0 if it was whole (or read as far as `to`);
 * 1 if it cannot be read, is damaged, or ends without the guest's end, or `out` takes no more; said in words.
 */
int log_print(const struct log_options *options, FILE *out);

#endif
