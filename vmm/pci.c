/* Configuration mechanism 1, configuration space of bus 0, and which BAR claims which port. */
#include "vmm/pci.h"

#include <errno.h>
#include <string.h>

#include "vmm/state_check.h"

#define ADDRESS_ENABLE          0x80000000u
#define ADDRESS_WRITABLE        0x80FFFFFCu
#define CONFIG_VENDOR           0x00u
#define CONFIG_DEVICE           0x02u
#define CONFIG_REVISION         0x08u
#define CONFIG_CLASS            0x09u
#define CONFIG_CACHE_LINE       0x0Cu
#define CONFIG_LATENCY          0x0Du
#define CONFIG_SUBSYSTEM_VENDOR 0x2Cu
#define CONFIG_SUBSYSTEM        0x2Eu
#define CONFIG_FIRST_CAPABILITY 0x40u
#define BAR_IO_SPACE            0x1u
#define BAR_IO_FLAGS            0x3u
#define INTERRUPT_PIN_A         1u

static uint16_t config_u16(const struct pci_function *function, unsigned offset)
{
    return (uint16_t)(function->config[offset] | function->config[offset + 1] << 8);
}

static void config_set(uint8_t *config, unsigned offset, uint32_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        config[offset + i] = (uint8_t)(value >> (8 * i));
}

static bool slot_is_present(const struct pci *pci, unsigned slot)
{
    return slot < PCI_SLOTS && pci->state.functions[slot].present;
}

static void function_init(struct pci_function *function, const struct pci_identity *identity, uint8_t irq)
{
    memset(function, 0, sizeof(*function));
    function->present = true;
    function->irq = irq;
    function->capability_free = CONFIG_FIRST_CAPABILITY;
    config_set(function->config, CONFIG_VENDOR, identity->vendor, 2);
    config_set(function->config, CONFIG_DEVICE, identity->device, 2);
    config_set(function->config, CONFIG_REVISION, identity->revision, 1);
    config_set(function->config, CONFIG_CLASS, identity->class_code, 3);
    config_set(function->config, CONFIG_SUBSYSTEM_VENDOR, identity->subsystem_vendor, 2);
    config_set(function->config, CONFIG_SUBSYSTEM, identity->subsystem, 2);
    config_set(function->writable, PCI_CONFIG_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE,
               2);
    function->writable[CONFIG_CACHE_LINE] = 0xFF;
    function->writable[CONFIG_LATENCY] = 0xFF;
    function->writable[PCI_CONFIG_INTERRUPT_LINE] = 0xFF;
    if (irq != 0) {
        function->config[PCI_CONFIG_INTERRUPT_LINE] = irq;
        function->config[PCI_CONFIG_INTERRUPT_PIN] = INTERRUPT_PIN_A;
    }
}

void pci_init(struct pci *pci, struct pic *pic)
{
    static const struct pci_identity bridge = {
        .vendor = 0x8086,
        .device = 0x1237,
        .subsystem_vendor = 0x1AF4,
        .subsystem = 0x1100,
        .class_code = 0x060000,
        .revision = 2,
    };

    memset(pci, 0, sizeof(*pci));
    pci->pic = pic;
    function_init(&pci->state.functions[0], &bridge, 0);
}

int pci_add(struct pci *pci, unsigned slot, const struct pci_identity *identity, uint8_t irq,
            const struct pci_watch *watch)
{
    if (slot == 0 || slot >= PCI_SLOTS || irq >= PIC_LINES)
        return -EINVAL;
    if (pci->state.functions[slot].present)
        return -EBUSY;
    function_init(&pci->state.functions[slot], identity, irq);
    if (watch != NULL)
        pci->watches[slot] = *watch;
    return 0;
}

int pci_add_io_bar(struct pci *pci, unsigned slot, unsigned bar, uint16_t bytes, uint16_t port)
{
    struct pci_function *function;
    unsigned offset = PCI_CONFIG_BAR0 + 4 * bar;

    if (!slot_is_present(pci, slot) || bar >= PCI_BARS || bytes < 4 || bytes > 256 || (bytes & (bytes - 1)) != 0 ||
        port % bytes != 0)
        return -EINVAL;
    function = &pci->state.functions[slot];
    function->bar_bytes[bar] = bytes;
    config_set(function->config, offset, port | BAR_IO_SPACE, 4);
    config_set(function->writable, offset, ~(bytes - 1u) & ~BAR_IO_FLAGS, 4);
    return 0;
}

