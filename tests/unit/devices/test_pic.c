/* The 8259A pair against its data sheet. */
#include "tests/unit/cmocka_prelude.h"

#include "vmm/pic.h"

#define MASTER_VECTOR 0x30u
#define SLAVE_VECTOR  0x38u

static void out8(struct pic *pic, uint16_t port, uint8_t value)
{
    pic_write(pic, port, 1, value);
}

static uint8_t in8(struct pic *pic, uint16_t port)
{
    return (uint8_t)pic_read(pic, port, 1);
}

/* As Linux's init_8259A programs it, all inputs unmasked. */
static void program(struct pic *pic, uint8_t icw4)
{
    pic_init(pic);
    out8(pic, 0x20, 0x11);
    out8(pic, 0x21, MASTER_VECTOR);
    out8(pic, 0x21, 0x04);
    out8(pic, 0x21, icw4);
    out8(pic, 0xA0, 0x11);
    out8(pic, 0xA1, SLAVE_VECTOR);
    out8(pic, 0xA1, 0x02);
    out8(pic, 0xA1, icw4 & 0x03);
    out8(pic, 0x21, 0x00);
    out8(pic, 0xA1, 0x00);
}

static void power_on_masks_everything(void **unused)
{
    struct pic pic;

    (void)unused;
    pic_init(&pic);
    for (unsigned irq = 0; irq < PIC_LINES; irq++)
        pic_set_line(&pic, irq, true);
    assert_false(pic_output(&pic));
    assert_int_equal(in8(&pic, 0x21), 0xFF);
    assert_int_equal(pic_read(&pic, 0x4D0, 2), 0x0C00);
}

static void lower_input_number_is_served_first(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 6, true);
    pic_set_line(&pic, 1, true);
    assert_true(pic_output(&pic));
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 1);
    assert_false(pic_output(&pic));
    out8(&pic, 0x20, 0x20);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 6);
}

static void higher_priority_interrupts_service_and_lower_waits(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 4, true);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 4);
    pic_set_line(&pic, 5, true);
    assert_false(pic_output(&pic));
    pic_set_line(&pic, 3, true);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 3);
    out8(&pic, 0x20, 0x0B);
    assert_int_equal(in8(&pic, 0x20), 0x18);
    out8(&pic, 0x20, 0x20); /* non-specific: the more urgent one */
    assert_int_equal(in8(&pic, 0x20), 0x10);
    assert_false(pic_output(&pic));
    out8(&pic, 0x20, 0x64); /* specific, input 4 */
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 5);
}

static void edge_input_asks_once_per_rise(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x03); /* automatic EOI */
    pic_set_line(&pic, 0, true);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR);
    assert_false(pic_output(&pic));
    pic_set_line(&pic, 0, true);
    assert_false(pic_output(&pic));
    pic_set_line(&pic, 0, false);
    pic_set_line(&pic, 0, true);
    assert_true(pic_output(&pic));
}

static void masked_edge_is_kept_until_unmasked(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    out8(&pic, 0x21, 0x01);
    pic_set_line(&pic, 0, true);
    assert_false(pic_output(&pic));
    assert_int_equal(in8(&pic, 0x20), 0x01);
    out8(&pic, 0x21, 0x00);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR);
}

static void level_input_asks_as_long_as_it_is_high(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 11, true);
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(pic_acknowledge(&pic), SLAVE_VECTOR + 3);
        assert_false(pic_output(&pic));
        out8(&pic, 0xA0, 0x20);
        out8(&pic, 0x20, 0x20);
        assert_true(pic_output(&pic));
    }
    pic_set_line(&pic, 11, false);
    assert_false(pic_output(&pic));
}

static void elcr_keeps_system_inputs_edge_triggered(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_write(&pic, 0x4D0, 2, 0xFFFF);
    assert_int_equal(pic_read(&pic, 0x4D0, 1), 0xF8);
    assert_int_equal(pic_read(&pic, 0x4D1, 1), 0xDE);
    pic_set_line(&pic, 5, true);
    pic_acknowledge(&pic);
    out8(&pic, 0x20, 0x20);
    assert_true(pic_output(&pic));
}

static void slave_cascades_on_input_two(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 3, true);
    pic_set_line(&pic, 14, true);
    assert_int_equal(pic_acknowledge(&pic), SLAVE_VECTOR + 6); /* input 2 precedes 3 */
    assert_false(pic_output(&pic));
    /* A more urgent slave input waits: the master has input 2 in service. */
    pic_set_line(&pic, 8, true);
    assert_false(pic_output(&pic));
    out8(&pic, 0x20, 0x62);
    assert_int_equal(pic_acknowledge(&pic), SLAVE_VECTOR);
    out8(&pic, 0x20, 0x20);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 3);
}

static void special_fully_nested_lets_urgent_slave_input_through(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x11);
    pic_set_line(&pic, 14, true);
    pic_acknowledge(&pic);
    pic_set_line(&pic, 8, true);
    assert_int_equal(pic_acknowledge(&pic), SLAVE_VECTOR);
    pic_set_line(&pic, 9, true);
    assert_false(pic_output(&pic));
}

