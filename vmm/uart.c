/* The 16550A's registers, FIFO, interrupt priority and loopback. */
#include "vmm/uart.h"

#include <string.h>

#include "vmm/state_check.h"

#define UART_PORTS 8u

#define IER_RECEIVED       0x01u
#define IER_TRANSMIT_EMPTY 0x02u
#define IER_LINE_STATUS    0x04u
#define IER_MODEM_STATUS   0x08u
#define IER_WRITABLE       0x0Fu

#define IIR_NONE           0x01u
#define IIR_MODEM_STATUS   0x00u
#define IIR_TRANSMIT_EMPTY 0x02u
#define IIR_RECEIVED       0x04u
#define IIR_LINE_STATUS    0x06u
#define IIR_TIMEOUT        0x0Cu
#define IIR_FIFO_ENABLED   0xC0u

#define FCR_ENABLE        0x01u
#define FCR_CLEAR_RECEIVE 0x02u
#define FCR_KEPT          0xC9u /* enable, DMA mode, trigger level */

#define LCR_DIVISOR_LATCH 0x80u

#define MCR_DTR      0x01u
#define MCR_RTS      0x02u
#define MCR_OUT1     0x04u
#define MCR_OUT2     0x08u
#define MCR_LOOPBACK 0x10u
#define MCR_WRITABLE 0x1Fu

#define LSR_DATA_READY        0x01u
#define LSR_OVERRUN           0x02u
#define LSR_TRANSMITTER_EMPTY 0x60u /* THRE and TEMT: transmission takes no time */

#define MSR_CTS 0x10u
#define MSR_DSR 0x20u
#define MSR_RI  0x40u
#define MSR_DCD 0x80u

static unsigned fifo_capacity(const struct uart_state *state)
{
    return state->fifo_control & FCR_ENABLE ? UART_FIFO_BYTES : 1;
}

static void fifo_clear(struct uart_state *state)
{
    state->fifo_first = 0;
    state->fifo_count = 0;
}

static bool fifo_push(struct uart_state *state, uint8_t byte)
{
    if (state->fifo_count >= fifo_capacity(state))
        return false;
    state->fifo[(state->fifo_first + state->fifo_count) % UART_FIFO_BYTES] = byte;
    state->fifo_count++;
    return true;
}

static uint8_t fifo_pop(struct uart_state *state)
{
    uint8_t byte;

    if (state->fifo_count == 0)
        return 0;
    byte = state->fifo[state->fifo_first];
    state->fifo_first = (state->fifo_first + 1) % UART_FIFO_BYTES;
    state->fifo_count--;
    return byte;
}

static unsigned fifo_trigger(const struct uart_state *state)
{
    static const uint8_t trigger_bytes[4] = {1, 4, 8, 14};

    return state->fifo_control & FCR_ENABLE ? trigger_bytes[state->fifo_control >> 6] : 1;
}

/* The most urgent interrupt cause, in IIR's code. */
static uint8_t uart_cause(const struct uart_state *state)
{
    uint8_t enabled = state->interrupt_enable;

    if ((enabled & IER_LINE_STATUS) && state->line_errors != 0)
        return IIR_LINE_STATUS;
    if ((enabled & IER_RECEIVED) && state->fifo_count != 0)
        return state->fifo_count >= fifo_trigger(state) ? IIR_RECEIVED : IIR_TIMEOUT;
    if ((enabled & IER_TRANSMIT_EMPTY) && state->transmit_empty_pending)
        return IIR_TRANSMIT_EMPTY;
    if ((enabled & IER_MODEM_STATUS) && state->modem_delta != 0)
        return IIR_MODEM_STATUS;
    return IIR_NONE;
}

/* On a PC, OUT2 gates the interrupt; loopback disconnects OUT2. */
static void uart_update_line(struct uart *uart)
{
    bool connected = (uart->state.modem_control & (MCR_OUT2 | MCR_LOOPBACK)) == MCR_OUT2;

    pic_set_line(uart->pic, UART_IRQ, connected && uart_cause(&uart->state) != IIR_NONE);
}

/* Modem inputs: a terminal that is always there, or, in loopback, the modem outputs. */
static uint8_t modem_inputs(const struct uart_state *state)
{
    uint8_t control = state->modem_control;

    if (!(control & MCR_LOOPBACK))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (uint8_t)((control & MCR_RTS ? MSR_CTS : 0) | (control & MCR_DTR ? MSR_DSR : 0) |
                     (control & MCR_OUT1 ? MSR_RI : 0) | (control & MCR_OUT2 ? MSR_DCD : 0));
}

static void uart_write_modem_control(struct uart_state *state, uint8_t value)
{
    uint8_t before = modem_inputs(state);
    uint8_t changed;

    state->modem_control = value & MCR_WRITABLE;
    changed = before ^ modem_inputs(state);
    /* The ring indicator counts only its trailing edge. */
    if (!(before & MSR_RI))
        changed &= (uint8_t)~MSR_RI;
    state->modem_delta |= changed >> 4;
}

