/*
 * PCI bus 0, reached by configuration mechanism 1: a host bridge at 00:00.0 and single-function devices with
 * I/O BARs and INTx. Knows no device; a device fills in its configuration bytes and may watch accesses to them.
 * Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 (mechanism 1) and 6 (configuration space); ids of the
 * bridge as in the Intel 440FX with Red Hat's subsystem id.
 */
#ifndef FTVMM_VMM_PCI_H
#define FTVMM_VMM_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/pic.h"

#define PCI_ADDRESS_PORT 0xCF8u /* to 0xCFB */
#define PCI_DATA_PORT    0xCFCu /* to 0xCFF */
#define PCI_SLOTS        8u
#define PCI_BARS         6u
#define PCI_CONFIG_BYTES 256u

/* Offsets in configuration space, PCI 3.0 figure 6-1. */
#define PCI_CONFIG_COMMAND        0x04u
#define PCI_CONFIG_STATUS         0x06u
#define PCI_CONFIG_BAR0           0x10u
#define PCI_CONFIG_CAPABILITIES   0x34u
#define PCI_CONFIG_INTERRUPT_LINE 0x3Cu
#define PCI_CONFIG_INTERRUPT_PIN  0x3Du
#define PCI_COMMAND_IO            0x0001u
#define PCI_COMMAND_MASTER        0x0004u
#define PCI_COMMAND_INTX_DISABLE  0x0400u
#define PCI_STATUS_INTX           0x0008u
#define PCI_STATUS_CAPABILITIES   0x0010u

struct pci_function {
    uint8_t config[PCI_CONFIG_BYTES];
    uint8_t writable[PCI_CONFIG_BYTES]; /* bits the guest may change */
    uint16_t bar_bytes[PCI_BARS];       /* power of two; 0: no BAR */
    uint8_t capability_last;            /* where the last capability starts; 0: none yet */
    uint8_t capability_free;            /* where the next may start */
    uint8_t irq;                        /* PIC input that its INTA is wired to */
    bool interrupt;                     /* INTA is asserted by the device */
    bool present;
};

/* State part: no pointers, copy it to transfer it. */
struct pci_state {
    uint32_t address; /* CONFIG_ADDRESS */
    struct pci_function functions[PCI_SLOTS];
};

/* What a device may watch in its own configuration space; either may be NULL. `before_read` may refresh
 * config bytes; `after_write` sees them already changed. */
struct pci_watch {
    void *ctx;
    void (*before_read)(void *ctx, unsigned offset, unsigned bytes);
    void (*after_write)(void *ctx, unsigned offset, unsigned bytes);
};

struct pci {
    struct pci_state state;
    struct pic *pic;
    struct pci_watch watches[PCI_SLOTS];
};

/* Identity of a function as the guest sees it; `class_code` is 24 bits: class, subclass, interface. */
struct pci_identity {
    uint16_t vendor;
    uint16_t device;
    uint16_t subsystem_vendor;
    uint16_t subsystem;
    uint32_t class_code;
    uint8_t revision;
};

/* An empty bus with the host bridge in slot 0. Borrows `pic` for the bus's life. */
void pci_init(struct pci *pci, struct pic *pic);

/* Puts a function into `slot` (1 to 7) with its INTA wired to PIC input `irq` (1 to 15; 0: no interrupt).
 * 0; -EINVAL for a slot or irq out of range; -EBUSY if taken. `watch` may be NULL; it is copied. */
int pci_add(struct pci *pci, unsigned slot, const struct pci_identity *identity, uint8_t irq,
            const struct pci_watch *watch);

/* Gives the function in `slot` an I/O BAR of `bytes` (power of two, 4 to 256), assigned to `port` as firmware
 * would have (a multiple of `bytes`; the guest may move it). 0 or -EINVAL. */
int pci_add_io_bar(struct pci *pci, unsigned slot, unsigned bar, uint16_t bytes, uint16_t port);

/* Appends a capability of `bytes` (2 to 64; bytes[0] is its id, the link in bytes[1] is filled in), read-only
 * to the guest. Returns its offset in configuration space, or -EINVAL, -ENOSPC. */
int pci_add_capability(struct pci *pci, unsigned slot, const uint8_t *capability, unsigned bytes);

/* The function's configuration bytes, for its device. `slot` must be one that pci_add took. */
struct pci_function *pci_function_at(struct pci *pci, unsigned slot);

/* Asserts or releases the function's INTA. PIC inputs shared by several functions carry the OR of them;
 * command bit 10 silences a function. */
void pci_set_interrupt(struct pci *pci, unsigned slot, bool level);

/* Which BAR claims I/O port `port`: the slot (>= 0), `*bar` and `*offset` into it, if the function's command
 * register enables I/O; -1 if none. An access may run past the BAR's end: the device masks it. */
int pci_io_find(const struct pci *pci, uint16_t port, unsigned *bar, uint16_t *offset);

/* Port access to 0xCF8-0xCFF, `bytes` 1, 2 or 4. CONFIG_ADDRESS answers dword accesses at 0xCF8 only; absent
 * functions and other ports read all ones. As everywhere here, bits above `bytes` read 0. */
uint32_t pci_read(struct pci *pci, uint16_t port, unsigned bytes);
void pci_write(struct pci *pci, uint16_t port, unsigned bytes, uint32_t value);

/* Takes over what a guest can change of a bus with the same functions. False, and nothing changed: it is none. */
bool pci_take(struct pci *pci, const struct pci_state *state);

#endif
