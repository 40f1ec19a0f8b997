/*
 * The machine as bytes: vCPU, devices and clocks, all but RAM and the disk's contents, so that another host can go on
 * from there. Made and taken over at a position; both hosts run the same ftvmm, so the bytes are those of its structs.
 *
 * What comes from a peer is checked before it takes effect: no state of the registers or the devices is refused that a
 * guest can bring about, and none is taken that could lead a device outside its tables or outside RAM. Of the PCI
 * configuration space only what a guest may change is taken over; all else must be the same here.
 */
#ifndef FTVMM_VMM_MACHINE_STATE_H
#define FTVMM_VMM_MACHINE_STATE_H

#include <stdint.h>

#include "vmm/pci.h"
#include "vmm/pic.h"
#include "vmm/pit.h"
#include "vmm/rtc.h"
#include "vmm/uart.h"
#include "vmm/vcpu.h"
#include "vmm/virtio_net.h"
#include "vmm/virtio_pci.h"

struct machine;

/* The disk's requests are not in here: none may be under way. */
struct machine_state_disk {
    uint64_t capacity_sectors;
    uint64_t completed; /* requests so far */
    uint64_t orphaned;
    uint64_t refused;
    uint32_t readonly; /* 0 or 1 */
    uint32_t starved;  /* 0 or 1 */
};

struct machine_state {
    uint64_t position;
    uint64_t time_ns;
    uint64_t tsc;
    uint32_t halted; /* 0 or 1 */
    uint32_t bytes;  /* sizeof this, so that another build is noticed */
    struct vcpu_state vcpu;
    struct pic pic;
    struct pit pit;
    struct rtc rtc;
    struct uart_state uart;
    struct pci_state pci;
    struct virtio_net_state net;
    struct virtio_pci_state net_card;
    struct machine_state_disk disk;
    struct virtio_pci_state disk_card;
};

/* After vcpu_complete, between two positions: what machine_resume left, or, of a halted machine, machine_emulate.
 * 0 or -errno; -EBUSY: a disk request is under way. */
int machine_state_save(struct machine *machine, struct machine_state *out);

/*
 * Makes `machine`, as machine_open left it, the one that was saved; its RAM is there already. -EBADMSG, said in words:
 * it is not the state of such a machine; what is here is of no use any more. Other -errno: KVM's.
 */
int machine_state_load(struct machine *machine, const struct machine_state *state);

#endif