int pci_add_capability(struct pci *pci, unsigned slot, const uint8_t *capability, unsigned bytes)
{
    struct pci_function *function;
    unsigned offset;

    if (!slot_is_present(pci, slot) || bytes < 2 || bytes > 64)
        return -EINVAL;
    function = &pci->state.functions[slot];
    offset = function->capability_free;
    if (offset == 0 || offset + bytes > PCI_CONFIG_BYTES)
        return -ENOSPC;
    memcpy(&function->config[offset], capability, bytes);
    function->config[offset + 1] = 0;
    if (function->capability_last == 0)
        function->config[PCI_CONFIG_CAPABILITIES] = (uint8_t)offset;
    else
        function->config[function->capability_last + 1] = (uint8_t)offset;
    function->capability_last = (uint8_t)offset;
    function->capability_free = (uint8_t)((offset + bytes + 3) & ~3u); /* 256 becomes 0: full */
    function->config[PCI_CONFIG_STATUS] |= PCI_STATUS_CAPABILITIES;
    return (int)offset;
}

struct pci_function *pci_function_at(struct pci *pci, unsigned slot)
{
    return &pci->state.functions[slot];
}

static bool function_drives_line(const struct pci_function *function)
{
    return function->present && function->interrupt &&
           !(config_u16(function, PCI_CONFIG_COMMAND) & PCI_COMMAND_INTX_DISABLE);
}

/* Brings PIC input `irq` to the OR of the functions wired to it. */
static void pci_update_line(struct pci *pci, uint8_t irq)
{
    bool level = false;

    if (irq == 0)
        return;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        if (pci->state.functions[slot].irq == irq)
            level = level || function_drives_line(&pci->state.functions[slot]);
    pic_set_line(pci->pic, irq, level);
}

void pci_set_interrupt(struct pci *pci, unsigned slot, bool level)
{
    struct pci_function *function = &pci->state.functions[slot];

    function->interrupt = level;
    if (level)
        function->config[PCI_CONFIG_STATUS] |= PCI_STATUS_INTX;
    else
        function->config[PCI_CONFIG_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
    pci_update_line(pci, function->irq);
}

int pci_io_find(const struct pci *pci, uint16_t port, unsigned *bar, uint16_t *offset)
{
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        const struct pci_function *function = &pci->state.functions[slot];

        if (!function->present || !(config_u16(function, PCI_CONFIG_COMMAND) & PCI_COMMAND_IO))
            continue;
        for (unsigned i = 0; i < PCI_BARS; i++) {
            unsigned at = PCI_CONFIG_BAR0 + 4 * i;
            uint32_t base = config_u16(function, at) | (uint32_t)config_u16(function, at + 2) << 16;

            base &= ~BAR_IO_FLAGS;
            /* A BAR at 0 is unassigned; one beyond 64 KiB (being sized) matches no port. */
            if (function->bar_bytes[i] == 0 || base == 0 || port < base || port - base >= function->bar_bytes[i])
                continue;
            *bar = i;
            *offset = (uint16_t)(port - base);
            return (int)slot;
        }
    }
    return -1;
}

/* The function that CONFIG_ADDRESS selects, or -1. */
static int selected_slot(const struct pci *pci)
{
    uint32_t address = pci->state.address;
    unsigned bus = address >> 16 & 0xFF;
    unsigned slot = address >> 11 & 0x1F;
    unsigned number = address >> 8 & 7;

    if (!(address & ADDRESS_ENABLE) || bus != 0 || number != 0 || !slot_is_present(pci, slot))
        return -1;
    return (int)slot;
}

