/*
 * ftbench channel: what its files share. channel.c reads the options and makes the rounds; channel_end.c moves records
 * through our channel; yardstick*.c are the loops it is held against; channel_peer.c is how the two ends talk about
 * what comes next; channel_result.c shows what came out.
 *
 * Two ends: the leader, who sends, measures and reports, and the peer, who does as it is ordered over a socket. The
 * peer is a thread (ring), a forked process (shm:, --fork) or another host (--receive).
 */
#ifndef FTVMM_BENCH_CHANNEL_BENCH_H
#define FTVMM_BENCH_CHANNEL_BENCH_H

#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/idle.h"
#include "bench/machine.h"
#include "bench/result.h"
#include "channel/channel.h"
#include "channel/receive_ring.h"
#include "channel/send_ring.h"

#define BENCH_SIZES_MAX   8
#define BENCH_WINDOWS_MAX 8
#define BENCH_CHUNK_BYTES (64u * 1024) /* of a raw socket's stream: as long as a coalesced write of the channel */
#define BENCH_BEAT_NS     (20 * NS_PER_MS)

/* Chosen by the address. */
enum bench_link {
    LINK_RING, /* send_ring and receive_ring between two threads; no channel around them */
    LINK_SHM,
    LINK_VERBS,
    LINK_TCP,
};

struct bench_options {
    const char *address;
    enum bench_link link;
    char host[256];         /* verbs:, tcp: */
    unsigned port;          /* of the channel; +1: orders and the raw socket, +2: bare writes, +3: perftest */
    bool receive;           /* be the peer of another host */
    bool fork;              /* the peer is ours, on this machine */
    bool perftest;          /* verbs: quote ib_write_lat and ib_write_bw */
    uint32_t sizes[BENCH_SIZES_MAX]; /* of frames, in bytes */
    unsigned size_count;
    uint32_t windows[BENCH_WINDOWS_MAX]; /* records in flight; 0: as many as the ring holds */
    unsigned window_count;
    unsigned rounds;
    uint64_t samples;       /* of latency, each round; fewer if they take longer than 20 times run_ns */
    uint64_t run_ns;        /* of each measurement of throughput, each round */
    uint64_t ring_bytes;
    uint64_t seed;
    uint64_t patience_ns;   /* silence of the peer that ends the run */
    uint64_t join_ns;
    struct idle_policy idle;
    int cpus[2];            /* leader, peer; -1: not pinned */
    struct result_files files;
};

/* The sender reads the receiver's progress from memory; an ack comes with the commit, before the receiver has looked.
 * On the other links the ack is what takes time, and progress is told in messages. */
static inline bool bench_shares_memory(const struct bench_options *options)
{
    return options->link == LINK_RING || options->link == LINK_SHM;
}

/* Payload that makes a frame of so many bytes, which is a multiple of 64. */
uint32_t bench_payload_bytes(uint32_t whole_frame_bytes);
/* 0: go on; 1: help was given; -EINVAL, said. */
int bench_parse(struct bench_options *options, int argc, char **argv);

/* ---- waiting that ends ---- */

/* One thread's. Looks again at once for a while, then sleeps between looks (base/idle.h), and gives up. */
struct bench_wait {
    struct idle_policy policy;
    uint64_t patience_ns;
    int socket;              /* to the other end: when it is closed, nobody will come */
    struct channel *channel; /* kept alive meanwhile; NULL: none */
    struct idle idle;
    uint64_t beat_ns;
    unsigned looks;
};

static inline void bench_wait_end(struct bench_wait *wait)
{
    wait->looks = 0;
    idle_end(&wait->idle);
}

/* Beats and looks at the other end when it is time. 0, or -EPIPE. */
int bench_wait_beat(struct bench_wait *wait, uint64_t now_ns);
int bench_wait_slow(struct bench_wait *wait);

/* After a look in vain. 0: look again; -ETIMEDOUT, -EPIPE. */
static inline int bench_wait(struct bench_wait *wait)
{
    /* The clock and the policy cost as much as a few looks, so they are asked after some only. */
    if (++wait->looks % 64 != 0) {
        __builtin_ia32_pause();
        return 0;
    }
    return bench_wait_slow(wait);
}

/* ---- orders ---- */

enum order_kind {
    ORDER_CHANNEL_JOIN = 1,
    ORDER_CHANNEL_RECEIVE, /* records until one of kind RECORD_END */
    ORDER_CHANNEL_LEAVE,
    ORDER_LINE_ECHO,
    ORDER_RTE_RING,
    ORDER_SOCKET_ECHO,
    ORDER_SOCKET_DRAIN,
    ORDER_BARE_WRITE,
    ORDER_PERFTEST,
    ORDER_QUIT,
};

enum order_flag {
    ORDER_STAMP = 1,  /* one clock: tell when each record was seen, against the time it carries */
    ORDER_TELL = 2,   /* a heartbeat after each record, so that the sender hears of it at once */
    ORDER_COPY = 4,   /* copy each payload out */
    ORDER_LATENCY = 8 /* perftest: ib_write_lat, otherwise ib_write_bw */
};

struct order {
    uint32_t kind; /* enum order_kind */
    uint32_t flags;
    uint32_t bytes; /* of each frame, message or write */
    uint32_t burst; /* rte_ring: elements moved at a time */
    uint64_t count; /* perftest: iterations */
};

