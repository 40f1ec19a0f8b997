/*
 * Lockstep: a machine, the log of its inputs, and the role this process plays. The primary logs each input and
 * applies it; the backup fetches each input and applies it; one function applies (lockstep_apply). primary.c and
 * backup.c are meant to be read side by side.
 *
 * Threads: the *machine* thread runs lockstep_run and owns everything here that is not atomic; the *I/O* thread
 * (io_thread.c) polls network and channel and judges whether the peer lives; the *main* thread (session.c)
 * has console, signals and status. They meet in the atomics below and in the two console rings.
 */
#ifndef FTVMM_VMM_LOCKSTEP_H
#define FTVMM_VMM_LOCKSTEP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/byte_ring.h"
#include "base/count.h"
#include "base/doorbell.h"
#include "base/histogram.h"
#include "base/idle.h"
#include "channel/channel.h"
#include "dpdk-net/net.h"
#include "vmm/arbiter.h"
#include "vmm/disk.h"
#include "vmm/event.h"
#include "vmm/gdb_stub.h"
#include "vmm/guest_clock.h"
#include "vmm/handover.h"
#include "vmm/heal.h"
#include "vmm/journal.h"
#include "vmm/kept_log.h"
#include "vmm/machine.h"
#include "vmm/pace.h"
#include "vmm/protect.h"
#include "vmm/register_ring.h"
#include "vmm/time_pack.h"
#include "vmm/verify.h"

struct difference;

enum lockstep_role {
    ROLE_ALONE,   /* live, nobody protects it: `ftvmm run`, or what is left of a pair */
    ROLE_PRIMARY, /* live, inputs logged, output held until acknowledged */
    ROLE_BACKUP,  /* replays; sends nothing */
};

const char *role_name(enum lockstep_role role);

/* Milestones of a failover, in clock_now_ns(); 0: not reached. */
struct failover_receipt {
    _Atomic uint64_t peer_seen_ns; /* last sign of life */
    _Atomic uint64_t detected_ns;  /* silence exceeded the limit */
    _Atomic uint64_t fenced_ns;    /* nothing of the old primary's can land any more */
    _Atomic uint64_t drained_ns;   /* all that was in the ring is replayed */
    _Atomic uint64_t decided_ns;   /* the arbiter has answered */
    _Atomic uint64_t live_ns;      /* the guest runs on as the live one */
    _Atomic uint64_t first_frame_ns; /* the first frame of the guest that the port has taken since */
    _Atomic uint64_t resent_frames; /* held frames sent again */
};

struct lockstep_options {
    uint64_t heartbeat_ns;       /* between heartbeats */
    uint64_t peer_timeout_ns;    /* silence that means: ask the arbiter */
    uint64_t max_input_delay_ns; /* how long an input may wait for a position before a forced sync */
    uint64_t max_lag_ns;         /* the guest is slowed so that the backup lags no more; 0: never slowed */
    uint64_t stop_after_ns;      /* stop the guest after so long; 0: never */
    enum guest_clock clock;      /* that is asked for; AUTO: whatever is best, and of a backup: whatever the log has */
    uint64_t until_position;     /* replay: stop at this position; 0: at the guest's end */
    struct idle_policy idle;
    uint64_t segment_ns;         /* virtual time between digests of all RAM */
    const char *differences_path; /* backup: directory for what is found of a difference; NULL: not saved */
};

/* The way of a request through the live machine, in ns; machine thread. What comes after it is the port's (net.h). */
struct request_steps {
    struct histogram input_wait_ns; /* a frame: from its arrival here until the guest is given it */
    struct histogram guest_ns;      /* from there to the exit by which it sends again, exits between included */
    struct histogram exit_ns;       /* from that exit to its first frame held */
    struct histogram append_ns;     /* from there to the OUTPUT record committed, its write posted; primary only */
};

/* Instants since the last position that could not be named; machine thread. */
struct place_misses {
    unsigned kicks, tries; /* tries: those between which the guest has run */
    uint64_t since_ns;
    uint64_t count, rip; /* of the last */
};