static uint32_t config_read(struct pci *pci, unsigned slot, unsigned offset, unsigned bytes)
{
    const struct pci_watch *watch = &pci->watches[slot];
    uint32_t value = 0;

    if (watch->before_read != NULL)
        watch->before_read(watch->ctx, offset, bytes);
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint32_t)pci->state.functions[slot].config[offset + i] << (8 * i);
    return value;
}

static void config_write(struct pci *pci, unsigned slot, unsigned offset, unsigned bytes, uint32_t value)
{
    struct pci_function *function = &pci->state.functions[slot];
    const struct pci_watch *watch = &pci->watches[slot];

    for (unsigned i = 0; i < bytes; i++) {
        uint8_t writable = function->writable[offset + i];
        uint8_t byte = (uint8_t)(value >> (8 * i));

        function->config[offset + i] = (uint8_t)((function->config[offset + i] & ~writable) | (byte & writable));
    }
    if (watch->after_write != NULL)
        watch->after_write(watch->ctx, offset, bytes);
    pci_update_line(pci, function->irq); /* the command register may have silenced it */
}

uint32_t pci_read(struct pci *pci, uint16_t port, unsigned bytes)
{
    uint32_t ones = bytes < 4 ? (UINT32_C(1) << (8 * bytes)) - 1 : UINT32_MAX;
    uint32_t inside_ones = UINT32_MAX;
    unsigned offset;
    unsigned inside;
    int slot;

    if (port == PCI_ADDRESS_PORT && bytes == 4)
        return pci->state.address;
    if (port < PCI_DATA_PORT || port >= PCI_DATA_PORT + 4 || bytes == 0 || bytes > 4)
        return ones;
    slot = selected_slot(pci);
    if (slot < 0)
        return ones;
    /* An access that runs past the data port reads ones there. */
    offset = port - PCI_DATA_PORT;
    inside = bytes < 4 - offset ? bytes : 4 - offset;
    if (inside < 4)
        inside_ones = (UINT32_C(1) << (8 * inside)) - 1;
    return config_read(pci, (unsigned)slot, (pci->state.address & 0xFC) + offset, inside) | (ones & ~inside_ones);
}

void pci_write(struct pci *pci, uint16_t port, unsigned bytes, uint32_t value)
{
    int slot;
    unsigned offset;

    if (port == PCI_ADDRESS_PORT && bytes == 4) {
        pci->state.address = value & ADDRESS_WRITABLE;
        return;
    }
    if (port < PCI_DATA_PORT || port >= PCI_DATA_PORT + 4 || bytes == 0 || bytes > 4)
        return;
    slot = selected_slot(pci);
    if (slot < 0)
        return;
    offset = port - PCI_DATA_PORT;
    config_write(pci, (unsigned)slot, (pci->state.address & 0xFC) + offset, bytes < 4 - offset ? bytes : 4 - offset,
                 value);
}

/* Which bits of the function's configuration space may differ from ours. */
static uint8_t changeable(const struct pci_function *function, unsigned offset)
{
    return function->writable[offset] | (offset == PCI_CONFIG_STATUS ? PCI_STATUS_INTX : 0);
}

static bool function_fits(const struct pci_function *ours, const struct pci_function *theirs)
{
    if (!STATE_BOOL_FITS(theirs->interrupt) || !STATE_BOOL_FITS(theirs->present) || theirs->present != ours->present ||
        theirs->irq != ours->irq || memcmp(theirs->bar_bytes, ours->bar_bytes, sizeof(ours->bar_bytes)) != 0 ||
        memcmp(theirs->writable, ours->writable, sizeof(ours->writable)) != 0)
        return false;
    for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++)
        if ((theirs->config[i] ^ ours->config[i]) & ~changeable(ours, i))
            return false;
    return true;
}

bool pci_take(struct pci *pci, const struct pci_state *state)
{
    if (state->address & ~ADDRESS_WRITABLE)
        return false;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        if (!function_fits(&pci->state.functions[slot], &state->functions[slot]))
            return false;
    pci->state.address = state->address;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        memcpy(pci->state.functions[slot].config, state->functions[slot].config, PCI_CONFIG_BYTES);
        pci->state.functions[slot].interrupt = state->functions[slot].interrupt;
    }
    return true;
}
