/*
 * The guest's network on a DPDK port: frames that arrive wait for the guest, frames that leave are held
 * until their LSN is acknowledged. Knows no guest and no records: an LSN is a uint64_t.
 *
 * Two threads: the *machine* thread (which runs the vCPU) and the *I/O* thread (which polls). Each function
 * says whose it is. Between them are two lock-free single-producer single-consumer rings.
 */
#ifndef FTVMM_DPDK_NET_NET_H
#define FTVMM_DPDK_NET_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/histogram.h"

#define NET_FRAME_MAX_BYTES 1518u /* Ethernet header, 1500 bytes, one VLAN tag; no FCS */

struct net_options {
    const char *port;     /* EAL device string ("net_af_packet0,iface=eth1"), a PCI address, or a
                             shorthand: "af_packet:IFACE", "tap:NAME", "memif:SOCKET[,client]" */
    uint8_t mac[6];       /* of the guest: what net_announce speaks for, and whose frames are taken (all
                             zero: anybody's) */
    uint32_t hold_frames; /* capacity of the hold queue; power of two; 0: default 1024 */
    uint32_t receive_frames; /* capacity of the receive queue; power of two; 0: default 256 */
};

struct net;

/* Starts EAL (once a process; no PCI scan unless the port is a PCI address, works with and without huge
 * pages), opens the port, promiscuous, and starts it. Every failure is reported in words with the remedy
 * (unknown interface, no permission, no huge pages, unknown driver). */
int net_open(struct net **out, const struct net_options *options);
void net_close(struct net *net); /* accepts NULL */

/* ---- machine thread ---- */

/* Copies a frame (14 .. NET_FRAME_MAX_BYTES) into the hold queue. -ENOBUFS: the queue is full (counted);
 * -EMSGSIZE. Frames are numbered from 0 in the order of these calls; a refused one takes a number too, so
 * that two hosts which see the same frames number them alike. `now_ns` is clock_now_ns(): waiting counts from it. */
int net_hold(struct net *net, const void *frame, size_t bytes, uint64_t lsn, uint64_t now_ns);
/* Frames held so far (the number of the next one). */
uint64_t net_held_count(const struct net *net);
/* The oldest frame that waits for the guest, or NULL; it stays until popped. */
const void *net_receive_peek(struct net *net, size_t *bytes);
void net_receive_pop(struct net *net);
/* clock_now_ns() when the frame that net_receive_peek returns came. There must be one. */
uint64_t net_receive_since_ns(struct net *net);

/* ---- I/O thread ---- */

/* Frames arriving (for the guest's MAC, or for many) go to the receive queue; held frames whose LSN is
 * <= acked_lsn (UINT64_MAX: all, there is no backup) go to the wire, in order. Returns frames moved (0: idle, for the
 * caller's polling policy). */
unsigned net_poll_live(struct net *net, uint64_t acked_lsn);
/* Frames arriving are dropped; held frames with a number < sent_count are forgotten (the primary sent
 * them). Returns frames moved. */
unsigned net_poll_standby(struct net *net, uint64_t sent_count);
/* Tells the LAN where the guest's MAC now is: RARP, and gratuitous ARP / unsolicited NA for the addresses
 * the guest was seen to use as a sender (learned from the held ARP, IPv4, IPv6 and NDP frames). */
void net_announce(struct net *net);

/* ---- any thread ---- */

/* All frames numbered below this have gone to the wire (live), been forgotten (standby), or been dropped. */
uint64_t net_sent_count(const struct net *net);
/* True if a frame waits for the guest. */
bool net_receive_waiting(const struct net *net);

struct net_statistics {
    uint64_t received, transmitted;      /* frames */
    uint64_t received_bytes, transmitted_bytes;
    uint64_t dropped_receive_full;       /* arrived while the guest's queue was full */
    uint64_t dropped_oversize;           /* arrived larger than NET_FRAME_MAX_BYTES, or in several segments */
    uint64_t dropped_hold_full;          /* sent by the guest while the hold queue was full */
    uint64_t dropped_transmit;           /* the port took none for a long time */
    uint64_t received_for_others;        /* addressed to another station, and not kept */
};
void net_get_statistics(const struct net *net, struct net_statistics *out);
/*
 * What each frame of the guest went through, in ns; written by the I/O thread.
 * hold: from net_hold to its release, for frames that waited for an ack; pass: the same, for those that nobody had to
 * acknowledge; send: how long the port took for the burst that it left in.
 */
const struct histogram *net_hold_histogram(const struct net *net);
const struct histogram *net_pass_histogram(const struct net *net);
const struct histogram *net_send_histogram(const struct net *net);

#endif