struct answer {
    int32_t result; /* 0 or -errno */
    uint32_t zero;
    uint64_t count; /* records or bytes that came */
    uint64_t sum;   /* of what was copied out, so that no copy is left out */
    struct histogram seen_ns; /* ORDER_STAMP */
};

/* What both ends see when they are on one machine. */
struct bench_shared {
    uint64_t mapped_bytes;
    alignas(RING_LINE_BYTES) _Atomic uint64_t there;
    alignas(RING_LINE_BYTES) _Atomic uint64_t back;
    /* LINK_RING */
    struct ring_credit credit;
    struct send_ring send;
    uint8_t *ring;
    void *rte_ring; /* memory for one with ring_bytes of elements */
};

/* One end. */
struct bench_end {
    const struct bench_options *options;
    uint64_t ring_bytes;         /* the leader's word counts */
    bool is_leader;
    struct bench_shared *shared; /* NULL: between hosts, so clocks differ too */
    int socket;
    struct channel *channel;     /* NULL for LINK_RING */
    struct receive_ring receive; /* LINK_RING: the peer's */
    struct bench_wait wait;
    uint8_t *copy; /* what payloads are copied from or to; BENCH_CHUNK_BYTES or the longest of them */
    struct answer answer;        /* leader: the last one */
    struct machine peer_machine; /* leader: as told */
    /* leader: the peer, if it is ours */
    pid_t child;      /* 0: none */
    pthread_t thread;
    bool has_thread;
};

/* Leader: connects to the peer, or starts it. The options must stay. 0 or -errno, said. */
int bench_lead(const struct bench_options *options, struct bench_end *end);
/* Leader: ends the peer and waits for it. Accepts a half-built end. */
void bench_leave(struct bench_end *end);
/* --receive: serves one leader. 0 or -errno, said. */
int bench_serve(const struct bench_options *options);

/* Leader: gives an order, does its own half of it (whose result is `ours`), and takes the answer into end->answer.
 * 0 or -errno, said. */
int bench_order(struct bench_end *end, const struct order *order);
int bench_answer(struct bench_end *end, int ours);

/* ---- what is measured: the leader's half, and the peer's ---- */

enum { RECORD_DATA = 1, RECORD_END = 2 };

/* One measurement of throughput. */
struct bench_rate {
    uint64_t records, bytes, writes, elapsed_ns;
};

int channel_end_join(struct bench_end *end);
void channel_end_leave(struct bench_end *end);
/* Closed loop. acked_ns: commit to ack. told_ns: commit to the news that it is consumed (round trip), with ORDER_TELL.
 * With ORDER_STAMP, what was seen by the peer's clock is in end->answer. */
int channel_end_latency(struct bench_end *end, uint32_t bytes, uint32_t flags, uint64_t samples, uint64_t limit_ns,
                        struct histogram *acked_ns, struct histogram *told_ns);
/* As many records as fit into run_ns. */
int channel_end_rate(struct bench_end *end, uint32_t bytes, uint32_t window, uint64_t run_ns, struct bench_rate *rate);
int channel_end_receive(struct bench_end *end, const struct order *order, struct answer *answer);

/* A cache line there and one back, between the two threads or processes. Half of it is one way. */
int yardstick_line(struct bench_end *end, uint64_t samples, uint64_t limit_ns, struct histogram *one_way_ns);
int yardstick_line_peer(struct bench_end *end, struct answer *answer);
/* DPDK's rte_ring, single producer and consumer, with elements of `bytes`; `burst` of them published at a time. */
int yardstick_rte_ring(struct bench_end *end, uint32_t bytes, uint32_t burst, uint64_t run_ns, struct bench_rate *rate);
int yardstick_rte_ring_peer(struct bench_end *end, const struct order *order, struct answer *answer);
/* Memory that such a ring takes, for any size of elements. */
uint64_t yardstick_rte_ring_bytes(uint64_t ring_bytes);
/* Messages of `bytes` there and back over a TCP socket; half of it is one way. */
int yardstick_socket(struct bench_end *end, uint32_t bytes, uint64_t samples, uint64_t limit_ns,
                     struct histogram *one_way_ns);
int yardstick_socket_peer(struct bench_end *end, const struct order *order, struct answer *answer);
/* A TCP socket's stream in chunks of BENCH_CHUNK_BYTES, counted as frames of `bytes`. */
int yardstick_stream(struct bench_end *end, uint32_t bytes, uint64_t run_ns, struct bench_rate *rate);
int yardstick_stream_peer(struct bench_end *end, struct answer *answer);
/* Signalled RDMA writes of `bytes` on a connection of their own: one at a time (latency), or four in flight. */
int yardstick_write(struct bench_end *end, uint32_t bytes, uint64_t samples, uint64_t limit_ns,
                    struct histogram *acked_ns, uint64_t run_ns, struct bench_rate *rate);
int yardstick_write_peer(struct bench_end *end, struct answer *answer);
/* perftest's programs. -ENOENT: not installed on one of the hosts. */
int yardstick_perftest(struct bench_end *end, bool latency, uint32_t bytes, double *value);
int yardstick_perftest_peer(struct bench_end *end, const struct order *order, struct answer *answer);
/* The number asked for in perftest's words: typical latency in us, or average bandwidth in MB/s (2^20 bytes).
 * -EPROTO: it is not in there. */
int perftest_parse(const char *text, bool latency, uint32_t bytes, double *value);

#endif
