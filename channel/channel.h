/*
 * One end of the logging channel: an ordered stream of records from one sender to one receiver,
 * acknowledged when the receiver's host holds them. The channel knows nothing of what a record means.
 *
 * Links, chosen by the address:
 *   verbs:HOST:PORT   one-sided RDMA WRITE into the receiver's ring (rdma_cm, RC). Sender: the receiver's
 *                     address; receiver: its own.
 *   tcp:HOST:PORT     the same over a TCP connection, for hosts without RDMA. Addresses as with verbs.
 *   shm:NAME          a ring in shared memory between two processes of one machine.
 *   file:PATH         the sender writes a log file, the receiver reads one (record and replay).
 *
 * A broken connection. While both processes live, verbs and tcp join again by themselves, and the log goes on with the
 * first record that the receiver has not got: none lost, none twice, none out of order, and none acked that is not
 * there. Meanwhile the peer is silent, and whoever limits silence decides as ever; the fence ends it for good. Each end
 * has a thread of its own for this, and keeps its address, and the secret, until channel_close. With shm a connection
 * breaks only when a process ends, and a file has none: nothing is resumed there.
 *
 * Errors are 0 or -errno, reported once in words (base/report.h) where the cause is known.
 */
#ifndef FTVMM_CHANNEL_CHANNEL_H
#define FTVMM_CHANNEL_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHANNEL_PAYLOAD_MAX_BYTES (128u * 1024u) /* largest payload of one record */
#define CHANNEL_SECRET_MIN_BYTES  32u
#define CHANNEL_SECRET_MAX_BYTES  256u

/*
 * When a record counts as acked. The sender chooses.
 *
 * PLACED: all its bytes are in the memory of the receiver's host (verbs: its NIC has said so; shm: they are in the
 *     shared ring; tcp: its process has read and checked them, so that this is SEEN). It survives the death of the
 *     sender's process and host at any moment. It does not wait for the receiver's CPU: should that find the record
 *     damaged in its memory, it stops rather than go on from it.
 * SEEN: the receiver's CPU has found the record whole, in its order and its checksum right, and has said so. It
 *     survives what PLACED survives, and damage on the way to or in the receiver's memory is found before anything
 *     depends on the record, not after. It costs a look and a message of the receiver's polling thread.
 *
 * Neither survives the loss of both hosts, and neither means that the record was applied: that is the consumed LSN.
 */
enum channel_ack {
    CHANNEL_ACK_PLACED = 0,
    CHANNEL_ACK_SEEN = 1,
};

/* A key that both ends hold, so that each can prove to the other that it belongs here. */
struct channel_secret {
    size_t count;
    uint8_t bytes[CHANNEL_SECRET_MAX_BYTES];
};
/* Reads a key file: regular, ours or root's, readable by nobody else, 32 to 256 bytes. 0 or -errno, said in words.
 * Wipe it when joined: the channel keeps a copy of its own for as long as it may have to join again. */
int channel_secret_load(struct channel_secret *secret, const char *path);
void channel_secret_wipe(struct channel_secret *secret);

/* What both ends must agree on; exchanged and compared at joining. Zero-padded text where text. */
struct channel_hello {
    char vm[32];           /* name of the virtual machine */
    uint64_t generation;   /* of the pair; the sender's is taken over by the receiver if its own is 0 */
    uint8_t digest[16];    /* of the machine's configuration and images; compared byte for byte */
};

struct channel_options {
    const char *address;        /* see above */
    size_t ring_bytes;          /* a power of two, >= 1 MiB; both ends must agree; ignored by file: */
    bool file_poller_writes;    /* sender of file: the committing thread never waits for the disk: -EAGAIN while its buffer,
                                   of ring_bytes, is full */
    uint64_t join_timeout_ns;   /* how long open may wait for the peer; UINT64_MAX: for ever */
    struct channel_hello hello; /* in: ours */
    const bool *cancel;         /* if not NULL: open gives up with -ECANCELED once *cancel is true */
    enum channel_ack ack;       /* the sender's counts; file: knows PLACED only */
    const struct channel_secret *secret; /* NULL: whoever reaches the address may join. Used by open only; verbs and tcp
                                            copy it, and wipe the copy at channel_close */
};

/* One received record. `payload` points into the ring and is valid until channel_consume. */
struct channel_record {
    uint64_t lsn;       /* log sequence number: 1, 2, 3, ... without gaps as seen by the receiver */
    uint64_t position;  /* the sender's, as given to channel_reserve */
    uint16_t kind;      /* the sender's */
    uint32_t bytes;     /* of payload */
    const void *payload;
};

struct channel;

/* Join as sender or receiver: blocks until the peer is there, or the time-out. -ETIMEDOUT, -ECANCELED,
 * -EPROTO (version, ring size, vm, generation or digest differ: said in words), -ENODEV (no RDMA here), ... */
int channel_open_sender(struct channel **out, const struct channel_options *options);
int channel_open_receiver(struct channel **out, const struct channel_options *options);
/* A receiver for the log file at `path`, whatever machine it is of: for who looks at a log without having the guest.
 * channel_peer tells what it is of. Errors as above. */
