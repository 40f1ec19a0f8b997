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
#include "dpdk-net/filter.h"
#include "dpdk-net/offload.h"

#define NET_MTU_DEFAULT 1500u
#define NET_MTU_MIN 576u  /* the least that IPv4 hosts must take (RFC 1122, 3.3.3) */
#define NET_MTU_MAX 9000u
#define NET_LINK_BYTES 18u /* Ethernet header and one VLAN tag; no FCS */
#define NET_FRAME_MAX_BYTES (NET_LINK_BYTES + NET_MTU_MAX)       /* that can be on a wire */
#define NET_SEGMENTED_MAX_BYTES (NET_LINK_BYTES + 65535u)        /* that can be given to be cut up */

struct net_options {
    const char *port;     /* EAL device string ("net_af_packet0,iface=eth1"), a PCI address, or a
                             shorthand: "af_packet:IFACE", "af_xdp:IFACE", "tap:NAME", "memif:SOCKET[,client]" */
    uint8_t mac[6];       /* of the guest: what net_announce speaks for, and whose frames are taken (all
                             zero: anybody's) */
    uint32_t hold_frames; /* capacity of the hold queue; power of two; 0: default 1024 */
    uint32_t receive_frames; /* capacity of the receive queue; power of two; 0: default 256 */
    uint32_t mtu;         /* of the guest's card, NET_MTU_MIN to NET_MTU_MAX; 0: NET_MTU_DEFAULT */
};

struct net;

/* Starts EAL (once a process; no PCI scan unless the port is a PCI address, works with and without huge
 * pages), opens the port, promiscuous, and starts it. Every failure is reported in words with the remedy
 * (unknown interface, no permission, no huge pages, unknown driver). */
int net_open(struct net **out, const struct net_options *options);
void net_close(struct net *net); /* accepts NULL */

/* ---- machine thread ---- */

/* Copies a frame (14 bytes to the MTU's, or to NET_SEGMENTED_MAX_BYTES if it is to be cut up) into the hold queue; what
 * `offload` says is done on its way out. -ENOBUFS: the queue is full (counted); -EMSGSIZE (counted). Frames are numbered
 * from 0 in the order of these calls; a refused one takes a number too, so that two hosts which see the same frames
 * number them alike. `now_ns` is clock_now_ns(): waiting counts from it. */
int net_hold(struct net *net, const void *frame, size_t bytes, const struct net_offload *offload, uint64_t lsn,
             uint64_t now_ns);
/* The hold queue is more than half full: a guest that waited now would lose nothing later. */
bool net_hold_crowded(struct net *net);
/* Frames held so far (the number of the next one). */
uint64_t net_held_count(const struct net *net);
/* The oldest frame that waits for the guest, or NULL; it stays until popped. `checksum_right`: its TCP or UDP checksum
 * was seen to be right. */
const void *net_receive_peek(struct net *net, size_t *bytes, bool *checksum_right);
void net_receive_pop(struct net *net);
/* clock_now_ns() when the frame that net_receive_peek returns came. There must be one. */
uint64_t net_receive_since_ns(struct net *net);
/* Which frames the guest wants from now on, and by which address it is known. Takes effect with the next poll. */
void net_set_filter(struct net *net, const struct net_filter *filter);

/* ---- I/O thread ---- */

/* The thread that calls what follows is the I/O thread from now on: DPDK gives it a cache of packet buffers. It works
 * without, more slowly. Before the thread ends, net_thread_end; both are for a process whose EAL runs. */
void net_thread_begin(void);
void net_thread_end(void);

/* Frames arriving that the guest wants go to the receive queue; held frames whose LSN is
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
/* The port has a link, as of a tenth of a second ago; true until it was first looked at. */
bool net_link_up(const struct net *net);

/* One line for people: the port, its driver, and who does what is left to be done to frames. Any thread. */
void net_describe(const struct net *net, char *text, size_t size);

struct net_statistics {
    uint64_t received, transmitted;      /* frames on the wire */
    uint64_t received_bytes, transmitted_bytes;
    uint64_t segmented;                  /* frames of the guest's that were cut up here */
    uint64_t dropped_receive_full;       /* arrived while the guest's queue was full, on a port that cannot keep them */
    uint64_t dropped_oversize;           /* arrived larger than the guest's MTU allows */
    uint64_t dropped_port_missed;        /* lost by the port: nobody took them in time, or they were damaged */
    uint64_t dropped_hold_full;          /* sent by the guest while the hold queue was full */
    uint64_t dropped_hold_oversize;      /* sent by the guest, larger than its MTU allows */
    uint64_t dropped_malformed;          /* to be cut up, and not made so that they can be */
    uint64_t dropped_transmit;           /* the port took none for a long time */
    uint64_t dropped_port_transmit;      /* taken by the port, and not sent after all */
    uint64_t received_for_others;        /* the guest does not want them: another station's, another group's */
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
