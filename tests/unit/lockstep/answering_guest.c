/*
 * A guest without an operating system that answers requests from its network: a driver for the network card, and the
 * service (answering_guest.h). It sleeps in HLT until a frame comes. Runs at CPL 0 wherever it is put in memory: all of it
 * is in one section, it refers to itself relative to RIP only, and its variables have fixed addresses.
 *
 * Interrupts are allowed in HLT only, and the card raises none while the guest is awake: a software KVM opens interrupt
 * windows late, so the guest never makes it open one.
 */
#include "tests/unit/lockstep/answering_guest.h"

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "tests/unit/lockstep/bare_guest.h"

#define GUEST __attribute__((section("answering_guest"), used))

#define NET_PORT 0xC000u
#define NET_NOTIFY_TX (NET_PORT + 0x46)
#define NET_SLOT 1u
#define SIZE     64u /* of both queues */
#define HEADER   12u /* virtio 1.2, 5.1.6 */
#define FRAME    (14u + sizeof(struct answering_message))

/* The guest's memory, from here on. */
#define AREA        0x2000000ul
#define RX_DESC     (AREA + 0x0000)
#define RX_AVAIL    (AREA + 0x1000)
#define RX_USED     (AREA + 0x2000)
#define TX_DESC     (AREA + 0x3000)
#define TX_AVAIL    (AREA + 0x4000)
#define TX_USED     (AREA + 0x5000)
#define IDT         (AREA + 0x6000)
#define STATE       (AREA + 0x7000)
#define TX_BUFFER   (AREA + 0x8000)
#define RX_BUFFERS  (AREA + 0x10000) /* 2048 bytes each */
#define BALLAST     (AREA + 0x100000)

struct state {
    uint64_t reg, counter, operations, check;
    struct {
        uint64_t open, sequence;
        struct answering_message answer;
    } sessions[ANSWERING_CLIENTS];
};

__asm__(".pushsection answering_guest, \"ax\"\n"
        "  mov $0x2080000, %rsp\n" /* a stack of its own, below BALLAST */
        "  lea answering_guest_interrupt(%rip), %rdi\n"
        "  jmp answering_guest_main\n"
        /* The card's interrupt: none more until the guest sleeps again. */
        "answering_guest_interrupt:\n"
        "  push %rax\n"
        "  push %rdx\n"
        "  movw $1, 0x2001000\n" /* RX_AVAIL's flags */
        "  mov $0xC040, %edx\n"
        "  in (%dx), %al\n"
        "  mov $0x20, %al\n"
        "  out %al, $0xA0\n"
        "  out %al, $0x20\n"
        "  pop %rdx\n"
        "  pop %rax\n"
        "  iretq\n"
        ".popsection\n");

GUEST_PART uint64_t mix(uint64_t digest, uint64_t word)
{
    digest = (digest ^ word) * 0x9E3779B97F4A7C15ul;
    return digest ^ digest >> 29;
}

/* ---- set-up ---- */

GUEST_PART void set_interrupts(uint64_t handler)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) table = { 16 * 256 - 1, IDT };
    volatile uint32_t *gate = (volatile uint32_t *)(IDT + 16 * 43);

    gate[0] = 0x10u << 16 | (uint32_t)(handler & 0xffff);
    gate[1] = (uint32_t)(handler & 0xffff0000) | 0x8E00;
    gate[2] = (uint32_t)(handler >> 32);
    gate[3] = 0;
    __asm__ volatile("lidt %0" : : "m"(table) : "memory");
    out8(0x20, 0x11);
    out8(0x21, 0x20);
    out8(0x21, 0x04);
    out8(0x21, 0x01);
    out8(0xA0, 0x11);
    out8(0xA1, 0x28);
    out8(0xA1, 0x02);
    out8(0xA1, 0x01);
    out8(0x21, 0xFB); /* the cascade */
    out8(0xA1, 0xF7); /* the network card */
}

GUEST_PART void start_queue(uint16_t queue, uint32_t descriptors, uint32_t available, uint32_t used)
{
    out16(NET_PORT + VIRTIO_PCI_COMMON_Q_SELECT, queue);
    out16(NET_PORT + VIRTIO_PCI_COMMON_Q_SIZE, SIZE);
    out32(NET_PORT + VIRTIO_PCI_COMMON_Q_DESCLO, descriptors);
    out32(NET_PORT + VIRTIO_PCI_COMMON_Q_AVAILLO, available);
    out32(NET_PORT + VIRTIO_PCI_COMMON_Q_USEDLO, used);
    out16(NET_PORT + VIRTIO_PCI_COMMON_Q_ENABLE, 1);
}

