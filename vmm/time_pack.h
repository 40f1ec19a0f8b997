/*
 * Several looks at the clock in one TIME record. A guest reads its clock far more often than anything else happens to it,
 * and a record has 40 bytes of its own: so the times of many positions travel together, two bytes each as a rule. The
 * primary packs, `time_reader` takes them out one by one. No channel, no threads; wire-format.md has the bytes.
 */
#ifndef FTVMM_VMM_TIME_PACK_H
#define FTVMM_VMM_TIME_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Virtual time advances in steps of so many ns: the least that is told. */
#define TIME_STEP_NS 256u
/* Of a TIME record's payload: the first look's 8 bytes, and those behind it. Its frame has 384. */
#define TIME_PACK_BYTES_MAX 344u
#define TIME_PACK_FIRST_BYTES 8u

/* All zero: empty. */
struct time_pack {
    unsigned count; /* of looks */
    size_t bytes;   /* of payload */
    uint64_t first_position, first_ns, last_position, last_ns;
    uint8_t payload[TIME_PACK_BYTES_MAX];
};

/* Adds what a look at `position` has seen; neither is ever less than the last. False: it does not go with what is there,
 * which must be logged first; never of an empty one. */
bool time_pack_add(struct time_pack *pack, uint64_t position, uint64_t time_ns);
void time_pack_clear(struct time_pack *pack);

/* Where in a payload one is, and what that look says. */
struct time_reader {
    const uint8_t *at, *end;
    uint64_t position, time_ns;
};

/* At the first look of a TIME record, whose own position that is. False: this is no such payload. */
bool time_reader_begin(struct time_reader *reader, uint64_t position, const void *payload, size_t bytes);
/* On to the next. 1; 0: there is none; -EBADMSG: what follows is none. */
int time_reader_next(struct time_reader *reader);

#endif
