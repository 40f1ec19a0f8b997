/* Connections of hosts; see serve.h. */
#include "witness/serve.h"

#include "base/clock.h"
#include "base/report.h"
#include "channel/address.h"
#include "channel/verbs_events.h"
#include "witness/device.h"
#include "witness/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES        4096u
#define CONNECTIONS_PER_VM 16u
#define UNPROVEN_MAX      32u
#define UNPROVEN_NS       (3 * NS_PER_S)
#define LOOK_MS           500 /* how late an unproven connection may be noticed to be over its time */

enum { HEARD = 1, SENT = 2 }; /* wr_id */

/* One page each, registered for nobody but us. */
struct messages {
    struct witness_request request;
    struct witness_answer answer;
};

struct connection {
    struct connection *next; /* the newest first */
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct ibv_cq *cq;
    struct messages *messages;
    struct ibv_mr *messages_mr;
    struct ibv_mr *word_mr; /* NULL: it may reach nothing */
    struct witness_peer peer;
    uint64_t since_ns;
    bool doomed; /* to be closed, once nobody looks at it */
    char name[96];
};

struct witness_server {
    struct witness_server_options options;
    struct witness_table *table;
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener;
    struct ibv_comp_channel *completions;
    struct connection *connections;
    bool device_is_gone;
};

/* ---- a connection ---- */

/* From its return on no NIC reaches the word. */
static void word_withdraw(struct connection *connection)
{
    if (connection->word_mr == NULL)
        return;
    if (ibv_dereg_mr(connection->word_mr) == 0) {
        connection->word_mr = NULL;
        return;
    }
    /* A late swap may hold it for a moment: without its queue pair there is none. */
    rdma_destroy_qp(connection->id);
    connection->doomed = true;
    if (ibv_dereg_mr(connection->word_mr) != 0)
        report_bug("a word cannot be withdrawn from %s: %s", connection->name, strerror(errno));
    connection->word_mr = NULL;
}

static void word_revoke(void *context, const uint64_t *word)
{
    struct witness_server *server = context;

    for (struct connection *connection = server->connections; connection != NULL; connection = connection->next)
        if (connection->word_mr != NULL && connection->word_mr->addr == word)
            word_withdraw(connection);
}

static void connection_free(struct connection *connection)
{
    word_withdraw(connection);
    if (connection->id->qp != NULL) {
        rdma_disconnect(connection->id);
        rdma_destroy_qp(connection->id);
    }
    if (connection->cq != NULL)
        ibv_destroy_cq(connection->cq);
    if (connection->messages_mr != NULL)
        ibv_dereg_mr(connection->messages_mr);
    if (connection->pd != NULL)
        ibv_dealloc_pd(connection->pd);
    rdma_destroy_id(connection->id);
    witness_peer_close(&connection->peer);
    free(connection->messages);
    free(connection);
}

/* Closes those that are doomed or over their time. */
static void sweep(struct witness_server *server)
{
    uint64_t now_ns = clock_now_ns();

    for (struct connection **at = &server->connections; *at != NULL;) {
        struct connection *connection = *at;

        if (!connection->doomed && !connection->peer.proven && now_ns - connection->since_ns > UNPROVEN_NS) {
            report_warning("%s: it began to connect and fell silent", connection->name);
            connection->doomed = true;
        }
        if (connection->doomed) {
            *at = connection->next;
            connection_free(connection);
        } else {
            at = &connection->next;
        }
    }
}

/* Room for one more of this VM: the oldest that has proven itself gives way. */
static void make_room(struct witness_server *server, const struct connection *newcomer)
{
    struct connection *oldest = NULL;
    unsigned count = 0;

    for (struct connection *other = server->connections; other != NULL; other = other->next)
        if (other != newcomer && !other->doomed && other->peer.proven &&
            strcmp(other->peer.vm, newcomer->peer.vm) == 0) {
            count++;
            oldest = other; /* the last one met is the oldest */
        }
    if (count >= CONNECTIONS_PER_VM)
        oldest->doomed = true;
}

