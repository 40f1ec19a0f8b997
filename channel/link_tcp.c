/*
 * tcp: the ring's bytes through one TCP connection, for hosts without RDMA. One copy more, a system call per write, and
 * the kernel's latency; the same ring and frames on both ends.
 *
 * Placed: means seen here. What the kernels acknowledge to each other says nothing about the receiver's memory, so
 *     only the receiver's process can answer, and it looks before it does.
 * Seen: the receiver's polling thread has read the record into its ring, found it whole, and said so.
 * Ordered: by TCP.
 * Torn: a frame whose end is missing is not there yet; after the fence it never was, and was never acked.
 * Damaged: what has arrived and does not fit its checksum, at once: -EBADMSG, when all before it is consumed.
 * The peer's death: a killed process shows at once (end of file, reset), a dead host in its heartbeats only. Hints.
 * Full: reserve says -EAGAIN until credits come, with each answer and heartbeat. A sender that writes beyond its
 *     credit is cut off.
 * The fence: what the kernel holds is taken in, then the connection is shut down both ways; after it nothing is read.
 * Resumed: when the connection breaks, or nobody answers for 500 ms. The receiver shuts the old one, which nothing is
 *     read from any more, before it says what it holds: all that it has seen. A frame of which only a part had come is
 *     forgotten and comes again whole. Not resumed: after the fence, or damage, or when a peer did not keep to the
 *     protocol.
 *
 * Threads. Sender: the committing and the polling thread write the socket, under the turn (post_turn.h), neither
 * waiting for the other; the polling thread alone reads it. Receiver: the polling thread and, when it finds nothing,
 * the receiving thread read it and answer, under the turn. The keeper (keeper.h) makes new connections; the sender's
 * polling thread puts one in place, the receiver's keeper does it itself, under the turn both.
 *
 * The wire: chunks in both directions, each an 8-byte head and so many bytes of the ring, or a control block.
 */
#include "channel/link.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/address.h"
#include "channel/control.h"
#include "channel/join_socket.h"
#include "channel/keeper.h"
#include "channel/post_turn.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define TCP_CHUNK_BYTES (256u * 1024) /* of ring bytes: so that heartbeats get their turn */
#define TCP_STAGE_BYTES 4096u         /* read along with the rest of a chunk: the next head, small chunks whole */
#define TCP_PULL_BYTES  (1u << 20)    /* in one call */
#define TCP_BUFFER_BYTES (4u << 20)
/*
 * Unanswered data ends the connection after this (tcp(7), TCP_USER_TIMEOUT). TCP by itself would wait twice as long
 * after each try, so that a network that was away for half a second is used again after up to one; a new connection is
 * there as soon as the network is. Longer than the first wait, 200 ms, so that a lost packet is not a lost connection;
 * and than the 0.4 s after which ACKs of busy, emulated hosts were seen.
 */
#define TCP_SILENCE_MS  500
#define TCP_CONNECT_NS  (200 * NS_PER_MS) /* of one try to resume: the kernel asks again after 1 s only */
#define TCP_PAUSE_NS    (20 * NS_PER_MS)  /* after somebody who was refused */

enum chunk_kind { /* on the wire */
    CHUNK_CONTROL = 0,
    CHUNK_RING = 1,
};

struct chunk_head {
    uint32_t kind;
    uint32_t bytes; /* behind this head; CONTROL: 64 */
};
#define CHUNK_CONTROL_BYTES (sizeof(struct chunk_head) + sizeof(struct control_block))

struct tcp_link {
    struct channel channel;
    char *name; /* the address, for messages */
    int fd;       /* sender: the polling thread puts another one in its place; receiver: the keeper. With the turn */
    int listener; /* receiver's keeper */
    struct sockaddr_storage address;
    socklen_t address_bytes;
    struct keeper keeper;
    /* Sender. READY: the new connection, and what the receiver holds; TAKEN: the old one. keeper.h says whose. */
    int spare_fd;
    struct handshake_log log;
    uint64_t key;
    uint8_t *ring;
    uint64_t ring_bytes;
    struct post_turn turn; /* who may use the socket (sender: write it) */

