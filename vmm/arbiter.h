/*
 * The arbiter: one atomic test-and-set per VM and generation, at a place that both hosts reach by another way
 * than the rail. Whoever claims a generation first goes live alone; the other stops its guest. Silence of the
 * peer never suffices.
 *
 * Kinds, by address, all with the same promises:
 *   dir:PATH             a directory on shared storage with atomic link(2) (NFS, 9p, a cluster FS): arbiter_dir.c
 *   etcd:URL[,URL...]    an etcd cluster, its members' client URLs: arbiter_etcd.c
 *   rdma:HOST:PORT       a witness, whose memory the hosts' RDMA cards compare and swap: arbiter_rdma.c
 *
 * Promises:
 *   - A generation is given once, and never again. What happens to an old one says nothing about a new one.
 *   - Of all that claim a generation one wins. A claim is for ever: it does not expire, nobody takes it back.
 *   - Who repeats a claim gets the same verdict, also if the answer to the first was lost on its way.
 *   - A generation that this object has neither begun nor checked, or of which the place no longer knows what it
 *     knew then (another place, or one that was emptied), is not decided: ARBITER_UNREACHABLE.
 *
 * Threads: one at a time may call arbiter_begin, arbiter_check and arbiter_claim, which block as long as the place
 * does. arbiter_ask never blocks, and has a thread of its own behind it, which also looks, every 2 s, whether a claim
 * would get through, of kinds that can tell (rdma:); arbiter_get_status is for any thread.
 */
#ifndef FTVMM_VMM_ARBITER_H
#define FTVMM_VMM_ARBITER_H

#include <stdbool.h>
#include <stdint.h>

struct arbiter;

struct arbiter_options {
    const char *address;
    const char *vm;         /* name of the virtual machine: letters, digits, '-', '_', '.' */
    const char *auth_dir;   /* etcd over https: directory with ca.pem, cert.pem, key.pem, user. rdma: with key. NULL: none */
    uint64_t deadline_ns;   /* etcd: of a claim's first request to each member, kept within 50 ms and 4 s; 0: 250 ms */
};

/* Says in words what is wrong: not there, not writable, no such kind. 0 or -errno. */
int arbiter_open(struct arbiter **out, const struct arbiter_options *options);
/* Accepts NULL. A claim under way gets a moment to end; one that hangs is left behind. */
void arbiter_close(struct arbiter *arbiter);

/* A new pair begins: takes the next unused generation. 0 or -errno, said in words. */
int arbiter_begin(struct arbiter *arbiter, uint64_t *generation);
/* Does our arbiter know of this generation? Tells a backup that it shares its primary's arbiter.
 * 0, or -ENOENT / -errno, said in words. */
int arbiter_check(struct arbiter *arbiter, uint64_t generation);

enum arbiter_verdict {
    ARBITER_WON,
    ARBITER_LOST,
    ARBITER_UNREACHABLE, /* nobody may go live on this; ask again */
    ARBITER_ASKING,      /* arbiter_ask only: there is no answer yet */
};

/* Claims `generation`, and waits for the verdict; never ARBITER_ASKING. */
enum arbiter_verdict arbiter_claim(struct arbiter *arbiter, uint64_t generation);

/*
 * Claims `generation` without waiting. To be called again and again until it says ARBITER_WON or ARBITER_LOST, by one
 * thread. While the arbiter does not answer it claims anew every 200 ms as long as it is called, and says
 * ARBITER_UNREACHABLE; that is also what it says of a claim that hangs for a second. Who stops calling should do so on
 * ARBITER_UNREACHABLE: a claim under way may yet be won.
 */
enum arbiter_verdict arbiter_ask(struct arbiter *arbiter, uint64_t generation);

#define ARBITER_WHY_BYTES 256

struct arbiter_status {
    uint64_t asks;               /* claims begun by arbiter_ask */
    bool asking;                 /* one is under way */
    uint64_t asking_ns;          /* since so long */
    enum arbiter_verdict verdict; /* ARBITER_ASKING: no answer yet. ARBITER_UNREACHABLE also before the first claim, if
                                   * it would not get through */
    char why[ARBITER_WHY_BYTES]; /* ARBITER_UNREACHABLE: why, in words; else empty */
};

void arbiter_get_status(struct arbiter *arbiter, struct arbiter_status *status);

#endif
