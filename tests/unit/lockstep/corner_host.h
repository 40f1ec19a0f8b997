/*
 * Runs a corner guest (corner_guest.S) on /dev/kvm in a process of its own: the real machine, lockstep, I/O thread,
 * channel, arbiter and disk, put together as session.c does. Around it a storm of its own: kicks at random moments,
 * and bytes typed at the primary's console. Nothing here uses cmocka: lab hosts run it, too.
 */
#ifndef FTVMM_TESTS_CORNER_HOST_H
#define FTVMM_TESTS_CORNER_HOST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/unit/lockstep/corner_guest.h"
#include "tests/unit/lockstep/corner_image.h"
#include "vmm/lockstep.h"

/* What a run leaves; in memory that the child shares with the test. */
struct corner_outcome {
    bool ended; /* in order, and (a backup's) compared equal */
    uint64_t parts; /* of the log that was kept */
    bool lost_interrupt; /* one that the controller has given, and that no handler has seen */
    uint64_t positions, ram_digest, compared, segments, forced_syncs, forced_delta_pages, frames, window_steps, kicks,
        user_tsc_reads;
    uint64_t places, places_refused;
    uint64_t state[(S_COUNTS + 48 * 8) / 8]; /* the guest's variables */
    char said[256];
    uint64_t frames_seen[CORNER_FRAMES_ROOM][32]; /* registers and frame of each interrupt, the last ones */
    uint64_t program[CORNER_HISTORY_ROOM][8];
    uint64_t history[CORNER_HISTORY_ROOM][16]; /* after each step: rax to r15 without rsp, flags */
};

struct corner_run {
    enum lockstep_role role;
    const char *channel;
    const char *arbiter;   /* NULL: record or replay */
    const char *directory; /* for the disk's image */
    struct corner_plan plan;
    unsigned slowness;     /* of this machine's exits: everything that comes by time comes so much later */
    uint64_t peer_timeout_ns;
    uint64_t max_input_delay_ns; /* 0: 2 ms */
    bool verify;
    const char *keep;      /* a backup: the directory where it keeps its log, in parts as short as can be; NULL: nowhere */
    bool replays_kept;     /* a replay: of such a log */
    /* Another guest than the corner guest, into whose memory and registers it goes; may be NULL. */
    void (*guest)(struct guest_memory *memory, struct kvm_regs *regs, struct kvm_sregs *sregs);
    enum guest_clock clock;
    /* Opens the counter of the clock PMU, a model of one; on the vCPU's thread. */
    int (*counter)(struct vcpu *vcpu, struct branch_counter **counter);
    /* Called with each frame that the guest sends, on its thread, in the child; may be NULL. */
    void (*frame)(struct lockstep *ls, const uint8_t *frame, size_t bytes);
};

/* 0, or 77 after saying why no guest can run here. */
int corner_host_check(void);
/* What a plan and a run should say of this machine. */
bool corner_whole_cpu(void);
unsigned corner_slowness(void);
/* Memory that children share. */
void *corner_shared(size_t bytes);
/* Forks; the child runs the guest to its end and leaves `outcome`. */
pid_t corner_start(const struct corner_run *run, struct corner_outcome *outcome);
/* Waits for it. True if it ended as it should. */
bool corner_finish(pid_t pid);
/* Runs it twice, whatever its role and channel: recorded and replayed, or as a pair over shared memory. What the primary
 * leaves comes first. True if both ended as they should. */
bool corner_record_and_replay(struct corner_run run, struct corner_outcome outcomes[2]);
bool corner_pair(struct corner_run run, struct corner_outcome outcomes[2]);

#endif
