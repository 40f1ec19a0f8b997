/*
 * dpdk-testpmd as the yardstick: started on two memif ports that are joined, told to let frames go round in io mode,
 * asked how many it has sent, and told to end. Its words are read from a terminal of its own, where they come line by
 * line.
 */
#include "bench/net_forward.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"

#define PROGRAM    "dpdk-testpmd"
#define PROMPT     "testpmd> "
#define START_NS   (30 * NS_PER_S)
#define ANSWER_NS  (15 * NS_PER_S)
#define END_NS     (10 * NS_PER_S)
#define TEXT_BYTES 32768
#define MEMORY_MB  "64"

struct testpmd {
    pid_t pid;
    int terminal;
    char text[TEXT_BYTES]; /* its last answer, or what there is of it */
};

/* As dpdk-net does: huge pages if there are enough. */
static bool huge_pages_are_free(void)
{
    unsigned long pages = 0, size_kb = 0;
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];

    if (file == NULL)
        return false;
    while (fgets(line, sizeof(line), file) != NULL) {
        (void)sscanf(line, "HugePages_Free: %lu", &pages);
        (void)sscanf(line, "Hugepagesize: %lu kB", &size_kb);
    }
    fclose(file);
    return pages * size_kb >= strtoul(MEMORY_MB, NULL, 10) * 1024;
}

/* Both its threads on the one CPU: the one that forwards, and the one that waits for commands. */
static void become_testpmd(const struct forward_order *order)
{
    char lcores[32], server[200], client[200], bytes[32];
    char *argv[] = {PROGRAM,
                    "--lcores",
                    lcores,
                    "--no-pci",
                    "--no-telemetry",
                    "-m",
                    MEMORY_MB,
                    "--vdev",
                    server,
                    "--vdev",
                    client,
                    "--no-huge",
                    "--no-shconf",
                    "--",
                    "-i",
                    "--total-num-mbufs=4095",
                    bytes,
                    "--burst=32",
                    "--rxd=512",
                    "--txd=512",
                    NULL};

    if (huge_pages_are_free()) {
        argv[11] = "--in-memory";
        argv[12] = "--no-hpet";
    }
    snprintf(lcores, sizeof(lcores), "0@%u,1@%u", order->cpu, order->cpu);
    snprintf(server, sizeof(server), "net_memif0,role=server,socket=%s,socket-abstract=no", order->socket);
    snprintf(client, sizeof(client), "net_memif1,role=client,socket=%s,socket-abstract=no", order->socket);
    snprintf(bytes, sizeof(bytes), "--txpkts=%u", order->frame_bytes);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execvp(PROGRAM, argv);
    _exit(errno == ENOENT ? 127 : 126);
}

/* Reads until it waits for the next command. 0; -EPIPE: it has ended; -ETIMEDOUT. */
static int await_prompt(struct testpmd *testpmd, uint64_t limit_ns)
{
    uint64_t until_ns = clock_now_ns() + limit_ns;
    size_t used = 0;

    for (;;) {
        struct pollfd ready = {.fd = testpmd->terminal, .events = POLLIN};
        ssize_t got;

        testpmd->text[used] = '\0';
        if (used >= strlen(PROMPT) && strcmp(testpmd->text + used - strlen(PROMPT), PROMPT) == 0)
            return 0;
        if (clock_now_ns() >= until_ns || used == TEXT_BYTES - 1)
            return -ETIMEDOUT;
        if (poll(&ready, 1, 20) <= 0)
            continue;
        got = read(testpmd->terminal, testpmd->text + used, TEXT_BYTES - 1 - used);
        if (got <= 0)
            return -EPIPE; /* a terminal whose other end has closed: EIO */
        used += (size_t)got;
    }
}

static int command(struct testpmd *testpmd, const char *line)
{
    if (write(testpmd->terminal, line, strlen(line)) != (ssize_t)strlen(line))
        return -EPIPE;
    return await_prompt(testpmd, ANSWER_NS);
}

/* The sum of the numbers behind each `label` in its last answer; `found`: how many there were. */
static uint64_t sum_of(const struct testpmd *testpmd, const char *label, unsigned *found)
{
    uint64_t sum = 0;

    *found = 0;
    for (const char *at = testpmd->text; (at = strstr(at, label)) != NULL; (*found)++) {
        at += strlen(label);
        sum += strtoull(at, NULL, 10);
    }
    return sum;
}

