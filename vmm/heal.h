/*
 * Healing: the backup has found that its machine is not the primary's any more. It says so through the channel, saves what
 * it knows of the difference, throws away what it is sent, and can not go live; the primary is unprotected from the moment
 * it hears of it, and sends the machine anew over the same channel, as a transfer (transfer.h) in the midst of the log:
 * START, RAM while the guest runs on, the rest and MACHINE while it stands still. From there on both are in lockstep again.
 *
 * Not with a disk, whose copy would have to be compared too, nor for a replay: there the backup ends as it finds out.
 */
#ifndef FTVMM_VMM_HEAL_H
#define FTVMM_VMM_HEAL_H

#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"
#include "vmm/transfer.h"

struct lockstep;

#define HEAL_RECENT_RECORDS 64u
#define HEAL_RECENT_BYTES   64u

/* A record as the backup fetched it; of a long one, its head. */
struct heal_recent {
    uint64_t lsn, position;
    uint32_t bytes;
    uint16_t kind;
    _Alignas(8) uint8_t payload[HEAL_RECENT_BYTES];
};

struct heal {
    /* -- machine thread -- */
    uint64_t begun;         /* primary: wishes that were taken up */
    bool active;            /* primary: and the last one is not fulfilled yet */
    struct transfer transfer;
    unsigned rounds;
    uint64_t began_ns, due_ns; /* when it was begun; when the next slice may be sent */
    uint64_t slice_end_ns;
    struct heal_recent recent[HEAL_RECENT_RECORDS]; /* backup */
    uint64_t recent_count;

    /* -- crossing threads, relaxed but where said -- */
    _Atomic uint64_t word;  /* backup: what it tells, see heal.c */
    _Atomic uint64_t asked; /* primary, I/O thread: the word as it came; H1 in heal.c */

    /* -- counters; machine thread, and of a primary the I/O thread -- */
    _Atomic uint64_t healed;
    _Atomic int64_t last_unix;     /* when the last difference was found or heard of, seconds since 1970 */
    _Atomic uint64_t last_position; /* of the backup, when it was */
    _Atomic uint64_t found_ns;     /* clock_now_ns() */
    _Atomic uint64_t took_ns;      /* from there until the last one was healed */
    _Atomic uint64_t pause_ns;     /* primary: for which the guest stood still */
    _Atomic uint64_t sent_bytes;   /* primary: of the last healing */
    _Atomic uint64_t differing_pages; /* backup: found in the last one */
};

/* ---- primary ---- */

/* I/O thread, each round: hears of a wish. */
void heal_listen(struct lockstep *ls);
/* A wish is not fulfilled yet. Any thread. */
bool heal_is_due(const struct lockstep *ls);
/* Machine thread, between two positions or halted at one: sends a slice of the machine, if one is due. 0: nothing changed.
 * 1: all has been sent, and this instant is the next position. -errno: the vCPU failed. */
int heal_serve(struct lockstep *ls);
/* Machine thread: the backup is lost, or another one. */
void heal_drop(struct lockstep *ls);
/* I/O thread: a backup has consumed the end of what was sent to it. */
void heal_done(struct lockstep *ls);

/* ---- backup, machine thread ---- */

/* Keeps what may have to be told. Per record. */
void heal_keep_record(struct lockstep *ls, const struct channel_record *record);
/* The machines differ (said in words): has the machine sent anew. 0: it is the primary's again, and stands at its position.
 * -EILSEQ: it can not be healed here. Other -errno: said in words. */
int heal_follow(struct lockstep *ls);

#endif
