/*
 * The control block: what each end of a verbs or tcp link tells the other, again and again. It is heartbeat, credit
 * and (of the receiver) acknowledgment in one. The later block replaces the earlier.
 */
#ifndef FTVMM_CHANNEL_CONTROL_H
#define FTVMM_CHANNEL_CONTROL_H

#include "channel/link.h"

struct control_block {
    uint64_t counter;  /* rises with every block */
    uint64_t lsn;      /* verbs' sender: highest placed; tcp's: highest acked; receiver: highest consumed */
    uint64_t bytes;    /* verbs' sender: index up to which is placed; tcp's: up to which whole records were sent;
                          receiver: index up to which may be overwritten */
    uint64_t seen_lsn; /* receiver: highest looked at and found whole, if it looks ahead; else 0 */
    uint64_t word;     /* receiver: what it has to say (channel_tell); else 0 */
    uint64_t zero[2];
    uint32_t zero_too;
    uint32_t crc; /* of what stands before it, keyed */
};
_Static_assert(sizeof(struct control_block) == 64, "the control block is part of the wire format");

/* A sender's block. */
struct control_block control_of_sender(uint64_t counter, uint64_t key, uint64_t lsn, uint64_t bytes);
/* A receiver's, as of now. */
struct control_block control_of_receiver(const struct channel *channel, uint64_t counter, uint64_t key);
bool control_fits(const struct control_block *block, uint64_t key);

/* Sender, polling thread: takes the credits of a block that fits, as far as `limit_bytes` (what lies behind may still
 * be needed), and in mode SEEN the ack. False: it claims what was never sent; the receiver is at fault. */
bool control_take(struct channel *channel, const struct control_block *block, uint64_t limit_bytes);

#endif
