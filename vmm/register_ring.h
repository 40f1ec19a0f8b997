/*
 * The general registers at the last positions, kept by both machines of a pair: when they are found to differ, the primary
 * sends its own of the positions before that one, and the backup tells the first of them at which a register differed.
 */
#ifndef FTVMM_VMM_REGISTER_RING_H
#define FTVMM_VMM_REGISTER_RING_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

/* The primary may be ahead of the position that it is asked for. */
#define REGISTER_RING_POSITIONS 16384u
/* So many of them are told. */
#define REGISTER_RING_TOLD 1024u

struct register_ring {
    uint64_t positions[REGISTER_RING_POSITIONS]; /* 0: empty */
    struct kvm_regs regs[REGISTER_RING_POSITIONS];
};

static inline void register_ring_put(struct register_ring *ring, uint64_t position, const struct kvm_regs *regs)
{
    ring->positions[position % REGISTER_RING_POSITIONS] = position;
    ring->regs[position % REGISTER_RING_POSITIONS] = *regs;
}

/* NULL: not kept, or no more. */
static inline const struct kvm_regs *register_ring_at(const struct register_ring *ring, uint64_t position)
{
    return ring != NULL && position != 0 && ring->positions[position % REGISTER_RING_POSITIONS] == position ?
               &ring->regs[position % REGISTER_RING_POSITIONS] :
               NULL;
}

#endif
