/* Saves and takes over the machine's state; see machine_state.h. */
#include "vmm/machine_state.h"

#include <errno.h>
#include <string.h>

#include "base/count.h"
#include "base/report.h"
#include "vmm/machine.h"
#include "vmm/state_check.h"

int machine_state_save(struct machine *machine, struct machine_state *out)
{
    const struct virtio_blk_state *blk = &machine->blk.state;

    if (blk->completed != blk->submitted)
        return -EBUSY;
    memset(out, 0, sizeof(*out));
    out->bytes = sizeof(*out);
    out->position = machine->position;
    out->time_ns = machine->time_ns;
    out->tsc = machine->tsc;
    out->halted = machine->halted;
    out->pic = machine->pic;
    out->pit = machine->pit;
    out->rtc = machine->rtc;
    out->uart = machine->uart.state;
    out->pci = machine->pci.state;
    out->net = machine->net.state;
    out->net_card = machine->net.card.state;
    out->disk = (struct machine_state_disk){
        .capacity_sectors = blk->capacity_sectors,
        .completed = blk->completed,
        .orphaned = blk->orphaned,
        .refused = blk->refused,
        .readonly = blk->readonly,
        .starved = blk->starved,
    };
    out->disk_card = machine->blk.card.state;
    return vcpu_save(&machine->vcpu, &out->vcpu);
}

static bool disk_fits(const struct machine *machine, const struct machine_state_disk *disk)
{
    const struct virtio_blk_state *ours = &machine->blk.state;

    return disk->capacity_sectors == ours->capacity_sectors && disk->readonly == ours->readonly &&
           disk->orphaned <= disk->completed && disk->starved <= 1;
}

/* What does not fit; NULL: all does, and has been taken over. */
static const char *take_devices(struct machine *machine, const struct machine_state *state)
{
    if (!pic_fits(&state->pic))
        return "interrupt controller";
    if (!pit_fits(&state->pit, state->time_ns))
        return "timer";
    if (!rtc_fits(&state->rtc, state->time_ns))
        return "clock";
    if (!uart_fits(&state->uart))
        return "serial console";
    if (!virtio_net_state_fits(&machine->net, &state->net))
        return "network card";
    if (!disk_fits(machine, &state->disk))
        return "disk";
    if (!pci_take(&machine->pci, &state->pci))
        return "PCI bus";
    if (!virtio_pci_take(&machine->net.card, &state->net_card))
        return "network card's registers";
    if (state->disk.capacity_sectors != 0 && !virtio_pci_take(&machine->blk.card, &state->disk_card))
        return "disk's registers";
    machine->pic = state->pic;
    machine->pit = state->pit;
    machine->rtc = state->rtc;
    machine->uart.state = state->uart;
    virtio_net_take(&machine->net, &state->net);
    machine->blk.state.submitted = machine->blk.state.completed = state->disk.completed;
    machine->blk.state.orphaned = state->disk.orphaned;
    machine->blk.state.refused = state->disk.refused;
    machine->blk.state.starved = state->disk.starved;
    return NULL;
}

int machine_state_load(struct machine *machine, const struct machine_state *state)
{
    const char *wrong;
    int rc;

    if (state->bytes != sizeof(*state)) {
        report_error("the other host's ftvmm is another build: its machine state has %u bytes, this one's %zu; run the "
                     "same ftvmm on both hosts", state->bytes, sizeof(*state));
        return -EBADMSG;
    }
    wrong = state->halted > 1 ? "vCPU" : take_devices(machine, state);
    if (wrong != NULL) {
        report_error("the state of the guest that has come is none of this machine: its %s does not fit; run the same "
                     "ftvmm with the same options on both hosts", wrong);
        return -EBADMSG;
    }
    rc = vcpu_complete(&machine->vcpu); /* or the last exit's result would land in the new registers */
    if (rc == 0)
        rc = vcpu_load(&machine->vcpu, &state->vcpu);
    if (rc == 0)
        rc = vcpu_complete(&machine->vcpu); /* refreshes what the shared page tells of the vCPU */
    machine->position = state->position;
    machine->exit = VCPU_EXIT_FORCED;
    machine->time_ns = state->time_ns;
    machine->tsc = state->tsc;
    machine->halted = state->halted;
    machine->ended = 0;
    return rc;
}
