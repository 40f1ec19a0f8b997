/* Answers a user program's RDTSC: reads the exception's frame and the faulting bytes, goes back as IRETQ would. */
#include "vmm/user_tsc.h"

#include <string.h>

#include "vmm/tsc_patch.h"

#define USER_CS_64 0x33 /* Linux arch/x86/include/asm/segment.h */
#define USER_CS_32 0x23
#define USER_DS    0x2b
#define GP_VECTOR  13
#define HOOK_BYTES 2 /* of the OUT */

#define PTE_PRESENT    (UINT64_C(1) << 0)
#define PTE_USER       (UINT64_C(1) << 2)
#define PTE_LARGE      (UINT64_C(1) << 7)
#define PTE_NO_EXECUTE (UINT64_C(1) << 63)
#define PTE_ADDRESS    UINT64_C(0x000ffffffffff000)

#define CR0_PG   (UINT64_C(1) << 31)
#define CR4_PAE  (UINT64_C(1) << 5)
#define CR4_LA57 (UINT64_C(1) << 12)
#define EFER_LMA (UINT64_C(1) << 10)

#define RFLAGS_FIXED (UINT64_C(1) << 1)
#define RFLAGS_RF    (UINT64_C(1) << 16)
#define RFLAGS_VM    (UINT64_C(1) << 17)
/* What IRETQ loads: CF PF AF ZF SF TF IF DF OF IOPL NT RF AC VIF VIP ID. */
#define RFLAGS_LOADED (UINT64_C(0x3f7fd5) & ~RFLAGS_VM)

struct gp_frame {
    uint64_t error_code;
    uint64_t rip;
    uint64_t cs;
    uint64_t rflags;
    uint64_t rsp;
    uint64_t ss;
};

enum access { ACCESS_KERNEL_READ, ACCESS_USER_FETCH };

/* Walks the four levels from CR3. False: not mapped for this access, or a table outside RAM. */
static bool translate(const struct guest_memory *memory, uint64_t cr3, uint64_t va, enum access access, uint64_t *gpa)
{
    uint64_t table = cr3 & PTE_ADDRESS;

    if ((uint64_t)((int64_t)(va << 16) >> 16) != va)
        return false; /* not canonical */
    for (int shift = 39; shift >= 12; shift -= 9) {
        const void *at = guest_memory_at(memory, table + (va >> shift & 511) * 8, 8);
        uint64_t entry;

        if (at == NULL)
            return false;
        memcpy(&entry, at, sizeof(entry));
        if (!(entry & PTE_PRESENT))
            return false;
        if (access == ACCESS_USER_FETCH && (!(entry & PTE_USER) || (entry & PTE_NO_EXECUTE)))
            return false;
        bool large = entry & PTE_LARGE;
        if (shift == 12 || (large && shift != 39)) {
            uint64_t inside = (UINT64_C(1) << shift) - 1;

            *gpa = (entry & PTE_ADDRESS & ~inside) | (va & inside);
            return true;
        }
        if (large)
            return false; /* reserved in the top level */
        table = entry & PTE_ADDRESS;
    }
    return false;
}

/* Reads up to `bytes`, page by page; returns how many could be read. */
static size_t read_virtual(const struct guest_memory *memory, uint64_t cr3, uint64_t va, enum access access, void *out,
                           size_t bytes)
{
    size_t done = 0;

    while (done < bytes) {
        size_t chunk = GUEST_PAGE_BYTES - (va + done) % GUEST_PAGE_BYTES;
        uint64_t gpa;
        const void *at;

        if (chunk > bytes - done)
            chunk = bytes - done;
        if (!translate(memory, cr3, va + done, access, &gpa) || (at = guest_memory_at(memory, gpa, chunk)) == NULL)
            break;
        memcpy((uint8_t *)out + done, at, chunk);
        done += chunk;
    }
    return done;
}

