/* PCI configuration space as a guest probes it through mechanism 1. */
#include "tests/unit/cmocka_prelude.h"

#include <errno.h>
#include <string.h>

#include "vmm/pci.h"

static const struct pci_identity identity = {
    .vendor = 0x1AF4,
    .device = 0x1041,
    .subsystem_vendor = 0x1AF4,
    .subsystem = 0x1100,
    .class_code = 0x020000,
    .revision = 1,
};

struct bench {
    struct pic pic;
    struct pci pci;
};

static void bench_init(struct bench *bench)
{
    pic_init(&bench->pic);
    pci_init(&bench->pci, &bench->pic);
}

static uint32_t get(struct bench *bench, unsigned slot, unsigned offset, unsigned bytes)
{
    pci_write(&bench->pci, 0xCF8, 4, 0x80000000u | slot << 11 | (offset & 0xFC));
    return pci_read(&bench->pci, (uint16_t)(0xCFC + offset % 4), bytes);
}

static void put(struct bench *bench, unsigned slot, unsigned offset, unsigned bytes, uint32_t value)
{
    pci_write(&bench->pci, 0xCF8, 4, 0x80000000u | slot << 11 | (offset & 0xFC));
    pci_write(&bench->pci, (uint16_t)(0xCFC + offset % 4), bytes, value);
}

static bool line(const struct bench *bench, unsigned irq)
{
    return bench->pic.chips[irq / 8].lines & 1u << irq % 8;
}

static void linux_finds_mechanism_one_and_the_bridge(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    pci_write(&bench.pci, 0xCFB, 1, 0x01); /* must not touch CONFIG_ADDRESS */
    assert_int_equal(pci_read(&bench.pci, 0xCF8, 4), 0);
    pci_write(&bench.pci, 0xCF8, 4, 0x80000000u);
    assert_int_equal(pci_read(&bench.pci, 0xCF8, 4), 0x80000000u);
    assert_int_equal(pci_read(&bench.pci, 0xCFC, 4), 0x12378086);
    assert_int_equal(get(&bench, 0, 0x0A, 2), 0x0600);
    assert_int_equal(get(&bench, 0, 0x0E, 1), 0x00);
    assert_int_equal(get(&bench, 0, 0x2C, 4), 0x11001AF4);
}

static void absent_functions_read_all_ones_and_ignore_writes(void **unused)
{
    struct bench bench;
    struct pci_state before;

    (void)unused;
    bench_init(&bench);
    for (unsigned slot = 1; slot < 32; slot++)
        assert_int_equal(get(&bench, slot, 0x00, 4), UINT32_MAX);
    assert_int_equal(get(&bench, 9, 0x02, 2), 0xFFFF);
    pci_write(&bench.pci, 0xCF8, 4, 0x80000100u); /* 00:00.1 */
    assert_int_equal(pci_read(&bench.pci, 0xCFC, 4), UINT32_MAX);
    pci_write(&bench.pci, 0xCF8, 4, 0x80010000u); /* bus 1 */
    assert_int_equal(pci_read(&bench.pci, 0xCFC, 4), UINT32_MAX);
    pci_write(&bench.pci, 0xCF8, 4, 0x00000000u); /* not enabled */
    assert_int_equal(pci_read(&bench.pci, 0xCFC, 4), UINT32_MAX);
    before = bench.pci.state;
    pci_write(&bench.pci, 0xCFC, 4, 0);
    assert_memory_equal(&before, &bench.pci.state, sizeof(before));
}

