/* `ftbench net forward`: what its two halves share. net_forward.c makes the rounds, net_forwarder.c forwards. */
#ifndef FTVMM_BENCH_NET_FORWARD_H
#define FTVMM_BENCH_NET_FORWARD_H

#include <stdint.h>

#define FORWARD_BURSTS 8u /* of 32 frames that go round on each of the two ports */
#define FORWARD_FRAMES (2 * FORWARD_BURSTS * 32u)

/* Who forwards. */
enum forwarder {
    FORWARD_PORT,    /* dpdk-net's port path: a burst in, a copy in the receive queue, a burst out */
    FORWARD_NET,     /* all of dpdk-net: the receive queue, the hold queue, the release, the announcements' learning */
    FORWARD_TESTPMD, /* dpdk-testpmd in io mode */
    FORWARDERS,
};

struct forward_order {
    const char *socket; /* of the memif between the two ports */
    uint32_t frame_bytes;
    unsigned cpu;
    uint64_t warmup_ns, run_ns;
};

struct forward_count {
    uint64_t frames;  /* forwarded */
    uint64_t wall_ns; /* that it took ... */
    uint64_t cpu_ns;  /* ... and how much of that the forwarding thread was running; 0: not known */
};

/* In a process of its own, which ends after it: EAL starts once a process, and it pins itself. 0 or -errno, said. */
int forward_by_us(enum forwarder forwarder, const struct forward_order *order, struct forward_count *count);
/* The same with dpdk-testpmd, which is started for it. -ENOENT: it is not installed. */
int forward_by_testpmd(const struct forward_order *order, struct forward_count *count);

/* net.c calls the two; argv[0] is "forward" or "guest". The exit status. */
int net_forward_main(int argc, char **argv);
int net_guest_main(int argc, char **argv);

#endif