/* Is the vCPU really at the hook? A user program with ioperm() may write the port as well. */
static bool at_gp_entry(const struct guest_memory *memory, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
    struct {
        uint16_t low;
        uint16_t selector;
        uint16_t bits;
        uint16_t middle;
        uint32_t high;
        uint32_t zero;
    } gate;

    if ((sregs->cs.selector & 3) != 0 || sregs->cs.dpl != 0 || sregs->idt.limit < GP_VECTOR * 16 + 15)
        return false;
    if (read_virtual(memory, sregs->cr3, sregs->idt.base + GP_VECTOR * 16, ACCESS_KERNEL_READ, &gate, sizeof(gate)) !=
        sizeof(gate))
        return false;
    return regs->rip == ((uint64_t)gate.high << 32 | (uint64_t)gate.middle << 16 | gate.low) + HOOK_BYTES;
}

/* Length of the instruction that reads the counter, 0 if it is another. */
static unsigned tsc_instruction_bytes(const uint8_t *bytes, size_t count, bool *rdtscp)
{
    *rdtscp = false;
    if (count >= 2 && bytes[0] == 0x0f && bytes[1] == 0x31)
        return 2;
    if (count >= 2 && bytes[0] == 0xe5 && bytes[1] == TSC_PORT_RDTSC)
        return 2;
    *rdtscp = true;
    if (count >= 3 && bytes[0] == 0x0f && bytes[1] == 0x01 && bytes[2] == 0xf9)
        return 3;
    if (count >= 3 && bytes[0] == 0xe5 && bytes[1] == TSC_PORT_RDTSCP && bytes[2] == 0x90)
        return 3;
    return 0;
}

bool user_tsc_emulate(const struct guest_memory *memory, struct kvm_regs *regs, struct kvm_sregs *sregs, uint64_t tsc,
                      uint32_t tsc_aux)
{
    struct gp_frame frame;
    uint8_t bytes[3];
    bool rdtscp;

    if (!(sregs->cr0 & CR0_PG) || !(sregs->cr4 & CR4_PAE) || (sregs->cr4 & CR4_LA57) || !(sregs->efer & EFER_LMA))
        return false;
    if (!at_gp_entry(memory, regs, sregs) ||
        read_virtual(memory, sregs->cr3, regs->rsp, ACCESS_KERNEL_READ, &frame, sizeof(frame)) != sizeof(frame))
        return false;
    bool is64 = (uint16_t)frame.cs == USER_CS_64;
    if (frame.error_code != 0 || (!is64 && (uint16_t)frame.cs != USER_CS_32) || (uint16_t)frame.ss != USER_DS ||
        (frame.rflags & RFLAGS_VM))
        return false;
    if (!is64 && frame.rip > UINT32_MAX)
        return false;

    size_t got = read_virtual(memory, sregs->cr3, frame.rip, ACCESS_USER_FETCH, bytes, sizeof(bytes));
    unsigned length = tsc_instruction_bytes(bytes, got, &rdtscp);
    if (length == 0)
        return false;

    regs->rax = (uint32_t)tsc;
    regs->rdx = tsc >> 32;
    if (rdtscp)
        regs->rcx = tsc_aux;
    regs->rip = is64 ? frame.rip + length : (uint32_t)(frame.rip + length);
    regs->rsp = is64 ? frame.rsp : (uint32_t)frame.rsp;
    /* The fault pushed RF so that a breakpoint would not strike twice; past the instruction it is clear. */
    regs->rflags = (frame.rflags & RFLAGS_LOADED & ~RFLAGS_RF) | RFLAGS_FIXED;

    sregs->cs = (struct kvm_segment){.selector = (uint16_t)frame.cs,
                                     .limit = 0xffffffff,
                                     .type = 0xb,
                                     .present = 1,
                                     .dpl = 3,
                                     .s = 1,
                                     .l = is64,
                                     .db = !is64,
                                     .g = 1};
    sregs->ss = (struct kvm_segment){
        .selector = USER_DS, .limit = 0xffffffff, .type = 0x3, .present = 1, .dpl = 3, .s = 1, .db = 1, .g = 1};
    return true;
}