struct lockstep {
    struct lockstep_options options;
    struct machine machine;
    struct net *net;         /* NULL: the guest has no cable */
    struct disk *disk;       /* NULL: the guest has none */
    /* NULL: no peer. While the guest is alone the protector takes it away, and the machine thread sets a new one; others
     * than these and the I/O thread look at it under the lock. */
    struct channel *channel;
    pthread_mutex_t channel_lock;
    struct arbiter *arbiter; /* NULL for record and replay, and for a run that can have no backup */
    struct protector *protector; /* NULL where there is no arbiter */
    _Atomic uint64_t generation;
    struct verify *verify;   /* NULL: of a guest that can never have a backup */
    struct kept_log *kept;   /* backup: where it writes what it replays; NULL: nowhere */
    struct gdb_stub *gdb;    /* replay: NULL: nobody looks */
    bool replays_kept;       /* replay: of a log that a backup has kept, which may end anywhere */
    _Atomic uint32_t clock;  /* enum guest_clock, as START has it */
    struct branch_counter *counter; /* NULL: the clock counts nothing but exits; machine thread */
    uint64_t began_ns;       /* when this process began */

    /* -- machine thread -- */
    int64_t clock_offset_ns;   /* virtual time = clock_now_ns() + this, while live; backup: as it would be now */
    uint64_t frames_built;
    uint64_t output_digest;    /* chain over the frames built */
    uint64_t register_chain;   /* over positions: XXH3-64 of struct kvm_regs on arrival, seeded with the one before */
    struct register_ring *registers; /* of a pair; else NULL */
    uint64_t output_lsn;       /* of the OUTPUT record that this position's frames and shared writes wait for */
    bool output_pending;       /* something was held at this position */
    uint64_t output_ns;        /* when the position's first frame was held; 0: none was */
    uint64_t taken_ns;         /* when the guest was last given a frame; 0: it has sent one since */
    bool position_closed;      /* backup: the log says that this position takes no further input */
    bool position_open;        /* its exit is not served yet, or the vCPU not made ready to go on */
    uint64_t logged_position;  /* of the last record, or of the last look in it */
    uint64_t logged_ns;        /* when */
    struct time_pack times;    /* primary: looks at the clock that are not logged yet */
    struct backup_times {      /* backup: in the midst of a TIME record */
        bool open;
        struct time_reader reader;
        struct event_time look; /* the one that is due */
    } taken_times;
    uint64_t time_heard_ns;    /* backup: when the last look was applied */
    uint64_t *unsent_pages;    /* pages written since both machines were known equal; one bit a page */
    uint64_t *transfer_pages;  /* NULL, or as above: pages written since a new backup was sent them */
    uint64_t frames_before;    /* of the frames built, those that came with a transfer: net.h does not count them */
    bool stands_at_position;   /* a transfer has brought the machine to its position; it has not arrived there yet */
    struct page_copies *page_copies; /* of pages that forced syncs have carried */
    uint64_t forgotten_ns, forget_interval_ns; /* when they were last forgotten, and how often that is to be */
    struct staged_sync *staged; /* backup: pages of a forced sync that is not complete yet */
    struct request_steps steps; /* status reads it */
    struct place_misses place_misses; /* primary */
    struct pace_rest rest;     /* primary: what the guest has run and not yet rested for */
    uint64_t stuck_sent_count; /* live: frames sent, and one, when it was last given up to wait for more; 0: never */
    struct idle idle;
    int failure;               /* -errno that ends the machine thread */

