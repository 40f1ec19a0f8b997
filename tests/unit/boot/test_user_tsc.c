/* A user program's RDTSC: frames and page tables of a guest, honest and not. */
#include "tests/unit/cmocka_prelude.h"

#include "vmm/tsc_patch.h"
#include "vmm/user_tsc.h"

#define PAGES       16
#define CR3         0x1000u
#define PDPT_HIGH   0x2000u
#define PD_HIGH     0x3000u
#define PT_HIGH     0x4000u
#define PDPT_LOW    0x5000u
#define PD_LOW      0x6000u
#define PT_LOW      0x7000u
#define STACK_PAGE  0x8000u
#define IDT_PAGE    0x9000u
#define CODE_PAGE   0xa000u /* and the next page's, apart in memory: */
#define CODE_PAGE_2 0xc000u

#define STACK_VA UINT64_C(0xfffffe0000002000)
#define IDT_VA   UINT64_C(0xfffffe0000000000)
#define CODE_VA  UINT64_C(0x401000)
#define HANDLER  UINT64_C(0xffffffff81c00b20)
#define TSC      UINT64_C(0x0123456789abcdef)

#define PRESENT 1u
#define WRITE   2u
#define USER    4u
#define LARGE   0x80u

struct guest {
    struct guest_memory memory;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    uint64_t frame_va;
};

static uint8_t *ram;

static void set_entry(uint64_t table, uint64_t va, int shift, uint64_t value)
{
    memcpy(ram + table + (va >> shift & 511) * 8, &value, 8);
}

static void put_frame(struct guest *g, uint64_t error, uint64_t rip, uint64_t cs, uint64_t rflags, uint64_t rsp,
                      uint64_t ss)
{
    const uint64_t frame[6] = {error, rip, cs, rflags, rsp, ss};

    memcpy(ram + STACK_PAGE + g->regs.rsp % 4096, frame, sizeof(frame));
}

/* A guest at its #GP entry, whose program executed `code` at rip. */
static void make_guest(struct guest *g, uint64_t rip, const char *code, size_t bytes)
{
    free(ram);
    ram = calloc(PAGES, 4096);
    *g = (struct guest){.memory = {.base = ram, .bytes = PAGES * 4096}};
    set_entry(CR3, STACK_VA, 39, PDPT_HIGH | PRESENT | WRITE);
    set_entry(PDPT_HIGH, STACK_VA, 30, PD_HIGH | PRESENT | WRITE);
    set_entry(PD_HIGH, STACK_VA, 21, PT_HIGH | PRESENT | WRITE);
    set_entry(PT_HIGH, STACK_VA, 12, STACK_PAGE | PRESENT | WRITE | (UINT64_C(1) << 63));
    set_entry(PT_HIGH, IDT_VA, 12, IDT_PAGE | PRESENT | (UINT64_C(1) << 63));
    set_entry(CR3, CODE_VA, 39, PDPT_LOW | PRESENT | WRITE | USER);
    set_entry(PDPT_LOW, CODE_VA, 30, PD_LOW | PRESENT | WRITE | USER);
    set_entry(PD_LOW, CODE_VA, 21, PT_LOW | PRESENT | WRITE | USER);
    set_entry(PT_LOW, CODE_VA, 12, CODE_PAGE | PRESENT | USER);
    set_entry(PT_LOW, CODE_VA + 4096, 12, CODE_PAGE_2 | PRESENT | USER);
    for (size_t i = 0; i < bytes; i++) {
        uint64_t va = rip + i;

        ram[(va < CODE_VA + 4096 ? CODE_PAGE : CODE_PAGE_2) + va % 4096] = (uint8_t)code[i];
    }
    const uint16_t gate[8] = {HANDLER & 0xffff,       0x10,          0x8e00, HANDLER >> 16 & 0xffff,
                              HANDLER >> 32 & 0xffff, HANDLER >> 48, 0,      0};
    memcpy(ram + IDT_PAGE + 13 * 16, gate, sizeof(gate));

    g->sregs.cr0 = 0x80000001, g->sregs.cr3 = CR3, g->sregs.cr4 = 0x24, g->sregs.efer = 0x501;
    g->sregs.cs = (struct kvm_segment){.selector = 0x10, .l = 1, .s = 1, .present = 1, .type = 0xb};
    g->sregs.idt = (struct kvm_dtable){.base = IDT_VA, .limit = 0xfff};
    g->regs.rip = HANDLER + 2;
    g->regs.rsp = STACK_VA + 4096 - 6 * 8;
    g->regs.rax = 0x1111, g->regs.rcx = 0x2222, g->regs.rdx = 0x3333, g->regs.rbx = 0x4444;
    put_frame(g, 0, rip, 0x33, 0x10246, 0x7ffffff0, 0x2b);
}

static bool emulate(struct guest *g)
{
    return user_tsc_emulate(&g->memory, &g->regs, &g->sregs, TSC, 5);
}

