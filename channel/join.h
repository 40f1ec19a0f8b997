/* Joining: do the two ends belong together? What each link compares, and the sentences. */
#ifndef FTVMM_CHANNEL_JOIN_H
#define FTVMM_CHANNEL_JOIN_H

#include "channel/channel.h"

#include <stdbool.h>
#include <stdint.h>

/* Features. Those of the lower half both ends have, or neither; of the upper half an end uses what both have, so that a
 * newer end can offer what an older one has never heard of. There are none of these yet. */
#define JOIN_FEATURES_EQUAL 0xffffu
#define JOIN_FEATURE_KEY    1u /* a shared key is held, and proven */
#define JOIN_FEATURE_RESUME 2u /* PROOF names the session, GRANT what the receiver holds; who is as new as this */

/* Why a sender is refused. On the wire: never renumber. */
enum join_refusal {
    JOIN_ACCEPTED = 0,
    JOIN_NOT_FTVMM = 1,
    JOIN_VERSION = 2,
    JOIN_FEATURE = 3,
    JOIN_RING_BYTES = 4,
    JOIN_VM = 5,
    JOIN_GENERATION = 6,
    JOIN_DIGEST = 7,
    JOIN_KEY = 8,
    JOIN_USER = 9,
    JOIN_SESSION = 10, /* a broken connection is to be resumed, but not one of this receiver's */
    JOIN_FENCED = 11,  /* one of this receiver's, and it takes nothing more */
    JOIN_BUSY = 100,   /* not for good: come back later */
};

/* What one end says of itself. */
struct join_side {
    uint32_t version;
    uint32_t features;
    uint64_t ring_bytes; /* 0: of no account (file) */
    uint8_t ack;         /* enum channel_ack; the sender's counts */
    struct channel_hello hello;
};

/* Ours. */
struct join_side join_side_of(const struct channel_options *options);

/* Both ends ask the same question. A receiver's generation 0 takes the sender's. */
enum join_refusal join_compare(const struct join_side *sender, const struct join_side *receiver);
/* One line on this end: who (`peer`) was or is refused, for what, and what to do. */
void join_report_refusal(enum join_refusal refusal, const char *peer, const struct join_side *ours,
                         const struct join_side *theirs, bool ours_is_receiver);
/* A name for messages: 32 bytes of perhaps unfriendly text made printable. `text` holds 33 bytes. */
const char *join_printable(const char vm[32], char text[33]);

/* The time that open may take. */
struct join_deadline {
    uint64_t at_ns; /* UINT64_MAX: never */
    const bool *cancel;
};
struct join_deadline join_deadline_of(const struct channel_options *options);
/* 0: go on waiting; -ETIMEDOUT; -ECANCELED. */
int join_deadline_check(const struct join_deadline *deadline);

#endif
