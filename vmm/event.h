/*
 * The one list of record kinds, and what each carries. A record is an input of the machine, or a mark that
 * tells the backup how far it may go; it bears the position at which it takes effect.
 *
 * All payloads are little-endian plain structs (both hosts are x86-64); docs/wire-format.md has the bytes.
 */
#ifndef FTVMM_VMM_EVENT_H
#define FTVMM_VMM_EVENT_H

#include <stddef.h>
#include <stdint.h>

#include "channel/channel.h"
#include "dpdk-net/net.h"
#include "vmm/disk.h"
#include "vmm/machine_state.h"
#include "vmm/place.h"
#include "vmm/vcpu.h"

enum event_kind {
    EVENT_START = 1,    /* how the machine began; position 0; first record of every log */
    EVENT_TIME = 2,     /* input: what virtual time is, at this position and at later ones (time_pack.h) */
    EVENT_FRAME = 3,    /* input: an Ethernet frame for the guest */
    EVENT_CONSOLE = 4,  /* input: bytes typed at the console; payload: the bytes */
    EVENT_OUTPUT = 5,   /* mark: all inputs of this position are logged, and the guest has sent so many frames */
    EVENT_PROGRESS = 6, /* mark: the primary has arrived at this position */
    EVENT_PAGES = 7,    /* part of a forced sync: pages written since the last one */
    EVENT_SYNC = 8,     /* the forced sync itself: the vCPU's state at this position */
    EVENT_VERIFY = 9,   /* check: the registers on arrival at this position */
    EVENT_SEGMENT_PAGES = 10, /* check: digests of the pages written in this segment */
    EVENT_SEGMENT = 11, /* check: digest of all RAM and of the whole vCPU at this position */
    EVENT_END = 12,     /* the guest has ended at this position */
    EVENT_HANDOVER = 13, /* the primary stands at this position and logs no more: the backup is to go on from here */
    EVENT_DISK = 14,    /* input: the disk has answered a request */
    EVENT_SECTORS = 15, /* part of a transfer: contents of the disk */
    EVENT_MACHINE = 16, /* the transfer itself: all of the machine but RAM and disk, at this position */
    EVENT_LINK = 17,    /* input: the cable of the network card is in, or out */
    EVENT_PLACE = 18,   /* mark: this position is no exit, but a place that the other clock finds (place.h) */
    EVENT_STRETCH = 19, /* part of a transfer to a backup that differs: what the primary's disk holds there, by digests */
};
#define EVENT_KIND_ROOM 64 /* every kind is below */

/* The kind's name for people; "unknown" for anything else. */
const char *event_name(uint16_t kind);
/* The kind of that name (`count` characters of it); 0: there is none. */
uint16_t event_kind_named(const char *name, size_t count);

#define EVENT_CPUID_MAX 64
#define EVENT_TRANSFER_DONE 2 /* event_start.transfer, if kept: as 1, and MACHINE's position is done already */
#define EVENT_CONSOLE_MAX_BYTES 4096u

struct event_start {
    uint64_t time_ns;            /* virtual time, always 0 at present */
    int64_t unix_seconds;        /* of the CMOS clock at virtual time 0 */
    uint8_t rng_seed[32];        /* handed to the guest by the boot protocol */
    uint64_t disk_identity;      /* disk.h; 0: no disk, or `transfer` */
    uint8_t verify;              /* 1: VERIFY and SEGMENT_PAGES records will come */
    uint8_t transfer;            /* 1: the guest runs already; PAGES, SECTORS and at last a MACHINE record bring it */
    uint8_t kept;                /* 1: a backup has kept this log: DISK records carry what was read, and it may end anywhere */
    uint8_t clock;               /* enum guest_clock: how places between exits are named */
    uint32_t cpuid_entries;      /* of what follows this struct: struct kvm_cpuid_entry2 */
};

/* EVENT_TIME: of the record's own position; packed looks may follow. What is applied is one look. */
struct event_time {
    uint64_t time_ns; /* ns of virtual time, never less than the last */
};

#define EVENT_FRAME_CHECKSUM_RIGHT 1u /* the TCP or UDP checksum was seen to be right */
#define EVENT_FRAME_MAX_BYTES NET_FRAME_MAX_BYTES

/* EVENT_FRAME: the frame follows, without FCS. */
struct event_frame {
    uint32_t flags;
    uint32_t reserved;
};

struct event_link {
    uint32_t up; /* 0 or 1 */
    uint32_t reserved;
};

struct event_disk {
    uint64_t number;   /* of the request: 0, 1, 2, ... since the start */
    uint64_t digest;   /* XXH3-64 of the data read or written if the status is OK, else 0; 0 for a flush */
    uint32_t status;   /* enum virtio_blk_status: OK or IOERR */
    uint32_t bytes;    /* of data read that follow; none unless the disk is shared, or the log kept */
};

