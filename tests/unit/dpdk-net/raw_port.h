/* A DPDK port without anything of ours on top, which so gets frames as long as its driver delivers them. */
#ifndef FTVMM_TESTS_RAW_PORT_H
#define FTVMM_TESTS_RAW_PORT_H

#include <stddef.h>
#include <stdint.h>

struct raw_port {
    uint16_t id;
    void *pool;
};

/* EAL runs already. 0 or -errno. One at a time. */
int raw_port_open(struct raw_port *port, const char *device);
/* Copies the next frame out; its bytes, 0 if there is none. */
size_t raw_port_receive(struct raw_port *port, uint8_t *frame, size_t size);
void raw_port_close(struct raw_port *port);

#endif