    /* -- crossing threads; each is a lone value, so relaxed order suffices unless its user says otherwise -- */
    _Atomic int role;                /* machine thread and I/O thread change it, each at one place */
    _Atomic int io_role;             /* the one by which the I/O thread acts; it follows within a round */
    _Atomic bool channel_left;       /* I/O thread: alone, and it does not touch the channel any more */
    _Atomic uint64_t protected_lsn;  /* primary: the backup is a whole one once it has consumed this record, */
    _Atomic bool followed;           /* I/O thread: and it has */
    _Atomic bool peer_lost;          /* I/O thread: the peer is silent for too long */
    _Atomic bool lost_arbitration;   /* the other side is live: stop at once */
    _Atomic bool stop_requested;
    _Atomic bool unprotect_requested; /* primary: the I/O thread is to claim the generation, though the peer is well */
    _Atomic bool finished;           /* machine thread has left lockstep_run */
    _Atomic bool opened;             /* all pointers above are final; S1 in session.c */
    _Atomic bool running;            /* the guest has started */
    _Atomic uint64_t arrived_ns;     /* clock at the last position */
    _Atomic uint64_t beat_ns;        /* clock at the machine thread's last sign of life */
    _Atomic uint64_t deadline_ns;    /* clock at which a device wants to act; UINT64_MAX: never */
    _Atomic uint64_t forced_took_ns; /* how long the last forced sync took */
    _Atomic bool taking_frames;      /* the guest has room for one */
    _Atomic unsigned pace_permille;  /* I/O thread: share of time the vCPU rests, to let the backup catch up */
    _Atomic uint64_t peer_sent_count; /* backup: frames that the primary reported as sent */
    struct doorbell output_bell;     /* the machine thread has put out frames: the I/O thread listens */
    struct doorbell input_bell;      /* there is an input: the machine thread listens while the guest is halted */
    struct byte_ring *console_in, *console_out;
    struct failover_receipt receipt;
    struct handover handover;
    struct heal heal;
    struct journal journal;

    /* One record at a time is timed from its commit to its ack: the I/O thread wants one, the machine thread marks the
     * next that it commits. */
    _Atomic bool probe_wanted;
    _Atomic uint64_t probe_lsn, probe_ns; /* which and when; lsn 0: none yet */
    struct histogram ack_ns;         /* I/O thread writes; too long by up to one of its rounds, never too short */
    _Atomic uint64_t log_bytes_per_s; /* I/O thread: over the last second */

    /* -- counters: machine thread writes, status reads -- */
    _Atomic uint64_t positions, positions_compared, segments_compared;
    _Atomic uint64_t time_inputs;    /* how often virtual time was set */
    _Atomic uint64_t time_records, time_bytes; /* records in the log that say so, and their bytes there */
    _Atomic uint64_t frame_records, output_records, disk_records;
    _Atomic uint64_t forced_syncs, forced_pages, forced_max_pages; /* pages: sent, zero pages among them */
    _Atomic uint64_t forced_zero_pages, forced_delta_pages, forced_bytes; /* delta: sent as the words that had changed */
    struct histogram forced_pause_ns; /* machine thread; how long the guest stood still for each, or it was loaded */
    _Atomic uint64_t forced_ns, rested_ns;
    _Atomic uint64_t places, places_refused; /* positions made by naming a place; instants that no name would find */
    _Atomic uint64_t ring_full_stalls, ring_full_ns; /* how often the vCPU waited for room in the ring; how long */
    _Atomic uint64_t hold_full_stalls, hold_full_ns; /* the same for room in the hold queue */
    _Atomic uint64_t card_sent_dropped, card_received_dropped; /* by the network card; struct virtio_net_state */
    _Atomic uint64_t virtual_ns;
    _Atomic uint64_t run_ns;         /* time in KVM_RUN */
    _Atomic uint64_t clock_reads;    /* positions at which the guest looks at a clock */
    _Atomic int instructions;        /* what counts them (instructions.h), plus one; 0: they are not countable */
    _Atomic uint64_t divergences;    /* the machines were found to differ */
    _Atomic uint32_t ended;          /* enum event_end_reason */
    _Atomic uint64_t end_ram_digest;
    _Atomic bool end_compared;       /* backup: the primary's END digests matched ours */
};


static inline enum lockstep_role lockstep_role_now(const struct lockstep *ls)
{
    /* R3 in backup_go_live and io_thread_decide: what those did before is seen by who sees the new role. */
    return (enum lockstep_role)atomic_load_explicit(&ls->role, memory_order_acquire);
}

