/*
 * One DPDK port with one queue each way. Opened and closed by the cold half (port.c), moved by the hot half
 * (port_path.c), which only the I/O thread calls. No DPDK type shows here.
 */
#ifndef FTVMM_DPDK_NET_PORT_H
#define FTVMM_DPDK_NET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dpdk-net/receive.h"

#define PORT_BURST 32u

struct rte_mempool;

struct port {
    uint16_t id;
    bool probed;  /* the device is ours to remove */
    bool started;
    struct rte_mempool *pool;
    char name[64]; /* DPDK's: "net_af_packet0" */
};

/*
 * Opens what `text` names (see net.h). Every failure is reported. -EINVAL: the text; -ENODEV: no such
 * interface, device or driver; -EPERM: a capability is missing; -ENETDOWN and others: the driver's.
 */
int port_open(struct port *port, const char *text);
void port_close(struct port *port); /* accepts a half-built one */

/* ---- I/O thread ---- */

/* One frame to send. */
struct port_frame {
    const void *data;
    uint32_t bytes;
};

/* Copies up to PORT_BURST frames to the port; returns how many it took, from the first on. */
unsigned port_send(struct port *port, const struct port_frame *frames, unsigned count);
/* Takes up to PORT_BURST frames from the port and puts them into `receive` (NULL: drops them). Returns how
 * many the port had. */
unsigned port_receive(struct port *port, struct receive *receive);

#endif