static void uart_write_fifo_control(struct uart_state *state, uint8_t value)
{
    if (((value ^ state->fifo_control) & FCR_ENABLE) || (value & FCR_CLEAR_RECEIVE))
        fifo_clear(state);
    state->fifo_control = value & FCR_ENABLE ? value & FCR_KEPT : 0;
}

static void uart_write_data(struct uart *uart, uint8_t value)
{
    struct uart_state *state = &uart->state;

    state->transmit_empty_pending = true;
    if (!(state->modem_control & MCR_LOOPBACK))
        uart->transmit(uart->ctx, value);
    else if (!fifo_push(state, value))
        state->line_errors |= LSR_OVERRUN;
}

static void uart_write_interrupt_enable(struct uart_state *state, uint8_t value)
{
    /* Enabling the interrupt while the register is empty, which it always is, raises it. */
    if ((value & IER_TRANSMIT_EMPTY) && !(state->interrupt_enable & IER_TRANSMIT_EMPTY))
        state->transmit_empty_pending = true;
    state->interrupt_enable = value & IER_WRITABLE;
}

static uint8_t uart_read_byte(struct uart *uart, unsigned offset)
{
    struct uart_state *state = &uart->state;
    bool divisor_latch = state->line_control & LCR_DIVISOR_LATCH;
    uint8_t value;

    switch (offset) {
    case 0:
        return divisor_latch ? (uint8_t)state->divisor : fifo_pop(state);
    case 1:
        return divisor_latch ? (uint8_t)(state->divisor >> 8) : state->interrupt_enable;
    case 2:
        value = uart_cause(state);
        if (value == IIR_TRANSMIT_EMPTY)
            state->transmit_empty_pending = false;
        return value | (state->fifo_control & FCR_ENABLE ? IIR_FIFO_ENABLED : 0);
    case 3:
        return state->line_control;
    case 4:
        return state->modem_control;
    case 5:
        value = LSR_TRANSMITTER_EMPTY | state->line_errors | (state->fifo_count != 0 ? LSR_DATA_READY : 0);
        state->line_errors = 0;
        return value;
    case 6:
        value = modem_inputs(state) | state->modem_delta;
        state->modem_delta = 0;
        return value;
    default:
        return state->scratch;
    }
}

static void uart_write_byte(struct uart *uart, unsigned offset, uint8_t value)
{
    struct uart_state *state = &uart->state;
    bool divisor_latch = state->line_control & LCR_DIVISOR_LATCH;

    switch (offset) {
    case 0:
        if (divisor_latch)
            state->divisor = (uint16_t)((state->divisor & 0xFF00) | value);
        else
            uart_write_data(uart, value);
        break;
    case 1:
        if (divisor_latch)
            state->divisor = (uint16_t)((state->divisor & 0x00FF) | value << 8);
        else
            uart_write_interrupt_enable(state, value);
        break;
    case 2:
        uart_write_fifo_control(state, value);
        break;
    case 3:
        state->line_control = value;
        break;
    case 4:
        uart_write_modem_control(state, value);
        break;
    case 7:
        state->scratch = value;
        break;
    default: /* LSR and MSR are read-only */
        break;
    }
}

void uart_init(struct uart *uart, struct pic *pic, void (*transmit)(void *ctx, uint8_t byte), void *ctx)
{
    memset(uart, 0, sizeof(*uart));
    uart->state.divisor = 1; /* 115,200 Bd */
    uart->pic = pic;
    uart->transmit = transmit;
    uart->ctx = ctx;
}

bool uart_can_receive(const struct uart *uart)
{
    const struct uart_state *state = &uart->state;

    /* Loopback cuts the receiver off; the byte waits outside instead of being lost. */
    return !(state->modem_control & MCR_LOOPBACK) && state->fifo_count < fifo_capacity(state);
}

bool uart_receive(struct uart *uart, uint8_t byte)
{
    if (!uart_can_receive(uart))
        return false;
    fifo_push(&uart->state, byte);
    uart_update_line(uart);
    return true;
}

uint32_t uart_read(struct uart *uart, uint16_t port, unsigned bytes)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < bytes && i < 4; i++) {
        uint32_t offset = (uint32_t)port + i - UART_PORT;

        value |= (uint32_t)(offset < UART_PORTS ? uart_read_byte(uart, offset) : 0xFF) << (8 * i);
    }
    uart_update_line(uart);
    return value;
}

void uart_write(struct uart *uart, uint16_t port, unsigned bytes, uint32_t value)
{
    for (unsigned i = 0; i < bytes && i < 4; i++) {
        uint32_t offset = (uint32_t)port + i - UART_PORT;

        if (offset < UART_PORTS)
            uart_write_byte(uart, offset, (uint8_t)(value >> (8 * i)));
    }
    uart_update_line(uart);
}

bool uart_fits(const struct uart_state *state)
{
    return state->fifo_first < UART_FIFO_BYTES && state->fifo_count <= UART_FIFO_BYTES &&
           STATE_BOOL_FITS(state->transmit_empty_pending);
}
