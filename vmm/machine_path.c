/* The machine at each exit: which device answers, how inputs take effect, how interrupts reach the vCPU. */
#include "vmm/machine.h"

#include <errno.h>
#include <string.h>

#include "base/count.h"
#include "base/report.h"
#include "vmm/tsc_patch.h"
#include "vmm/user_tsc.h"

#define MSR_TSC 0x10u

/* Ports of the devices; each answers a range. */
#define PORT_IS(port, first, last) ((port) >= (first) && (port) <= (last))
#define PORT_IS_PIC(port) (((port) & ~UINT32_C(0x81)) == 0x20 || (port) == 0x4D0 || (port) == 0x4D1)
#define PORT_IS_PIT(port) (PORT_IS(port, 0x40u, 0x43u) || (port) == 0x61)
#define PORT_IS_RTC(port) PORT_IS(port, 0x70u, 0x71u)
#define PORT_IS_UART(port) PORT_IS(port, 0x3F8u, 0x3FFu)
#define PORT_IS_PCI(port) PORT_IS(port, 0xCF8u, 0xCFFu)

enum vcpu_exit machine_run(struct machine *machine)
{
    enum vcpu_exit exit = vcpu_run(&machine->vcpu);

    COUNT_ADD(machine->exits_by_kind[exit], 1);
    if (exit == VCPU_EXIT_INTERRUPTED || exit == VCPU_EXIT_FAILED)
        return exit;
    machine->position++;
    machine->exit = exit;
    return exit;
}

void machine_force_position(struct machine *machine)
{
    machine->position++;
    machine->exit = VCPU_EXIT_FORCED;
    COUNT_ADD(machine->exits_by_kind[VCPU_EXIT_FORCED], 1);
}

/* 1 GHz counter: virtual time, and one tick more than the last value where time has not moved on. */
static uint64_t tsc_read(struct machine *machine)
{
    machine->tsc = machine->time_ns > machine->tsc ? machine->time_ns : machine->tsc + 1;
    return machine->tsc;
}

static bool port_reads_time(uint16_t port)
{
    return port == TSC_PORT_RDTSC || port == TSC_PORT_RDTSCP || PORT_IS_PIT(port) || port == 0x71;
}

bool machine_reads_time(const struct machine *machine)
{
    const struct kvm_run *run = machine->vcpu.run;

    if (machine->exit == VCPU_EXIT_IO)
        return run->io.port == TSC_PORT_USER_GP || port_reads_time(run->io.port);
    return machine->exit == VCPU_EXIT_MSR_READ && run->msr.index == MSR_TSC;
}

/* The card whose registers are at `port`, or NULL. */
static struct virtio_pci *card_at(struct machine *machine, uint16_t port, uint16_t *offset)
{
    unsigned bar; /* each card has one */
    int slot = pci_io_find(&machine->pci, port, &bar, offset);

    return slot < 0 ? NULL : machine->cards[slot];
}

static uint32_t port_read(struct machine *machine, uint16_t port, unsigned bytes)
{
    struct virtio_pci *card;
    uint16_t offset;

    if (port == TSC_PORT_RDTSC || port == TSC_PORT_RDTSCP) {
        uint64_t tsc = tsc_read(machine);

        vcpu_regs(&machine->vcpu)->rdx = tsc >> 32;
        if (port == TSC_PORT_RDTSCP)
            vcpu_regs(&machine->vcpu)->rcx = 0; /* TSC_AUX of CPU 0 */
        vcpu_set_registers(&machine->vcpu);
        return (uint32_t)tsc;
    }
    if (PORT_IS_PIC(port))
        return pic_read(&machine->pic, port, bytes);
    if (PORT_IS_PIT(port))
        return pit_read(&machine->pit, port, bytes, machine->time_ns, &machine->pic);
    if (PORT_IS_RTC(port))
        return rtc_read(&machine->rtc, port, bytes, machine->time_ns, &machine->pic);
    if (PORT_IS_UART(port))
        return uart_read(&machine->uart, port, bytes);
    if (PORT_IS_PCI(port))
        return pci_read(&machine->pci, port, bytes);
    if ((card = card_at(machine, port, &offset)) != NULL)
        return virtio_pci_io_read(card, offset, bytes);
    return UINT32_MAX; /* nobody home */
}

static void port_write(struct machine *machine, uint16_t port, unsigned bytes, uint32_t value)
{
    struct virtio_pci *card;
    uint16_t offset;

    if (PORT_IS_PIC(port))
        pic_write(&machine->pic, port, bytes, value);
    else if (PORT_IS_PIT(port))
        pit_write(&machine->pit, port, bytes, value, machine->time_ns, &machine->pic);
    else if (PORT_IS_RTC(port))
        rtc_write(&machine->rtc, port, bytes, value, machine->time_ns, &machine->pic);
    else if (PORT_IS_UART(port))
        uart_write(&machine->uart, port, bytes, value);
    else if (PORT_IS_PCI(port))
        pci_write(&machine->pci, port, bytes, value);
    else if ((card = card_at(machine, port, &offset)) != NULL)
        virtio_pci_io_write(card, offset, bytes, value);
}

/* The guest took #GP; if a user program's RDTSC caused it, answer that and go back to the program. */
static int user_gp(struct machine *machine)
{
    struct vcpu *vcpu = &machine->vcpu;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    int rc = vcpu_complete(vcpu);

    if (rc == 0)
        rc = vcpu_get_sregs(vcpu, &sregs);
    if (rc < 0)
        return rc;
    regs = *vcpu_regs(vcpu);
    if (!user_tsc_emulate(&machine->memory, &regs, &sregs, tsc_read(machine), 0))
        return 0; /* the guest's own affair */
    COUNT_ADD(machine->user_tsc_reads, 1);
    *vcpu_regs(vcpu) = regs;
    vcpu_set_registers(vcpu);
    return vcpu_set_sregs(vcpu, &sregs);
}

