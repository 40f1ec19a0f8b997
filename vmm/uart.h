/*
 * The serial console: a 16550A at 0x3F8 on PIC input 4. Transmission takes no time; received bytes wait in a
 * 16-byte FIFO. The character timeout is taken as having passed at once: any byte in the FIFO asks for service.
 * Source: National Semiconductor PC16550D data sheet.
 */
#ifndef FTVMM_VMM_UART_H
#define FTVMM_VMM_UART_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/pic.h"

#define UART_PORT       0x3F8u /* to 0x3FF */
#define UART_IRQ        4u
#define UART_FIFO_BYTES 16u

/* State part: no pointers, copy it to transfer it. */
struct uart_state {
    uint8_t fifo[UART_FIFO_BYTES];
    uint8_t fifo_first;
    uint8_t fifo_count;
    uint16_t divisor;
    uint8_t interrupt_enable; /* IER */
    uint8_t fifo_control;     /* FCR as written, self-clearing bits off */
    uint8_t line_control;     /* LCR */
    uint8_t modem_control;    /* MCR */
    uint8_t line_errors;      /* LSR bits 1 to 4; only an overrun in loopback can set one */
    uint8_t modem_delta;      /* MSR bits 0 to 3 */
    uint8_t scratch;
    bool transmit_empty_pending; /* THRE interrupt not yet served */
};

/* `transmit` is called within uart_write, on the vCPU thread, for each byte that leaves; it must not call
 * back into the UART. On a backup it may simply drop the byte: the state is the same. */
struct uart {
    struct uart_state state;
    struct pic *pic;
    void (*transmit)(void *ctx, uint8_t byte);
    void *ctx;
};

/* Borrows `pic` and `ctx` for the UART's life. */
void uart_init(struct uart *uart, struct pic *pic, void (*transmit)(void *ctx, uint8_t byte), void *ctx);

/* A byte arrives from outside (an input: log it first). False, and no change, if there is no room. */
bool uart_receive(struct uart *uart, uint8_t byte);

/* True if uart_receive would take a byte; changes nothing. */
bool uart_can_receive(const struct uart *uart);

/* Port access to 0x3F8-0x3FF, `bytes` 1, 2 or 4 (split into byte accesses). Reads change state. */
uint32_t uart_read(struct uart *uart, uint16_t port, unsigned bytes);
void uart_write(struct uart *uart, uint16_t port, unsigned bytes, uint32_t value);

/* Could a guest have brought the UART into this state? For a state that came from elsewhere. */
bool uart_fits(const struct uart_state *state);

#endif
