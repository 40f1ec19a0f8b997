/*
 * The guest's network card: virtio-net (1af4:1041, virtio_pci.h) with one receive, one transmit and one control queue. A
 * notification is served within the port write that carries it, so frames leave at the guest's own position;
 * nothing runs in the background.
 *
 * What it offers is always the same, whatever the port below can do: checksums and segmentation that the guest leaves
 * to the card travel with the frame, and are done outside the machine.
 * Source: virtio 1.2, 5.1.
 */
#ifndef FTVMM_VMM_VIRTIO_NET_H
#define FTVMM_VMM_VIRTIO_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dpdk-net/net.h"
#include "vmm/guest_memory.h"
#include "vmm/pci.h"
#include "vmm/virtio_pci.h"

#define VIRTIO_NET_QUEUE_SIZE   256u
#define VIRTIO_NET_HEADER_BYTES 12u
#define VIRTIO_NET_FRAME_BYTES_MIN 14u
#define VIRTIO_NET_IRQ             11u

enum virtio_net_queue {
    VIRTIO_NET_RX,
    VIRTIO_NET_TX,
    VIRTIO_NET_CONTROL, /* without MQ it is the third; virtio 1.2, 5.1.2 */
    VIRTIO_NET_QUEUES,
};

/*
 * Offered, beside what virtio_pci.h offers; virtio 1.2, 5.1.3. Not offered: GUEST_TSO and the like, for the guest's own
 * GRO merges what arrives, and the log would spare only a record's 48 bytes a frame; CTRL_VLAN, for the filter sees no
 * tags; MQ and RSS, for there is one vCPU.
 */
#define VIRTIO_NET_FEATURE_CSUM       (UINT64_C(1) << 0)
#define VIRTIO_NET_FEATURE_GUEST_CSUM (UINT64_C(1) << 1)
#define VIRTIO_NET_FEATURE_MTU        (UINT64_C(1) << 3)
#define VIRTIO_NET_FEATURE_MAC        (UINT64_C(1) << 5)
#define VIRTIO_NET_FEATURE_HOST_TSO4  (UINT64_C(1) << 11)
#define VIRTIO_NET_FEATURE_HOST_TSO6  (UINT64_C(1) << 12)
#define VIRTIO_NET_FEATURE_HOST_ECN   (UINT64_C(1) << 13)
#define VIRTIO_NET_FEATURE_MRG_RXBUF  (UINT64_C(1) << 15)
#define VIRTIO_NET_FEATURE_STATUS     (UINT64_C(1) << 16)
#define VIRTIO_NET_FEATURE_CTRL_VQ    (UINT64_C(1) << 17)
#define VIRTIO_NET_FEATURE_CTRL_RX    (UINT64_C(1) << 18)
#define VIRTIO_NET_FEATURE_CTRL_RX_EXTRA (UINT64_C(1) << 20)
#define VIRTIO_NET_FEATURE_CTRL_MAC_ADDR (UINT64_C(1) << 23)
#define VIRTIO_NET_FEATURES                                                                                            \
    (VIRTIO_NET_FEATURE_CSUM | VIRTIO_NET_FEATURE_GUEST_CSUM | VIRTIO_NET_FEATURE_MTU | VIRTIO_NET_FEATURE_MAC |       \
     VIRTIO_NET_FEATURE_HOST_TSO4 | VIRTIO_NET_FEATURE_HOST_TSO6 | VIRTIO_NET_FEATURE_HOST_ECN |                       \
     VIRTIO_NET_FEATURE_MRG_RXBUF | VIRTIO_NET_FEATURE_STATUS | VIRTIO_NET_FEATURE_CTRL_VQ |                           \
     VIRTIO_NET_FEATURE_CTRL_RX | VIRTIO_NET_FEATURE_CTRL_RX_EXTRA | VIRTIO_NET_FEATURE_CTRL_MAC_ADDR)

/* State part: no pointers, copy it to transfer it (together with card.state, pci.state and the PIC). */
struct virtio_net_state {
    struct net_filter filter; /* what the driver wants to hear, and the address that it has given the card */
    uint8_t reset_mac[6];     /* the card's address after a reset */
    uint16_t mtu;
    bool link_up;
    /* Counted for the operator; the guest cannot see them. Part of the state, so both hosts agree. */
    uint64_t sent_frames;
    uint64_t sent_dropped_frames; /* longer than the MTU allows, or a header that means nothing */
    uint64_t received_frames;
    uint64_t received_dropped_frames; /* longer than the guest's buffers, or the receive queue broke */
};

/* Where the guest's side of the cable is. Each is called within virtio_pci_io_write, on the vCPU thread, and must not
 * call back into the device. */
struct virtio_net_cable {
    void *ctx;
    /* Once a frame, in the guest's order; its bytes are to be read until it returns. The offload has been checked as far
     * as the queue's rules go: its places lie inside the frame, its features were negotiated; what protocol the frame
     * really is was not looked at. */
    void (*transmit)(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload);
    /* The guest wants other frames than before. */
    void (*filter)(void *ctx, const struct net_filter *filter);
};

struct virtio_net {
    struct virtio_pci card;
    struct virtio_net_state state;
    struct virtio_net_cable cable;
};

/* Adds the card to `pci` in `slot`, its BAR at I/O port `port` (a multiple of VIRTIO_PCI_BAR_BYTES), with MAC
 * address `mac`, an MTU of `mtu` (NET_MTU_MIN to NET_MTU_MAX) and the link up. Borrows everything but `mac` and `cable`
 * for its life. 0, or pci_add's errors. */
int virtio_net_init(struct virtio_net *net, struct pci *pci, unsigned slot, uint16_t port, const uint8_t mac[6],
                    uint16_t mtu, struct guest_memory *memory, const struct virtio_net_cable *cable);

/* True if the driver runs and its receive ring has room for a frame of so many bytes; changes nothing, so it need not be
 * logged. Does not promise that virtio_net_receive succeeds: a hostile entry shows only then. */
bool virtio_net_can_receive(const struct virtio_net *net, size_t bytes);

/*
 * Copies one frame (14 bytes to the MTU's, no FCS) into the guest's buffers at once and interrupts it if it wishes.
 * `checksum_right`: its TCP or UDP checksum need not be looked at, which the guest is told if it has asked for that.
 * Unless it returns -EAGAIN or -EINVAL it changed the machine, whatever it returns: it is an input, so log it
 * at its position first, and call it only where virtio_net_can_receive is true.
 * 0; -EAGAIN no buffer or driver not running, nothing changed; -EINVAL frame of impossible length, nothing
 * changed; -EMSGSIZE the guest's buffers are too small, frame dropped and counted; -EPROTO the guest broke the
 * queue: frame dropped, the guest was told by DEVICE_NEEDS_RESET.
 */
int virtio_net_receive(struct virtio_net *net, const uint8_t *frame, size_t bytes, bool checksum_right);

/* The cable, as the guest sees it (an input: log it). Interrupts the guest on a change. */
void virtio_net_set_link(struct virtio_net *net, bool up);

/* Could `state`, which another host says is its card's, be one of this card's? Its queues and registers are
 * virtio_pci_take's affair. */
bool virtio_net_state_fits(const struct virtio_net *net, const struct virtio_net_state *state);
/* Makes it this card's, and says to the cable which frames the guest wants. */
void virtio_net_take(struct virtio_net *net, const struct virtio_net_state *state);

/* virtio_net_control.c: serves what waits in the control queue. */
void virtio_net_control(struct virtio_net *net);

#endif
