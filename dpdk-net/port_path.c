/* Moving frames through a port, per burst; see port.h. The only place that touches mbufs. */
#include "dpdk-net/port.h"

#include <string.h>

#include <rte_ethdev.h>
#include <rte_mbuf.h>

#undef NS_PER_S /* DPDK's is ours, written another way */
#include "base/clock.h"
#include "base/report.h"
#include "dpdk-net/checksum.h"

#define TCP_CHECKSUM_AT 16u
#define UDP_CHECKSUM_AT 6u

/* The place of IP in a frame, from its type; 0: it is no IP. */
static unsigned ip_place(const uint8_t *frame, size_t bytes, bool *ipv6)
{
    unsigned at = 14, type;

    if (bytes < 18)
        return 0;
    type = (unsigned)frame[12] << 8 | frame[13];
    if (type == 0x8100) {
        at = 18;
        type = (unsigned)frame[16] << 8 | frame[17];
    }
    *ipv6 = type == 0x86dd;
    return type == 0x0800 || type == 0x86dd ? at : 0;
}

/* Leaves the checksum to the port; false: this one is not for a port. */
static bool ask_for_checksum(struct rte_mbuf *mbuf, const struct port_frame *frame)
{
    const struct net_offload *offload = frame->offload;
    bool ipv6;
    unsigned ip_at = ip_place(frame->data, frame->bytes, &ipv6);

    if (ip_at == 0 || offload->checksum_start < ip_at + (ipv6 ? 40u : 20u) ||
        offload->checksum_start + offload->checksum_offset + 2u > frame->bytes)
        return false;
    if (offload->checksum_offset == TCP_CHECKSUM_AT)
        mbuf->ol_flags |= RTE_MBUF_F_TX_TCP_CKSUM;
    else if (offload->checksum_offset == UDP_CHECKSUM_AT)
        mbuf->ol_flags |= RTE_MBUF_F_TX_UDP_CKSUM;
    else
        return false;
    mbuf->ol_flags |= ipv6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;
    mbuf->l2_len = ip_at;
    mbuf->l3_len = offload->checksum_start - ip_at;
    return true;
}

/* Leaves the cutting up to the port, which wants the pseudo-header's sum without the length (rte_mbuf_core.h). */
static void ask_for_segments(const struct port *port, struct rte_mbuf *mbuf, const struct segments *segments)
{
    uint8_t *frame = rte_pktmbuf_mtod(mbuf, uint8_t *);
    uint8_t *ip = frame + segments->ip_at, *field = frame + segments->tcp_at + TCP_CHECKSUM_AT;
    uint16_t sum = checksum_fold(checksum_add(6, ip + (segments->ipv6 ? 8 : 12), segments->ipv6 ? 32 : 8));

    field[0] = (uint8_t)(sum >> 8);
    field[1] = (uint8_t)sum;
    mbuf->ol_flags |= RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_TCP_CKSUM;
    mbuf->ol_flags |= segments->ipv6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;
    if (!segments->ipv6 && port->ip_sums) {
        mbuf->ol_flags |= RTE_MBUF_F_TX_IP_CKSUM;
        memset(ip + 10, 0, 2);
    }
    mbuf->l2_len = segments->ip_at;
    mbuf->l3_len = segments->tcp_at - segments->ip_at;
    mbuf->l4_len = segments->payload_at - segments->tcp_at;
    mbuf->tso_segsz = (uint16_t)segments->segment_bytes;
}

/* Copies `bytes` into `head` and as many more mbufs as it takes. False: there are none left. */
static bool copy_to_chain(struct port *port, struct rte_mbuf *head, const uint8_t *data, uint32_t bytes)
{
    struct rte_mbuf *last = head;

    for (;;) {
        uint32_t part = rte_pktmbuf_tailroom(last) < bytes ? rte_pktmbuf_tailroom(last) : bytes;

        rte_memcpy(rte_pktmbuf_mtod(last, void *), data, part);
        last->data_len = (uint16_t)part;
        head->pkt_len += part;
        data += part;
        bytes -= part;
        if (bytes == 0)
            return true;
        last->next = rte_pktmbuf_alloc(port->pool);
        last = last->next;
        if (last == NULL)
            return false;
        head->nb_segs++;
    }
}