/*
 * Runs the guest until it ends, is stopped, or the pair forbids it to go on. The machine is booted; the channel
 * (if any) has joined. 0: ended or stopped in order. -ECANCELED: lost the arbitration. -EILSEQ: the two machines
 * differ (said in words). Other -errno: said in words.
 */
int lockstep_run(struct lockstep *ls);

/* Applies one input record, or compares one check; the one function by which a record acts on the machine. */
int lockstep_apply(struct lockstep *ls, const struct channel_record *record);

/* Digest of all of RAM (event.h). Takes its time, and beats meanwhile. */
uint64_t lockstep_ram_digest(struct lockstep *ls);

/* Machine output callbacks (struct machine_output), ctx = struct lockstep. */
void lockstep_frame_out(void *ctx, const uint8_t *frame, size_t bytes, const struct net_offload *offload);
void lockstep_filter_out(void *ctx, const struct net_filter *filter);
void lockstep_console_out(void *ctx, uint8_t byte);

/* Something leaves at this position: returns the LSN of its OUTPUT record, which must be acked first; 0: nobody has to
 * ack it. Only while an exit is served. */
uint64_t lockstep_hold_output(struct lockstep *ls);

/* Frames of this guest that have left the primary's port, wherever that was; what is told to the other host. */
uint64_t lockstep_frames_sent(const struct lockstep *ls);

/* The machine is at its position: adds the registers to the chain. */
void lockstep_chain_registers(struct lockstep *ls);

/* The guest's backup holds the whole of it, and follows. Any thread. */
bool lockstep_is_protected(const struct lockstep *ls);

/* Makes the machine thread look for inputs, if it sleeps. Any thread. */
void lockstep_wake(struct lockstep *ls);

/* Some input has been waiting too long for the guest to reach a position by itself. Any thread. */
bool lockstep_input_overdue(const struct lockstep *ls, uint64_t now_ns);

/* What the guest does next. */
enum lockstep_step {
    STEP_RUN,    /* run the guest up to its next position */
    STEP_SYNCED, /* a forced sync or a transfer has made the next position already */
    STEP_END,    /* no further step; ls->failure says why */
};

/* ---- primary.c: also for ROLE_ALONE, whose log is nowhere ---- */
enum lockstep_step primary_before_run(struct lockstep *ls);
enum lockstep_step primary_interrupted(struct lockstep *ls);
void primary_arrive(struct lockstep *ls);
void primary_emulated(struct lockstep *ls);
void primary_sleep(struct lockstep *ls);
int primary_finish(struct lockstep *ls);
/* Opens a record / seals it; its LSN, 0 if there is no log. Between the two the payload is built in place. */
void *primary_log_begin(struct lockstep *ls, enum event_kind kind, uint64_t position, size_t bytes);
uint64_t primary_log_end(struct lockstep *ls);
/* Takes every input that waits now. True if there was one. */
bool primary_take_inputs(struct lockstep *ls);
/* No frame is held, and no disk request is under way. */
bool primary_all_has_left(const struct lockstep *ls);
/* Logs and applies the virtual time of now. */
void primary_log_time(struct lockstep *ls);
/* Looks at the clock that are not in the log yet: into it, to travel at once; or with the record that follows, of whatever
 * kind, which sees to it for itself. */
void primary_log_times(struct lockstep *ls);
void primary_log_times_with_next(struct lockstep *ls);
/* The vCPU waits at a position: it lives, and no input waits for the guest to leave what it is doing. Now, in ns. */
uint64_t primary_still_here(struct lockstep *ls);