static int receive_post(struct connection *connection)
{
    struct ibv_sge part = { .addr = (uintptr_t)&connection->messages->request,
                            .length = sizeof(connection->messages->request), .lkey = connection->messages_mr->lkey };
    struct ibv_recv_wr receive = { .wr_id = HEARD, .sg_list = &part, .num_sge = 1 }, *bad;

    return -ibv_post_recv(connection->id->qp, &receive, &bad);
}

/* All that a connection needs before it may be accepted. */
static int connection_open(struct witness_server *server, struct connection *connection)
{
    struct ibv_qp_init_attr queue = { .qp_type = IBV_QPT_RC,
                                      .cap = { .max_send_wr = 2, .max_recv_wr = 2, .max_send_sge = 1,
                                               .max_recv_sge = 1 } };
    struct ibv_context *device = connection->id->verbs;

    connection->messages = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
    if (connection->messages == NULL)
        return -ENOMEM;
    memset(connection->messages, 0, PAGE_BYTES);
    connection->pd = ibv_alloc_pd(device);
    if (connection->pd == NULL)
        return -errno;
    connection->cq = ibv_create_cq(device, 8, connection, server->completions, 0);
    if (connection->cq == NULL || ibv_req_notify_cq(connection->cq, 0) != 0)
        return -errno;
    queue.send_cq = queue.recv_cq = connection->cq;
    if (rdma_create_qp(connection->id, connection->pd, &queue) != 0)
        return -errno;
    connection->messages_mr = ibv_reg_mr(connection->pd, connection->messages, PAGE_BYTES, IBV_ACCESS_LOCAL_WRITE);
    if (connection->messages_mr == NULL)
        return -errno;
    return receive_post(connection);
}

static void reject(struct connection *connection, enum witness_status status)
{
    struct witness_welcome *welcome = &connection->peer.welcome;

    *welcome = (struct witness_welcome){ .head = witness_head_of(WITNESS_WELCOME, sizeof(*welcome)), .status = status };
    rdma_reject(connection->id, welcome, sizeof(*welcome));
    connection->doomed = true;
}

/* A host asks for a connection. */
static void connection_begin(struct witness_server *server, struct rdma_cm_id *id, const struct witness_hello *hello,
                             size_t hello_bytes)
{
    struct rdma_conn_param parameters = { .responder_resources = 1, .rnr_retry_count = 7 };
    struct connection *connection = calloc(1, sizeof(*connection));
    enum witness_status status = WITNESS_BUSY;
    unsigned unproven = 0;
    int rc = 0;

    if (connection == NULL) {
        rdma_reject(id, NULL, 0);
        rdma_destroy_id(id);
        return;
    }
    connection->id = id;
    id->context = connection;
    connection->since_ns = clock_now_ns();
    verbs_peer_name(id, "rdma", connection->name, sizeof(connection->name));
    for (struct connection *other = server->connections; other != NULL; other = other->next)
        unproven += !other->peer.proven;
    connection->next = server->connections;
    server->connections = connection;
    if (unproven < UNPROVEN_MAX)
        status = witness_peer_meet(&connection->peer, hello, hello_bytes, server->options.keys, connection->name);
    if (status != WITNESS_OK) {
        reject(connection, status);
        return;
    }
    rc = connection_open(server, connection);
    if (rc == 0) {
        (void)verbs_ack_timeout_set(id);
        parameters.private_data = &connection->peer.welcome;
        parameters.private_data_len = sizeof(connection->peer.welcome);
        if (rdma_accept(id, &parameters) == 0)
            return;
        rc = -errno;
    }
    report_warning("%s: cannot be accepted: %s%s", connection->name, strerror(-rc),
                   rc == -ENOMEM ? " (the limit of locked memory? 'ulimit -l unlimited', or LimitMEMLOCK=infinity in "
                                   "the unit)" : "");
    reject(connection, WITNESS_BUSY);
}

