/* User-mode RDTSC; see user_tsc.h. Everything read from the guest is checked: it is the guest's to forge. */
#include "vmm/user_tsc.h"

#include <string.h>

#define PAGE_PRESENT 1u
#define PAGE_LARGE 0x80u
#define ADDRESS_MASK UINT64_C(0x000FFFFFFFFFF000)

/* What the CPU pushes for #GP, from the stack's top upwards. */
struct exception_frame {
    uint64_t error_code, rip, cs, rflags, rsp, ss;
};

/* Guest virtual to physical by the 4-level tables at `cr3`. */
static bool translate(const struct guest_memory *memory, uint64_t cr3, uint64_t address, uint64_t *gpa)
{
    uint64_t table = cr3 & ADDRESS_MASK;

    for (int level = 3; level >= 0; level--) {
        unsigned shift = 12 + 9 * (unsigned)level;
        const uint64_t *entry = guest_memory_at(memory, table + (address >> shift & 511) * 8, 8);

        if (entry == NULL || !(*entry & PAGE_PRESENT))
            return false;
        if (level == 0 || (level < 3 && *entry & PAGE_LARGE)) {
            uint64_t offset_mask = (UINT64_C(1) << shift) - 1;

            *gpa = (*entry & ADDRESS_MASK & ~offset_mask) | (address & offset_mask);
            return true;
        }
        table = *entry & ADDRESS_MASK;
    }
    return false;
}

/* Copies up to `bytes`, and tells how many could be read: the last instruction of a mapping may end at its end. */
static size_t read_virtual(const struct guest_memory *memory, uint64_t cr3, uint64_t address, void *out, size_t bytes)
{
    size_t done = 0;

    while (done < bytes) {
        size_t chunk = GUEST_PAGE_BYTES - (address + done) % GUEST_PAGE_BYTES;
        const void *from;
        uint64_t gpa;

        if (chunk > bytes - done)
            chunk = bytes - done;
        if (!translate(memory, cr3, address + done, &gpa) || (from = guest_memory_at(memory, gpa, chunk)) == NULL)
            break;
        memcpy((uint8_t *)out + done, from, chunk);
        done += chunk;
    }
    return done;
}

static struct kvm_segment user_segment(uint16_t selector, bool code)
{
    return (struct kvm_segment){
        .limit = UINT32_MAX, .selector = selector, .type = code ? 11 : 3, .present = 1, .dpl = 3, .s = 1, .g = 1,
        .l = code, .db = !code,
    };
}

bool user_tsc_emulate(const struct guest_memory *memory, struct kvm_regs *regs, struct kvm_sregs *sregs, uint64_t tsc,
                      uint32_t tsc_aux)
{
    struct exception_frame frame;
    uint8_t code[3] = { 0 };
    unsigned length = 0;

    if (read_virtual(memory, sregs->cr3, regs->rsp, &frame, sizeof(frame)) != sizeof(frame))
        return false;
    /* RDTSC faults with error code 0; 0x33 and 0x2b are Linux's 64-bit user segments (32-bit code keeps its #GP). */
    if (frame.error_code != 0 || frame.cs != 0x33 || frame.ss != 0x2b)
        return false;
    size_t got = read_virtual(memory, sregs->cr3, frame.rip, code, sizeof(code));
    if (got >= 2 && code[0] == 0x0F && code[1] == 0x31)
        length = 2;
    else if (got == 3 && code[0] == 0x0F && code[1] == 0x01 && code[2] == 0xF9)
        length = 3;
    if (length == 0)
        return false;
    regs->rax = (uint32_t)tsc;
    regs->rdx = tsc >> 32;
    if (length == 3)
        regs->rcx = tsc_aux;
    regs->rip = frame.rip + length;
    regs->rsp = frame.rsp;
    regs->rflags = frame.rflags & ~UINT64_C(0x10000); /* RF was set for the fault; the instruction is done */
    sregs->cs = user_segment(0x33, true);
    sregs->ss = user_segment(0x2b, false);
    return true;
}
