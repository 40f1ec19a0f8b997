/*
 * What the answering guest (answering_guest.c) and its clients say to each other, each message in an Ethernet frame of
 * its own. The guest keeps a register, a counter, and for each client the last request with its answer: a request that
 * comes again is answered with the same bytes, and not carried out again. A client must open its session first, so a
 * guest that has forgotten them, because it was started anew, is found out.
 */
#ifndef FTVMM_TESTS_ANSWERING_GUEST_H
#define FTVMM_TESTS_ANSWERING_GUEST_H

#include <stddef.h>
#include <stdint.h>

#define ANSWERING_CLIENTS    8u
#define ANSWERING_ETHER_TYPE 0x88B5u /* local experimental, IEEE 802 */
#define ANSWERING_MAGIC      0x52455754u
#define ANSWERING_BALLAST    2048u /* pages that it has written before it answers, so that there is something to transfer */

enum answering_kind {
    ANSWERING_OPEN,
    ANSWERING_READ_REGISTER,
    ANSWERING_WRITE_REGISTER,
    ANSWERING_READ_COUNTER,
    ANSWERING_INCREMENT, /* answered with the value after it */
    ANSWERING_REFUSED,   /* only in answers: no session, or not its next request */
};

/* Behind the Ethernet header. Both directions alike; the last three are 0 in a request. */
struct answering_message {
    uint32_t magic;
    uint16_t client;
    uint16_t kind;
    uint64_t sequence; /* 1, 2, 3 ... of this client */
    uint64_t value;
    uint64_t operation; /* how many requests the guest has carried out, this one included */
    uint64_t time_ns;   /* the guest's clock when it did: no two lives of a guest have all of them alike */
    uint64_t check;     /* of an answer: mixes all the guest's state that matters */
};
_Static_assert(sizeof(struct answering_message) == 48, "there is no padding");

/* The code, wherever it is put: the section's, as the linker tells. It begins at its beginning. */
extern const uint8_t __start_answering_guest[], __stop_answering_guest[];

#endif
