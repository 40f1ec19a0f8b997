/* What the parts of the verbs link share: link_verbs.c (its life, and one connection in another's place),
 * link_verbs_join.c (joining, again too), link_verbs_path.c (per event). */
#ifndef FTVMM_CHANNEL_LINK_VERBS_H
#define FTVMM_CHANNEL_LINK_VERBS_H

#include "base/clock.h"
#include "channel/control.h"
#include "channel/keeper.h"
#include "channel/link.h"
#include "channel/post_turn.h"

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#define VERBS_WRITES_IN_FLIGHT 4  /* coalesced writes; more only split what could travel together */
/* Longest coalesced write, unless one record and a pad are longer: rxe takes 8 MiB at most (RXE_PORT_MAX_MSG_SZ),
 * and several short ones let acks come in before all has travelled. */
#define VERBS_WRITE_BYTES      (64u * 1024)
#define VERBS_QUEUE_DEPTH      32 /* 4 writes in two parts each, a heartbeat, and room */
#define VERBS_INLINE_BYTES     192 /* below the 220 B at which ConnectX cards begin to lose by inlining */
#define VERBS_COMPLETIONS      8  /* reaped in one go */

/* wr_id of a write of records: the index up to which it reaches. Of a control block: */
#define VERBS_WR_CONTROL UINT64_MAX
/* Only while joining. A message of ours: */
#define VERBS_WR_SAID    (UINT64_MAX - 1)
/* Receive number i, of VERBS_HEARD: */
#define VERBS_WR_HEARD(i) (UINT64_MAX - 16 + (i))
#define VERBS_HEARD       2 /* each end says two messages */

/* How long one try to join again may take until the connection stands, and then until all is said. rdma_cm alone takes
 * 20 to 150 ms. No longer, for when its first message is lost it says it again after 4 s only. */
#define VERBS_AGAIN_NS KEEPER_PATIENCE_NS

/* Writes that take longer: the connection counts as broken, and is joined again. Longer than a card's own patience
 * (0.47 s, link_verbs_join.c), so this is for soft-RoCE, whose own is long, and whose ACKs were seen to take 0.4 s. */
#define VERBS_STALL_NS NS_PER_S

/* How long a frame may look damaged, or an acked one be missing, before it is believed: what is on its way
 * from the NIC to memory arrives within microseconds. */
#define VERBS_DAMAGE_NS (200 * NS_PER_MS)

/* What one connection has of its own. */
struct verbs_connection {
    struct rdma_cm_id *id; /* NULL: there is none */
    struct ibv_cq *cq;
    struct ibv_mr *ring_mr;         /* receiver: gone after the fence */
    struct ibv_mr *in_mr, *out_mr;  /* only `in` is remotely writable */
    struct handshake_place peer;    /* where the peer's ring and control block are */
    uint32_t inline_bytes;
};

/* Of the thread that joins: at first the one that opens the channel, then the keeper. */
struct verbs_join {
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener;
    struct sockaddr_storage address;
    struct rdma_cm_id *current;   /* keeper's copy of now.id, for events */
    struct verbs_connection made; /* the one in the making; sender's keeper: READY the new one, TAKEN the old one */
    struct handshake_log log;     /* what the grant says */
    uint64_t session;             /* see struct handshake */
    struct ibv_mr *messages_mr;   /* while the ends speak */
    uint8_t *said;                /* the messages of joining, ours; and */
    uint8_t *heard;               /* the peer's, VERBS_HEARD x HANDSHAKE_MAX_BYTES; all in the control page */
    size_t heard_bytes[VERBS_HEARD];
    unsigned heard_count, taken_count;
    bool said_done, left; /* our last message has gone; the peer has left */
    const struct join_side *ours;
    const struct channel_secret *secret;
    struct join_deadline deadline;
    char device_names[128]; /* for messages */
    uint64_t patience_ns, give_up_ns; /* for this peer */
};

struct verbs_link {
    struct channel channel;

    /* ---- both ends; constant once joined ---- */
    char name[128]; /* for messages: the address, and the peer's */
    uint64_t key;
    uint8_t *ring;
    uint64_t ring_bytes;
    uint8_t *control_page;     /* `in` and `out` on lines of their own */
    struct control_block *in;  /* the peer writes here */
    struct control_block *out; /* the source of ours; not touched while it is in flight */

    struct verbs_join join;
    struct keeper keeper;

    struct post_turn turn; /* who may use the connection (sender: and what is posted) */
    /* Replaced with the turn: by the sender's polling thread, by the receiver's keeper. */
    struct verbs_connection now;

