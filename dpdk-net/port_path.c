/* Moving frames through a port, per burst; see port.h. The only place that touches mbufs. */
#include "dpdk-net/port.h"

#include <rte_ethdev.h>
#include <rte_mbuf.h>

unsigned port_send(struct port *port, const struct port_frame *frames, unsigned count)
{
    struct rte_mbuf *mbufs[PORT_BURST];
    unsigned ready = 0, sent = 0;

    if (count > PORT_BURST)
        count = PORT_BURST;
    while (ready < count && (mbufs[ready] = rte_pktmbuf_alloc(port->pool)) != NULL) {
        void *room = rte_pktmbuf_append(mbufs[ready], (uint16_t)frames[ready].bytes);

        rte_memcpy(room, frames[ready].data, frames[ready].bytes);
        ready++;
    }
    if (ready > 0)
        sent = rte_eth_tx_burst(port->id, 0, mbufs, (uint16_t)ready);
    if (sent < ready)
        rte_pktmbuf_free_bulk(mbufs + sent, ready - sent);
    return sent;
}

unsigned port_receive(struct port *port, struct receive *receive)
{
    struct rte_mbuf *mbufs[PORT_BURST];
    unsigned count = rte_eth_rx_burst(port->id, 0, mbufs, PORT_BURST);

    for (unsigned i = 0; receive != NULL && i < count; i++) {
        struct receive_frame frame = {
            .data = rte_pktmbuf_mtod(mbufs[i], const void *),
            .bytes = rte_pktmbuf_data_len(mbufs[i]),
            .whole = mbufs[i]->nb_segs == 1,
            .tagged = (mbufs[i]->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) != 0,
            .vlan = mbufs[i]->vlan_tci,
        };

        receive_put(receive, &frame);
    }
    if (count > 0)
        rte_pktmbuf_free_bulk(mbufs, count);
    return count;
}
