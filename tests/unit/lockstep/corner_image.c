/* Builds the corner guest: tables, rings, devices' programming, and a random program of steps. */
#include "tests/unit/lockstep/corner_image.h"

#include <string.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "tests/unit/lockstep/corner_guest.h"

#define X(name) GADGET_##name,
enum gadget { CORNER_GADGETS(X) GADGETS };
#undef X
#define X(name) #name,
const char *const corner_gadget_names[] = { CORNER_GADGETS(X) NULL };
#undef X

extern const uint8_t corner_guest_begin[], corner_guest_end[], corner_guest_start[], corner_guest_vectors[];
extern const uint8_t corner_guest_syscall[], corner_guest_low_begin[], corner_guest_low_end[];

#define PTE_PRESENT 0x1u
#define PTE_ALL     0x67u /* present, writable, user, accessed, dirty */
#define GATE_INTERRUPT 0x8E00u
#define GATE_USER      0xEE00u
#define GATE_USER_TRAP 0xEF00u

#define MSR_EFER_BITS 0xD01u /* SCE LME LMA NXE */

struct builder {
    struct guest_memory *memory;
    const struct corner_plan *plan;
    uint64_t random;
    uint64_t next_gpa; /* of the next step */
};

uint64_t corner_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint64_t random_bits(struct builder *builder)
{
    return corner_random(&builder->random);
}

static unsigned below(struct builder *builder, unsigned limit)
{
    return (unsigned)(random_bits(builder) % limit);
}

static void *at(const struct builder *builder, uint64_t gpa)
{
    return builder->memory->base + gpa;
}

static uint64_t guest_address(const uint8_t *code)
{
    return CORNER_CODE + (uint64_t)(code - corner_guest_begin);
}

/* ---- tables ---- */

static void build_page_tables(struct builder *builder)
{
    uint64_t *pt = at(builder, CORNER_PT);

    *(uint64_t *)at(builder, CORNER_PML4) = CORNER_PDPT | PTE_ALL;
    *(uint64_t *)at(builder, CORNER_PDPT) = CORNER_PD | PTE_ALL;
    *(uint64_t *)at(builder, CORNER_PD) = CORNER_PT | PTE_ALL;
    for (uint64_t page = 1; page < 512; page++) /* none at 0 */
        pt[page] = page << 12 | PTE_ALL;
    for (unsigned page = 0; page < CORNER_SCRATCH_PAGES; page++)
        if (below(builder, 3) == 0)
            pt[(CORNER_SCRATCH >> 12) + page] &= ~(uint64_t)PTE_PRESENT;
    for (unsigned page = 0; page < 2; page++)
        pt[(CORNER_JIT_VA >> 12) + page] = (CORNER_JIT + page * 4096) | PTE_ALL;
    pt[CORNER_MMIO_VA >> 12] = CORNER_MMIO_RAM | PTE_ALL;
    for (unsigned page = 0; page < 3; page++)
        pt[(CORNER_MMIO_VA >> 12) + 1 + page] = (CORNER_MMIO_GPA + page * 4096) | PTE_ALL;
}