    /* ---- writing; the turn's holder ---- */
    uint8_t out[CHUNK_CONTROL_BYTES]; /* a head, or a control chunk, of which out_from..out_to is still to go */
    size_t out_from, out_to;
    uint64_t chunk_end; /* sender: index up to which a head has announced bytes */
    uint64_t whole_end; /* sender: the end of the last record sent, as far as such an end was the end of a chunk */
    uint64_t control_counter;
    alignas(RING_LINE_BYTES) _Atomic bool control_due; /* relaxed always: seen late, it goes with the next heartbeat */

    /* ---- reading; sender: polling thread, receiver: the turn's holder ---- */
    uint64_t ring_due;   /* of the chunk being read: ring bytes to come */
    uint64_t arrived;    /* index up to which bytes have arrived */
    uint8_t partial[CHUNK_CONTROL_BYTES]; /* a head or control chunk of which the rest is to come */
    size_t partial_bytes;
    uint64_t peer_counter;
    uint64_t whole_arrived; /* receiver: up to here the sender has sent whole records */
    bool damaged; /* what is due next has arrived and does not fit */

    /* ---- receiver ---- */
    alignas(RING_LINE_BYTES) _Atomic uint64_t tail; /* index up to which is seen */
    _Atomic bool damaged_behind_tail;
    bool fenced;          /* the turn's holder writes it */
    uint64_t cached_tail; /* receiving thread */
    int final;            /* receiving thread: what channel_next says from now on; 0: go on */
    uint64_t credited;    /* turn: index in the answer sent last */
};

static void tcp_close(struct channel *channel);

static void say_down(struct tcp_link *link, const char *why, bool for_good)
{
    if (link_break(&link->channel, for_good))
        report_warning("%s: the link is down: %s", link->name, why);
}

/* The connection is of no use any more. Whoever calls this may use it: it is not being replaced. */
static void tcp_broken(struct tcp_link *link, const char *why)
{
    say_down(link, why, false);
    shutdown(link->fd, SHUT_RDWR); /* so that the peer knows, too */
}

/* The peer does what it must not: with that one we do not go on. */
static void tcp_cut_off(struct tcp_link *link, const char *why)
{
    say_down(link, why, true);
    shutdown(link->fd, SHUT_RDWR);
}

/* With the turn: nothing of an old connection goes on in a new one. Sender: the log goes on at `index`; receiver: it is
 * whole up to there. */
static void connection_begin(struct tcp_link *link, uint64_t index)
{
    link->out_from = link->out_to = 0;
    link->control_counter = link->peer_counter = 0;
    link->ring_due = 0;
    link->partial_bytes = 0;
    if (link->channel.is_sender) {
        link->chunk_end = link->whole_end = index;
        atomic_store_explicit(&link->turn.posted, index, memory_order_relaxed); /* published by G */
    } else {
        link->arrived = index;
    }
}

static bool tcp_is_down(const struct tcp_link *link)
{
    return atomic_load_explicit(&link->channel.down, memory_order_relaxed); /* a hint */
}

static const char *why_broken(int error)
{
    return error == EPIPE || error == ECONNRESET ? "the peer has closed it, or its process died" :
           error == ETIMEDOUT                    ? "the peer's host does not answer" :
                                                   strerror(error);
}

/* ---- writing: with the turn ---- */

static void control_put(struct tcp_link *link)
{
    struct chunk_head head = { .kind = CHUNK_CONTROL, .bytes = sizeof(struct control_block) };
    uint64_t counter = ++link->control_counter;
    struct control_block block =
        link->channel.is_sender ?
            control_of_sender(counter, link->key, channel_acked_lsn(&link->channel), link->whole_end) :
            control_of_receiver(&link->channel, counter, link->key);

    memcpy(link->out, &head, sizeof(head));
    memcpy(link->out + sizeof(head), &block, sizeof(block));
    link->out_from = 0;
    link->out_to = CHUNK_CONTROL_BYTES;
    link->credited = block.bytes;
}

/* One sendmsg of what is in `out` and [from, to) of the ring behind it. Returns how many of the ring's bytes went;
 * *full: the kernel takes no more now, or the link is down. */
