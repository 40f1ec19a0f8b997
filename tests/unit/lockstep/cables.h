/*
 * Two hosts and an arbiter, each in a network namespace of its own, and the cables between them: rail, LAN, and the way
 * to the arbiter. A cable ends in a tap interface (rail, lan, arbiter) in the namespace and in a switch, a thread of the test,
 * which learns where addresses are as any switch does, sees every frame in the order in which it passes, and can cut a
 * cable, lose what comes out of it, or hold it for a while. The test itself is on the LAN, too. Needs root.
 */
#ifndef FTVMM_TESTS_CABLES_H
#define FTVMM_TESTS_CABLES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cable_place { CABLE_HOST_A, CABLE_HOST_B, CABLE_ARBITER, CABLE_TEST, CABLE_PLACES };
enum cable_network { CABLE_RAIL, CABLE_LAN, CABLE_ARBITER_WAY, CABLE_NETWORKS };

#define CABLE_ADDRESSES 16u /* that a switch can learn */
#define CABLE_WAITING   8192u /* frames held at once; more are lost */
#define CABLE_FRAME     2048u

struct cable {
    int fd; /* -1: none here */
    atomic_bool cut;
    atomic_bool lossy;          /* what this place sends is lost */
    _Atomic uint64_t delay_ns; /* of all that goes in and out */
};

/* Both are called in the switch's thread. */
struct cable_hooks {
    void *ctx;
    /* A frame on the LAN that comes from `place` (never the test itself). */
    void (*seen)(void *ctx, enum cable_place place, const uint8_t *frame, size_t bytes, uint64_t now_ns);
    /* Every millisecond or so, and after frames. */
    void (*tick)(void *ctx, uint64_t now_ns);
};

struct cable_held;
struct cables {
    int namespaces[CABLE_PLACES]; /* for setns(2) */
    struct cable at[CABLE_NETWORKS][CABLE_PLACES];
    struct {
        uint8_t mac[6];
        enum cable_place place;
    } learnt[CABLE_NETWORKS][CABLE_ADDRESSES];
    unsigned learnt_used[CABLE_NETWORKS];
    struct cable_held *first, *last; /* frames held, as they came */
    unsigned waiting;
    struct cable_hooks hooks;
    pthread_t thread;
    atomic_bool ends;
    bool runs;
};

/* What is missing, in words, or NULL: all is there. */
const char *cables_check(void);
/* 0 or -errno, which is said. The address of `place` is 10.77.NETWORK + 1.PLACE + 1; the LAN has none. */
int cables_open(struct cables *cables);
int cables_run(struct cables *cables, const struct cable_hooks *hooks);
void cables_stop(struct cables *cables); /* the switch; nothing passes any more */
void cables_close(struct cables *cables);

void cable_cut(struct cables *cables, enum cable_network network, enum cable_place place, bool cut);
/* As the test, into the LAN; within a hook only. */
void cables_send(struct cables *cables, const uint8_t *frame, size_t bytes);
/* This thread, and what it starts, is in the namespace of `place`; CABLE_TEST: where it came from. */
int cables_enter(const struct cables *cables, enum cable_place place);

#endif
