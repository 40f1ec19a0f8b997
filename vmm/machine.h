/*
 * The deterministic machine: one vCPU, RAM and device models. From the same state and the same inputs at the
 * same positions it always reaches the same state. It has no clock and no I/O of its own: time, frames,
 * console bytes and the disk's answers come in through machine_apply_*; frames, console bytes and requests to the disk
 * leave through callbacks.
 *
 * A position is the number of synchronous exits so far (the exits clock). The life of a position p:
 *   machine_run     the guest runs up to exit p                     (machine->position becomes p)
 *   machine_apply_* the inputs of p take effect
 *   machine_emulate the exit itself is served: port, MSR, HLT       (frames and disk requests leave here)
 *   machine_apply_* while the machine is halted, until one wakes it
 *   machine_resume  an interrupt is injected, or its window asked for
 *
 * All functions are for the vCPU's thread, except machine_kick.
 */
#ifndef FTVMM_VMM_MACHINE_H
#define FTVMM_VMM_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/boot.h"
#include "vmm/event.h"
#include "vmm/guest_memory.h"
#include "vmm/pci.h"
#include "vmm/pic.h"
#include "vmm/pit.h"
#include "vmm/rtc.h"
#include "vmm/uart.h"
#include "vmm/vcpu.h"
#include "vmm/virtio_blk.h"
#include "vmm/virtio_net.h"

/* The disk as the machine sees it. */
struct machine_disk {
    uint64_t sectors;  /* 0: there is none */
    uint64_t readonly; /* 0 or 1 */
    uint64_t shared;   /* 0 or 1 */
};

struct machine_options {
    uint64_t memory_bytes;
    const char *kernel_path;
    const char *initrd_path; /* may be NULL */
    const char *command_line;
    uint8_t mac[6];
    uint16_t mtu;
    struct machine_disk disk;
    bool log_dirty;      /* forced sync or verification will ask for dirty pages */
};

/* Where the guest's output goes; called inside machine_emulate, and `filter` inside machine_open, too. */
struct machine_output {
    void *ctx;
    void (*frame)(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload); /* virtio_net.h */
    void (*filter)(void *ctx, const struct net_filter *filter);
    void (*console)(void *ctx, uint8_t byte);
    uint8_t *(*disk_data)(void *ctx, uint64_t number); /* as in virtio_blk.h; both NULL without a disk */
    void (*disk_submit)(void *ctx, uint64_t number, const struct virtio_blk_request *request);
};

struct machine {
    struct guest_memory memory;
    struct vcpu vcpu;
    struct pic pic;
    struct pit pit;
    struct uart uart;
    struct rtc rtc;
    struct pci pci;
    struct virtio_net net;
    struct virtio_blk blk; /* in use if cards[] names it */
    struct virtio_pci *cards[PCI_SLOTS];
    struct machine_output output;

    enum vcpu_exit exit;    /* of the current position */
    uint64_t position;
    uint64_t time_ns;       /* virtual time, as last logged */
    uint64_t tsc;           /* last value the guest read; 1 GHz, so in ns */
    bool halted;
    uint32_t ended;         /* enum event_end_reason, 0 while the guest lives */

    /* Counters; any thread may read them. */
    _Atomic uint64_t exits_by_kind[VCPU_EXIT_FAILED + 1];
    _Atomic uint64_t user_tsc_reads;
};

/* RAM, vCPU and devices, powered off. Errors are said in words; machine_close accepts a half-built machine. */
int machine_open(struct machine *machine, const struct machine_options *options, const struct machine_output *output);
void machine_close(struct machine *machine);
/* Loads the guest and sets the vCPU to its entry, as `start` says. */
int machine_boot(struct machine *machine, const struct machine_options *options, const struct event_start *start);
/* Digest of all that both hosts' machines must have in common: sizes, command line, images' contents, and of the network
 * card MAC, MTU and what it offers. */
int machine_configuration_digest(const struct machine_options *options, uint8_t digest[16]);

/* Runs the guest up to the next position. INTERRUPTED is not a position: call again (or force a sync).
 * FAILED is final. */
enum vcpu_exit machine_run(struct machine *machine);
/* Makes the current instant, which machine_run gave as INTERRUPTED, the next position. */
void machine_force_position(struct machine *machine);
/* Serves the exit of this position. 0 or -errno. */
int machine_emulate(struct machine *machine);
/* After it, machine_run may be called. 0 or -errno. */
int machine_resume(struct machine *machine);

/* Will machine_emulate hand out a time at this exit? Then virtual time should be fresh. */
bool machine_reads_time(const struct machine *machine);
/* Virtual time at which a device wants to act next; UINT64_MAX: never. */
uint64_t machine_deadline_ns(const struct machine *machine);
/* Halted, and nothing is pending that would wake it. */
bool machine_sleeps(const struct machine *machine);

/* The inputs. Deterministic: what they do depends only on the machine and the arguments. */
void machine_apply_time(struct machine *machine, uint64_t time_ns);
void machine_apply_frame(struct machine *machine, const uint8_t *frame, size_t bytes, bool checksum_right);
void machine_apply_link(struct machine *machine, bool up);
void machine_apply_console(struct machine *machine, const uint8_t *bytes, size_t count);
/* Ends disk request `number`. 0; -EPROTO: it is not under way, or another one's turn; nothing changed. */
int machine_apply_disk(struct machine *machine, uint64_t number, enum virtio_blk_status status, const uint8_t *data);
/* Would the guest take one of so many bytes now? If not it need not be logged. */
bool machine_can_take_frame(const struct machine *machine, size_t bytes);
size_t machine_console_room(const struct machine *machine);

#endif
