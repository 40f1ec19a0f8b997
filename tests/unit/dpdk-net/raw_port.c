/* See raw_port.h. Apart because DPDK's headers and ours define the same names of time units. */
#include "raw_port.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

int raw_port_open(struct raw_port *port, const char *device)
{
    struct rte_eth_conf configuration = { 0 };
    char name[64];
    int error;

    snprintf(name, sizeof(name), "%.*s", (int)strcspn(device, ","), device);
    error = rte_dev_probe(device);
    if (error == 0)
        error = rte_eth_dev_get_port_by_name(name, &port->id);
    if (error != 0)
        return error;
    port->pool = rte_pktmbuf_pool_create("raw", 1023, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (port->pool == NULL)
        return -rte_errno;
    error = rte_eth_dev_configure(port->id, 1, 1, &configuration);
    if (error == 0)
        error = rte_eth_rx_queue_setup(port->id, 0, 256, 0, NULL, port->pool);
    if (error == 0)
        error = rte_eth_tx_queue_setup(port->id, 0, 256, 0, NULL);
    return error == 0 ? rte_eth_dev_start(port->id) : error;
}

size_t raw_port_receive(struct raw_port *port, uint8_t *frame, size_t size)
{
    struct rte_mbuf *mbuf;
    const void *data;
    size_t bytes;

    if (rte_eth_rx_burst(port->id, 0, &mbuf, 1) == 0)
        return 0;
    bytes = rte_pktmbuf_pkt_len(mbuf) < size ? rte_pktmbuf_pkt_len(mbuf) : size;
    data = rte_pktmbuf_read(mbuf, 0, (uint32_t)bytes, frame);
    if (data != frame)
        memcpy(frame, data, bytes);
    rte_pktmbuf_free(mbuf);
    return bytes;
}

void raw_port_close(struct raw_port *port)
{
    rte_eth_dev_stop(port->id);
    rte_eth_dev_close(port->id);
    rte_mempool_free(port->pool);
}
