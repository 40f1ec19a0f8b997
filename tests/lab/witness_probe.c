/*
 * witness-probe: two hosts begin and join generations, and claim each at once; counts who wins.
 *
 *   witness-probe [options] first PORT        begins each generation, listens there for the other, and counts
 *   witness-probe [options] second HOST PORT
 *   witness-probe -a ADDRESS -A DIR conformance   every promise of vmm/arbiter.h, with VMs of its own
 *
 *   -a ADDRESS  of the arbiter         -A DIR  its --arbiter-auth      -v VM
 *   -n ROUNDS   default 1000           -p MS   claims are repeated for so long, default 10000
 *   -t S        rounds for so long, instead of -n
 *
 * Prints "both N held N none N double N", and how long claims took. held: one has won, and the other heard nothing in
 * time; none: nobody did; double: both have won, or both lost. Status 1 if there was one of these.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/report.h"
#include "tests/unit/lockstep/arbiter_conformance.h"
#include "vmm/arbiter.h"

#define TALK_S     120            /* longest wait for the other host */
#define SET_UP_NS  (90 * NS_PER_S) /* a witness that is down comes back */

struct arguments {
    struct arbiter_options options;
    uint64_t rounds, patience_ns, for_ns;
};

struct counts {
    uint64_t both, held, none, wrong;
};

static int said(int fd, const void *data, size_t bytes)
{
    return send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes ? 0 : -1;
}

static int heard(int fd, void *data, size_t bytes)
{
    return recv(fd, data, bytes, MSG_WAITALL) == (ssize_t)bytes ? 0 : -1;
}

/* Again and again, as a host would whose peer is silent. */
static enum arbiter_verdict claim(struct arbiter *arbiter, uint64_t generation, uint64_t patience_ns,
                                  struct histogram *took)
{
    uint64_t began_ns = clock_now_ns();
    enum arbiter_verdict verdict;

    while ((verdict = arbiter_claim(arbiter, generation)) == ARBITER_UNREACHABLE &&
           clock_now_ns() - began_ns < patience_ns)
        clock_sleep_ns(50 * NS_PER_MS);
    if (verdict != ARBITER_UNREACHABLE)
        histogram_record(took, clock_now_ns() - began_ns);
    return verdict;
}

static void count(struct counts *counts, enum arbiter_verdict ours, enum arbiter_verdict theirs)
{
    if ((ours == ARBITER_WON && theirs == ARBITER_LOST) || (ours == ARBITER_LOST && theirs == ARBITER_WON))
        counts->both++;
    else if (ours == theirs && ours != ARBITER_UNREACHABLE)
        counts->wrong++;
    else if (ours == ARBITER_UNREACHABLE && theirs == ARBITER_UNREACHABLE)
        counts->none++;
    else
        counts->held++;
}

static int begin(struct arbiter *arbiter, uint64_t *generation)
{
    uint64_t until_ns = clock_now_ns() + SET_UP_NS;

    while (arbiter_begin(arbiter, generation) != 0) {
        if (clock_now_ns() > until_ns)
            return -1;
        clock_sleep_ns(200 * NS_PER_MS);
    }
    return 0;
}

/* One round: the generation goes across, both are ready, both claim, the verdict comes back. */
static int round_first(struct arbiter *arbiter, int fd, const struct arguments *arguments, struct counts *counts,
                       struct histogram *took)
{
    uint64_t generation = 0;
    int32_t ready, theirs;
    enum arbiter_verdict ours;

    do {
        if (begin(arbiter, &generation) != 0 || said(fd, &generation, sizeof(generation)) != 0 ||
            heard(fd, &ready, sizeof(ready)) != 0)
            return -1;
    } while (!ready); /* the witness died in between */
    ours = claim(arbiter, generation, arguments->patience_ns, took);
    if (heard(fd, &theirs, sizeof(theirs)) != 0)
        return -1;
    count(counts, ours, (enum arbiter_verdict)theirs);
    return 0;
}