static uint64_t socket_write(struct tcp_link *link, uint64_t from, uint64_t to, bool *full)
{
    uint64_t mask = link->ring_bytes - 1, bytes = to - from, first = link->ring_bytes - (from & mask);
    size_t out_bytes = link->out_to - link->out_from;
    struct iovec parts[3] = {
        { .iov_base = link->out + link->out_from, .iov_len = out_bytes },
        { .iov_base = link->ring + (from & mask), .iov_len = bytes < first ? bytes : first },
        { .iov_base = link->ring, .iov_len = bytes < first ? 0 : bytes - first },
    };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 3 };
    ssize_t sent = sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

    *full = sent < (ssize_t)(out_bytes + bytes);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            tcp_broken(link, why_broken(errno));
        return 0;
    }
    if ((size_t)sent < out_bytes) {
        link->out_from += (size_t)sent;
        return 0;
    }
    link->out_from = link->out_to = 0;
    return (uint64_t)sent - out_bytes;
}

/* post_function. Sends [from, to), or a first part; a control block when one is due and no chunk is open. */
static uint64_t ring_write(void *argument, uint64_t from, uint64_t to)
{
    struct tcp_link *link = argument;
    uint64_t at = from;
    bool full = false;

    post_turn_complete(&link->turn); /* TCP bounds what is in flight */
    while (!full) {
        if (link->out_from == link->out_to && link->chunk_end == at) {
            struct chunk_head head = { .kind = CHUNK_RING };

            if (atomic_exchange_explicit(&link->control_due, false, memory_order_relaxed)) {
                control_put(link);
                socket_write(link, at, at, &full);
                continue;
            }
            if (at == to)
                break;
            link->chunk_end = to - at < TCP_CHUNK_BYTES ? to : at + TCP_CHUNK_BYTES;
            link->whole_end = link->chunk_end == to ? to : link->whole_end;
            head.bytes = (uint32_t)(link->chunk_end - at);
            memcpy(link->out, &head, sizeof(head));
            link->out_to = sizeof(head);
            link_count(&link->channel.writes, 1);
        }
        at += socket_write(link, at, link->chunk_end, &full);
    }
    return at;
}

/* Either thread. */
static void ring_send(struct tcp_link *link)
{
    if (!tcp_is_down(link))
        post_turn_run(&link->turn, &link->channel.send.committed, ring_write, link);
}

static uint64_t tcp_commit(struct channel *channel)
{
    send_ring_publish(&channel->send);
    ring_send((struct tcp_link *)channel);
    return channel->send.next_lsn - 1;
}

/* Sends a control block; if the socket is full or in use, it stays due. Either thread. */
static void control_send(struct tcp_link *link)
{
    bool full;

    atomic_store_explicit(&link->control_due, true, memory_order_relaxed);
    if (tcp_is_down(link) || !post_turn_take(&link->turn))
        return;
    if (link->out_from != link->out_to && !tcp_is_down(link))
        socket_write(link, link->chunk_end, link->chunk_end, &full); /* the rest of the last one */
    /* Not amidst a chunk. relaxed: the turn's */
    if (link->out_from == link->out_to && !tcp_is_down(link) &&
        link->chunk_end == atomic_load_explicit(&link->turn.posted, memory_order_relaxed)) {
        atomic_store_explicit(&link->control_due, false, memory_order_relaxed);
        control_put(link);
        socket_write(link, link->chunk_end, link->chunk_end, &full);
    }
    post_turn_give(&link->turn);
}

/* ---- reading ---- */

static void control_read(struct tcp_link *link, const uint8_t *chunk)
{
    struct channel *channel = &link->channel;
    struct control_block block;

    memcpy(&block, chunk + sizeof(struct chunk_head), sizeof(block));
    if (!control_fits(&block, link->key) || block.counter != link->peer_counter + 1) {
        tcp_cut_off(link, "a control block is damaged, or not the next one");
        return;
    }
    link->peer_counter = block.counter;
    atomic_store_explicit(&channel->peer_seen_ns, clock_now_ns(), memory_order_release); /* A7 */
    if (!channel->is_sender)
        link->whole_arrived = block.bytes;
    else if (!control_take(channel, &block, UINT64_MAX))
        tcp_cut_off(link, "the receiver reports to have what was never sent");
}

/* How many ring bytes may still arrive without overwriting what is needed. */
static uint64_t room_bytes(const struct tcp_link *link)
{
    return link->ring_bytes - (link->arrived - link_free_bytes(&link->channel));
}

