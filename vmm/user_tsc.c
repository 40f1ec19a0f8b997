/* Answers a user program's RDTSC: reads the exception's frame and the faulting bytes, goes back as IRETQ would. */
#include "vmm/user_tsc.h"

#include <string.h>

#include "vmm/guest_walk.h"
#include "vmm/tsc_patch.h"

#define USER_CS_64 0x33 /* Linux arch/x86/include/asm/segment.h */
#define USER_CS_32 0x23
#define USER_DS    0x2b
#define GP_VECTOR  13
#define HOOK_BYTES 2 /* of the OUT */

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

static const struct guest_access kernel_read = { .set = GUEST_PTE_PRESENT };
static const struct guest_access user_fetch = { .set = GUEST_PTE_PRESENT | GUEST_PTE_USER, .clear = GUEST_PTE_NO_EXECUTE };

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
    if (guest_read_virtual(memory, sregs->cr3, sregs->idt.base + GP_VECTOR * 16, kernel_read, &gate, sizeof(gate)) !=
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
        guest_read_virtual(memory, sregs->cr3, regs->rsp, kernel_read, &frame, sizeof(frame)) != sizeof(frame))
        return false;
    bool is64 = (uint16_t)frame.cs == USER_CS_64;
    if (frame.error_code != 0 || (!is64 && (uint16_t)frame.cs != USER_CS_32) || (uint16_t)frame.ss != USER_DS ||
        (frame.rflags & RFLAGS_VM))
        return false;
    if (!is64 && frame.rip > UINT32_MAX)
        return false;

    size_t got = guest_read_virtual(memory, sregs->cr3, frame.rip, user_fetch, bytes, sizeof(bytes));
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
