/* The 16550A against its data sheet and against what Linux's 8250 driver expects. */
#include "tests/unit/cmocka_prelude.h"

#include <string.h>

#include "vmm/uart.h"

struct bench {
    struct pic pic;
    struct uart uart;
    char sent[64];
    size_t sent_bytes;
};

static void record_byte(void *ctx, uint8_t byte)
{
    struct bench *bench = ctx;

    assert_true(bench->sent_bytes < sizeof(bench->sent));
    bench->sent[bench->sent_bytes++] = (char)byte;
}

static void bench_init(struct bench *bench)
{
    memset(bench, 0, sizeof(*bench));
    pic_init(&bench->pic);
    uart_init(&bench->uart, &bench->pic, record_byte, bench);
    uart_write(&bench->uart, 0x3FC, 1, 0x08); /* OUT2 lets the interrupt through */
}

static void out8(struct bench *bench, uint16_t port, uint8_t value)
{
    uart_write(&bench->uart, port, 1, value);
}

static uint8_t in8(struct bench *bench, uint16_t port)
{
    return (uint8_t)uart_read(&bench->uart, port, 1);
}

static bool line(const struct bench *bench)
{
    return bench->pic.chips[0].lines & 1u << UART_IRQ;
}

static void written_bytes_leave_in_order(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    for (const char *c = "ftvmm\n"; *c != 0; c++) {
        assert_int_equal(in8(&bench, 0x3FD) & 0x60, 0x60);
        out8(&bench, 0x3F8, (uint8_t)*c);
    }
    assert_int_equal(bench.sent_bytes, 6);
    assert_memory_equal(bench.sent, "ftvmm\n", 6);
}

static void fifo_takes_sixteen_bytes_and_refuses_the_next(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x3FA, 0x01);
    assert_int_equal(in8(&bench, 0x3FD) & 0x01, 0);
    for (unsigned i = 0; i < 16; i++) {
        assert_true(uart_can_receive(&bench.uart));
        assert_true(uart_receive(&bench.uart, (uint8_t)(i + 1)));
    }
    assert_false(uart_can_receive(&bench.uart));
    assert_false(uart_receive(&bench.uart, 99));
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(in8(&bench, 0x3FD) & 0x01, 0x01);
        assert_int_equal(in8(&bench, 0x3F8), i + 1);
    }
    assert_int_equal(in8(&bench, 0x3FD) & 0x03, 0x00);
}

static void without_fifo_one_byte_fits(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    assert_true(uart_receive(&bench.uart, 'a'));
    assert_false(uart_receive(&bench.uart, 'b'));
    assert_int_equal(in8(&bench, 0x3F8), 'a');
    assert_true(uart_receive(&bench.uart, 'b'));
}

static void received_byte_interrupts_until_it_is_read(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x3FA, 0x81); /* trigger at 8 */
    out8(&bench, 0x3F9, 0x01);
    assert_false(line(&bench));
    assert_int_equal(in8(&bench, 0x3FA), 0xC1);
    uart_receive(&bench.uart, 'x');
    assert_true(line(&bench));
    assert_int_equal(in8(&bench, 0x3FA), 0xCC); /* below the trigger: time-out */
    for (unsigned i = 0; i < 7; i++)
        uart_receive(&bench.uart, 'y');
    assert_int_equal(in8(&bench, 0x3FA), 0xC4);
    for (unsigned i = 0; i < 8; i++)
        in8(&bench, 0x3F8);
    assert_false(line(&bench));
    assert_int_equal(in8(&bench, 0x3FA), 0xC1);
}

static void enabling_the_transmit_interrupt_raises_it_at_once(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x3F9, 0x02);
    assert_true(line(&bench));
    assert_int_equal(in8(&bench, 0x3FA), 0x02); /* reading acknowledges */
    assert_false(line(&bench));
    assert_int_equal(in8(&bench, 0x3FA), 0x01);
    out8(&bench, 0x3F8, 'a');
    assert_true(line(&bench));
    out8(&bench, 0x3F9, 0x00);
    assert_false(line(&bench));
    out8(&bench, 0x3F9, 0x02);
    assert_true(line(&bench));
}

static void reception_precedes_transmission_in_iir(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x3F9, 0x03);
    uart_receive(&bench.uart, 'x');
    assert_int_equal(in8(&bench, 0x3FA), 0x04);
    in8(&bench, 0x3F8);
    assert_int_equal(in8(&bench, 0x3FA), 0x02);
    assert_int_equal(in8(&bench, 0x3FA), 0x01);
}