GUEST_PART void start_card(void)
{
    volatile struct vring_desc *rx = (void *)RX_DESC, *tx = (void *)TX_DESC;
    volatile uint16_t *rx_available = (void *)RX_AVAIL, *tx_available = (void *)TX_AVAIL;

    for (unsigned i = 0; i < SIZE; i++) {
        rx[i].addr = RX_BUFFERS + 2048ul * i;
        rx[i].len = 2048;
        rx[i].flags = VRING_DESC_F_WRITE;
        rx_available[2 + i] = (uint16_t)i;
    }
    rx_available[0] = VRING_AVAIL_F_NO_INTERRUPT;
    rx_available[1] = SIZE;
    tx[0].addr = TX_BUFFER;
    tx[0].len = HEADER + FRAME;
    tx[0].flags = 0;
    tx_available[0] = VRING_AVAIL_F_NO_INTERRUPT; /* what it sends has been taken when OUT returns */
    out32(0xCF8, 0x80000004 | NET_SLOT << 11);
    out16(0xCFC, 5); /* I/O space and bus master */
    out8(NET_PORT + VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    out32(NET_PORT + VIRTIO_PCI_COMMON_GFSELECT, 1);
    out32(NET_PORT + VIRTIO_PCI_COMMON_GF, 1); /* VERSION_1 */
    out8(NET_PORT + VIRTIO_PCI_COMMON_STATUS,
         VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    start_queue(0, RX_DESC, RX_AVAIL, RX_USED);
    start_queue(1, TX_DESC, TX_AVAIL, TX_USED);
    out8(NET_PORT + VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                                  VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

/* ---- the service ---- */

GUEST_PART void copy(volatile void *to, const volatile void *from, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        ((volatile uint8_t *)to)[i] = ((const volatile uint8_t *)from)[i];
}

/* Carries a request out; its answer is in the session. */
GUEST_PART void carry_out(volatile struct state *state, const volatile struct answering_message *request)
{
    volatile struct answering_message *answer = &state->sessions[request->client].answer;
    uint16_t kind = request->kind;
    uint64_t value = 0, operation = ++state->operations;
    volatile uint64_t *page = (void *)(BALLAST + 4096 * (operation % ANSWERING_BALLAST));

    if (kind == ANSWERING_WRITE_REGISTER)
        value = state->reg = request->value;
    else if (kind == ANSWERING_READ_REGISTER)
        value = state->reg;
    else if (kind == ANSWERING_INCREMENT)
        value = ++state->counter;
    else if (kind == ANSWERING_READ_COUNTER)
        value = state->counter;
    state->sessions[request->client].open = 1;
    state->sessions[request->client].sequence = request->sequence;
    answer->magic = ANSWERING_MAGIC;
    answer->client = request->client;
    answer->kind = kind;
    answer->sequence = request->sequence;
    answer->value = value;
    answer->operation = operation;
    answer->time_ns = now_ns();
    state->check = mix(mix(mix(state->check, answer->time_ns), value), page[1]);
    answer->check = state->check;
    page[1] = state->check;
}

GUEST_PART void send(const volatile uint8_t *to_mac, const volatile uint8_t *from_mac,
                     const volatile struct answering_message *answer)
{
    volatile uint16_t *available = (void *)TX_AVAIL;
    volatile uint8_t *frame = (void *)(TX_BUFFER + HEADER);

    copy(frame, to_mac, 6);
    copy(frame + 6, from_mac, 6);
    frame[12] = ANSWERING_ETHER_TYPE >> 8;
    frame[13] = ANSWERING_ETHER_TYPE & 0xff;
    copy(frame + 14, answer, sizeof(*answer));
    available[2 + available[1] % SIZE] = 0;
    available[1] = (uint16_t)(available[1] + 1);
    out16(NET_NOTIFY_TX, 1);
}

GUEST_PART void take(volatile struct state *state, const volatile uint8_t *frame, uint32_t bytes)
{
    volatile struct answering_message *request = (void *)(STATE + 0x800), *answer;
    unsigned client;

    if (bytes < FRAME || frame[12] != ANSWERING_ETHER_TYPE >> 8 || frame[13] != (ANSWERING_ETHER_TYPE & 0xff))
        return;
    copy(request, frame + 14, sizeof(*request));
    client = request->client;
    if (request->magic != ANSWERING_MAGIC || client >= ANSWERING_CLIENTS || request->kind >= ANSWERING_REFUSED)
        return;
    answer = &state->sessions[client].answer;
    if (!state->sessions[client].open ? request->kind == ANSWERING_OPEN && request->sequence == 1
                                      : request->sequence == state->sessions[client].sequence + 1) {
        carry_out(state, request);
    } else if (!state->sessions[client].open || request->sequence != state->sessions[client].sequence) {
        request->kind = ANSWERING_REFUSED;
        answer = request;
    }
    send(frame + 6, frame, answer);
}

GUEST void answering_guest_main(uint64_t handler);
GUEST void answering_guest_main(uint64_t handler)
{
    volatile struct state *state = (void *)STATE;
    volatile uint16_t *available = (void *)RX_AVAIL, *used_index = (void *)(RX_USED + 2);
    volatile struct vring_used_elem *used = (void *)(RX_USED + 4);
    uint64_t random = 1;
    uint16_t taken = 0;

    for (unsigned page = 0; page < ANSWERING_BALLAST; page++) {
        volatile uint64_t *words = (void *)(BALLAST + 4096ul * page);

        random = mix(random, page);
        words[0] = random;
        words[1] = random * 3;
    }
    set_interrupts(handler);
    start_card();
    for (;;) {
        while (*used_index != taken) {
            unsigned id = used[taken % SIZE].id % SIZE;

            take(state, (void *)(RX_BUFFERS + 2048ul * id + HEADER), used[taken % SIZE].len - HEADER);
            available[2 + available[1] % SIZE] = (uint16_t)id;
            available[1] = (uint16_t)(available[1] + 1);
            taken++;
        }
        available[0] = 0;
        if (*used_index == taken)
            __asm__ volatile("sti\n hlt\n cli" : : : "memory");
        available[0] = VRING_AVAIL_F_NO_INTERRUPT;
    }
}