static void identity_reads_in_every_width_and_is_read_only(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    assert_int_equal(pci_add(&bench.pci, 2, &identity, 10, NULL), 0);
    put(&bench, 2, 0x00, 4, 0);
    put(&bench, 2, 0x08, 4, 0);
    assert_int_equal(get(&bench, 2, 0x00, 4), 0x10411AF4);
    assert_int_equal(get(&bench, 2, 0x02, 2), 0x1041);
    assert_int_equal(get(&bench, 2, 0x01, 1), 0x1A);
    assert_int_equal(get(&bench, 2, 0x03, 4), 0xFFFFFF10); /* runs past the data port */
    assert_int_equal(get(&bench, 2, 0x03, 2), 0xFF10);
    assert_int_equal(get(&bench, 2, 0x08, 4), 0x02000001);
    assert_int_equal(get(&bench, 2, 0x3C, 2), 0x010A);
    put(&bench, 2, 0x3C, 1, 0x07);
    assert_int_equal(get(&bench, 2, 0x3C, 2), 0x0107);
}

static void bar_sizing_gives_the_size_back(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    pci_add(&bench.pci, 1, &identity, 11, NULL);
    for (uint16_t bytes = 4; bytes <= 256; bytes *= 2) {
        assert_int_equal(pci_add_io_bar(&bench.pci, 1, 0, bytes, 0xC100), 0);
        assert_int_equal(get(&bench, 1, 0x10, 4), 0xC101);
        put(&bench, 1, 0x10, 4, UINT32_MAX);
        assert_int_equal(~(get(&bench, 1, 0x10, 4) & ~3u) + 1, bytes);
        assert_int_equal(get(&bench, 1, 0x10, 4) & 3, 1);
        assert_int_equal(get(&bench, 1, 0x14, 4), 0);
        put(&bench, 1, 0x14, 4, UINT32_MAX); /* no such BAR */
        assert_int_equal(get(&bench, 1, 0x14, 4), 0);
    }
}

static void io_decodes_only_when_enabled_and_follows_the_bar(void **unused)
{
    struct bench bench;
    unsigned bar;
    uint16_t offset;

    (void)unused;
    bench_init(&bench);
    pci_add(&bench.pci, 1, &identity, 11, NULL);
    pci_add_io_bar(&bench.pci, 1, 2, 128, 0xC080);
    assert_int_equal(pci_io_find(&bench.pci, 0xC080, &bar, &offset), -1);
    put(&bench, 1, 0x04, 2, 0x0001);
    assert_int_equal(pci_io_find(&bench.pci, 0xC0FF, &bar, &offset), 1);
    assert_int_equal(bar, 2);
    assert_int_equal(offset, 127);
    assert_int_equal(pci_io_find(&bench.pci, 0xC07F, &bar, &offset), -1);
    assert_int_equal(pci_io_find(&bench.pci, 0xC100, &bar, &offset), -1);
    put(&bench, 1, 0x18, 4, 0x1000);
    assert_int_equal(pci_io_find(&bench.pci, 0xC080, &bar, &offset), -1);
    assert_int_equal(pci_io_find(&bench.pci, 0x1000, &bar, &offset), 1);
    put(&bench, 1, 0x18, 4, UINT32_MAX); /* while being sized it claims nothing */
    for (uint32_t port = 0; port <= 0xFFFF; port++)
        assert_int_equal(pci_io_find(&bench.pci, (uint16_t)port, &bar, &offset), -1);
    put(&bench, 1, 0x18, 4, 0);
    assert_int_equal(pci_io_find(&bench.pci, 0x0000, &bar, &offset), -1);
}

static void capabilities_chain_until_the_space_is_full(void **unused)
{
    struct bench bench;
    uint8_t cap[64] = {0x09, 0xAA, 20, 1};
    unsigned at;
    unsigned count = 0;

    (void)unused;
    bench_init(&bench);
    pci_add(&bench.pci, 1, &identity, 11, NULL);
    assert_int_equal(get(&bench, 1, 0x06, 2) & 0x10, 0);
    assert_int_equal(pci_add_capability(&bench.pci, 1, cap, 1), -EINVAL);
    while (pci_add_capability(&bench.pci, 1, cap, 20) >= 0)
        count++;
    assert_int_equal(count, (256 - 64) / 20);
    assert_int_equal(pci_add_capability(&bench.pci, 1, cap, 20), -ENOSPC);
    assert_int_equal(get(&bench, 1, 0x06, 2) & 0x10, 0x10);
    at = get(&bench, 1, 0x34, 1);
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(at % 4, 0);
        assert_int_equal(get(&bench, 1, at, 1), 0x09);
        put(&bench, 1, at, 4, 0); /* read-only */
        at = get(&bench, 1, at + 1, 1);
    }
    assert_int_equal(at, 0);
}

