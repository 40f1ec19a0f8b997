/*
 * A running guest on its way to a new backup: what travels, and how it is taken over. The log of the new pair begins with
 * a START that announces a transfer. PAGES and SECTORS follow, of a guest that runs on and writes them anew, round after
 * round; then the guest is stopped at a position, what was written since follows, and MACHINE: all the rest. From there
 * on the pair is in lockstep. All records but MACHINE bear position 0.
 *
 * The bulk goes out on the protector's thread (protect.h), the end on the machine thread; never both at once.
 */
#ifndef FTVMM_VMM_TRANSFER_H
#define FTVMM_VMM_TRANSFER_H

#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"
#include "vmm/event.h"

struct lockstep;

struct transfer {
    struct lockstep *ls;
    struct channel *channel;
    uint64_t *pages;    /* one bit a page: to be sent */
    /* Called when a record has gone out, and again and again while the ring is full (`full`). 0: go on; else -errno that
     * ends it. */
    int (*pause)(void *ctx, bool full);
    void *ctx;
    /* Counters; any thread reads them. */
    _Atomic uint64_t sent_pages, zero_pages, sent_blocks, sent_bytes;
};

/* What has not been sent, in bytes of RAM and disk. */
uint64_t transfer_left_bytes(const struct transfer *transfer);
/* All of RAM and disk. Any thread. */
uint64_t transfer_all_bytes(const struct transfer *transfer);
/* START, with this host's CPUID table added. As all below: 0 or -errno (-EPIPE: the link is down; what `pause` says). */
int transfer_start(struct transfer *transfer, const struct event_start *start);
/* SEGMENT_PAGES: pages that this machine has changed, of `count` (1 to 4096). Only where a machine is sent anew (heal.h). */
int transfer_list(struct transfer *transfer, const struct event_segment_page *list, size_t count);
/* VERIFY, of a position that has long been: the general registers there. Where a machine is sent anew, too. */
int transfer_registers(struct transfer *transfer, uint64_t position, const struct kvm_regs *regs);
/* STRETCH. Where a machine is sent anew, too. Calls `pause` only while the ring is full: -errno: it has not gone out. */
int transfer_stretch(struct transfer *transfer, const struct event_stretch *stretch);
/* All pages and blocks that are marked; what the guest writes meanwhile may be marked again when it returns. */
int transfer_round(struct transfer *transfer);
/* MACHINE, for the next position, which the caller makes of this instant. The vCPU is complete. *lsn: of the record. */
int transfer_machine(struct transfer *transfer, uint64_t *lsn);

/* The other side: applies what belongs to a transfer, up to and including MACHINE (*whole). `record` has passed
 * event_check. 0; -EBADMSG or -errno, said in words. Machine thread. */
int transfer_take(struct lockstep *ls, const struct channel_record *record, bool *whole);

#endif