/* Of 24 bytes: the most that a record of the smallest size holds, and half of all records are of this kind. */
struct event_output {
    uint64_t digest;       /* chain over all frames built: XXH3-64 of the frame, then of what is left to be done to
                              it (struct net_offload), each seeded with the digest before */
    uint64_t register_chain; /* over all positions up to this one (lockstep.h) */
    uint32_t frames_built; /* by the guest, since the start, modulo 2^32 */
    uint32_t frames_held;  /* of them, that have not left the primary's port */
};
_Static_assert(sizeof(struct event_output) == 24, "no padding, and small");

struct event_progress {
    uint64_t frames_sent;
    uint64_t register_chain; /* as above */
};

/* EVENT_PAGES: `pages` of these, one behind the other, each with its bytes behind it. */
enum event_page_form {
    EVENT_PAGE_WHOLE = 0, /* 4096 bytes; none, if they are all zeroes */
    EVENT_PAGE_DELTA = 1, /* what has changed since the page last travelled in a forced sync, in words of 8 bytes: a word that
                             says in which of the page's stretches (bit 0: the first), for each of them a word that says
                             which of its 64 words, then all these words */
};
#define PAGES_PER_RECORD (CHANNEL_PAYLOAD_MAX_BYTES / (sizeof(struct event_page) + GUEST_PAGE_BYTES)) /* at most */
#define EVENT_STRETCHES       8u /* of 512 bytes, a page */
#define EVENT_DELTA_BYTES_MAX 3072u /* where more has changed the page travels whole */
struct event_page {
    uint64_t gpa;   /* page-aligned */
    uint32_t bytes; /* that follow */
    uint32_t form;  /* enum event_page_form; in a transfer all are whole */
};

/* EVENT_SECTORS: one block of a mirrored disk; if it is all zeroes no bytes follow. */
#define EVENT_SECTORS_MAX_BYTES 65536u
struct event_sectors {
    uint64_t offset; /* in the image, a multiple of 512 */
    uint32_t bytes;  /* of the image, a multiple of 512 up to EVENT_SECTORS_MAX_BYTES */
    uint32_t zero;   /* 1: all zeroes */
};

/* EVENT_STRETCH: digests of a stretch of a mirrored disk (disk.h), share by share. */
struct event_stretch {
    uint64_t number;
    uint64_t digests[DISK_STRETCH_SHARES];
};

struct event_machine {
    uint64_t frames_built; /* by the guest, since the start; as in event_output */
    uint64_t output_digest;
    uint64_t register_chain; /* as in event_output, up to the position before */
    struct machine_state machine;
};

/* EVENT_SYNC: a struct vcpu_state without the zeroes at its end, at least all in front of XSAVE's area; whole words. */
#define EVENT_SYNC_BYTES_MIN offsetof(struct vcpu_state, xsave)
_Static_assert(EVENT_SYNC_BYTES_MIN % 8 == 0 && sizeof(struct vcpu_state) % 8 == 0, "whole words");

struct event_segment_page {
    uint64_t page; /* number: gpa / 4096 */
    uint64_t digest;
};

struct event_segment {
    uint64_t ram_digest; /* sum over all pages of XXH3-64(contents, seed = page number) */
    struct vcpu_state vcpu;
};

struct event_end {
    uint64_t ram_digest;
    uint64_t vcpu_digest;
    uint32_t reason; /* enum event_end_reason */
    uint32_t reserved;
};

struct event_handover {
    uint64_t frames_sent;
};

enum event_end_reason {
    EVENT_END_SHUTDOWN = 1, /* triple fault: how the guest reboots */
    EVENT_END_HALTED = 2,   /* HLT with interrupts off */
    EVENT_END_STOPPED = 3,  /* the operator stopped it */
};

/* "shutdown", "halted", "stopped"; NULL for anything else. */
const char *event_end_name(uint32_t reason);

/*
 * Checks that `record` is a well-formed event: known kind, payload of a size its kind allows. Returns 0, or
 * -EBADMSG after saying what is wrong. Everything the peer sends passes here before anything looks at it.
 */
int event_check(const struct channel_record *record);

/* Takes what a record says, one named value after the other. */
struct event_reader {
    void *ctx;
    void (*number)(void *ctx, const char *name, uint64_t value);
    void (*hex)(void *ctx, const char *name, uint64_t value);       /* an address, register or digest */
    void (*text)(void *ctx, const char *name, const char *value);   /* printable ASCII */
};

/* Tells `reader` what a record says that has passed event_check. Of what would be long it tells number, place and
 * digest; of the guest's random seed the digest only. */
void event_read(const struct channel_record *record, const struct event_reader *reader);

struct event_page_count {
    uint64_t pages, zero_pages, delta_pages; /* all; of these such without bytes, and such that travel as deltas */
};
/* Adds to the counts the pages of a PAGES record that has passed event_check. */
void event_count_pages(const struct channel_record *record, struct event_page_count *count);

/* Makes bytes printable: ASCII as it is, quotes and backslashes behind a backslash, the rest as in C: \n, \r, \t, \xNN.
 * `text` has room for 4 x count + 1. */
void event_printable(const void *bytes, size_t count, char *text);

#endif