/* A head has come: what does it announce? */
static bool head_fits(struct tcp_link *link, const struct chunk_head *head)
{
    if (head->kind == CHUNK_CONTROL && head->bytes == sizeof(struct control_block))
        return true;
    if (head->kind == CHUNK_RING && !link->channel.is_sender && head->bytes <= room_bytes(link)) {
        link->ring_due = head->bytes;
        return true;
    }
    tcp_cut_off(link, head->kind == CHUNK_RING && !link->channel.is_sender ?
                          "the sender writes more than it has credit for" :
                          "the peer does not keep to the protocol (a chunk of an unknown kind or length)");
    return false;
}

static void ring_take(struct tcp_link *link, const uint8_t *data, uint64_t bytes)
{
    uint64_t at = link->arrived & (link->ring_bytes - 1), first = link->ring_bytes - at;

    if (data != NULL) { /* else it lies there already */
        memcpy(link->ring + at, data, bytes < first ? bytes : first);
        if (bytes > first)
            memcpy(link->ring, data + first, bytes - first);
    }
    link->arrived += bytes;
    link->ring_due -= bytes;
}

/* Takes in what was read behind the end of a chunk. */
static void stage_take(struct tcp_link *link, const uint8_t *data, size_t bytes)
{
    while (bytes > 0 && !tcp_is_down(link)) {
        struct chunk_head head;
        size_t part;

        if (link->ring_due > 0) {
            part = bytes < link->ring_due ? bytes : link->ring_due;
            ring_take(link, data, part);
        } else {
            size_t want = link->partial_bytes < sizeof(head) ? sizeof(head) : CHUNK_CONTROL_BYTES;

            part = bytes < want - link->partial_bytes ? bytes : want - link->partial_bytes;
            memcpy(link->partial + link->partial_bytes, data, part);
            link->partial_bytes += part;
            if (link->partial_bytes == sizeof(head)) {
                memcpy(&head, link->partial, sizeof(head));
                if (!head_fits(link, &head))
                    return;
                if (head.kind == CHUNK_RING)
                    link->partial_bytes = 0;
            } else if (link->partial_bytes == CHUNK_CONTROL_BYTES) {
                link->partial_bytes = 0;
                control_read(link, link->partial);
            }
        }
        data += part;
        bytes -= part;
    }
}

/* One recvmsg. Returns the bytes read; 0: none now, or the link is down. */
static size_t socket_read(struct tcp_link *link)
{
    uint8_t stage[TCP_STAGE_BYTES];
    uint64_t at = link->arrived & (link->ring_bytes - 1), first = link->ring_bytes - at, due = link->ring_due;
    struct iovec parts[3] = {
        { .iov_base = link->ring + at, .iov_len = due < first ? due : first },
        { .iov_base = link->ring, .iov_len = due < first ? 0 : due - first },
        { .iov_base = stage, .iov_len = sizeof(stage) },
    };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 3 };
    ssize_t got = recvmsg(link->fd, &message, MSG_DONTWAIT);

    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            tcp_broken(link, why_broken(got == 0 ? EPIPE : errno));
        return 0;
    }
    if ((uint64_t)got <= due) {
        ring_take(link, NULL, (uint64_t)got);
    } else {
        ring_take(link, NULL, due);
        stage_take(link, stage, (size_t)got - due);
    }
    return (size_t)got;
}

/* Sender: polling thread. Receiver: with the turn. */
static bool socket_drain(struct tcp_link *link, size_t at_most_bytes)
{
    size_t whole = 0, got;

    while (whole < at_most_bytes && !tcp_is_down(link) && (got = socket_read(link)) > 0)
        whole += got;
    return whole > 0;
}

