/* What a figure was measured on, and how much the machine got in the way. */
#ifndef FTVMM_BENCH_MACHINE_H
#define FTVMM_BENCH_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

/* In words, zero-terminated; travels between the ends as it is. */
struct machine {
    char cpu[96];
    char kernel[96];
    char rdma[96]; /* devices; empty: none */
    uint32_t cores;
    uint32_t virtual_machine; /* 1: under a hypervisor */
};

void machine_describe(struct machine *machine);

/* How noisy it is, measured by a loop that only looks at the clock. */
struct machine_noise {
    uint64_t looked_ns;
    uint64_t lost_ns;   /* in gaps of more than MACHINE_GAP_NS between two looks */
    uint64_t longest_ns;
    uint64_t gaps;
};
#define MACHINE_GAP_NS 2000 /* an interrupt takes longer, a look at the clock never */

/* Adds `for_ns` of looking on the CPU it runs on. */
void machine_noise_look(struct machine_noise *noise, uint64_t for_ns);

/* Time that the hypervisor took from all CPUs since the start, in ns; 0 where unknown (/proc/stat, "steal"). */
uint64_t machine_stolen_ns(void);
double machine_load(void); /* of the last minute */

#endif
