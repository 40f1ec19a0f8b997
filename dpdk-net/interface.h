/* Linux network interfaces that a port sits on: looked at, and made fit, before DPDK opens them. Cold. */
#ifndef FTVMM_DPDK_NET_INTERFACE_H
#define FTVMM_DPDK_NET_INTERFACE_H

#include <stdbool.h>
#include <stdint.h>

/* The interface exists, carries packets of `mtu` bytes, this process may open raw sockets, and the interface is up;
 * else reports what mends it. -ENODEV, -EPERM, -EINVAL (name too long, MTU too small); a downed interface is only
 * warned about. */
int interface_check(const char *name, uint32_t mtu);

/* A socket for interface_runs, which finds the interface even if the process moves to another network namespace. -1:
 * there is none to be had. The caller closes it. */
int interface_open(void);
/* The interface is up and has a carrier. An interface that is gone has none. Any thread. */
bool interface_runs(int fd, const char *name);

/* The packet socket of this process on the interface: a driver's own, which keeps it to itself (and open, so it is not
 * to be closed). -1: there is none. */
int interface_packet_socket(const char *name);
/* Frames that the kernel had no room for in that socket's ring, since it was last asked. */
uint64_t interface_packet_drops(int fd);

/* /dev/net/tun is there and may be used; reports otherwise. -ENODEV, -EPERM. */
int interface_check_tun(void);

/* Stops the kernel from merging arriving frames (GRO, LRO) into ones larger than the guest's MTU, which
 * could only be dropped. Tells the operator what it changed or could not change. */
void interface_stop_merging(const char *name);

#endif