static void assert_left_alone(struct guest *g)
{
    struct guest before = *g;

    assert_false(emulate(g));
    assert_memory_equal(g, &before, sizeof(before));
}

static void rdtsc_is_answered_and_the_program_goes_on(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA + 0x10, "\x0f\x31", 2);
    assert_true(emulate(&g));
    assert_int_equal(g.regs.rax, 0x89abcdef);
    assert_int_equal(g.regs.rdx, 0x01234567);
    assert_int_equal(g.regs.rcx, 0x2222);
    assert_int_equal(g.regs.rbx, 0x4444);
    assert_int_equal(g.regs.rip, CODE_VA + 0x12);
    assert_int_equal(g.regs.rsp, 0x7ffffff0);
    assert_int_equal(g.regs.rflags, 0x246); /* without RF */
    assert_int_equal(g.sregs.cs.selector, 0x33);
    assert_int_equal(g.sregs.cs.dpl, 3);
    assert_int_equal(g.sregs.cs.l, 1);
    assert_int_equal(g.sregs.cs.db, 0);
    assert_int_equal(g.sregs.ss.selector, 0x2b);
    assert_int_equal(g.sregs.ss.dpl, 3);
    assert_int_equal(g.sregs.cr3, CR3);
}

static void rdtscp_gets_the_cpu_number_too(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA, "\x0f\x01\xf9", 3);
    assert_true(emulate(&g));
    assert_int_equal(g.regs.rcx, 5);
    assert_int_equal(g.regs.rip, CODE_VA + 3);
}

static void the_rewritten_vdso_is_answered_alike(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA, "\xe5\xf5", 2);
    assert_true(emulate(&g));
    assert_int_equal(g.regs.rip, CODE_VA + 2);
    assert_int_equal(g.regs.rcx, 0x2222);
    make_guest(&g, CODE_VA, "\xe5\xf8\x90", 3);
    assert_true(emulate(&g));
    assert_int_equal(g.regs.rip, CODE_VA + 3);
    assert_int_equal(g.regs.rcx, 5);
}

static void rdtsc_across_a_page_border_is_read_from_both_pages(void **state)
{
    struct guest g;

    (void)state;
    for (uint64_t at = 4094; at <= 4095; at++) {
        make_guest(&g, CODE_VA + at, "\x0f\x01\xf9", 3);
        assert_true(emulate(&g));
        assert_int_equal(g.regs.rip, CODE_VA + at + 3);
    }
    /* The two bytes of an RDTSC are enough, though the next page is missing. */
    make_guest(&g, CODE_VA + 4094, "\x0f\x31", 2);
    set_entry(PT_LOW, CODE_VA + 4096, 12, 0);
    assert_true(emulate(&g));
    make_guest(&g, CODE_VA + 4095, "\x0f\x31", 2);
    set_entry(PT_LOW, CODE_VA + 4096, 12, 0);
    assert_left_alone(&g);
}

static void rdtsc_in_large_pages_is_found(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA, "", 0);
    set_entry(PD_LOW, CODE_VA, 21, 0 | PRESENT | USER | LARGE); /* 2 MiB at 0: CODE_VA becomes 0x1000, the CR3 page */
    g.sregs.cr3 = CR3;
    memcpy(ram + 0xb000, "\x0f\x31", 2);
    put_frame(&g, 0, 0x40b000, 0x33, 0x246, 0, 0x2b);
    assert_true(emulate(&g));

    make_guest(&g, CODE_VA, "", 0);
    set_entry(PDPT_LOW, 0, 30, 0 | PRESENT | USER | LARGE); /* 1 GiB at 0 */
    memcpy(ram + 0xb000, "\x0f\x31", 2);
    put_frame(&g, 0, 0xb000, 0x33, 0x246, 0, 0x2b);
    assert_true(emulate(&g));
}

static void a_32_bit_program_is_answered_in_32_bits(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    put_frame(&g, 0, CODE_VA, 0x23, 0x246, UINT64_C(0xdead0000ffffd000), 0x2b);
    assert_true(emulate(&g));
    assert_int_equal(g.sregs.cs.selector, 0x23);
    assert_int_equal(g.sregs.cs.l, 0);
    assert_int_equal(g.sregs.cs.db, 1);
    assert_int_equal(g.regs.rsp, 0xffffd000);
}

static void other_instructions_are_left_to_the_guest(void **state)
{
    static const char *const others[] = {"\x0f\x30\x90", "\xf4\x90\x90", "\xe5\xf6\x90", "\xe5\xf8\xc3",
                                         "\x0f\x01\xf8", "\xf3\x0f\x31", "\x90\x0f\x31"};
    struct guest g;

    (void)state;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        make_guest(&g, CODE_VA, others[i], 3);
        assert_left_alone(&g);
    }
}