/* Receiver, with the turn: looks at what has arrived, and publishes what is whole. */
static void see(struct tcp_link *link)
{
    struct channel *channel = &link->channel;
    struct receive_ring *ahead = &channel->ahead;
    enum frame_state state = FRAME_ABSENT;

    while (!link->damaged) {
        uint64_t available;

        state = link_look_ahead(channel, link->arrived & ~(uint64_t)(FRAME_ALIGN_BYTES - 1));
        if (state == FRAME_COMPLETE)
            continue;
        available = link->arrived - ahead->index;
        if (available >= FRAME_ALIGN_BYTES) {
            const struct frame_header *header =
                (const struct frame_header *)(link->ring + (ahead->index & (link->ring_bytes - 1)));
            bool due = header->lsn == ahead->next_lsn;
            uint64_t whole = !due                             ? 0 :
                             header->flags == FRAME_FLAG_PAD  ? header->bytes :
                             header->bytes <= CHANNEL_PAYLOAD_MAX_BYTES ? frame_bytes(header->bytes) :
                                                                          0;
            /* All its bytes are here, or they are not those of a frame: it will not get better. */
            link->damaged = whole <= available;
        }
        break;
    }
    /* A length that lies keeps nobody waiting: the sender says how far whole records go. */
    link->damaged = link->damaged || ahead->index < link->whole_arrived;
    /* T1 release, pairs with T2 in tcp_next: the bytes, and that they were found whole. */
    atomic_store_explicit(&link->tail, ahead->index, memory_order_release);
    if (link->damaged)
        atomic_store_explicit(&link->damaged_behind_tail, true, memory_order_release);
}

/* Receiver: takes in what has arrived, looks at it and answers. Either thread. */
static void pull(struct tcp_link *link)
{
    struct channel *channel = &link->channel;
    uint64_t seen = atomic_load_explicit(&channel->ahead_credit.lsn, memory_order_relaxed);
    bool answer = false;

    if (tcp_is_down(link) || !post_turn_take(&link->turn))
        return;
    if (!link->fenced && socket_drain(link, TCP_PULL_BYTES)) {
        see(link);
        if (atomic_load_explicit(&channel->ahead_credit.lsn, memory_order_relaxed) != seen) { /* with the turn */
            atomic_store_explicit(&channel->peer_seen_ns, clock_now_ns(), memory_order_release); /* A7 */
            answer = true;
        }
    }
    answer = answer || atomic_load_explicit(&link->control_due, memory_order_relaxed) ||
             link_free_bytes(channel) - link->credited >= link->ring_bytes / 4;
    post_turn_give(&link->turn);
    if (answer)
        control_send(link);
}

/* ---- resuming ---- */

