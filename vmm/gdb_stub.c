/* The socket that gdb connects to, and the machine thread at a stop; see gdb_stub.h. */
#include "vmm/gdb_stub.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/report.h"
#include "vmm/control_socket.h"
#include "vmm/gdb_packet.h"
#include "vmm/lockstep.h"

#define ROUND_MS 50 /* of waiting; then a look whether the operator wants an end */
/* While the guest runs, gdb is listened to at each so-manieth position. */
#define LISTEN_POSITIONS 256u
/* A gdb that takes no answer for so long is left. */
#define SEND_PATIENCE_MS 5000

struct gdb_stub {
    char *address;
    struct control_socket socket; /* unix: */
    int listen_fd, fd;            /* -1: none, nobody */
    struct gdb_reader reader;
    struct vcpu_state vcpu;       /* as the guest stands */
    struct gdb_view view;
    uint64_t until;               /* where the guest is to stop next */
    uint64_t wished_until;        /* where `continue` goes */
    unsigned positions;           /* since gdb was last listened to */
    bool no_acks, awaited;        /* gdb waits to hear that the guest has stopped */
    bool detached;
};

static void hang_up(struct gdb_stub *stub)
{
    if (stub->fd >= 0)
        close(stub->fd);
    stub->fd = -1;
    stub->no_acks = stub->awaited = false;
    stub->reader = (struct gdb_reader){ 0 };
}

static void send_bytes(struct gdb_stub *stub, const char *bytes, size_t count)
{
    while (stub->fd >= 0 && count > 0) {
        struct pollfd room = { .fd = stub->fd, .events = POLLOUT };
        ssize_t sent = send(stub->fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent > 0) {
            bytes += sent;
            count -= (size_t)sent;
        } else if ((sent < 0 && errno != EAGAIN && errno != EINTR) || poll(&room, 1, SEND_PATIENCE_MS) == 0) {
            hang_up(stub);
        }
    }
}

static void send_reply(struct gdb_stub *stub, const char *payload)
{
    char packet[GDB_REPLY_BYTES + 8];

    send_bytes(stub, packet, gdb_frame(payload, packet, sizeof(packet)));
}

/* The next that gdb says, within `wait_ms`: a packet or a stop, else GDB_READ_MORE. */
static enum gdb_read hear(struct gdb_stub *stub, int wait_ms)
{
    struct pollfd heard = { .fd = stub->fd, .events = POLLIN };
    uint8_t byte;

    while (stub->fd >= 0 && poll(&heard, 1, wait_ms) > 0) {
        ssize_t got = recv(stub->fd, &byte, 1, MSG_DONTWAIT); /* gdb says little: a call for each byte is no matter */
        enum gdb_read read;

        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            hang_up(stub);
            break;
        }
        read = got > 0 ? gdb_read_byte(&stub->reader, byte) : GDB_READ_MORE;
        if (read == GDB_READ_BAD)
            send_bytes(stub, "-", 1);
        else if (read == GDB_READ_PACKET && !stub->no_acks)
            send_bytes(stub, "+", 1);
        if (read == GDB_READ_PACKET || read == GDB_READ_STOP)
            return read;
    }
    return GDB_READ_MORE;
}