static void request_gone_before_acknowledge_is_spurious_seven(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 4, true);
    assert_true(pic_output(&pic));
    pic_set_line(&pic, 4, false);
    assert_false(pic_output(&pic));
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 7);
    out8(&pic, 0x20, 0x0B);
    assert_int_equal(in8(&pic, 0x20), 0x00);
}

static void rotation_moves_the_served_input_to_the_end(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 3, true);
    pic_acknowledge(&pic);
    out8(&pic, 0x20, 0xA0); /* rotate on non-specific EOI: 3 is lowest, 4 highest */
    pic_set_line(&pic, 0, true);
    pic_set_line(&pic, 3, false);
    pic_set_line(&pic, 3, true);
    pic_set_line(&pic, 5, true);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 5);
    out8(&pic, 0x20, 0x20);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 0);
    out8(&pic, 0x20, 0x20);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 3);
    out8(&pic, 0x20, 0xE3); /* rotate on specific EOI */
    out8(&pic, 0x20, 0xC7); /* set priority: 7 lowest again */
    pic_set_line(&pic, 5, false);
    pic_set_line(&pic, 5, true);
    pic_set_line(&pic, 0, false);
    pic_set_line(&pic, 0, true);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 0);
}

static void automatic_eoi_rotates_when_told(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x03);
    out8(&pic, 0x20, 0x80);
    pic_set_line(&pic, 1, true);
    pic_set_line(&pic, 5, true);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 1);
    pic_set_line(&pic, 1, false);
    pic_set_line(&pic, 1, true);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 5);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 1);
}

static void special_mask_mode_lets_lower_priorities_in(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 1, true);
    pic_acknowledge(&pic);
    pic_set_line(&pic, 6, true);
    out8(&pic, 0x21, 0x02);
    assert_false(pic_output(&pic));
    out8(&pic, 0x20, 0x68);
    assert_int_equal(pic_acknowledge(&pic), MASTER_VECTOR + 6);
    out8(&pic, 0x20, 0x20); /* reaches 6, not the masked 1 */
    out8(&pic, 0x20, 0x0B);
    assert_int_equal(in8(&pic, 0x20), 0x02);
    out8(&pic, 0x20, 0x48);
    pic_set_line(&pic, 6, false);
    pic_set_line(&pic, 6, true);
    assert_false(pic_output(&pic));
}

static void poll_read_acknowledges(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    out8(&pic, 0x20, 0x0C);
    assert_int_equal(in8(&pic, 0x20), 0x00);
    pic_set_line(&pic, 5, true);
    out8(&pic, 0x20, 0x0C);
    assert_int_equal(in8(&pic, 0x20), 0x85);
    assert_false(pic_output(&pic));
    out8(&pic, 0x20, 0x0B);
    assert_int_equal(in8(&pic, 0x20), 0x20);
}

static void icw1_forgets_edges_and_needs_a_new_rise(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_set_line(&pic, 4, true);
    out8(&pic, 0x20, 0x11);
    assert_false(pic_output(&pic));
    out8(&pic, 0x21, 0x40);
    out8(&pic, 0x21, 0x04);
    out8(&pic, 0x21, 0x01);
    assert_false(pic_output(&pic));
    pic_set_line(&pic, 4, false);
    pic_set_line(&pic, 4, true);
    assert_int_equal(pic_acknowledge(&pic), 0x44);
}

static void wide_access_touches_both_ports(void **unused)
{
    struct pic pic;

    (void)unused;
    program(&pic, 0x01);
    pic_write(&pic, 0x20, 2, 0x5A0B); /* OCW3 to 0x20, mask to 0x21 */
    assert_int_equal(pic_read(&pic, 0x20, 2), 0x5A00);
    assert_int_equal(pic_read(&pic, 0x21, 4), 0xFFFFFF5A);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_on_masks_everything),
        cmocka_unit_test(lower_input_number_is_served_first),
        cmocka_unit_test(higher_priority_interrupts_service_and_lower_waits),
        cmocka_unit_test(edge_input_asks_once_per_rise),
        cmocka_unit_test(masked_edge_is_kept_until_unmasked),
        cmocka_unit_test(level_input_asks_as_long_as_it_is_high),
        cmocka_unit_test(elcr_keeps_system_inputs_edge_triggered),
        cmocka_unit_test(slave_cascades_on_input_two),
        cmocka_unit_test(special_fully_nested_lets_urgent_slave_input_through),
        cmocka_unit_test(request_gone_before_acknowledge_is_spurious_seven),
        cmocka_unit_test(rotation_moves_the_served_input_to_the_end),
        cmocka_unit_test(automatic_eoi_rotates_when_told),
        cmocka_unit_test(special_mask_mode_lets_lower_priorities_in),
        cmocka_unit_test(poll_read_acknowledges),
        cmocka_unit_test(icw1_forgets_edges_and_needs_a_new_rise),
        cmocka_unit_test(wide_access_touches_both_ports),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