static void socket_set_up(int fd)
{
    int one = 1, silence_ms = TCP_SILENCE_MS, buffer_bytes = TCP_BUFFER_BYTES;

    /* Wishes; without them it is slower, not wrong. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence_ms, sizeof(silence_ms));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof(buffer_bytes));
}

/* Sender, polling thread, while the link is down. */
static void resume(struct tcp_link *link)
{
    struct channel *channel = &link->channel;
    /* relaxed: a hint */
    bool ready = keeper_ask(&link->keeper, atomic_load_explicit(&channel->closed, memory_order_relaxed));
    int old_fd = link->fd;

    if (!ready || !post_turn_take(&link->turn)) /* taken: by the committing thread, for a moment */
        return;
    link->fd = link->spare_fd;
    link->spare_fd = old_fd;
    if (link_resume_fits(channel, link->log.index, link->log.lsn)) {
        connection_begin(link, link->log.index);
        link_mend(channel);
    } else {
        tcp_cut_off(link, "it cannot be resumed: the receiver reports to have what was never sent, or not to have what "
                          "it has acknowledged");
    }
    post_turn_give(&link->turn);
    keeper_taken(&link->keeper);
    atomic_store_explicit(&link->control_due, true, memory_order_relaxed); /* a sign of life, at once */
}

static struct join_socket join_again(struct tcp_link *link)
{
    return (struct join_socket){ .name = link->name, .address = (const struct sockaddr *)&link->address,
                                 .address_bytes = link->address_bytes, .ours = &link->keeper.ours,
                                 .secret = keeper_secret(&link->keeper),
                                 .deadline = { .at_ns = UINT64_MAX, .cancel = &link->keeper.stop },
                                 .connect_ns = TCP_CONNECT_NS, .patience_ns = KEEPER_PATIENCE_NS, .memory_fd = -1,
                                 .session = link->key, .link = link, .listener = link->listener };
}

/* Sender's keeper. */
static int spare_join(void *argument)
{
    struct tcp_link *link = argument;
    struct join_socket join = join_again(link);
    int result = join_socket_send_again(&join);

    if (result != 0)
        return result;
    socket_set_up(join.fd);
    link->spare_fd = join.fd;
    link->log = join.log;
    return 0;
}

static void spare_drop(void *argument)
{
    struct tcp_link *link = argument;

    close(link->spare_fd);
    link->spare_fd = -1;
}

static void *keep_sending(void *argument)
{
    struct tcp_link *link = argument;
    const struct keeper_work work = { .channel = &link->channel, .name = link->name, .log = &link->log,
                                      .join = spare_join, .drop = spare_drop };

    while (keeper_wait(&link->keeper, -1))
        keeper_step(&link->keeper, &work);
    return NULL;
}

/* Receiver's keeper: its sender is there anew, and has proven itself. */
static enum join_refusal hold(void *argument, struct handshake_log *log)
{
    struct tcp_link *link = argument;
    const struct receive_ring *ahead = &link->channel.ahead;
    enum join_refusal refusal = JOIN_FENCED;

    post_turn_await(&link->turn);
    /* relaxed: a receiver's is set with the turn */
    if (!link->fenced && !link->damaged && !atomic_load_explicit(&link->channel.closed, memory_order_relaxed)) {
        say_down(link, "its sender asks to resume it", false);
        connection_begin(link, ahead->index);
        if (link->fd >= 0)
            close(link->fd);
        link->fd = -1;
        *log = (struct handshake_log){ .key = link->key, .index = ahead->index, .lsn = ahead->next_lsn - 1 };
        refusal = JOIN_ACCEPTED;
    }
    post_turn_give(&link->turn);
    return refusal;
}

/* The receiver's keeper. */
static void *keep_receiving(void *argument)
{
    struct tcp_link *link = argument;

    while (keeper_wait(&link->keeper, link->listener)) {
        struct join_socket join = join_again(link);
        bool taken = false;

        join.hold = hold;
        if (join_socket_receive_again(&join) != 0) {
            keeper_pause(&link->keeper, TCP_PAUSE_NS); /* so that nobody keeps us, or the log, busy */
            continue;
        }
        socket_set_up(join.fd);
        post_turn_await(&link->turn);
        if (!link->fenced) {
            link->fd = join.fd;
            link_mend(&link->channel);
            taken = true;
        }
        post_turn_give(&link->turn);
        if (!taken) {
            close(join.fd);
            continue;
        }
        atomic_store_explicit(&link->control_due, true, memory_order_relaxed);
        report_info("%s: the link is up again; the log goes on behind record %llu", link->name,
                    (unsigned long long)join.log.lsn);
    }
    return NULL;
}

/* ---- operations ---- */

static int tcp_poll(struct channel *channel)
{
    struct tcp_link *link = (struct tcp_link *)channel;

    if (channel->is_sender && tcp_is_down(link))
        resume(link);
    if (!channel->is_sender) {
        pull(link);
    } else if (!tcp_is_down(link)) {
        socket_drain(link, TCP_PULL_BYTES);
        if (atomic_load_explicit(&link->control_due, memory_order_relaxed))
            control_send(link);
        ring_send(link);
    }
    return tcp_is_down(link) ? -EPIPE : 0;
}

static void tcp_heartbeat(struct channel *channel)
{
    struct tcp_link *link = (struct tcp_link *)channel;

    control_send(link);
    (void)tcp_poll(channel);
}

static int tcp_next(struct channel *channel, struct channel_record *record)
{
    struct tcp_link *link = (struct tcp_link *)channel;
    struct receive_ring *ring = &channel->receive;
    bool damaged = false;

    if (link->final != 0)
        return link->final;
    if (ring->index == link->cached_tail) {
        pull(link);
        damaged = atomic_load_explicit(&link->damaged_behind_tail, memory_order_acquire); /* before the tail */
        link->cached_tail = atomic_load_explicit(&link->tail, memory_order_acquire); /* T2 */
    }
    if (ring->index != link->cached_tail &&
        receive_ring_look(ring, link->cached_tail - ring->index, record) == FRAME_COMPLETE)
        return 0;
    /* The tail may lie behind a pad whose record is still to come. */
    if (ring->index == link->cached_tail && !damaged)
        return link->fenced ? link->final = -ENODATA : -EAGAIN; /* the fence is our own, in no other thread's time */
    link_count(&channel->damaged, 1);
    report_error("%s: record %llu at ring index %llu is damaged: what has arrived does not fit its checksum, or is no "
                 "record; it cannot be replayed, and nothing behind it", link->name,
                 (unsigned long long)ring->next_lsn, (unsigned long long)ring->index);
    return link->final = -EBADMSG;
}

static void tcp_consume(struct channel *channel)
{
    receive_ring_consume(&channel->receive);
}

static int tcp_fence(struct channel *channel)
{
    struct tcp_link *link = (struct tcp_link *)channel;

    if (link->fenced)
        return 0;
    post_turn_await(&link->turn);
    if (!tcp_is_down(link)) {
        socket_drain(link, link->ring_bytes); /* more than a ring cannot be under way */
        see(link);
    }
    link->fenced = true;
    if (link->fd >= 0)
        shutdown(link->fd, SHUT_RDWR);
    link_break(channel, true);
    post_turn_give(&link->turn);
    return 0;
}

static const struct link_operations tcp_operations = {
    .commit = tcp_commit,
    .posts = true,
    .next = tcp_next,
    .consume = tcp_consume,
    .fence = tcp_fence,
    .poll = tcp_poll,
    .heartbeat = tcp_heartbeat,
    .close = tcp_close,
};

/* ---- set-up ---- */

static int tcp_join(struct tcp_link *link, const struct channel_options *options)
{
    struct channel *channel = &link->channel;
    struct join_side ours = join_side_of(options);
    struct join_socket join = { .name = link->name, .address = (const struct sockaddr *)&link->address,
                                .address_bytes = link->address_bytes, .ours = &ours, .secret = options->secret,
                                .deadline = join_deadline_of(options), .memory_fd = -1 };
    int result = channel->is_sender ? join_socket_send_side(&join) : join_socket_receive_side(&join);

    if (result != 0)
        return result;
    link->fd = join.fd;
    link->listener = join.listener;
    link->key = join.log.key;
    socket_set_up(link->fd);
    channel->peer = join.peer;
    if (channel->is_sender)
        send_ring_init(&channel->send, link->ring, link->ring_bytes, link->key, channel->credit);
    else
        link_receive_init(channel, link->ring, link->ring_bytes, link->key, CHANNEL_ACK_SEEN);
    channel->ack = CHANNEL_ACK_SEEN;
    ours.ack = join.ack;
    ours.hello.generation = join.peer.generation;
    return keeper_start(&link->keeper, &ours, options->secret, channel->is_sender ? keep_sending : keep_receiving, link,
                        link->name);
}

int link_tcp_open(struct channel **out, const struct channel_options *options, const char *rest, bool is_sender)
{
    struct sockaddr_storage address;
    socklen_t address_bytes;
    struct tcp_link *link;
    int result = address_resolve("tcp", rest, !is_sender, &address, &address_bytes);

    if (result != 0)
        return result;
    link = link_allocate(sizeof(*link));
    if (link == NULL)
        return -ENOMEM;
    link->channel.operations = &tcp_operations;
    link->channel.is_sender = is_sender;
    link->channel.credit = &link->channel.own_credit;
    link->fd = link->listener = link->spare_fd = -1;
    link->address = address;
    link->address_bytes = address_bytes;
    link->ring_bytes = options->ring_bytes;
    link->turn.in_flight_limit = UINT32_MAX;
    result = -ENOMEM;
    if (asprintf(&link->name, "tcp:%s", rest) < 0)
        link->name = NULL;
    link->ring = ring_memory_open(link->ring_bytes, is_sender ? "send ring" : "receive ring");
    if (link->name != NULL && link->ring != NULL)
        result = tcp_join(link, options);
    if (result != 0) {
        tcp_close(&link->channel);
        return result;
    }
    *out = &link->channel;
    return 0;
}

static void tcp_close(struct channel *channel)
{
    struct tcp_link *link = (struct tcp_link *)channel;

    keeper_stop(&link->keeper);
    if (link->fd >= 0)
        close(link->fd);
    if (link->spare_fd >= 0)
        close(link->spare_fd);
    if (link->listener >= 0)
        close(link->listener);
    ring_memory_close(link->ring, link->ring_bytes);
    free(link->name);
    free(link);
}
