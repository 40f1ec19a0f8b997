/* Names every field of vCPU and devices once. What can fill 64 bits is hexadecimal text; bytes are hex digits. */
#include "vmm/machine_json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define FXSAVE_BYTES 416 /* of registers; what follows is not the guest's (docs/determinism.md) */

void json_add_hex(cJSON *object, const char *name, uint64_t value)
{
    char text[19];

    snprintf(text, sizeof(text), "0x%016" PRIx64, value);
    cJSON_AddStringToObject(object, name, text);
}

static void add_bytes(cJSON *object, const char *name, const void *bytes, size_t count)
{
    char *text = malloc(2 * count + 1);

    if (text == NULL)
        return;
    text[0] = '\0';
    for (size_t i = 0; i < count; i++)
        snprintf(text + 2 * i, 3, "%02x", ((const uint8_t *)bytes)[i]);
    cJSON_AddStringToObject(object, name, text);
    free(text);
}

/* A field under its own name. */
#define NUMBER(object, from, field) cJSON_AddNumberToObject(object, #field, (double)(from)->field)
#define HEX(object, from, field) json_add_hex(object, #field, (from)->field)
#define BYTES(object, from, field) add_bytes(object, #field, (from)->field, sizeof((from)->field))

static void add_register(void *ctx, const char *name, uint64_t value)
{
    json_add_hex(ctx, name, value);
}

static void add_events(cJSON *root, const struct kvm_vcpu_events *events)
{
    cJSON *object = cJSON_AddObjectToObject(root, "events");

    NUMBER(object, events, exception.injected);
    NUMBER(object, events, exception.nr);
    NUMBER(object, events, exception.has_error_code);
    NUMBER(object, events, exception.error_code);
    NUMBER(object, events, exception.pending);
    NUMBER(object, events, interrupt.injected);
    NUMBER(object, events, interrupt.nr);
    NUMBER(object, events, interrupt.soft);
    NUMBER(object, events, interrupt.shadow);
    NUMBER(object, events, nmi.injected);
    NUMBER(object, events, nmi.pending);
    NUMBER(object, events, nmi.masked);
}

static void add_vcpu(cJSON *root, const struct vcpu_state *vcpu)
{
    const struct vcpu_registers registers = { .regs = vcpu->regs, .sregs = vcpu->sregs };
    cJSON *object = cJSON_AddObjectToObject(root, "vcpu"), *part;
    char name[16];

    json_add_hex(object, "digest", vcpu_state_digest(vcpu));
    part = cJSON_AddObjectToObject(object, "registers");
    vcpu_registers_visit(&registers, add_register, part);
    part = cJSON_AddObjectToObject(object, "debug_registers");
    for (unsigned i = 0; i < 4; i++) {
        snprintf(name, sizeof(name), "db%u", i);
        json_add_hex(part, name, vcpu->debugregs.db[i]);
    }
    HEX(part, &vcpu->debugregs, dr6);
    HEX(part, &vcpu->debugregs, dr7);
    part = cJSON_AddObjectToObject(object, "msrs");
    for (unsigned i = 0; i < VCPU_MSR_COUNT; i++) {
        snprintf(name, sizeof(name), "0x%08x", vcpu_msr_numbers[i]);
        json_add_hex(part, name, vcpu->msrs[i]);
    }
    add_events(object, &vcpu->events);
    NUMBER(object, vcpu, mp_state.mp_state);
    add_bytes(object, "fxsave", &vcpu->xsave, FXSAVE_BYTES);
}