/* Makes of an empty mbuf the frame as the port shall have it. False: it needs more mbufs, and none is left. */
static bool fill_mbuf(struct port *port, struct rte_mbuf *mbuf, const struct port_frame *frame)
{
    const struct net_offload *offload = frame->offload;

    if (frame->segments != NULL && offload == NULL) { /* one segment, built here */
        size_t bytes = segments_bytes(frame->segments, frame->segment);

        segments_build(frame->segments, frame->segment, (uint8_t *)rte_pktmbuf_append(mbuf, (uint16_t)bytes));
        return true;
    }
    if (!copy_to_chain(port, mbuf, frame->data, frame->bytes))
        return false;
    if (offload == NULL)
        return true;
    if (frame->segments != NULL)
        ask_for_segments(port, mbuf, frame->segments);
    else if (offload->checksum_missing && !(port->sums && ask_for_checksum(mbuf, frame)))
        (void)checksum_complete(rte_pktmbuf_mtod(mbuf, uint8_t *), frame->bytes, offload->checksum_start,
                                offload->checksum_offset); /* impossible places: it goes out as the guest made it */
    return true;
}

/* Frames that the driver would not take are done without it from now on. Returns how many it takes. */
static unsigned prepare(struct port *port, struct rte_mbuf **mbufs, unsigned ready)
{
    unsigned taken;

    if (!port->sums && !port->segments)
        return ready;
    taken = rte_eth_tx_prepare(port->id, 0, mbufs, (uint16_t)ready);
    if (taken < ready) {
        report_warning("port %s refuses a frame that needs its offloads; checksums and segments are made in software "
                       "from now on", port->name);
        port->sums = port->segments = false;
    }
    return taken;
}

unsigned port_send(struct port *port, const struct port_frame *frames, unsigned count)
{
    struct rte_mbuf *mbufs[PORT_BURST];
    unsigned ready = 0, sent = 0;

    if (count > PORT_BURST)
        count = PORT_BURST;
    while (count > 0 && rte_pktmbuf_alloc_bulk(port->pool, mbufs, count) != 0)
        count /= 2; /* what there is of them goes to the first frames */
    while (ready < count && fill_mbuf(port, mbufs[ready], &frames[ready]))
        ready++;
    if (ready > 0)
        sent = rte_eth_tx_burst(port->id, 0, mbufs, (uint16_t)prepare(port, mbufs, ready));
    if (sent < count)
        rte_pktmbuf_free_bulk(mbufs + sent, count - sent);
    return sent;
}

unsigned port_receive(struct port *port, struct receive *receive)
{
    unsigned room = receive != NULL && port->keeps ? receive_room(receive, PORT_BURST) : PORT_BURST;
    uint8_t linear[NET_FRAME_MAX_BYTES];
    struct rte_mbuf *mbufs[PORT_BURST];
    unsigned count = room > 0 ? rte_eth_rx_burst(port->id, 0, mbufs, (uint16_t)room) : 0;
    uint64_t now_ns = count > 0 ? clock_now_ns() : 0;

    if (receive != NULL && count > 0)
        receive_begin(receive);

    for (unsigned i = 0; receive != NULL && i < count; i++) {
        uint32_t bytes = rte_pktmbuf_pkt_len(mbufs[i]);
        bool whole = bytes <= sizeof(linear);
        struct receive_frame frame = {
            .data = rte_pktmbuf_read(mbufs[i], 0, whole ? bytes : rte_pktmbuf_data_len(mbufs[i]), linear),
            .bytes = bytes,
            .whole = whole,
            .checksum_right = (mbufs[i]->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK) == RTE_MBUF_F_RX_L4_CKSUM_GOOD,
            .tagged = (mbufs[i]->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) != 0,
            .vlan = mbufs[i]->vlan_tci,
            .arrived_ns = now_ns,
        };

        receive_put(receive, &frame);
    }
    if (count > 0)
        rte_pktmbuf_free_bulk(mbufs, count);
    return count;
}