static void build_descriptors(struct builder *builder)
{
    const struct {
        unsigned selector;
        uint64_t descriptor;
    } segments[] = {
        { CORNER_CS0, UINT64_C(0x00af9b000000ffff) },
        { CORNER_DS0, UINT64_C(0x00cf93000000ffff) },
        { CORNER_CS3_32, UINT64_C(0x00cffb000000ffff) },
        { CORNER_DS3, UINT64_C(0x00cff3000000ffff) },
        { CORNER_CS3, UINT64_C(0x00affb000000ffff) },
        { CORNER_TR, UINT64_C(0x00008b0000000067) | (uint64_t)CORNER_TSS << 16 },
        { CORNER_CS16, UINT64_C(0x00009b000000ffff) | (uint64_t)CORNER_LOW_CODE << 16 },
        { CORNER_DS16, UINT64_C(0x000093000000ffff) | (uint64_t)CORNER_LOW_CODE << 16 },
        { CORNER_CS0_32, UINT64_C(0x00cf9b000000ffff) },
    };
    uint64_t *gdt = at(builder, CORNER_GDT);
    uint64_t stack0 = CORNER_STACK0;

    for (size_t i = 0; i < sizeof(segments) / sizeof(segments[0]); i++)
        gdt[segments[i].selector / 8] = segments[i].descriptor;
    for (unsigned vector = 0; vector < 51; vector++) {
        unsigned number = vector < 48 ? vector : 0x80 + vector - 48;
        uint64_t handler = guest_address(corner_guest_vectors) + 16 * vector;
        uint32_t type = number == 0x81 ? GATE_USER_TRAP
                        : number == 3 || number == 4 || number >= 0x80 ? GATE_USER : GATE_INTERRUPT;
        uint32_t *gate = at(builder, CORNER_IDT + 16 * number);

        gate[0] = (uint32_t)CORNER_CS0 << 16 | (uint32_t)(handler & 0xffff);
        gate[1] = (uint32_t)(handler & 0xffff0000) | type;
    }
    memcpy(at(builder, CORNER_TSS + 4), &stack0, sizeof(stack0)); /* RSP0 */
    *(uint16_t *)at(builder, CORNER_TSS + 102) = 0x68;           /* no I/O bitmap: IOPL decides */
}

/* ---- steps ---- */

static void step(struct builder *builder, enum gadget gadget, unsigned flags, uint64_t rdi, uint64_t rsi, uint64_t rdx,
                 uint64_t rcx, uint64_t r8, uint64_t r9)
{
    uint32_t head[2] = { gadget, flags };
    uint64_t arguments[7] = { rdi, rsi, rdx, rcx, r8, r9, random_bits(builder) };

    memcpy(at(builder, builder->next_gpa + STEP_GADGET), head, sizeof(head));
    memcpy(at(builder, builder->next_gpa + STEP_ARG), arguments, sizeof(arguments));
    builder->next_gpa += CORNER_STEP_BYTES;
}

static void step_out(struct builder *builder, unsigned port, unsigned bytes, uint32_t value)
{
    step(builder, GADGET_out, STEP_AT_CPL0, port, value, bytes, 0, 0, 0);
}

static void card_put(struct builder *builder, unsigned card_port, unsigned offset, unsigned bytes, uint32_t value)
{
    step_out(builder, card_port + offset, bytes, value);
}

