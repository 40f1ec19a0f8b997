/*
 * Healing: the backup has found that its machine is not the primary's any more. It says so through the channel, saves what
 * it knows of the difference, throws away what it is sent, and can not go live; the primary is unprotected from the moment
 * it hears of it, and sends the machine anew over the same channel, as a transfer (transfer.h) in the midst of the log:
 * START, RAM while the guest runs on, the rest and MACHINE while it stands still. From there on both are in lockstep again.
 * Of a mirrored disk the copies are compared first, and what differs is sent with RAM (heal_disk.h).
 *
 * Not for a replay: it ends as it finds out.
 */
#ifndef FTVMM_VMM_HEAL_H
#define FTVMM_VMM_HEAL_H

#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"
#include "vmm/transfer.h"

struct lockstep;

/*
 * The word: how many times the backup has wished for the machine; and the position at which it found the difference, or, as
 * an answer about its disk, the number of a stretch modulo 2^15 and one bit for each of its shares that is not the same.
 */
#define HEAL_WORD_WISHES_SHIFT  48
#define HEAL_WORD_WISHES_MASK   (UINT64_MAX << HEAL_WORD_WISHES_SHIFT)
#define HEAL_WORD_ANSWER        (UINT64_C(1) << 47)
#define HEAL_WORD_POSITION_MASK (HEAL_WORD_ANSWER - 1)
#define HEAL_WORD_STRETCH_SHIFT DISK_STRETCH_SHARES
#define HEAL_WORD_STRETCH_MASK  UINT64_C(0x7FFF)

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
    struct heal_disk *disk; /* NULL until it is needed */
    bool compared;          /* primary: heal_disk_serve is done */
    unsigned rounds, tries; /* primary: to make an end, with the guest stopped */
    uint64_t began_ns, due_ns; /* when it was begun; when the next slice may be sent */
    uint64_t slice_end_ns;
    struct heal_recent recent[HEAL_RECENT_RECORDS]; /* backup */
    uint64_t recent_count;

    /* -- crossing threads, relaxed but where said -- */
    _Atomic uint64_t word;   /* backup: what it tells; H3 in heal_disk.c */
    _Atomic uint64_t asked;  /* primary, I/O thread: the last wish, the word as it came; H1 in heal.c */
    _Atomic uint64_t answer; /* and the last answer */

    /* -- counters; machine thread, and of a primary the I/O thread -- */
    _Atomic uint64_t healed;
    _Atomic int64_t last_unix;     /* when the last difference was found or heard of, seconds since 1970 */
    _Atomic uint64_t last_position; /* of the backup, when it was */
    _Atomic uint64_t found_ns;     /* clock_now_ns() */
    _Atomic uint64_t took_ns;      /* from there until the last one was healed */
    _Atomic uint64_t pause_ns;     /* primary: for which the guest stood still */
    _Atomic uint64_t sent_bytes;   /* primary: of the last healing */
    _Atomic uint64_t differing_pages; /* backup: found in the last one */
    _Atomic uint64_t disk_compared_bytes, disk_differing_bytes; /* in the last one; shares (disk.h), so whole MiB */
    _Atomic uint64_t disk_first_differing; /* if any: where in the disk that share begins */
};

/* ---- primary ---- */

/* I/O thread, each round: hears of a wish. */
void heal_listen(struct lockstep *ls);
/* A wish is not fulfilled yet. Any thread. */
bool heal_is_due(const struct lockstep *ls);
/* Machine thread, between two positions or halted at one: sends a slice of the machine, if one is due. 0: nothing changed.
 * 1: this instant is the next position: all has been sent, or some inputs were taken. -errno: the vCPU failed. */
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