static int emulate_io(struct machine *machine)
{
    struct kvm_run *run = machine->vcpu.run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    if (run->io.port == TSC_PORT_USER_GP && run->io.direction == KVM_EXIT_IO_OUT)
        return user_gp(machine);
    virtio_blk_continue(&machine->blk);
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        uint32_t value = 0;

        if (run->io.direction == KVM_EXIT_IO_IN) {
            value = port_read(machine, run->io.port, run->io.size);
            memcpy(data, &value, run->io.size);
        } else {
            memcpy(&value, data, run->io.size);
            port_write(machine, run->io.port, run->io.size, value);
        }
    }
    return 0;
}

static void emulate_msr(struct machine *machine)
{
    struct kvm_run *run = machine->vcpu.run;
    bool read = machine->exit == VCPU_EXIT_MSR_READ;

    run->msr.error = 0;
    if (run->msr.index == MSR_TSC && read)
        run->msr.data = tsc_read(machine);
    else if (run->msr.index == MSR_TSC)
        ; /* the counter cannot be set: the guest is told that it is invariant */
    else
        run->msr.error = 1;
}

int machine_emulate(struct machine *machine)
{
    struct kvm_run *run = machine->vcpu.run;

    switch (machine->exit) {
    case VCPU_EXIT_IO:
        return emulate_io(machine);
    case VCPU_EXIT_MMIO: /* no device lives in memory space */
        if (!run->mmio.is_write)
            memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
        return 0;
    case VCPU_EXIT_HLT:
        machine->halted = true;
        if (!run->if_flag && !machine->ended)
            machine->ended = EVENT_END_HALTED;
        return 0;
    case VCPU_EXIT_MSR_READ:
    case VCPU_EXIT_MSR_WRITE:
        emulate_msr(machine);
        return 0;
    case VCPU_EXIT_SHUTDOWN:
        if (!machine->ended)
            machine->ended = EVENT_END_SHUTDOWN;
        return 0;
    case VCPU_EXIT_WINDOW:
    case VCPU_EXIT_FORCED:
        return 0;
    case VCPU_EXIT_INTERRUPTED:
    case VCPU_EXIT_FAILED:
        break;
    }
    report_bug("exit %d is no position", machine->exit);
}

bool machine_sleeps(const struct machine *machine)
{
    return machine->halted && !machine->ended && !pic_output(&machine->pic);
}

/* Is the instruction of this exit still under way? */
static bool exit_is_within_instruction(enum vcpu_exit exit)
{
    return exit == VCPU_EXIT_IO || exit == VCPU_EXIT_MMIO || exit == VCPU_EXIT_MSR_READ || exit == VCPU_EXIT_MSR_WRITE;
}

/*
 * What an instruction still has to do may raise an exception: a refused MSR, a REP INS into an absent page, a single
 * step of the guest's own. KVM would deliver that first, and the interrupt that was injected beside it at its next
 * entry after some exit of the host's choice, IF or not. So the instruction is completed first; if that leaves no room, the
 * window tells when there is.
 */
int machine_resume(struct machine *machine)
{
    struct vcpu *vcpu = &machine->vcpu;
    int rc = 0;

    machine->halted = false;
    if (pic_output(&machine->pic) && vcpu_can_inject(vcpu)) {
        if (exit_is_within_instruction(machine->exit))
            rc = vcpu_complete(vcpu);
        else if (machine->exit == VCPU_EXIT_WINDOW)
            rc = vcpu_forget_resume_flag(vcpu);
        if (rc == 0 && vcpu_can_inject(vcpu))
            rc = vcpu_inject(vcpu, pic_acknowledge(&machine->pic));
    }
    vcpu_want_window(vcpu, pic_output(&machine->pic));
    return rc;
}

uint64_t machine_deadline_ns(const struct machine *machine)
{
    uint64_t pit = pit_deadline_ns(&machine->pit);
    uint64_t rtc = rtc_deadline_ns(&machine->rtc);

    return pit < rtc ? pit : rtc;
}

void machine_apply_time(struct machine *machine, uint64_t time_ns)
{
    if (time_ns <= machine->time_ns)
        return;
    machine->time_ns = time_ns;
    pit_advance(&machine->pit, time_ns, &machine->pic);
    rtc_advance(&machine->rtc, time_ns, &machine->pic);
}

void machine_apply_frame(struct machine *machine, const uint8_t *frame, size_t bytes, bool checksum_right)
{
    /* a refusal is counted, the same on both hosts */
    (void)virtio_net_receive(&machine->net, frame, bytes, checksum_right);
}

void machine_apply_link(struct machine *machine, bool up)
{
    virtio_net_set_link(&machine->net, up);
}

int machine_apply_disk(struct machine *machine, uint64_t number, enum virtio_blk_status status, const uint8_t *data)
{
    return virtio_blk_complete(&machine->blk, number, status, data);
}

void machine_apply_console(struct machine *machine, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        (void)uart_receive(&machine->uart, bytes[i]);
}

bool machine_can_take_frame(const struct machine *machine, size_t bytes)
{
    return virtio_net_can_receive(&machine->net, bytes);
}

size_t machine_console_room(const struct machine *machine)
{
    return uart_can_receive(&machine->uart) ? 1 : 0;
}