/* ---- backup.c ---- */
enum lockstep_step backup_before_run(struct lockstep *ls);
void backup_arrive(struct lockstep *ls);
void backup_emulated(struct lockstep *ls);
int backup_finish(struct lockstep *ls);
/* Claims the generation, until the arbiter answers. 0: won. -ECANCELED: lost, or stopped while nobody answered. */
int backup_decide(struct lockstep *ls);
/* Makes the live machine of it, at this position. The arbiter has been won. */
void backup_go_live(struct lockstep *ls);
/* Waits for the START record, checks it and copies it out (with its CPUID table). 0 or -errno. */
int backup_fetch_start(struct lockstep *ls, struct event_start *start);
/* START announced a transfer: takes the running guest over, to follow it from its next position on. 0 or -errno. */
int backup_receive_machine(struct lockstep *ls);
/* The same in the midst of a log, of a machine that takes this one's place (heal.h); `difference` may be NULL. 0; -EILSEQ: it
 * does not come. */
int backup_receive_again(struct lockstep *ls, struct difference *difference);
/* After that: of a kept log the position may be done already, as `start` says. */
void backup_stand(struct lockstep *ls, const struct event_start *start);
/* The primary reports so many frames as sent (lockstep_frames_sent). */
void backup_note_sent(struct lockstep *ls, uint64_t frames_sent);

/* ---- lockstep_disk.c ---- */
/* More of struct machine_output. */
uint8_t *lockstep_disk_data(void *ctx, uint64_t number);
void lockstep_disk_submit(void *ctx, uint64_t number, const struct virtio_blk_request *request);
/* struct disk_owner, ctx = struct lockstep. Disk thread. */
void lockstep_disk_finished(void *ctx);
bool lockstep_disk_may_write(void *ctx, uint64_t lsn);
/* Applies a DISK record: waits for our own disk's result, and compares. */
int lockstep_disk_apply(struct lockstep *ls, const struct channel_record *record);
/* Backup, whose machine is to be replaced: waits until what that has asked of its own copy has ended, and drops the answers;
 * what a shared disk holds for it disk_begin_at drops. 0 or -errno, said in words. */
int lockstep_disk_forget(struct lockstep *ls);
/* Backup, arbitration won: the disk is ours from now on. Waits until it is. 0 or -errno. */
int lockstep_disk_go_live(struct lockstep *ls);

/* ---- lockstep_place.c ---- */
/* Who begins a log chooses ls->clock; who follows one takes its START's. Before vcpu_enter_thread, on its thread. 0 or
 * -errno. */
int clock_choose(struct lockstep *ls);
int clock_follow(struct lockstep *ls, const struct event_start *start);
/* The machine is to boot: the clock's counter begins. After vcpu_enter_thread. 0 or -errno. */
int clock_open(struct lockstep *ls);
void clock_close(struct lockstep *ls);
/* A position begins: the counter, which there is, counts from here. */
void place_arrived(struct lockstep *ls);
/* Primary, kicked: makes this instant the next position by a PLACE record. 0; -EBUSY: this instant cannot be named, a
 * later one may be; -EAGAIN: do not wait for one; other -errno. */
int place_log(struct lockstep *ls);
/* Backup: runs to the place, which becomes the next position. 0; -EILSEQ: it is not found; other -errno. */
int place_reach(struct lockstep *ls, const struct event_place *place);

/* ---- forced_sync.c ---- */
/* Logs the whole vCPU and the pages written since the last sync as the position after this one. */
int forced_sync_log(struct lockstep *ls);
/* At a position the two machines are equal: now and then drops what a forced sync would send. 0 or -errno. */
int forced_sync_forget(struct lockstep *ls);
/* How long to wait before that is done again, if so many pages were forgotten after `interval_ns`. */
uint64_t forced_sync_forget_next(uint64_t interval_ns, uint64_t pages);
/* A transfer has just made the machines equal: nothing is unsent, and none of the other end's copies hold any more. */
void forced_sync_begin(struct lockstep *ls);
/* Keeps an EVENT_PAGES record until its EVENT_SYNC has come. The record is then one whose pages are all whole, which lives as
 * long. 0; -EBADMSG or -ENOMEM, said in words. */
int forced_sync_stage(struct lockstep *ls, struct channel_record *record);
/* Loads the staged pages and the vCPU. */
int forced_sync_load(struct lockstep *ls, const struct channel_record *record);
void forced_sync_discard(struct lockstep *ls);

#endif