/* Waits a while for somebody to connect. */
static void await_gdb(struct gdb_stub *stub)
{
    struct pollfd comes = { .fd = stub->listen_fd, .events = POLLIN };
    int one = 1;

    if (poll(&comes, 1, ROUND_MS) <= 0)
        return;
    stub->fd = accept4(stub->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (stub->fd < 0)
        return;
    if (stub->socket.fd >= 0 && !control_socket_peer_fits(stub->fd))
        hang_up(stub);
    else
        (void)setsockopt(stub->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* a unix socket knows none */
}

/* The guest as it stands, for gdb. 0 or -errno. */
static int take_view(struct gdb_stub *stub, struct lockstep *ls, bool ended)
{
    struct machine *machine = &ls->machine;
    int rc = 0;

    if (machine->ended == 0 && !ls->position_open)
        rc = vcpu_complete(&machine->vcpu);
    if (rc == 0)
        rc = vcpu_save(&machine->vcpu, &stub->vcpu);
    stub->view = (struct gdb_view){
        .vcpu = &stub->vcpu, .memory = &machine->memory, .position = machine->position, .time_ns = machine->time_ns,
        .exit = machine->position != 0 ? vcpu_exit_name(machine->exit) : "none", .ended = ended,
        .breakpoints = &machine->vcpu.breakpoints,
    };
    return rc;
}

/* One more, or none any more. 0 or -errno, said in words. */
static int change_breakpoints(struct lockstep *ls, bool more, uint64_t address)
{
    struct vcpu_breakpoints breakpoints = ls->machine.vcpu.breakpoints;

    if (more)
        breakpoints.at[breakpoints.count++] = address; /* gdb_answer has seen that there is room */
    else
        breakpoints.count = 0;
    return vcpu_set_breakpoints(&ls->machine.vcpu, &breakpoints);
}

/* Serves until the guest is to go on. True: it is. */
static bool serve(struct gdb_stub *stub, struct lockstep *ls)
{
    char reply[GDB_REPLY_BYTES];
    bool stopped = stub->awaited;

    stub->awaited = false;
    if (stopped)
        send_reply(stub, "T05thread:1;");
    if (stub->fd < 0)
        report_info("the guest stands at position %llu; in gdb: target remote %s",
                    (unsigned long long)ls->machine.position, stub->address);
    for (;;) {
        enum gdb_action action;
        enum gdb_read read;
        uint64_t until;

        COUNT_SET(ls->beat_ns, clock_now_ns());
        if (COUNT_GET(ls->stop_requested))
            return false;
        if (stub->fd < 0) {
            await_gdb(stub);
            continue;
        }
        read = hear(stub, ROUND_MS);
        if (read == GDB_READ_STOP)
            send_reply(stub, "T02thread:1;");
        if (read != GDB_READ_PACKET)
            continue;
        action = gdb_answer(&stub->view, stub->reader.packet, stub->reader.bytes, reply, &until);
        switch (action) {
        case GDB_STAY:
            send_reply(stub, reply);
            break;
        case GDB_NO_ACKS:
            send_reply(stub, reply);
            stub->no_acks = true;
            break;
        case GDB_UNTIL:
            send_reply(stub, reply);
            stub->wished_until = until;
            break;
        case GDB_BREAK:
        case GDB_CLEAR:
            if (change_breakpoints(ls, action == GDB_BREAK, until) < 0)
                strcpy(reply, "E01");
            send_reply(stub, reply);
            break;
        case GDB_GO_ON:
            stub->until = stub->wished_until;
            stub->wished_until = UINT64_MAX;
            stub->awaited = true;
            return true;
        case GDB_STEP:
            stub->until = ls->machine.position + 1;
            stub->awaited = true;
            return true;
        case GDB_DETACH:
            send_reply(stub, reply);
            hang_up(stub);
            stub->detached = true;
            (void)change_breakpoints(ls, false, 0);
            report_info("gdb has left; the replay goes on to its end");
            return true;
        case GDB_KILL:
            COUNT_SET(ls->stop_requested, true);
            return false;
        }
    }
}

static bool stop(struct gdb_stub *stub, struct lockstep *ls)
{
    ls->failure = take_view(stub, ls, false);
    if (ls->failure == 0 && !serve(stub, ls))
        ls->failure = -ECANCELED;
    return ls->failure == 0;
}

bool gdb_stub_go_on(struct gdb_stub *stub, struct lockstep *ls)
{
    if (stub->detached)
        return true;
    if (ls->machine.position < stub->until) {
        if (++stub->positions < LISTEN_POSITIONS)
            return true;
        stub->positions = 0;
        if (hear(stub, 0) != GDB_READ_STOP)
            return true;
    }
    return stop(stub, ls);
}

bool gdb_stub_break(struct gdb_stub *stub, struct lockstep *ls)
{
    return stop(stub, ls);
}

void gdb_stub_end(struct gdb_stub *stub, struct lockstep *ls)
{
    char text[GDB_REPLY_BYTES], said[160];

    if (stub->detached || stub->fd < 0 || ls->failure == -ECANCELED || take_view(stub, ls, true) < 0)
        return;
    snprintf(said, sizeof(said), "ftvmm: the replay has come to its end at position %llu%s\n",
             (unsigned long long)ls->machine.position,
             ls->failure == -EILSEQ ? ": the machines differ, as ftvmm has said" : "");
    gdb_console_text(said, text);
    if (stub->awaited)
        send_reply(stub, text);
    if (serve(stub, ls) && !stub->detached)
        send_reply(stub, ls->failure == 0 ? "W00" : "W01"); /* there is nothing more to run */
}

int gdb_stub_open(struct gdb_stub **out, const char *address, uint64_t first_stop)
{
    struct gdb_stub *stub = calloc(1, sizeof(*stub));
    int rc;

    *out = NULL;
    if (stub == NULL)
        return -ENOMEM;
    stub->socket.fd = stub->listen_fd = stub->fd = -1;
    stub->until = first_stop;
    stub->wished_until = UINT64_MAX;
    stub->address = strdup(strncmp(address, "unix:", 5) == 0 ? address + 5 : address);
    if (stub->address == NULL)
        rc = -ENOMEM;
    else if (strncmp(address, "unix:", 5) == 0)
        rc = stub->listen_fd = control_socket_open(&stub->socket, address + 5) == 0 ? stub->socket.fd : -EINVAL;
    else
        rc = stub->listen_fd = control_loopback_listen("--gdb", address);
    if (rc < 0) {
        gdb_stub_close(stub);
        return rc;
    }
    *out = stub;
    return 0;
}

void gdb_stub_close(struct gdb_stub *stub)
{
    if (stub == NULL)
        return;
    hang_up(stub);
    if (stub->socket.fd >= 0)
        control_socket_close(&stub->socket);
    else if (stub->listen_fd >= 0)
        close(stub->listen_fd);
    free(stub->address);
    free(stub);
}
