/* Namespaces, tap interfaces and the switch between them; see cables.h. */
#include "tests/unit/lockstep/cables.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_tun.h>

#include "base/clock.h"

#define QUEUE_FRAMES 16384 /* a tap drops what does not fit, where a card would make the sender wait */

#ifndef TUNSETCARRIER
#define TUNSETCARRIER _IOW('T', 226, int)
#endif

struct cable_held {
    struct cable_held *next;
    uint64_t due_ns;
    enum cable_network network;
    enum cable_place to;
    size_t bytes;
    uint8_t frame[];
};

const char *cables_check(void)
{
    if (geteuid() != 0)
        return "not root: network namespaces and tap interfaces cannot be made";
    if (access("/dev/net/tun", R_OK | W_OK) != 0)
        return "no /dev/net/tun (modprobe tun)";
    return NULL;
}

/* ---- interfaces ---- */

static int interface_up(const char *name, const char *address)
{
    struct ifreq request = { 0 };
    struct sockaddr_in *in = (void *)&request.ifr_addr;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc = 0;

    if (fd < 0)
        return -errno;
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (address != NULL) {
        in->sin_family = AF_INET;
        inet_pton(AF_INET, address, &in->sin_addr);
        if (ioctl(fd, SIOCSIFADDR, &request) != 0)
            rc = -errno;
        inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
        if (rc == 0 && ioctl(fd, SIOCSIFNETMASK, &request) != 0)
            rc = -errno;
    }
    request.ifr_qlen = QUEUE_FRAMES;
    if (rc == 0 && ioctl(fd, SIOCSIFTXQLEN, &request) != 0)
        rc = -errno;
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (rc == 0 && ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        rc = -errno;
    close(fd);
    return rc;
}

/* A tap in this thread's namespace: the other end is the file. */
static int cable_open(struct cable *cable, const char *name, const char *address)
{
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };

    cable->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (cable->fd < 0)
        return -errno;
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (ioctl(cable->fd, TUNSETIFF, &request) != 0)
        return -errno;
    return interface_up(name, address);
}

/* IPv6 says much by itself on a new interface, which is nobody's business here. */
static void quiet(void)
{
    int fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC); /* this thread's namespace's */

    if (fd >= 0) {
        if (write(fd, "1", 1) != 1)
            fprintf(stderr, "IPv6 stays on\n");
        close(fd);
    }
}

static int place_open(struct cables *cables, enum cable_place place)
{
    static const char *const names[] = { "rail", "lan", "arbiter" };
    char address[32];
    int rc;

    if (unshare(CLONE_NEWNET) != 0)
        return -errno;
    cables->namespaces[place] = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (cables->namespaces[place] < 0)
        return -errno;
    quiet();
    rc = interface_up("lo", NULL);
    for (enum cable_network network = 0; rc == 0 && network < CABLE_NETWORKS; network++) {
        if (place == CABLE_ARBITER && network != CABLE_ARBITER_WAY)
            continue;
        snprintf(address, sizeof(address), "10.77.%d.%d", network + 1, place + 1);
        rc = cable_open(&cables->at[network][place], names[network], network == CABLE_LAN ? NULL : address);
    }
    return rc;
}

int cables_open(struct cables *cables)
{
    int rc = 0;

    memset(cables, 0, sizeof(*cables));
    for (unsigned place = 0; place < CABLE_PLACES; place++) {
        cables->namespaces[place] = -1;
        for (unsigned network = 0; network < CABLE_NETWORKS; network++)
            cables->at[network][place].fd = -1;
    }
    cables->namespaces[CABLE_TEST] = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (cables->namespaces[CABLE_TEST] < 0)
        return -errno;
    for (enum cable_place place = 0; rc == 0 && place < CABLE_TEST; place++)
        rc = place_open(cables, place);
    if (cables_enter(cables, CABLE_TEST) != 0 && rc == 0)
        rc = -errno;
    if (rc != 0) {
        fprintf(stderr, "the hosts' networks cannot be made: %s\n", strerror(-rc));
        cables_close(cables);
    }
    return rc;
}

int cables_enter(const struct cables *cables, enum cable_place place)
{
    return setns(cables->namespaces[place], CLONE_NEWNET) == 0 ? 0 : -errno;
}

void cable_cut(struct cables *cables, enum cable_network network, enum cable_place place, bool cut)
{
    struct cable *cable = &cables->at[network][place];
    int carrier = !cut;

    if (cable->fd < 0)
        return;
    atomic_store(&cable->cut, cut);
    (void)ioctl(cable->fd, TUNSETCARRIER, &carrier); /* since Linux 5.0; before it, frames are lost and the light stays on */
}

/* ---- the switch ---- */

static void learn(struct cables *cables, enum cable_network network, enum cable_place place, const uint8_t *mac)
{
    unsigned i = 0;

    while (i < cables->learnt_used[network] && memcmp(cables->learnt[network][i].mac, mac, 6) != 0)
        i++;
    if (i == CABLE_ADDRESSES || (mac[0] & 1))
        return;
    cables->learnt_used[network] += i == cables->learnt_used[network];
    memcpy(cables->learnt[network][i].mac, mac, 6);
    cables->learnt[network][i].place = place;
}

static bool goes_to(const struct cables *cables, enum cable_network network, enum cable_place place, const uint8_t *mac)
{
    if (!(mac[0] & 1))
        for (unsigned i = 0; i < cables->learnt_used[network]; i++)
            if (memcmp(cables->learnt[network][i].mac, mac, 6) == 0)
                return cables->learnt[network][i].place == place;
    return true;
}

