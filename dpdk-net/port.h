/*
 * One DPDK port with one queue each way. Opened and closed by the cold half (port.c), moved by the hot half
 * (port_path.c), which only the I/O thread calls. No DPDK type shows here.
 */
#ifndef FTVMM_DPDK_NET_PORT_H
#define FTVMM_DPDK_NET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dpdk-net/offload.h"
#include "dpdk-net/receive.h"
#include "dpdk-net/segment.h"

#define PORT_BURST 32u

struct rte_mempool;

struct port {
    uint16_t id;
    bool probed;  /* the device is ours to remove */
    bool started;
    bool sums;     /* its hardware finishes checksums ... */
    bool segments; /* ... and cuts up TCP. Both end for good when it refuses a frame */
    bool ip_sums;  /* when it does, it wants to be asked for the segments' IPv4 checksums */
    bool keeps;    /* what is not taken from it waits there, or is counted by it when it must be dropped */
    int link_fd;   /* a socket to ask Linux about `interface`; -1: the driver knows its link */
    int packet_fd; /* AF_PACKET: the driver's own socket, which knows what its ring had no room for; else -1 */
    uint64_t packet_drops; /* that it has told so far */
    struct rte_mempool *pool;
    char name[64];   /* DPDK's: "net_af_packet0" */
    char driver[32]; /* "net_af_packet" */
    char interface[16]; /* the Linux interface below it, or "" */
};

/*
 * Opens what `text` names (see net.h), for frames of up to `mtu` behind their Ethernet header. Every failure is
 * reported. -EINVAL: the text, or an MTU that the port does not reach; -ENODEV: no such interface, device or driver;
 * -EPERM: a capability is missing; -ENETDOWN and others: the driver's.
 */
int port_open(struct port *port, const char *text, uint32_t mtu);
void port_close(struct port *port); /* accepts a half-built one */

/* ---- I/O thread ---- */

/* One frame to send: all of `data`, with what is left to be done to it, or one segment of it. */
struct port_frame {
    const void *data;
    uint32_t bytes;
    const struct net_offload *offload; /* NULL: finished */
    const struct segments *segments;   /* not NULL: build this segment */
    uint32_t segment;
};

/* Copies up to PORT_BURST frames to the port, each finished on the way as far as the port does not do that itself.
 * Returns how many it took, from the first on. */
unsigned port_send(struct port *port, const struct port_frame *frames, unsigned count);
/* Takes up to PORT_BURST frames from the port, no more than there is room for, and puts them into `receive` (NULL:
 * drops them). Returns how many it took. */
unsigned port_receive(struct port *port, struct receive *receive);

/* What the port says about itself. Takes a few microseconds, and may make a system call. */
struct port_look {
    bool link_up;
    uint64_t missed;      /* arrived while nobody took frames, or damaged */
    uint64_t lost_sending; /* taken by port_send, and not sent after all */
};
void port_look(struct port *port, struct port_look *look);

#endif