static void out2_gates_the_line(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x3FC, 0x00);
    out8(&bench, 0x3F9, 0x02);
    assert_false(line(&bench));
    out8(&bench, 0x3FC, 0x08);
    assert_true(line(&bench));
}

static void loopback_returns_bytes_and_modem_lines(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    assert_int_equal(in8(&bench, 0x3FE), 0xB0);
    out8(&bench, 0x3FC, 0x1A); /* as Linux probes: loop, OUT2, RTS */
    assert_int_equal(in8(&bench, 0x3FE) & 0xF0, 0x90);
    assert_false(uart_can_receive(&bench.uart));
    out8(&bench, 0x3F8, 0x5A);
    assert_int_equal(bench.sent_bytes, 0);
    assert_int_equal(in8(&bench, 0x3FD), 0x61);
    out8(&bench, 0x3F8, 0xA5);
    assert_int_equal(in8(&bench, 0x3FD), 0x63); /* overrun: no FIFO */
    assert_int_equal(in8(&bench, 0x3FD), 0x61); /* reading clears it */
    assert_int_equal(in8(&bench, 0x3F8), 0x5A);
    out8(&bench, 0x3FC, 0x08);
    assert_true(uart_can_receive(&bench.uart));
}

static void modem_changes_interrupt_and_clear_on_read(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x3FC, 0x1F); /* loop, all outputs on */
    in8(&bench, 0x3FE);
    out8(&bench, 0x3FC, 0x1B); /* OUT1 off: trailing edge of ring */
    assert_int_equal(in8(&bench, 0x3FE) & 0x0F, 0x04);
    out8(&bench, 0x3FC, 0x1F); /* its leading edge counts not */
    assert_int_equal(in8(&bench, 0x3FE) & 0x0F, 0x00);
    out8(&bench, 0x3F9, 0x08);
    out8(&bench, 0x3FC, 0x08); /* leaving loopback: ring falls again */
    assert_true(line(&bench));
    assert_int_equal(in8(&bench, 0x3FA), 0x00);
    in8(&bench, 0x3FE);
    assert_false(line(&bench));
}

static void divisor_latch_scratch_and_line_control_read_back(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    out8(&bench, 0x3FB, 0x83);
    uart_write(&bench.uart, 0x3F8, 2, 0x1234);
    assert_int_equal(uart_read(&bench.uart, 0x3F8, 2), 0x1234);
    out8(&bench, 0x3FB, 0x03);
    assert_int_equal(in8(&bench, 0x3F9), 0x00);
    assert_int_equal(bench.sent_bytes, 0);
    out8(&bench, 0x3FF, 0x77);
    assert_int_equal(in8(&bench, 0x3FF), 0x77);
    assert_int_equal(uart_read(&bench.uart, 0x3FF, 4), 0xFFFFFF77);
    out8(&bench, 0x3F9, 0xFF);
    assert_int_equal(in8(&bench, 0x3F9), 0x0F);
}

static void turning_the_fifo_on_or_clearing_it_empties_it(void **unused)
{
    struct bench bench;

    (void)unused;
    bench_init(&bench);
    uart_receive(&bench.uart, 'a');
    out8(&bench, 0x3FA, 0x01);
    assert_int_equal(in8(&bench, 0x3FD) & 0x01, 0x00);
    uart_receive(&bench.uart, 'b');
    out8(&bench, 0x3FA, 0x03);
    assert_int_equal(in8(&bench, 0x3FD) & 0x01, 0x00);
    uart_receive(&bench.uart, 'c');
    out8(&bench, 0x3FA, 0x01);
    assert_int_equal(in8(&bench, 0x3F8), 'c');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_bytes_leave_in_order),
        cmocka_unit_test(fifo_takes_sixteen_bytes_and_refuses_the_next),
        cmocka_unit_test(without_fifo_one_byte_fits),
        cmocka_unit_test(received_byte_interrupts_until_it_is_read),
        cmocka_unit_test(enabling_the_transmit_interrupt_raises_it_at_once),
        cmocka_unit_test(reception_precedes_transmission_in_iir),
        cmocka_unit_test(out2_gates_the_line),
        cmocka_unit_test(loopback_returns_bytes_and_modem_lines),
        cmocka_unit_test(modem_changes_interrupt_and_clear_on_read),
        cmocka_unit_test(divisor_latch_scratch_and_line_control_read_back),
        cmocka_unit_test(turning_the_fifo_on_or_clearing_it_empties_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
