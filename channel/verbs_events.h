/* rdma_cm, as the verbs link and the witness both use it: its events, and what one that was not hoped for means. */
#ifndef FTVMM_CHANNEL_VERBS_EVENTS_H
#define FTVMM_CHANNEL_VERBS_EVENTS_H

#include <stddef.h>
#include <stdint.h>

#include <rdma/rdma_cma.h>

#define VERBS_RESOLVE_TIMEOUT_MS 2000

/* Time to IBV_WC_RETRY_EXC_ERR is about (6 + 1) * 4.096 us * 2^14 = 0.47 s (IBTA 1.4, 9.7.6.1.3). Shorter ones
 * failed without cause on soft-RoCE, and its 7 means "for ever". */
#define VERBS_RETRY_COUNT 6
#define VERBS_ACK_TIMEOUT 14
/*
 * Soft-RoCE sends a long write again from its middle when an ACK is late, and its responder then refuses the
 * rest ("remote invalid request"): seen in hosts whose CPUs are busy, where an ACK easily takes 100 ms. Nothing is
 * lost there, so it is given 4.096 us x 2^19 = 2.1 s. The heartbeat finds a dead peer long before.
 */
#define VERBS_ACK_TIMEOUT_SOFT 19
#define VERBS_VENDOR_SOFT      0xFFFFFFu /* RXE_VENDOR_ID, drivers/infiniband/sw/rxe/rxe_param.h */

/* One whose descriptor does not block. 0 or -errno; says nothing. */
int verbs_events_create(struct rdma_event_channel **events);
/* Waits for the next event, for 20 ms at most: so late may a cancellation be noticed. 0 with *event, which the caller
 * acks; -EAGAIN: none yet. */
int verbs_event_wait(struct rdma_event_channel *events, struct rdma_cm_event **event);
/* Translates an event that is not the one hoped for. -EAGAIN: try again, *why says for what reason; -ENODEV: the
 * address is not reached through an RDMA device. */
int verbs_event_failed(const struct rdma_cm_event *event, const char **why);

/* For this device; before connecting or accepting. 0 or -errno. */
int verbs_ack_timeout_set(struct rdma_cm_id *id);
/* PREFIX:HOST:PORT of the peer, for messages. */
void verbs_peer_name(struct rdma_cm_id *id, const char *prefix, char *text, size_t bytes);

#endif