static void add_pic_chip(cJSON *array, const struct pic_chip *chip)
{
    cJSON *object = cJSON_CreateObject();

    NUMBER(object, chip, lines);
    NUMBER(object, chip, edges);
    NUMBER(object, chip, in_service);
    NUMBER(object, chip, mask);
    NUMBER(object, chip, level_triggered);
    NUMBER(object, chip, elcr_writable);
    NUMBER(object, chip, vector_base);
    NUMBER(object, chip, cascade);
    NUMBER(object, chip, lowest);
    NUMBER(object, chip, init_step);
    NUMBER(object, chip, needs_icw4);
    NUMBER(object, chip, single);
    NUMBER(object, chip, auto_eoi);
    NUMBER(object, chip, rotate_on_auto_eoi);
    NUMBER(object, chip, special_fully_nested);
    NUMBER(object, chip, special_mask);
    NUMBER(object, chip, poll);
    NUMBER(object, chip, read_isr);
    cJSON_AddItemToArray(array, object);
}

static void add_pit_channel(cJSON *array, const struct pit_channel *channel)
{
    cJSON *object = cJSON_CreateObject();

    HEX(object, channel, start_tick);
    HEX(object, channel, reload_tick);
    NUMBER(object, channel, count);
    NUMBER(object, channel, next_count);
    NUMBER(object, channel, latched);
    NUMBER(object, channel, latched_bytes);
    NUMBER(object, channel, status);
    NUMBER(object, channel, status_latched);
    NUMBER(object, channel, mode);
    NUMBER(object, channel, access);
    NUMBER(object, channel, bcd);
    NUMBER(object, channel, gate);
    NUMBER(object, channel, armed);
    NUMBER(object, channel, held);
    NUMBER(object, channel, write_high);
    NUMBER(object, channel, read_high);
    NUMBER(object, channel, write_low);
    cJSON_AddItemToArray(array, object);
}

static void add_pit(cJSON *devices, const struct pit *pit)
{
    cJSON *object = cJSON_AddObjectToObject(devices, "pit"), *channels;

    HEX(object, pit, tick);
    NUMBER(object, pit, control);
    channels = cJSON_AddArrayToObject(object, "channels");
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        add_pit_channel(channels, &pit->channels[i]);
}

static void add_rtc(cJSON *devices, const struct rtc *rtc)
{
    cJSON *object = cJSON_AddObjectToObject(devices, "rtc");

    HEX(object, rtc, offset_seconds);
    HEX(object, rtc, now_ns);
    NUMBER(object, rtc, index);
    BYTES(object, rtc, cmos);
}

static void add_uart(cJSON *devices, const struct uart_state *uart)
{
    cJSON *object = cJSON_AddObjectToObject(devices, "uart");

    BYTES(object, uart, fifo);
    NUMBER(object, uart, fifo_first);
    NUMBER(object, uart, fifo_count);
    NUMBER(object, uart, divisor);
    NUMBER(object, uart, interrupt_enable);
    NUMBER(object, uart, fifo_control);
    NUMBER(object, uart, line_control);
    NUMBER(object, uart, modem_control);
    NUMBER(object, uart, line_errors);
    NUMBER(object, uart, modem_delta);
    NUMBER(object, uart, scratch);
    NUMBER(object, uart, transmit_empty_pending);
}

static void add_pci(cJSON *devices, const struct pci_state *pci)
{
    cJSON *object = cJSON_AddObjectToObject(devices, "pci");
    cJSON *functions;

    HEX(object, pci, address);
    functions = cJSON_AddArrayToObject(object, "functions");
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        const struct pci_function *function = &pci->functions[slot];
        cJSON *one;

        if (!function->present)
            continue;
        one = cJSON_CreateObject();
        cJSON_AddNumberToObject(one, "slot", slot);
        NUMBER(one, function, irq);
        NUMBER(one, function, interrupt);
        BYTES(one, function, config);
        cJSON_AddItemToArray(functions, one);
    }
}