/* ---- its requests ---- */

static int answer_send(struct connection *connection)
{
    struct ibv_sge part = { .addr = (uintptr_t)&connection->messages->answer,
                            .length = sizeof(connection->messages->answer), .lkey = connection->messages_mr->lkey };
    struct ibv_send_wr send = { .wr_id = SENT, .sg_list = &part, .num_sge = 1, .opcode = IBV_WR_SEND,
                                .send_flags = IBV_SEND_SIGNALED }, *bad;

    return -ibv_post_send(connection->id->qp, &send, &bad);
}

/* False: this connection is of no use any more. */
static bool request_answer(struct witness_server *server, struct connection *connection, uint32_t bytes)
{
    bool was_proven = connection->peer.proven;
    struct witness_answer *answer = &connection->messages->answer;
    uint64_t *word;

    if (!witness_peer_ask(&connection->peer, server->table, &connection->messages->request, bytes, answer, &word,
                          connection->name))
        return false;
    if (!was_proven)
        make_room(server, connection);
    word_withdraw(connection);
    if (connection->doomed)
        return false;
    if (word != NULL) {
        connection->word_mr = ibv_reg_mr(connection->pd, word, sizeof(*word),
                                         IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_ATOMIC);
        if (connection->word_mr == NULL) {
            report_warning("%s: its word cannot be registered: %s", connection->name, strerror(errno));
            return false;
        }
        answer->address = (uintptr_t)word;
        answer->rkey = connection->word_mr->rkey;
    }
    /* The receive first: the host's next request may follow the answer at once. */
    return witness_peer_seal(&connection->peer, answer) == 0 && receive_post(connection) == 0 &&
           answer_send(connection) == 0;
}

static void completions_take(struct witness_server *server)
{
    struct connection *connection;
    struct ibv_wc completion;
    struct ibv_cq *cq;
    void *context;

    if (ibv_get_cq_event(server->completions, &cq, &context) != 0)
        return;
    connection = context;
    ibv_ack_cq_events(cq, 1);
    if (ibv_req_notify_cq(cq, 0) != 0)
        connection->doomed = true;
    while (!connection->doomed && ibv_poll_cq(cq, 1, &completion) > 0) {
        if (completion.status != IBV_WC_SUCCESS ||
            (completion.wr_id == HEARD && !request_answer(server, connection, completion.byte_len)))
            connection->doomed = true;
    }
}

static void event_take(struct witness_server *server)
{
    struct rdma_cm_event *event;
    struct witness_hello hello = { 0 };
    enum rdma_cm_event_type kind;
    struct connection *connection;
    struct rdma_cm_id *id;
    size_t bytes = 0;

    if (rdma_get_cm_event(server->events, &event) != 0)
        return;
    id = event->id;
    kind = event->event;
    connection = id->context;
    if (kind == RDMA_CM_EVENT_CONNECT_REQUEST && event->param.conn.private_data != NULL) {
        bytes = event->param.conn.private_data_len;
        memcpy(&hello, event->param.conn.private_data, bytes < sizeof(hello) ? bytes : sizeof(hello));
    }
    rdma_ack_cm_event(event);
    if (kind == RDMA_CM_EVENT_CONNECT_REQUEST)
        connection_begin(server, id, &hello, bytes);
    else if (kind == RDMA_CM_EVENT_DEVICE_REMOVAL)
        server->device_is_gone = true;
    else if (id != server->listener && kind != RDMA_CM_EVENT_ESTABLISHED)
        connection->doomed = true; /* it has left, or did not come about */
}

