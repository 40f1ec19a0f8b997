/*
 * The guest's network card: virtio-net (1af4:1041, virtio_pci.h) with one receive and one transmit queue. A
 * notification is served within the port write that carries it, so frames leave at the guest's own position;
 * nothing runs in the background.
 * Source: virtio 1.2, 5.1.
 */
#ifndef FTVMM_VMM_VIRTIO_NET_H
#define FTVMM_VMM_VIRTIO_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/guest_memory.h"
#include "vmm/pci.h"
#include "vmm/virtio_pci.h"

#define VIRTIO_NET_QUEUE_SIZE   256u
#define VIRTIO_NET_MTU          1500u
#define VIRTIO_NET_HEADER_BYTES 12u
/* Ethernet header, one VLAN tag, MTU; no frame check sequence. */
#define VIRTIO_NET_FRAME_BYTES_MAX 1518u
#define VIRTIO_NET_FRAME_BYTES_MIN 14u
#define VIRTIO_NET_IRQ             11u

enum virtio_net_queue {
    VIRTIO_NET_RX,
    VIRTIO_NET_TX,
    VIRTIO_NET_QUEUES,
};

/* State part: no pointers, copy it to transfer it (together with card.state, pci.state and the PIC). */
struct virtio_net_state {
    uint8_t mac[6];
    bool link_up;
    /* Counted for the operator; the guest cannot see them. Part of the state, so both hosts agree. */
    uint64_t sent_frames;
    uint64_t sent_dropped_frames; /* longer than VIRTIO_NET_FRAME_BYTES_MAX, or no whole header */
    uint64_t received_frames;
    uint64_t received_dropped_frames; /* longer than the guest's buffer, or the receive queue broke */
};

/* `transmit` is called within virtio_pci_io_write, on the vCPU thread, once a frame in the guest's order; the
 * bytes are its to read until it returns, and it must not call back into the device. */
struct virtio_net {
    struct virtio_pci card;
    struct virtio_net_state state;
    void (*transmit)(void *ctx, const uint8_t *frame, size_t bytes);
    void *ctx;
};

/* Adds the card to `pci` in `slot`, its BAR at I/O port `port` (a multiple of VIRTIO_PCI_BAR_BYTES), with MAC
 * address `mac` and the link up. Borrows everything but `mac` for its life. 0, or pci_add's errors. */
int virtio_net_init(struct virtio_net *net, struct pci *pci, unsigned slot, uint16_t port, const uint8_t mac[6],
                    struct guest_memory *memory, void (*transmit)(void *ctx, const uint8_t *frame, size_t bytes),
                    void *ctx);

/* True if the driver runs and its receive ring has an entry; changes nothing, so it need not be logged. Does not
 * promise that virtio_net_receive succeeds: a hostile entry shows only then. */
bool virtio_net_can_receive(const struct virtio_net *net);

/*
 * Copies one frame (14 to 1518 bytes, no FCS) into the guest's buffers at once and interrupts it if it wishes.
 * Unless it returns -EAGAIN or -EINVAL it changed the machine, whatever it returns: it is an input, so log it
 * at its position first, and call it only where virtio_net_can_receive is true.
 * 0; -EAGAIN no buffer or driver not running, nothing changed; -EINVAL frame of impossible length, nothing
 * changed; -EMSGSIZE the guest's buffer is too small, frame dropped and counted; -EPROTO the guest broke the
 * queue: frame dropped, the guest was told by DEVICE_NEEDS_RESET.
 */
int virtio_net_receive(struct virtio_net *net, const uint8_t *frame, size_t bytes);

/* The cable, as the guest sees it (an input: log it). Interrupts the guest on a change. */
void virtio_net_set_link(struct virtio_net *net, bool up);

#endif