static void start_card(struct builder *builder, unsigned slot, unsigned port, unsigned queue, uint64_t ring_gpa)
{
    step_out(builder, 0xCF8, 4, 0x80000004 | slot << 11); /* its command register: I/O space and bus master */
    step_out(builder, 0xCFC, 2, 5);
    card_put(builder, port, VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    card_put(builder, port, VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
    card_put(builder, port, VIRTIO_PCI_COMMON_GF, 4, 1); /* VERSION_1 */
    card_put(builder, port, VIRTIO_PCI_COMMON_STATUS, 1,
             VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    card_put(builder, port, VIRTIO_PCI_COMMON_Q_SELECT, 2, queue);
    card_put(builder, port, VIRTIO_PCI_COMMON_Q_SIZE, 2, 64);
    card_put(builder, port, VIRTIO_PCI_COMMON_Q_DESCLO, 4, (uint32_t)ring_gpa);
    card_put(builder, port, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, (uint32_t)ring_gpa + 0x1000);
    card_put(builder, port, VIRTIO_PCI_COMMON_Q_USEDLO, 4, (uint32_t)ring_gpa + 0x2000);
    card_put(builder, port, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    card_put(builder, port, VIRTIO_PCI_COMMON_STATUS, 1,
             VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |
                 VIRTIO_CONFIG_S_DRIVER_OK);
}

/* Interrupts and devices, as a PC's operating system sets them up. */
static void start_devices(struct builder *builder)
{
    static const uint8_t pic[][2] = {
        { 0x20, 0x11 }, { 0x21, 0x20 }, { 0x21, 0x04 }, { 0x21, 0x01 },
        { 0xA0, 0x11 }, { 0xA1, 0x28 }, { 0xA1, 0x02 }, { 0xA1, 0x01 },
        { 0x21, 0xEA }, { 0xA1, 0xF2 }, /* timer, cascade, serial line; clock, disk, network */
    };

    if (builder->plan->whole_cpu) { /* SYSCALL: selectors, entry, and that it clears TF IF DF */
        step(builder, GADGET_msr_write, STEP_AT_CPL0, 0xC0000081, UINT64_C(0x0023001000000000), 0, 0, 0, 0);
        step(builder, GADGET_msr_write, STEP_AT_CPL0, 0xC0000082, guest_address(corner_guest_syscall), 0, 0, 0, 0);
        step(builder, GADGET_msr_write, STEP_AT_CPL0, 0xC0000084, 0x700, 0, 0, 0, 0);
    }
    for (size_t i = 0; i < sizeof(pic) / sizeof(pic[0]); i++)
        step_out(builder, pic[i][0], 1, pic[i][1]);
    start_card(builder, 1, CORNER_NET_PORT, 1, CORNER_NET_RING);
    start_card(builder, 2, CORNER_DISK_PORT, 0, CORNER_DISK_RING);
    step_out(builder, 0x3F9, 1, 1); /* an interrupt for each byte that comes */
    step_out(builder, 0x3FC, 1, 0x0B);
    step_out(builder, 0x70, 1, 0x0A); /* the clock: 1024 times a second */
    step_out(builder, 0x71, 1, 0x26);
    step_out(builder, 0x70, 1, 0x0B);
    step_out(builder, 0x71, 1, 0x42);
    step_out(builder, 0x70, 1, 0x0C);
    step(builder, GADGET_in, STEP_AT_CPL0, 0x71, 0, 1, 0, 0, 0);
    step_out(builder, 0x43, 1, 0x30); /* the timer: once, the handler sets it anew */
    step_out(builder, 0x40, 1, 0x00);
    step_out(builder, 0x40, 1, 0x02);
}

/* 64 requests of one sector each, which the guest makes in this order, again and again. */
static void build_disk_ring(struct builder *builder)
{
    struct vring_desc *desc = at(builder, CORNER_DISK_RING);
    uint16_t *available = at(builder, CORNER_DISK_RING + 0x1000);

    for (unsigned i = 0; i < 64; i++)
        available[2 + i] = (uint16_t)(3 * (i % 21));
    for (unsigned i = 0; i < 21; i++) {
        uint64_t head = CORNER_DISK_HEAD + 64 * i, data = CORNER_DISK_DATA + 512 * i;
        struct virtio_blk_outhdr header = { .sector = below(builder, 64) };
        bool write = below(builder, 2);

        header.type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
        if (!write && i % 4 == 0)
            data = CORNER_SCRATCH + 4096 * below(builder, CORNER_SCRATCH_PAGES - 1) + below(builder, 4096);
        memcpy(at(builder, head), &header, sizeof(header));
        desc[3 * i] = (struct vring_desc){ .addr = head, .len = 16, .flags = VRING_DESC_F_NEXT,
                                           .next = (uint16_t)(3 * i + 1) };
        desc[3 * i + 1] = (struct vring_desc){ .addr = data, .len = 512, .next = (uint16_t)(3 * i + 2),
                                               .flags = VRING_DESC_F_NEXT | (write ? 0 : VRING_DESC_F_WRITE) };
        desc[3 * i + 2] = (struct vring_desc){ .addr = head + 32, .len = 1, .flags = VRING_DESC_F_WRITE };
    }
}

static void build_net_ring(struct builder *builder)
{
    struct vring_desc *desc = at(builder, CORNER_NET_RING);
    uint8_t *frame = at(builder, CORNER_STATE + S_NET_FRAME);

    desc[0] = (struct vring_desc){ .addr = CORNER_STATE + S_NET_FRAME, .len = 12 + 60 };
    memset(frame + 12, 0xff, 6);
    memcpy(frame + 24, "\x88\xb5", 2); /* local experimental, IEEE 802 */
}

static uint64_t scratch(struct builder *builder, unsigned room)
{
    uint64_t page = CORNER_SCRATCH + 4096 * (1 + below(builder, CORNER_SCRATCH_PAGES - 2));

    /* Half of them near a page's end, so that borders are crossed. */
    return below(builder, 2) ? page + 4096 - below(builder, room) : page + below(builder, 4096 - room);
}

/* A port that may be read or written at any time by any number of bytes. */
static unsigned some_port(struct builder *builder)
{
    static const uint16_t ports[] = { 0x80, 0x80, 0x3FF, 0x3FD, 0x21, 0xA1, 0x42, 0x61, 0xCFC, 0xED, 0x5000, 0x70 };

    return ports[below(builder, sizeof(ports) / sizeof(ports[0]))];
}

static unsigned some_msr(struct builder *builder)
{
    static const uint32_t numbers[] = {
        0x10, 0x1B, 0x3A, 0x174, 0x175, 0x176, 0x17B, 0x1A0, 0x1D9, 0x277, 0x2FF, 0x345, 0x38F, 0x3F1, 0x6E0, 0x8FF,
        0xC0000080, 0xC0000081, 0xC0000083, 0xC0000084, 0xC0000101, 0xC0000102, 0xC0000103, 0xC0010000, 0xC0011020,
        0xC0011029, 0x4B564D00, 0x4B564D01, 0x40000000, 0x40000020, 0xDEADBEEF,
    };

    return numbers[below(builder, sizeof(numbers) / sizeof(numbers[0]))];
}

/* Where a step may run. A software KVM (one without the CPU's virtualization) runs CPL 3 on the CPU itself, with
 * IOPL 0, and interprets CPL 0, where it knows no SSE and opens interrupt windows late. */
enum { AT_CPL3 = 1, AT_CPL0 = 2, AT_BOTH = 3, NOWHERE = 0 };

static const struct {
    uint8_t whole_cpu, software_kvm;
} runs_at[GADGETS] = {
    [GADGET_out] = { AT_BOTH, AT_CPL0 },
    [GADGET_in] = { AT_BOTH, AT_CPL0 },
    [GADGET_spin] = { AT_BOTH, AT_CPL3 },
    [GADGET_string] = { AT_BOTH, AT_BOTH },
    [GADGET_rep_outs] = { AT_BOTH, AT_CPL0 },
    [GADGET_rep_ins] = { AT_BOTH, NOWHERE },
    [GADGET_shadow] = { AT_BOTH, NOWHERE },
    [GADGET_pop_flags] = { AT_BOTH, NOWHERE },
    [GADGET_step_traps] = { AT_BOTH, NOWHERE },
    [GADGET_modify] = { AT_BOTH, AT_CPL3 },
    [GADGET_page_bits] = { AT_CPL0, NOWHERE },
    [GADGET_x87] = { AT_BOTH, AT_CPL3 },
    [GADGET_sse] = { AT_BOTH, AT_CPL3 },
    [GADGET_fxsave] = { AT_BOTH, AT_CPL3 },
    [GADGET_xgetbv] = { AT_BOTH, NOWHERE },
    [GADGET_cpuid] = { AT_BOTH, NOWHERE },
    [GADGET_rdrand] = { AT_BOTH, NOWHERE },
    [GADGET_msr_read] = { AT_BOTH, AT_CPL0 },
    [GADGET_msr_write] = { AT_BOTH, AT_CPL0 },
    [GADGET_rdpmc] = { AT_BOTH, AT_CPL3 },
    [GADGET_tsc] = { AT_BOTH, AT_CPL0 },
    [GADGET_user_tsc] = { AT_CPL3, NOWHERE },
    [GADGET_fault] = { AT_BOTH, AT_CPL3 },
    [GADGET_compat] = { AT_BOTH, NOWHERE },
    [GADGET_real_mode] = { AT_CPL0, NOWHERE },
    [GADGET_halt] = { AT_CPL0, NOWHERE },
    [GADGET_iret] = { AT_BOTH, NOWHERE },
    [GADGET_syscall] = { AT_CPL3, NOWHERE },
    [GADGET_mmio] = { AT_BOTH, AT_BOTH },
    [GADGET_hypercall] = { AT_BOTH, NOWHERE },
    [GADGET_breakpoint] = { AT_CPL0, NOWHERE },
    [GADGET_frame] = { AT_BOTH, AT_CPL0 },
    [GADGET_disk] = { AT_BOTH, AT_CPL0 },
    [GADGET_locked] = { AT_BOTH, AT_BOTH },
};

static uint8_t allowed(const struct corner_plan *plan, enum gadget gadget)
{
    if (plan->only != 0 && !(plan->only >> gadget & 1))
        return NOWHERE;
    return plan->whole_cpu ? runs_at[gadget].whole_cpu : runs_at[gadget].software_kvm;
}

static void random_step(struct builder *builder)
{
    const struct corner_plan *plan = builder->plan;
    enum gadget gadget = (enum gadget)(1 + below(builder, GADGETS - 1));
    uint8_t where = allowed(plan, gadget);
    unsigned cpl0 = where == AT_CPL0 || (where == AT_BOTH && below(builder, 2)) ? STEP_AT_CPL0 : 0;
    uint64_t a = random_bits(builder), b = random_bits(builder);

    if (where == NOWHERE)
        return;
    switch (gadget) {
    case GADGET_end:
    case GADGETS:
        return;
    case GADGET_out:
        step(builder, gadget, cpl0, 0x80, a, 1u << a % 3, 0, 0, 0);
        return;
    case GADGET_in:
        step(builder, gadget, cpl0, some_port(builder), 0, 1u << a % 3, 0, 0, 0);
        return;
    case GADGET_spin:
        step(builder, gadget, cpl0, a, b, a, below(builder, 20) == 0 ? 2000000 : 1 + below(builder, 3000), 0, 0);
        return;
    case GADGET_string: {
        uint64_t from = scratch(builder, 64), to = a % 4 == 0 ? from + 1 + b % 16 : scratch(builder, 64);
        unsigned count = 1 + below(builder, below(builder, 4) == 0 ? 3000 : 40);

        if (count > 500) { /* with room on both sides */
            from = CORNER_SCRATCH + 4096 * 8 + a % 4096;
            to = CORNER_SCRATCH + 4096 * 20 + b % 4096;
        }
        step(builder, gadget, cpl0, to, from, below(builder, 8), count, a >> 8, 0);
        return;
    }
    case GADGET_rep_outs:
        step(builder, gadget, cpl0, 0, scratch(builder, 32), 0x80, below(builder, 40), 1u << a % 3, b);
        return;
    case GADGET_rep_ins:
        step(builder, gadget, cpl0, scratch(builder, 32), 0, a % 4 == 0 ? 0xF5 : some_port(builder),
             below(builder, 40), a % 4 == 0 ? 4 : 1u << a % 3, b);
        return;
    case GADGET_shadow:
        step(builder, gadget, cpl0, scratch(builder, 32), 0, 0, below(builder, 4), below(builder, cpl0 ? 19 : 16),
             below(builder, 3) == 0 ? below(builder, 2000) : below(builder, 8));
        return;
    case GADGET_pop_flags:
        step(builder, gadget, cpl0, a, 0, 0, 1 + below(builder, 5), 0, 0);
        return;
    case GADGET_step_traps:
        step(builder, gadget, cpl0, scratch(builder, 32), scratch(builder, 32), 0, 0, 1 + below(builder, 60), 0);
        return;
    case GADGET_modify:
        step(builder, gadget, cpl0, below(builder, 2) ? 4096 - below(builder, 6) : below(builder, 4000), a, 0, 0, b, 0);
        return;
    case GADGET_page_bits:
        step(builder, gadget, cpl0, CORNER_LOW_CODE + 0x1000 + 4096 * below(builder, 4), 0, a, 0,
             below(builder, 5), 0);
        return;
    case GADGET_x87:
        step(builder, gadget, cpl0, a, b, 0, 0, below(builder, 5), 0);
        return;
    case GADGET_sse:
    case GADGET_fxsave:
    case GADGET_locked:
        step(builder, gadget, cpl0, gadget == GADGET_locked ? scratch(builder, 16) : a, b, b, a, 0, 0);
        return;
    case GADGET_xgetbv:
    case GADGET_rdrand:
    case GADGET_hypercall:
        step(builder, gadget, cpl0, 0, 0, 0, 0, 0, 0);
        return;
    case GADGET_cpuid: {
        static const uint32_t bases[] = { 0, 0x80000000, 0x40000000, 0xC0000000 };

        step(builder, gadget, cpl0, bases[below(builder, 4)] + below(builder, 0x22), below(builder, 3), 0, 0, 0, 0);
        return;
    }
    case GADGET_msr_read:
        step(builder, gadget, cpl0, some_msr(builder), 0, 0, 0, 0, 0);
        return;
    case GADGET_msr_write: {
        static const uint32_t harmless[] = { 0x174, 0xC0000103, 0x1B, 0x10, 0x8B, 0xC0000102, 0xC0011020, 0x277 };

        /* 0x277 takes some values only; the others are #GP, or refused */
        step(builder, gadget, cpl0, harmless[below(builder, 8)], a & 0x0707070707070707, 0, 0, 0, 0);
        return;
    }
    case GADGET_rdpmc:
        step(builder, gadget, cpl0, below(builder, 8), 0, 0, 0, 0, 0);
        return;
    case GADGET_tsc:
        step(builder, gadget, cpl0, 0, 0, 0, 1 + below(builder, 5), a, 0);
        return;
    case GADGET_user_tsc:
        /* RDTSC or RDTSCP, and RET; anywhere, and across two pages */
        step(builder, gadget, cpl0, below(builder, 2) ? 4096 - below(builder, 4) : below(builder, 4000),
             a % 2 ? 0xC3310F : 0xC3F9010F, 0, 0, 0, 0);
        return;
    case GADGET_fault:
        step(builder, gadget, cpl0, 0, 0, 0, 0, below(builder, 12), 0);
        return;
    case GADGET_compat:
        step(builder, gadget, cpl0, 0, 0, 0, 0, below(builder, 16), cpl0 ? 1 : 0);
        return;
    case GADGET_real_mode:
        step(builder, gadget, cpl0, a, 0, 0, 0, 0, 0);
        return;
    case GADGET_halt:
        if (below(builder, 4) == 0)
            step(builder, gadget, cpl0, 0, 0, 0, 0, 0, 0);
        return;
    case GADGET_iret:
        step(builder, gadget, cpl0, a, 0, 0, 0, 0, 0);
        return;
    case GADGET_syscall:
        step(builder, gadget, cpl0, 0, 0, 0, 0, 0, 0);
        return;
    case GADGET_mmio: {
        uint64_t nobody = CORNER_MMIO_VA + 4096 - 24 + below(builder, 4096);
        bool to = below(builder, 2);
        unsigned how = below(builder, 6);

        step(builder, gadget, cpl0, to ? nobody : scratch(builder, 64), to ? scratch(builder, 64) : nobody, 0,
             1 + below(builder, 12), how, 0);
        return;
    }
    case GADGET_breakpoint:
        step(builder, gadget, cpl0, (scratch(builder, 16) & ~UINT64_C(3)), 0, 0, 0, 5, 0);
        return;
    case GADGET_frame:
        step(builder, gadget, cpl0, 0, 0, 0, 0, 0, 0);
        return;
    case GADGET_disk:
        step(builder, gadget, cpl0, 0, 0, 0, 1 + below(builder, 20), 0, 0);
        return;
    }
}

static void clock_steps(struct builder *builder)
{
    unsigned kind = below(builder, 8);

    if (kind == 0)
        step(builder, GADGET_spin, 0, 1, 3, 5, 3000000, 0, 0);
    else if (kind < 4)
        step(builder, GADGET_spin, 0, 1, 3, 5, 1 + below(builder, 300000), 0, 0);
    else if (kind < 6 && builder->plan->sleeps)
        step(builder, GADGET_halt, STEP_AT_CPL0, 0, 0, 0, 0, 0, 0);
    step(builder, GADGET_tsc, STEP_AT_CPL0, 0, 0, 0, 1, 0, 0);
    step(builder, GADGET_frame, STEP_AT_CPL0, 0, 0, 0, 0, 0, 0);
}

void corner_image_build(struct guest_memory *memory, const struct corner_plan *plan)
{
    struct builder builder = {
        .memory = memory, .plan = plan, .random = plan->seed, .next_gpa = CORNER_PROGRAM
    };
    uint64_t *state = (void *)(memory->base + CORNER_STATE);

    build_page_tables(&builder);
    build_descriptors(&builder);
    build_disk_ring(&builder);
    build_net_ring(&builder);
    memcpy(at(&builder, CORNER_CODE), corner_guest_begin, (size_t)(corner_guest_end - corner_guest_begin));
    memcpy(at(&builder, CORNER_LOW_CODE), corner_guest_low_begin,
           (size_t)(corner_guest_low_end - corner_guest_low_begin));
    for (uint64_t gpa = CORNER_SCRATCH; gpa < CORNER_SCRATCH + CORNER_SCRATCH_PAGES * 4096; gpa += 8)
        *(uint64_t *)at(&builder, gpa) = random_bits(&builder);
    state[S_PROGRAM / 8] = CORNER_PROGRAM;
    state[S_HANDLER_MODE / 8] = 2 | (plan->whole_cpu ? 4 | below(&builder, 2) : 8);
    state[S_TIMER_MASK / 8] = plan->timer_mask;
    start_devices(&builder);
    for (unsigned i = 0; i < plan->steps && builder.next_gpa < CORNER_PROGRAM_END - 4 * CORNER_STEP_BYTES;) {
        uint64_t before_gpa = builder.next_gpa;

        if (plan->clock)
            clock_steps(&builder);
        else
            random_step(&builder);
        i += builder.next_gpa != before_gpa;
    }
    /* What follows is zero: the end. */
    guest_memory_mark(memory, 0, 2 << 20);
}

void corner_image_registers(const struct corner_plan *plan, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
    const struct kvm_segment data = { .selector = CORNER_DS3, .limit = 0xffffffff, .type = 3, .present = 1, .s = 1,
                                      .db = 1, .g = 1, .dpl = 3 };

    memset(regs, 0, sizeof(*regs));
    regs->rip = guest_address(corner_guest_start);
    regs->rsp = CORNER_STACK3;
    regs->rflags = 0x3202; /* IOPL 3, IF */
    sregs->cs = (struct kvm_segment){ .selector = CORNER_CS3, .limit = 0xffffffff, .type = 0xb, .present = 1, .s = 1,
                                      .l = 1, .g = 1, .dpl = 3 };
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->tr = (struct kvm_segment){ .base = CORNER_TSS, .limit = 0x67, .selector = CORNER_TR, .type = 0xb,
                                      .present = 1 };
    sregs->ldt = (struct kvm_segment){ .limit = 0xffff, .type = 2, .present = 1 };
    sregs->gdt = (struct kvm_dtable){ .base = CORNER_GDT, .limit = 0x6F };
    sregs->idt = (struct kvm_dtable){ .base = CORNER_IDT, .limit = 0x82 * 16 + 15 };
    sregs->cr0 = 0x80000033; /* PG ET NE MP PE */
    sregs->cr3 = CORNER_PML4;
    sregs->cr4 = 0x20 | 0x600 | (plan->whole_cpu ? 4 : 0); /* PAE, SSE, and TSD where there is one */
    sregs->efer = MSR_EFER_BITS;
}