int witness_server_run(struct witness_server *server, int stop_fd)
{
    struct pollfd ready[] = { { .fd = stop_fd, .events = POLLIN },
                              { .fd = server->events->fd, .events = POLLIN },
                              { .fd = server->completions->fd, .events = POLLIN } };

    for (;;) {
        if (poll(ready, sizeof(ready) / sizeof(ready[0]), LOOK_MS) < 0 && errno != EINTR) {
            report_error("the witness cannot wait for anything: %s", strerror(errno));
            return -errno;
        }
        if ((ready[0].revents & POLLIN) != 0)
            return 0;
        event_take(server); /* does not block, as the next */
        completions_take(server);
        sweep(server);
        if (server->device_is_gone) {
            report_error("the RDMA device was removed");
            return -ENODEV;
        }
    }
}

/* ---- begin and end ---- */

static int not_blocking(int fd)
{
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0 ? 0 : -errno;
}

static int not_rdma(const char *listen)
{
    report_error("rdma:%s is not the address of an RDMA device of this host ('rdma link' shows their interfaces; 'rdma "
                 "link add rxe0 type rxe netdev IFACE' makes one); 127.0.0.1 and 0.0.0.0 are none", listen);
    return -ENODEV;
}

static int server_listen(struct witness_server *server)
{
    const char *listen = server->options.listen;
    struct sockaddr_storage address;
    socklen_t address_bytes;
    int rc = address_resolve("rdma", listen, true, &address, &address_bytes);

    if (rc == 0)
        rc = verbs_events_create(&server->events);
    else
        return rc;
    if (rc != 0) {
        report_error("no RDMA here: /dev/infiniband/rdma_cm: %s; 'modprobe rdma_ucm', and 'modprobe rdma_rxe; rdma link "
                     "add rxe0 type rxe netdev IFACE' for soft-RoCE", strerror(-rc));
        return rc;
    }
    if (rdma_create_id(server->events, &server->listener, NULL, RDMA_PS_TCP) != 0 ||
        rdma_bind_addr(server->listener, (struct sockaddr *)&address) != 0 || rdma_listen(server->listener, 32) != 0) {
        rc = -errno;
        if (rc == -ENODEV || rc == -EADDRNOTAVAIL)
            return not_rdma(listen);
        report_error("rdma:%s: cannot listen there: %s%s", listen, strerror(-rc),
                     rc == -EADDRINUSE ? "; another program does" : "");
        return rc;
    }
    if (server->listener->verbs == NULL)
        return not_rdma(listen);
    if (!witness_device_has_atomics(server->listener->verbs)) {
        report_error("the RDMA device %s has no atomic operations: it cannot be a witness; use another device, or an "
                     "arbiter of another kind", ibv_get_device_name(server->listener->verbs->device));
        return -ENOTSUP;
    }
    server->completions = ibv_create_comp_channel(server->listener->verbs);
    if (server->completions == NULL) {
        rc = -errno;
        report_error("no completion channel: %s", strerror(-rc));
        return rc;
    }
    return not_blocking(server->completions->fd);
}

int witness_server_open(struct witness_server **out, const struct witness_server_options *options)
{
    struct witness_server *server = calloc(1, sizeof(*server));
    int rc = -ENOMEM;

    *out = NULL;
    if (server == NULL)
        return rc;
    server->options = *options;
    rc = witness_table_open(&server->table, options->state, options->vms, word_revoke, server);
    if (rc == 0)
        rc = server_listen(server);
    if (rc < 0) {
        witness_server_close(server);
        return rc;
    }
    *out = server;
    return 0;
}

void witness_server_close(struct witness_server *server)
{
    if (server == NULL)
        return;
    for (struct connection *connection = server->connections; connection != NULL; connection = connection->next)
        connection->doomed = true;
    sweep(server);
    if (server->listener != NULL)
        rdma_destroy_id(server->listener);
    if (server->completions != NULL)
        ibv_destroy_comp_channel(server->completions);
    if (server->events != NULL)
        rdma_destroy_event_channel(server->events);
    witness_table_close(server->table);
    free(server);
}
