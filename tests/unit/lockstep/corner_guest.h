/*
 * Where things lie in the corner guest's memory, and what its program consists of. Shared by the guest, which is
 * assembler (corner_guest.S), and by the test that builds its memory (corner_image.c).
 *
 * Virtual addresses are physical ones, in pages of 4 KiB, but for those that are named VA here.
 */
#ifndef FTVMM_TESTS_CORNER_GUEST_H
#define FTVMM_TESTS_CORNER_GUEST_H

#define CORNER_PML4      0x1000
#define CORNER_PDPT      0x2000
#define CORNER_PD        0x3000
#define CORNER_PT        0x4000 /* the first 2 MiB */
#define CORNER_GDT       0x5000
#define CORNER_IDT       0x6000
#define CORNER_TSS       0x7000
#define CORNER_STACK0    0xA000 /* end of it */
#define CORNER_STATE     0xA000
#define CORNER_STACK3    0xE000 /* end of it */
#define CORNER_NET_RING  0x10000 /* descriptors, available at +0x1000, used at +0x2000 */
#define CORNER_DISK_RING 0x14000
#define CORNER_DISK_HEAD 0x17000 /* headers and status bytes of the disk's requests, 64 bytes each */
#define CORNER_DISK_DATA 0x18000 /* and their data, 512 bytes each */
#define CORNER_CODE      0x20000
#define CORNER_PROGRAM   0x40000 /* to 0xC0000 */
#define CORNER_PROGRAM_END 0xC0000
#define CORNER_SCRATCH   0xC0000 /* 32 pages, some of them absent until they are touched */
#define CORNER_SCRATCH_PAGES 32
#define CORNER_JIT       0xE0000 /* code that the guest writes; 2 pages */
#define CORNER_JIT_VA    0xE8000 /* the same pages again */
#define CORNER_MMIO_VA   0xF0000 /* a page of RAM, then three where nothing lives */
#define CORNER_MMIO_RAM  0xF8000
#define CORNER_FRAMES    0x100000 /* registers and frame of each interrupt, 256 bytes each, a ring of 2048 */
#define CORNER_FRAMES_ROOM 2048
#define CORNER_HISTORY   0x180000 /* flags and registers after each step, 128 bytes each, for a program's first steps */
#define CORNER_HISTORY_ROOM 4096
#define CORNER_MMIO_GPA  0x10000000
#define CORNER_NET_PORT  0xC000 /* where ftvmm puts its cards; notify at +0x44, status of interrupts at +0x40 */
#define CORNER_DISK_PORT 0xC080
#define CORNER_LOW_CODE  0xFA000 /* a page for 16-bit code and its way back */

/* Selectors: those of a 64-bit Linux, which is what ftvmm knows user programs by. */
#define CORNER_CS0   0x10
#define CORNER_DS0   0x18
#define CORNER_CS3_32 0x23
#define CORNER_DS3   0x2B
#define CORNER_CS3   0x33
#define CORNER_TR    0x40
#define CORNER_CS16  0x50
#define CORNER_DS16  0x58
#define CORNER_CS0_32 0x60

/* The guest's variables, from CORNER_STATE on; 8 bytes each. */
#define S_DIGEST       0x000 /* of what the program sees */
#define S_IRQ_DIGEST   0x008 /* of what interrupt handlers see */
#define S_PROGRAM      0x010 /* the step under way */
#define S_RESUME       0x018 /* where to go on after a fault, with which stack */
#define S_RESUME_RSP   0x020
#define S_STEPS        0x028 /* steps done */
#define S_IRQS         0x030
#define S_FAULTS       0x038
#define S_TRAPS        0x040 /* #DB and INT3 */
#define S_TRAP_LIMIT   0x048 /* #DB that are left until TF is cleared */
#define S_PAGE_FAULTS  0x050 /* that made a page present */
#define S_NESTING      0x058 /* interrupt handlers under way */
#define S_HANDLER_MODE 0x060 /* bits: 1: handlers allow interrupts; 2: they set the timer anew; 4: there are
                                debug registers; 8: INT leads nowhere */
#define S_REAL_RSP     0x068
#define S_LAST_TSC     0x070
#define S_TSC_BACK     0x078 /* readings that were not later than the one before; must stay 0 */
#define S_FINISHED     0x080
#define S_TIMER_MASK   0x088 /* of the high byte of the count that the timer gets anew: how long it waits */
#define S_COUNTS       0x100 /* interrupts by line, 16 of them; then faults by vector, 32 of them */
#define S_NET_FRAME    0x800 /* virtio header, Ethernet header, digest */
#define S_FXSAVE       0xA00 /* 512 bytes */

/* Where a frame has the last reading of the counter. */
#define FRAME_TSC 38

/* A step: 64 bytes. */
#define CORNER_STEP_BYTES 64
#define STEP_GADGET 0
#define STEP_FLAGS  4  /* STEP_AT_CPL0 */
#define STEP_ARG    8  /* seven 8-byte arguments: RDI RSI RDX RCX R8 R9 R10 */
#define STEP_AT_CPL0 1

/* What a step can do. Arguments are told at each of them in corner_guest.S. */
#define CORNER_GADGETS(X)                                                                                              \
    X(end) X(out) X(in) X(spin) X(string) X(rep_outs) X(rep_ins) X(shadow) X(pop_flags) X(step_traps) X(modify)        \
    X(page_bits) X(x87) X(sse) X(fxsave) X(xgetbv) X(cpuid) X(rdrand) X(msr_read) X(msr_write) X(rdpmc) X(tsc)         \
    X(user_tsc) X(fault) X(compat) X(real_mode) X(halt) X(iret) X(syscall) X(mmio) X(hypercall) X(breakpoint)          \
    X(frame) X(disk) X(locked)

#endif