static void faults_that_are_not_a_users_are_left_to_the_guest(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    put_frame(&g, 0, CODE_VA, 0x10, 0x246, 0, 0x18); /* from the kernel */
    assert_left_alone(&g);
    put_frame(&g, 0x18, CODE_VA, 0x33, 0x246, 0, 0x2b); /* a bad selector */
    assert_left_alone(&g);
    put_frame(&g, 0, CODE_VA, 0x0f, 0x246, 0, 0x2b); /* a segment of the LDT, base unknown */
    assert_left_alone(&g);
    put_frame(&g, 0, CODE_VA, 0x33, 0x20246, 0, 0x2b); /* virtual 8086 */
    assert_left_alone(&g);
}

/* A program with ioperm() may write the port itself; and it may lie about everything it can reach. */
static void a_port_write_elsewhere_is_no_gp(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    g.sregs.cs.selector = 0x33, g.sregs.cs.dpl = 3;
    assert_left_alone(&g);
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    g.regs.rip = HANDLER + 3;
    assert_left_alone(&g);
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    g.sregs.idt.limit = 13 * 16; /* no gate */
    assert_left_alone(&g);
}

static void unmapped_or_forbidden_code_is_left_to_the_guest(void **state)
{
    struct guest g;

    (void)state;
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    set_entry(PT_LOW, CODE_VA, 12, CODE_PAGE | PRESENT); /* not the user's */
    assert_left_alone(&g);
    set_entry(PT_LOW, CODE_VA, 12, CODE_PAGE | PRESENT | USER | (UINT64_C(1) << 63)); /* no execute */
    assert_left_alone(&g);
    set_entry(PT_LOW, CODE_VA, 12, UINT64_C(0xffffffffff000) | PRESENT | USER); /* outside RAM */
    assert_left_alone(&g);
    set_entry(PD_LOW, CODE_VA, 21, UINT64_C(0xffffffffff000) | PRESENT | USER); /* the table is */
    assert_left_alone(&g);
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    put_frame(&g, 0, CODE_VA | UINT64_C(1) << 48, 0x33, 0x246, 0, 0x2b); /* not canonical */
    assert_left_alone(&g);
    make_guest(&g, CODE_VA, "", 0);
    set_entry(CR3, CODE_VA, 39, 0 | PRESENT | USER | LARGE); /* no such page size */
    memcpy(ram + CODE_VA % 4096, "\x0f\x31", 2);
    put_frame(&g, 0, CODE_VA % 4096, 0x33, 0x246, 0, 0x2b);
    assert_left_alone(&g);
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    set_entry(PT_HIGH, STACK_VA, 12, 0); /* no stack */
    assert_left_alone(&g);
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    g.sregs.cr4 |= 1 << 12; /* five levels */
    assert_left_alone(&g);
    make_guest(&g, CODE_VA, "\x0f\x31", 2);
    g.sregs.cr0 &= 0x7fffffff;
    assert_left_alone(&g);
}

static void random_page_tables_never_lead_out_of_ram(void **state)
{
    uint64_t random = 3;
    unsigned answered = 0;

    (void)state;
    for (unsigned round = 0; round < 5000; round++) {
        struct guest g;

        make_guest(&g, CODE_VA + test_random(&random) % 4096, "\x0f\x31", 2);
        for (unsigned i = 0; i < 3; i++) {
            static const uint64_t tables[] = {CR3, PDPT_LOW, PD_LOW, PT_LOW, PDPT_HIGH, PD_HIGH, PT_HIGH};
            uint64_t va = test_random(&random) % 2 ? CODE_VA : STACK_VA;
            size_t level = test_random(&random) % 7;
            uint64_t entry = test_random(&random);

            if (round % 2)
                entry = (entry & UINT64_C(0x8000000000010087)) | PRESENT;
            set_entry(tables[level], va, 39 - 9 * (int)(level < 4 ? level : level - 3), entry);
        }
        answered += emulate(&g);
    }
    assert_true(answered > 50 && answered < 4950);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rdtsc_is_answered_and_the_program_goes_on),
        cmocka_unit_test(rdtscp_gets_the_cpu_number_too),
        cmocka_unit_test(the_rewritten_vdso_is_answered_alike),
        cmocka_unit_test(rdtsc_across_a_page_border_is_read_from_both_pages),
        cmocka_unit_test(rdtsc_in_large_pages_is_found),
        cmocka_unit_test(a_32_bit_program_is_answered_in_32_bits),
        cmocka_unit_test(other_instructions_are_left_to_the_guest),
        cmocka_unit_test(faults_that_are_not_a_users_are_left_to_the_guest),
        cmocka_unit_test(a_port_write_elsewhere_is_no_gp),
        cmocka_unit_test(unmapped_or_forbidden_code_is_left_to_the_guest),
        cmocka_unit_test(random_page_tables_never_lead_out_of_ram),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);

    free(ram);
    return failed;
}