static void add_queue(cJSON *array, const struct virtqueue *queue)
{
    cJSON *object = cJSON_CreateObject();

    HEX(object, queue, descriptors_gpa);
    HEX(object, queue, available_gpa);
    HEX(object, queue, used_gpa);
    NUMBER(object, queue, size);
    NUMBER(object, queue, available_next);
    NUMBER(object, queue, used_next);
    NUMBER(object, queue, used_signalled);
    NUMBER(object, queue, enabled);
    NUMBER(object, queue, event_idx);
    NUMBER(object, queue, indirect);
    NUMBER(object, queue, fault);
    cJSON_AddItemToArray(array, object);
}

/* What virtio devices share. */
static void add_card(cJSON *object, const struct virtio_pci *card)
{
    const struct virtio_pci_state *state = &card->state;
    cJSON *queues;

    HEX(object, state, driver_features);
    NUMBER(object, state, device_feature_select);
    NUMBER(object, state, driver_feature_select);
    NUMBER(object, state, queue_select);
    NUMBER(object, state, status);
    NUMBER(object, state, isr);
    NUMBER(object, state, config_generation);
    queues = cJSON_AddArrayToObject(object, "queues");
    for (unsigned i = 0; i < card->model->queues; i++)
        add_queue(queues, &state->queues[i]);
}

static void add_net(cJSON *devices, const struct virtio_net *net)
{
    cJSON *object = cJSON_AddObjectToObject(devices, "virtio_net");

    const struct net_filter *filter = &net->state.filter;

    add_card(object, &net->card);
    BYTES(object, filter, mac);
    NUMBER(object, filter, promiscuous);
    NUMBER(object, filter, all_unicast);
    NUMBER(object, filter, all_multicast);
    NUMBER(object, filter, more_unicast);
    NUMBER(object, filter, more_multicast);
    NUMBER(object, filter, no_unicast);
    NUMBER(object, filter, no_multicast);
    NUMBER(object, filter, no_broadcast);
    NUMBER(object, filter, addresses_used);
    BYTES(object, filter, addresses);
    BYTES(object, &net->state, reset_mac);
    NUMBER(object, &net->state, mtu);
    NUMBER(object, &net->state, link_up);
    HEX(object, &net->state, sent_frames);
    HEX(object, &net->state, sent_dropped_frames);
    HEX(object, &net->state, received_frames);
    HEX(object, &net->state, received_dropped_frames);
}

static void add_blk(cJSON *devices, const struct virtio_blk *blk)
{
    cJSON *object = cJSON_AddObjectToObject(devices, "virtio_blk");

    add_card(object, &blk->card);
    HEX(object, &blk->state, capacity_sectors);
    NUMBER(object, &blk->state, readonly);
    NUMBER(object, &blk->state, starved);
    HEX(object, &blk->state, submitted);
    HEX(object, &blk->state, completed);
    HEX(object, &blk->state, orphaned);
    HEX(object, &blk->state, refused);
}

cJSON *machine_json(const struct machine *machine, const struct vcpu_state *vcpu)
{
    cJSON *root = cJSON_CreateObject(), *object, *chips;

    object = cJSON_AddObjectToObject(root, "machine");
    NUMBER(object, machine, position);
    cJSON_AddNumberToObject(object, "memory_bytes", (double)machine->memory.bytes);
    cJSON_AddStringToObject(object, "exit", vcpu_exit_name(machine->exit));
    HEX(object, machine, time_ns);
    HEX(object, machine, tsc);
    NUMBER(object, machine, halted);
    NUMBER(object, machine, ended);
    add_vcpu(root, vcpu);
    object = cJSON_AddObjectToObject(root, "devices");
    chips = cJSON_AddArrayToObject(object, "pic");
    for (unsigned i = 0; i < 2; i++)
        add_pic_chip(chips, &machine->pic.chips[i]);
    add_pit(object, &machine->pit);
    add_rtc(object, &machine->rtc);
    add_uart(object, &machine->uart.state);
    add_pci(object, &machine->pci.state);
    add_net(object, &machine->net);
    if (machine->blk.card.model != NULL)
        add_blk(object, &machine->blk);
    return root;
}
