/*
 * What all virtio devices share: a modern PCI function (1af4:1040 + id) with its registers in one I/O BAR, split
 * virtqueues, INTx. The device itself brings a model: what it is called with when the driver starts it, notifies a
 * queue, or resets it. All of it happens within the port access that asks for it.
 * Source: virtio 1.2, 2 and 4.1 (PCI transport).
 */
#ifndef FTVMM_VMM_VIRTIO_PCI_H
#define FTVMM_VMM_VIRTIO_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/guest_memory.h"
#include "vmm/pci.h"
#include "vmm/virtqueue.h"

#define VIRTIO_PCI_QUEUES_MAX       3u
#define VIRTIO_PCI_BAR_BYTES        128u
#define VIRTIO_PCI_CONFIG_BYTES_MAX 48u

/* Offered by every device; virtio 1.2, 6. */
#define VIRTIO_PCI_FEATURE_INDIRECT  (UINT64_C(1) << 28)
#define VIRTIO_PCI_FEATURE_EVENT_IDX (UINT64_C(1) << 29)
#define VIRTIO_PCI_FEATURE_VERSION_1 (UINT64_C(1) << 32)

/* State part: no pointers, copy it to transfer it (together with the device's, pci.state and the PIC). */
struct virtio_pci_state {
    struct virtqueue queues[VIRTIO_PCI_QUEUES_MAX];
    uint64_t driver_features;
    uint32_t device_feature_select;
    uint32_t driver_feature_select;
    uint16_t queue_select;
    uint8_t status;
    uint8_t isr;
    uint8_t config_generation;
};

/* What a kind of device is. The functions get the `ctx` of virtio_pci_init. */
struct virtio_pci_model {
    uint16_t device_id;    /* virtio 1.2, 5 */
    uint32_t class_code;
    unsigned queues;       /* 1 to VIRTIO_PCI_QUEUES_MAX */
    uint16_t queue_size;   /* offered, a power of two up to VIRTQUEUE_SIZE_MAX */
    uint8_t config_bytes;  /* of the device's own configuration, a multiple of 4 */
    void (*config)(void *ctx, uint8_t *config);     /* fills it in; it comes zeroed */
    void (*start)(void *ctx);                       /* the driver is ready */
    void (*notify)(void *ctx, unsigned queue);      /* there may be new buffers */
    void (*reset)(void *ctx);                       /* the queues are empty again; NULL: nothing to do */
};

struct virtio_pci {
    struct virtio_pci_state state;
    const struct virtio_pci_model *model;
    uint64_t features; /* offered */
    struct pci *pci;
    unsigned slot;
    unsigned access_window_offset; /* where VIRTIO_PCI_CAP_PCI_CFG sits in configuration space */
    struct guest_memory *memory;
    void *ctx;
};

/* Adds the function to `pci` in `slot`, its BAR at I/O port `port` (a multiple of VIRTIO_PCI_BAR_BYTES), its INTA at
 * PIC input `irq`; `features` are the device's own. Borrows everything for its life. 0, or pci_add's errors. */
int virtio_pci_init(struct virtio_pci *card, struct pci *pci, unsigned slot, uint16_t port, uint8_t irq,
                    const struct virtio_pci_model *model, uint64_t features, struct guest_memory *memory, void *ctx);

/* Access to the BAR at `offset` (see pci_io_find), `bytes` 1, 2 or 4. Reading the ISR clears it and lowers the
 * interrupt; writing a notify register calls the model. */
uint32_t virtio_pci_io_read(struct virtio_pci *card, uint16_t offset, unsigned bytes);
void virtio_pci_io_write(struct virtio_pci *card, uint16_t offset, unsigned bytes, uint32_t value);

/* The driver has started the device, and nothing is broken. */
bool virtio_pci_runs(const struct virtio_pci *card);
/* The guest broke the rules: nothing more happens until it resets the device; virtio 1.2, 2.1.2. */
void virtio_pci_break(struct virtio_pci *card);
/* Interrupts the guest for what was pushed to `queue`, if it wishes. */
void virtio_pci_signal(struct virtio_pci *card, unsigned queue);
/* The device's configuration differs from now on; `tell`: the driver has asked for an interrupt. */
void virtio_pci_config_changed(struct virtio_pci *card, bool tell);

/* Takes over the state of a card of the same kind. False, and nothing changed: it is none. */
bool virtio_pci_take(struct virtio_pci *card, const struct virtio_pci_state *state);

#endif