    /* ---- owned by the holder of the turn ---- */
    uint64_t control_counter;
    /* Work requests, filled once but for what differs from one to the next: where, how much. */
    struct ibv_sge ring_parts[2], control_part;
    struct ibv_send_wr ring_writes[2], control_write; /* two where the write goes round the ring's end */

    /* ---- polling thread ---- */
    _Atomic uint64_t peer_counter; /* of the block last seen */
    uint64_t peer_lsn;     /* receiver: delivered or not, what was due when last looked */
    /* sender: reaped by the polling thread; receiver: by the holder of the turn */
    bool control_in_flight;
    uint64_t reaped, stall_reaped; /* sender: completions; how many there were when */
    uint64_t stall_since_ns;       /* the oldest operation under way was first seen; 0: there was none */
    uint64_t completed;  /* sender: index up to which writes are complete */
    uint64_t placed_lsn; /* sender: of the record that ends there */

    /* ---- both threads of the receiver ---- */
    alignas(RING_LINE_BYTES) _Atomic bool control_due; /* a block could not be sent and should be. Relaxed
                                                          always: seen late, it goes with the next heartbeat */
    _Atomic uint64_t credited;                         /* consumed index in the block sent last */
    _Atomic uint64_t told_lsn; /* highest that the sender said it holds an ack for; the polling thread's */

    /* ---- receiving thread ---- */
    bool fenced; /* written with the turn: the keeper reads it */
    int final;                 /* what channel_next says from now on; 0: go on */
    uint64_t doubtful_since_ns; /* 0: no doubt */
    uint64_t doubtful_counter;  /* peer_counter then */
};

/* Reads the peer's control block if it is whole and newer than `counter`. Any thread of the link. */
bool verbs_control_read(const struct verbs_link *link, uint64_t counter, struct control_block *block);
/* The connection is broken, or `for_good`: says so once. */
void verbs_down(struct verbs_link *link, const char *why, bool for_good);

/* What channel.c calls. */
extern const struct link_operations verbs_operations;

#define VERBS_CONTROL_PAGE_BYTES 4096u
#define VERBS_OUT_OFFSET         512u /* of `out` in the control page */
#define VERBS_SAID_OFFSET        1024u
#define VERBS_HEARD_OFFSET       2048u

/* ---- link_verbs_join.c. Errors are said in words ---- */

/* -ENODEV unless there is an RDMA device. Their names, for messages. */
int verbs_devices(char *names, size_t names_bytes);
int verbs_events_open(struct verbs_join *join);
/* Block until joined. Then `now` is the connection; and the keeper's loop, to be started. */
int verbs_join_sender(struct verbs_link *link);
int verbs_join_receiver(struct verbs_link *link);
void *verbs_keep(void *link);
/* Frees one connection's resources; accepts a half-built one. */
void verbs_connection_close(struct verbs_connection *connection);

/* ---- link_verbs.c: one connection in another's place ---- */

/* Receiver's keeper, in this order. Release: nothing of the old connection can land any more, and *old is the caller's;
 * JOIN_FENCED: no. Attach: the fence knows the new one, from before the sender does; false: it was first. Up: go on. */
enum join_refusal verbs_release(struct verbs_link *link, struct verbs_connection *old);
bool verbs_attach(struct verbs_link *link, const struct verbs_connection *made);
bool verbs_up(struct verbs_link *link);
/* Sender, polling thread, while the link is down: has the keeper try, takes what it has made. */
void verbs_resume(struct verbs_link *link);

/* ---- link_verbs_path.c ---- */

/* Fills the work requests for `now`: regions, rkeys and addresses are known. */
void verbs_requests_init(struct verbs_link *link);
/* Sender, while the link is up: true once something that was posted has not completed for VERBS_STALL_NS. At a beat. */
bool verbs_stalled(struct verbs_link *link);
/* The per-event operations, for the table in link_verbs.c. */
uint64_t verbs_commit(struct channel *channel);
/* Posts what waits. Sender, either thread. */
void verbs_post(struct verbs_link *link);
int verbs_poll(struct channel *channel);
int verbs_next(struct channel *channel, struct channel_record *record);
void verbs_consume(struct channel *channel);
/* Sends a control block, unless one is in flight: then it stays due. Polling or (receiver) receiving thread. */
void verbs_control_send(struct verbs_link *link);
/* Takes the time of the peer's sign of life, and (sender) its credits. Polling thread. */
void verbs_look_at_peer(struct verbs_link *link);

#endif