int channel_open_log(struct channel **out, const char *path);
/* Accepts NULL. Sender of file:/shm: flushes first. All other threads must have left the channel. */
void channel_close(struct channel *channel);
/* The peer's hello (file: the one stored at the head of the log). */
const struct channel_hello *channel_peer(const struct channel *channel);

/* ---- sender, committing thread ---- */

/* Opens a record of `bytes` payload (<= CHANNEL_PAYLOAD_MAX_BYTES); *payload is where to build it, in
 * place, 8-byte aligned. -EAGAIN: the ring is full (the receiver lags), try again; -EMSGSIZE; -EPIPE: the
 * link is down for good. While it is down for now, records wait in the ring. At most one record is open at a time. */
int channel_reserve(struct channel *channel, uint16_t kind, uint64_t position, size_t bytes, void **payload);
/* Seals the open record and makes it travel (with what else waits). Returns its LSN. */
uint64_t channel_commit(struct channel *channel);
/* The same for a record that another follows at once: both travel in one piece. Without a next one it goes with the next
 * channel_poll. */
uint64_t channel_commit_with_next(struct channel *channel);

/* ---- polling thread ---- */

/* Reaps completions, sends what waited to be coalesced. Cheap when idle. 0, or -EPIPE while the link is
 * known to be broken (a hint: the heartbeat decides). Of a sender's broken link, each call has it joined again, if it
 * can. A receiver's polling thread calls it as well, beside channel_next in another thread: it takes in what has
 * arrived (tcp), and says what it has seen (CHANNEL_ACK_SEEN, tcp), which is what the sender's acks wait for. */
int channel_poll(struct channel *channel);
/* Highest LSN that the receiver's host holds. Any thread; one acquire load. */
uint64_t channel_acked_lsn(const struct channel *channel);
/* Highest LSN committed. Any thread. */
uint64_t channel_committed_lsn(const struct channel *channel);

/* How far the receiver is behind, as far as it has told: over verbs that is up to a heartbeat old. */
struct channel_lag {
    uint64_t records;    /* committed, not consumed */
    uint64_t consumed_lsn;
    uint64_t bytes;      /* of the ring that are not credited; over verbs up to a quarter of it without any lag */
    uint64_t ring_bytes; /* of the whole ring */
    uint64_t age_ns;     /* how long ago the oldest record not consumed was committed; never too much, too little by
                            1 ms or 1/32 (channel/lag.h) and the time between two calls of channel_poll */
};
/* Sender; all 0 for a receiver. Any thread; cheap. The age is that of the last channel_poll, grown older since. */
void channel_get_lag(const struct channel *channel, struct channel_lag *out);

/* ---- receiver, one thread ---- */

/* The next record, not yet consumed; the same one again until channel_consume. -EAGAIN: none has arrived;
 * -EBADMSG: damaged (said in words; fail-stop, every later call says the same); -ENODATA: none will ever
 * come (end of the file, or fenced and drained). */
int channel_next(struct channel *channel, struct channel_record *record);
void channel_consume(struct channel *channel);
/* From now on nothing of the peer's can land in the ring. Idempotent. What is in the ring can still be
 * read; then channel_next says -ENODATA. Must not be called while another thread is in channel_next. */
int channel_fence(struct channel *channel);

/* ---- both ends, one thread each (the polling thread) ---- */

/* Tells the peer that we live, and (receiver) how far we are: consumed LSNs are credits. Call every few ms;
 * sends at most one small message a call. */
void channel_heartbeat(struct channel *channel);
/* clock_now_ns() of the peer's last sign of life (heartbeat or record); any thread. file: always now. */
uint64_t channel_peer_seen_ns(const struct channel *channel);
/* Sender: highest LSN the receiver has consumed, as last reported. Receiver: its own. Any thread. */
uint64_t channel_consumed_lsn(const struct channel *channel);

/* Receiver: a word for the sender, 0 until there is one; it travels with each heartbeat, and a later one takes its place.
 * Any thread. Over file: it goes nowhere. */
void channel_tell(struct channel *channel, uint64_t word);
/* Sender: the receiver's word, as last heard. Any thread. */
uint64_t channel_told(const struct channel *channel);

/* What a record of so much payload takes in the ring or the file: header, padding and all. */
uint64_t channel_frame_bytes(uint32_t payload_bytes);

struct channel_statistics {
    uint64_t records, record_bytes; /* committed (sender) or delivered (receiver), frames with padding */
    uint64_t writes;                /* link operations carrying records */
    uint64_t stalls;                /* reserve calls that found the ring full */
    uint64_t torn;                  /* receiver: looks that met a record not yet complete */
    uint64_t damaged;               /* receiver: looks that met one complete and wrong, or acked and not there, again */
    uint64_t resumes;               /* how often a broken connection was joined again */
};
void channel_get_statistics(const struct channel *channel, struct channel_statistics *out);

#endif