static void capability_that_ends_with_the_space_is_the_last(void **unused)
{
    struct bench bench;
    uint8_t cap[64] = {0x09};

    (void)unused;
    bench_init(&bench);
    pci_add(&bench.pci, 1, &identity, 11, NULL);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pci_add_capability(&bench.pci, 1, cap, 64), 0x40 + 64 * i);
    assert_int_equal(pci_add_capability(&bench.pci, 1, cap, 2), -ENOSPC);
}

static void shared_interrupt_line_is_the_or_of_its_functions(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    pci_add(&bench.pci, 1, &identity, 11, NULL);
    pci_add(&bench.pci, 2, &identity, 11, NULL);
    pci_set_interrupt(&bench.pci, 1, true);
    pci_set_interrupt(&bench.pci, 2, true);
    assert_true(line(&bench, 11));
    assert_int_equal(get(&bench, 1, 0x06, 2) & 0x08, 0x08);
    pci_set_interrupt(&bench.pci, 1, false);
    assert_true(line(&bench, 11));
    put(&bench, 2, 0x04, 2, 0x0400); /* INTx disable */
    assert_false(line(&bench, 11));
    assert_int_equal(get(&bench, 2, 0x06, 2) & 0x08, 0x08);
    put(&bench, 2, 0x04, 2, 0x0000);
    assert_true(line(&bench, 11));
    pci_set_interrupt(&bench.pci, 2, false);
    assert_false(line(&bench, 11));
}

static void bad_arguments_are_refused(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    assert_int_equal(pci_add(&bench.pci, 0, &identity, 11, NULL), -EINVAL);
    assert_int_equal(pci_add(&bench.pci, PCI_SLOTS, &identity, 11, NULL), -EINVAL);
    assert_int_equal(pci_add(&bench.pci, 1, &identity, 16, NULL), -EINVAL);
    assert_int_equal(pci_add(&bench.pci, 1, &identity, 11, NULL), 0);
    assert_int_equal(pci_add(&bench.pci, 1, &identity, 11, NULL), -EBUSY);
    assert_int_equal(pci_add_io_bar(&bench.pci, 2, 0, 64, 0xC000), -EINVAL);
    assert_int_equal(pci_add_io_bar(&bench.pci, 1, 6, 64, 0xC000), -EINVAL);
    assert_int_equal(pci_add_io_bar(&bench.pci, 1, 0, 48, 0xC000), -EINVAL);
    assert_int_equal(pci_add_io_bar(&bench.pci, 1, 0, 512, 0xC000), -EINVAL);
    assert_int_equal(pci_add_io_bar(&bench.pci, 1, 0, 64, 0xC020), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linux_finds_mechanism_one_and_the_bridge),
        cmocka_unit_test(absent_functions_read_all_ones_and_ignore_writes),
        cmocka_unit_test(identity_reads_in_every_width_and_is_read_only),
        cmocka_unit_test(bar_sizing_gives_the_size_back),
        cmocka_unit_test(io_decodes_only_when_enabled_and_follows_the_bar),
        cmocka_unit_test(capabilities_chain_until_the_space_is_full),
        cmocka_unit_test(capability_that_ends_with_the_space_is_the_last),
        cmocka_unit_test(shared_interrupt_line_is_the_or_of_its_functions),
        cmocka_unit_test(bad_arguments_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