static void deliver(struct cables *cables, enum cable_network network, enum cable_place to, const uint8_t *frame,
                    size_t bytes)
{
    if (!atomic_load(&cables->at[network][to].cut) && write(cables->at[network][to].fd, frame, bytes) < 0)
        return; /* as on any cable: whoever misses it sends it again */
}

static void forward(struct cables *cables, enum cable_network network, enum cable_place from, const uint8_t *frame,
                    size_t bytes, uint64_t now_ns)
{
    uint64_t from_delay_ns = atomic_load(&cables->at[network][from].delay_ns);

    learn(cables, network, from, frame + 6);
    for (enum cable_place to = 0; to < CABLE_TEST; to++) {
        struct cable *cable = &cables->at[network][to];
        uint64_t delay_ns = from_delay_ns + atomic_load(&cable->delay_ns);
        struct cable_held *held;

        if (to == from || cable->fd < 0 || !goes_to(cables, network, to, frame))
            continue;
        if (delay_ns == 0 && cables->waiting == 0) {
            deliver(cables, network, to, frame, bytes);
            continue;
        }
        held = cables->waiting < CABLE_WAITING ? malloc(sizeof(*held) + bytes) : NULL;
        if (held == NULL)
            continue;
        *held = (struct cable_held){ .due_ns = now_ns + delay_ns, .network = network, .to = to, .bytes = bytes };
        memcpy(held->frame, frame, bytes);
        if (cables->last != NULL)
            cables->last->next = held;
        else
            cables->first = held;
        cables->last = held;
        cables->waiting++;
    }
}

/* Those that are due; frames of different delays may overtake each other, frames of one cable do not. */
static void release(struct cables *cables, uint64_t now_ns)
{
    struct cable_held **at = &cables->first, *last = NULL;

    while (*at != NULL) {
        struct cable_held *held = *at;

        if (held->due_ns > now_ns) {
            last = held;
            at = &held->next;
            continue;
        }
        deliver(cables, held->network, held->to, held->frame, held->bytes);
        *at = held->next;
        free(held);
        cables->waiting--;
    }
    cables->last = last;
}

static void take(struct cables *cables, enum cable_network network, enum cable_place place)
{
    struct cable *cable = &cables->at[network][place];
    uint8_t frame[CABLE_FRAME];

    for (unsigned i = 0; i < 64; i++) {
        ssize_t bytes = read(cable->fd, frame, sizeof(frame));
        uint64_t now_ns = clock_now_ns();

        if (bytes < 0)
            return;
        if (bytes < 14 || atomic_load(&cable->cut) || atomic_load(&cable->lossy))
            continue;
        forward(cables, network, place, frame, (size_t)bytes, now_ns);
        if (network == CABLE_LAN && cables->hooks.seen != NULL)
            cables->hooks.seen(cables->hooks.ctx, place, frame, (size_t)bytes, now_ns);
    }
}

void cables_send(struct cables *cables, const uint8_t *frame, size_t bytes)
{
    forward(cables, CABLE_LAN, CABLE_TEST, frame, bytes, clock_now_ns());
}

static void *switch_main(void *arg)
{
    const struct sched_param first = { .sched_priority = 1 };
    struct cables *cables = arg;

    /* No part of what is tested: a busy machine must not make it lose or delay anything. Where it may not, it may not. */
    (void)pthread_setschedparam(pthread_self(), SCHED_RR, &first);
    while (!atomic_load(&cables->ends)) {
        struct pollfd polls[CABLE_NETWORKS * CABLE_PLACES];
        enum cable_network networks[CABLE_NETWORKS * CABLE_PLACES];
        enum cable_place places[CABLE_NETWORKS * CABLE_PLACES];
        nfds_t count = 0;

        for (enum cable_network network = 0; network < CABLE_NETWORKS; network++)
            for (enum cable_place place = 0; place < CABLE_TEST; place++)
                if (cables->at[network][place].fd >= 0) {
                    polls[count] = (struct pollfd){ .fd = cables->at[network][place].fd, .events = POLLIN };
                    networks[count] = network;
                    places[count++] = place;
                }
        (void)poll(polls, count, cables->waiting > 0 ? 1 : 5);
        for (nfds_t i = 0; i < count; i++)
            if (polls[i].revents & POLLIN)
                take(cables, networks[i], places[i]);
        release(cables, clock_now_ns());
        if (cables->hooks.tick != NULL)
            cables->hooks.tick(cables->hooks.ctx, clock_now_ns());
    }
    return NULL;
}

int cables_run(struct cables *cables, const struct cable_hooks *hooks)
{
    cables->hooks = *hooks;
    cables->runs = pthread_create(&cables->thread, NULL, switch_main, cables) == 0;
    return cables->runs ? 0 : -EAGAIN;
}

void cables_stop(struct cables *cables)
{
    if (!cables->runs)
        return;
    atomic_store(&cables->ends, true);
    pthread_join(cables->thread, NULL);
    cables->runs = false;
}

void cables_close(struct cables *cables)
{
    cables_stop(cables);
    release(cables, UINT64_MAX);
    for (unsigned place = 0; place < CABLE_PLACES; place++) {
        for (unsigned network = 0; network < CABLE_NETWORKS; network++)
            if (cables->at[network][place].fd >= 0)
                close(cables->at[network][place].fd);
        if (cables->namespaces[place] >= 0)
            close(cables->namespaces[place]);
    }
}
