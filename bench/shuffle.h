/* The order of a round: a permutation that a seed decides, so that a run can be repeated as it was. */
#ifndef FTVMM_BENCH_SHUFFLE_H
#define FTVMM_BENCH_SHUFFLE_H

#include <stdint.h>

/* The next number below `limit`; D. Knuth's MMIX generator, upper bits. */
static inline unsigned shuffle_next(uint64_t *state, unsigned limit)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)((*state >> 33) % limit);
}

/* Permutes 0 .. count-1 in `order` (Fisher and Yates). */
static inline void shuffle(unsigned *order, unsigned count, uint64_t *state)
{
    for (unsigned i = count; i > 1; i--) {
        unsigned j = shuffle_next(state, i), moved = order[i - 1];

        order[i - 1] = order[j];
        order[j] = moved;
    }
}

#endif