static int round_second(struct arbiter *arbiter, int fd, const struct arguments *arguments, struct histogram *took)
{
    uint64_t generation;
    int32_t ready, ours;

    do {
        if (heard(fd, &generation, sizeof(generation)) != 0)
            return -1;
        ready = generation == 0 || arbiter_check(arbiter, generation) == 0;
        if (said(fd, &ready, sizeof(ready)) != 0)
            return -1;
    } while (!ready);
    if (generation == 0)
        return 1;
    ours = (int32_t)claim(arbiter, generation, arguments->patience_ns, took);
    return said(fd, &ours, sizeof(ours));
}

static int joined(const char *host, int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    struct timeval patience = { .tv_sec = TALK_S };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, other;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)); /* of accept, too */
    if (host == NULL) {
        if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 1) != 0)
            return -1;
        other = accept(fd, NULL, NULL);
        close(fd);
        fd = other;
    } else {
        inet_pton(AF_INET, host, &address.sin_addr);
        for (int tries = 0; connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0; tries++) {
            if (tries == 600)
                return -1;
            clock_sleep_ns(100 * NS_PER_MS);
        }
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static int run(struct arbiter *arbiter, int fd, bool is_first, const struct arguments *arguments)
{
    struct histogram *took = calloc(1, sizeof(*took));
    uint64_t end = 0, until_ns = clock_now_ns() + arguments->for_ns;
    struct counts counts = { 0 };
    int rc = 0;

    for (uint64_t round = 0; rc == 0 && (!is_first || round < arguments->rounds || clock_now_ns() < until_ns); round++)
        rc = is_first ? round_first(arbiter, fd, arguments, &counts, took) :
                        round_second(arbiter, fd, arguments, took);
    if (is_first && rc == 0) {
        rc = said(fd, &end, sizeof(end));
        printf("both %llu held %llu none %llu double %llu\n", (unsigned long long)counts.both,
               (unsigned long long)counts.held, (unsigned long long)counts.none, (unsigned long long)counts.wrong);
    }
    if (rc < 0)
        report_error("the other host has gone, or nothing can be begun");
    printf("claims %llu p50 %llu us p99 %llu us max %llu us\n", (unsigned long long)took->samples,
           (unsigned long long)(histogram_percentile(took, 50) / NS_PER_US),
           (unsigned long long)(histogram_percentile(took, 99) / NS_PER_US),
           (unsigned long long)(took->max / NS_PER_US));
    free(took);
    return rc < 0 || counts.wrong > 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct arguments arguments = { .rounds = 1000, .patience_ns = 10 * NS_PER_S };
    struct arbiter *arbiter;
    int option, fd, rc;
    bool is_first;

    report_set_program("witness-probe");
    while ((option = getopt(argc, argv, "a:A:v:n:p:t:")) != -1) {
        switch (option) {
        case 'a': arguments.options.address = optarg; break;
        case 'A': arguments.options.auth_dir = optarg; break;
        case 'v': arguments.options.vm = optarg; break;
        case 'n': arguments.rounds = strtoull(optarg, NULL, 10); break;
        case 'p': arguments.patience_ns = strtoull(optarg, NULL, 10) * NS_PER_MS; break;
        case 't':
            arguments.rounds = 0;
            arguments.for_ns = strtoull(optarg, NULL, 10) * NS_PER_S;
            break;
        default: return 2;
        }
    }
    if (optind + 1 == argc && strcmp(argv[optind], "conformance") == 0)
        return arbiter_conformance_run(&arguments.options);
    is_first = optind + 2 == argc && strcmp(argv[optind], "first") == 0;
    if (!is_first && !(optind + 3 == argc && strcmp(argv[optind], "second") == 0)) {
        report_error("usage: witness-probe -a ADDRESS -A DIR -v VM [-n ROUNDS] [-p MS] first PORT | second HOST PORT | conformance");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    if (arbiter_open(&arbiter, &arguments.options) != 0)
        return 1;
    fd = joined(is_first ? NULL : argv[optind + 1], atoi(argv[argc - 1]));
    if (fd < 0) {
        report_error("the other host does not come: %s", strerror(errno));
        return 1;
    }
    rc = run(arbiter, fd, is_first, &arguments);
    arbiter_close(arbiter);
    return rc;
}