/* How long the thread that forwards has run so far; 0: not known here. */
static uint64_t worker_cpu_ns(pid_t pid)
{
    char path[300], line[128] = "";
    unsigned long long ns = 0;
    struct dirent *entry;
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    tasks = opendir(path);
    while (tasks != NULL && ns == 0 && (entry = readdir(tasks)) != NULL) {
        FILE *file;

        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof(path), "/proc/%d/task/%.16s/comm", (int)pid, entry->d_name);
        file = fopen(path, "re");
        if (file == NULL)
            continue;
        if (fgets(line, sizeof(line), file) == NULL)
            line[0] = '\0';
        fclose(file);
        if (strstr(line, "worker") == NULL) /* "lcore-worker-1", "dpdk-worker1" */
            continue;
        snprintf(path, sizeof(path), "/proc/%d/task/%.16s/schedstat", (int)pid, entry->d_name);
        file = fopen(path, "re");
        if (file == NULL)
            continue;
        if (fscanf(file, "%llu", &ns) != 1)
            ns = 0;
        fclose(file);
    }
    if (tasks != NULL)
        closedir(tasks);
    return ns;
}

static int await_link(struct testpmd *testpmd)
{
    uint64_t until_ns = clock_now_ns() + ANSWER_NS;
    int result;

    do {
        unsigned up;

        result = command(testpmd, "show port summary all\n");
        if (result != 0)
            return result;
        (void)sum_of(testpmd, " up", &up);
        if (up == 2)
            return 0;
        clock_sleep_ns(20 * NS_PER_MS);
    } while (clock_now_ns() < until_ns);
    return -ENETDOWN;
}

/* Frames sent so far by both ports, and when. */
static int look(struct testpmd *testpmd, struct forward_count *count)
{
    unsigned ports;
    int result = command(testpmd, "show port stats all\n");

    count->wall_ns = clock_now_ns();
    count->cpu_ns = worker_cpu_ns(testpmd->pid);
    count->frames = sum_of(testpmd, "TX-packets:", &ports);
    return result == 0 && ports != 2 ? -EPROTO : result;
}

static int measure(struct testpmd *testpmd, const struct forward_order *order, struct forward_count *count)
{
    struct forward_count before;
    unsigned dropping;
    char start[32];
    int result = await_link(testpmd);

    snprintf(start, sizeof(start), "start tx_first %u\n", FORWARD_BURSTS);
    if (result == 0)
        result = command(testpmd, "set fwd io\n");
    if (result == 0)
        result = command(testpmd, start);
    if (result == 0) {
        clock_sleep_ns(order->warmup_ns);
        result = look(testpmd, &before);
    }
    if (result == 0) {
        clock_sleep_ns(order->run_ns);
        result = look(testpmd, count);
    }
    if (result == 0)
        result = command(testpmd, "stop\n");
    if (result != 0)
        return result;
    count->frames -= before.frames;
    count->wall_ns -= before.wall_ns;
    count->cpu_ns = before.cpu_ns != 0 ? count->cpu_ns - before.cpu_ns : 0;
    /* frames that it lost would make its circle shorter */
    return count->frames == 0 || sum_of(testpmd, "TX-dropped:", &dropping) != 0 || dropping == 0 ? -EPROTO : 0;
}

static int end(struct testpmd *testpmd, bool kindly)
{
    uint64_t until_ns = clock_now_ns() + (kindly ? END_NS : 0);
    int status = 0;

    if (kindly && write(testpmd->terminal, "quit\n", 5) != 5)
        until_ns = 0;
    for (;;) {
        struct pollfd ready = {.fd = testpmd->terminal, .events = POLLIN};
        char rest[1024];

        if (waitpid(testpmd->pid, &status, WNOHANG) == testpmd->pid)
            break;
        if (clock_now_ns() >= until_ns) {
            kill(testpmd->pid, SIGKILL);
            waitpid(testpmd->pid, &status, 0);
            break;
        }
        if (poll(&ready, 1, 10) > 0 && read(testpmd->terminal, rest, sizeof(rest)) <= 0)
            clock_sleep_ns(NS_PER_MS); /* or it could not say its last words, and would not end */
    }
    close(testpmd->terminal);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int forward_by_testpmd(const struct forward_order *order, struct forward_count *count)
{
    struct testpmd *testpmd = calloc(1, sizeof(*testpmd));
    int result;

    if (testpmd == NULL)
        return -ENOMEM;
    testpmd->pid = forkpty(&testpmd->terminal, NULL, NULL, NULL);
    if (testpmd->pid == 0)
        become_testpmd(order);
    if (testpmd->pid < 0) {
        result = -errno;
        report_error(PROGRAM " cannot be started: %s", strerror(errno));
        free(testpmd);
        return result;
    }
    result = await_prompt(testpmd, START_NS);
    if (result == 0)
        result = measure(testpmd, order, count);
    if (end(testpmd, result != -EPIPE) == 127)
        result = -ENOENT;
    else if (result != 0)
        report_error(PROGRAM " with frames of %u bytes: %s; the end of what it said: %s", order->frame_bytes,
                     strerror(-result),
                     testpmd->text + (strlen(testpmd->text) > 600 ? strlen(testpmd->text) - 600 : 0));
    free(testpmd);
    return result;
}
