/*
 * Programs in a guest; see program.h. redis and nginx are driven from here, by redis-benchmark and wrk. The others are
 * run by an agent in the guest (scripts/guest.d): a line "NAME AMOUNT" goes there, the work is done, "ok DONE" or
 * "error WHY" comes back. "prepare NAME" goes there first, for what is not to be timed.
 */
#include "bench/program.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/report.h"
#include "bench/child.h"

const struct program programs[PROGRAMS] = {
    {"redis", "requests", "redis-benchmark, INCR, 10 connections, one request in flight each", 2000, REDIS_BENCHMARK,
     "1"},
    {"redis_pipelined", "requests", "the same with 16 requests in flight each", 20000, REDIS_BENCHMARK, "16"},
    {"nginx", "requests", "wrk against nginx, a page of 1 KiB, 10 connections, for AMOUNT seconds", 5, WRK, "small"},
    {"nginx_large", "requests", "the same with a page of 256 KiB", 5, WRK, "large"},
    {"pgbench", "transactions", "pgbench against PostgreSQL on the guest's disk, AMOUNT transactions, 4 clients", 400,
     AGENT, NULL},
    {"openssl", "bytes", "openssl speed sha256, for AMOUNT seconds", 3, AGENT, NULL},
    {"compile", "files", "gcc -O2, AMOUNT times a C file of 20 functions", 40, AGENT, NULL},
    {"sqlite", "rows", "sqlite3, AMOUNT rows inserted, indexed and grouped", 20000, AGENT, NULL},
    {"python", "rounds", "python3, AMOUNT rounds of a program of dictionaries, strings and floats", 20, AGENT, NULL},
    {"stress_cpu", "bogo_ops", "stress-ng --cpu 1, for AMOUNT seconds", 3, AGENT, NULL},
    {"stress_vm", "bogo_ops", "stress-ng --vm 1, 32 MB, for AMOUNT seconds", 3, AGENT, NULL},
    {"stress_switch", "bogo_ops", "stress-ng --switch 1, for AMOUNT seconds", 3, AGENT, NULL},
    {"stress_timer", "bogo_ops", "stress-ng --timer 1, for AMOUNT seconds", 3, AGENT, NULL},
    {"stress_signal", "bogo_ops", "stress-ng --signal 1, for AMOUNT seconds", 3, AGENT, NULL},
};

static const char *why_not(int result)
{
    return result == -ETIMEDOUT ? "not done within --limit" : strerror(-result);
}

/* -1: nobody answers there. */
static int connect_to(const struct guest_target *target, unsigned to_port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *address = NULL;
    const struct timeval patience = {.tv_sec = 15};
    char port[8];
    int fd = -1;

    snprintf(port, sizeof(port), "%u", to_port);
    if (getaddrinfo(target->host, port, &hints, &address) == 0) {
        fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        /* connect(2) heeds it, too (socket(7)) */
        if (fd >= 0)
            (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
        if (fd >= 0 && connect(fd, address->ai_addr, address->ai_addrlen) != 0) {
            close(fd);
            fd = -1;
        }
        freeaddrinfo(address);
    }
    return fd;
}

/* Asks the agent, and waits: 0, or -EPROTO and `answer` says why, or -EHOSTUNREACH, said. */
static int ask_agent(const struct program_settings *settings, const struct guest_target *target, const char *line,
                     char *answer, size_t size, double *amount)
{
    const struct timeval limit = {.tv_sec = (time_t)(settings->limit_ns / NS_PER_S),
                                  .tv_usec = (suseconds_t)(settings->limit_ns % NS_PER_S / NS_PER_US)};
    int fd = connect_to(target, target->port), result;
    ssize_t got;

    if (fd < 0) {
        report_error("no agent in the %s guest at %s:%u: boot it from the images of `scripts/guest-image --workloads`",
                     target->side, target->host, target->port);
        return -EHOSTUNREACH;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    got = send(fd, line, strlen(line), MSG_NOSIGNAL);
    if (got >= 0)
        got = recv(fd, answer, size - 1, MSG_WAITALL); /* until it closes */
    result = got >= 0 ? 0 : errno == EAGAIN ? -ETIMEDOUT : -errno;
    answer[got >= 0 ? got : 0] = '\0';
    close(fd);
    *amount = strncmp(answer, "ok ", 3) == 0 ? strtod(answer + 3, NULL) : 0;
    answer[strcspn(answer, "\n")] = '\0';
    if (*amount > 0)
        return 0;
    if (result != 0)
        snprintf(answer, size, "%s", why_not(result));
    else if (answer[0] == '\0')
        snprintf(answer, size, "the agent ended without an answer");
    else if (strncmp(answer, "error ", 6) == 0)
        memmove(answer, answer + 6, strlen(answer + 6) + 1);
    return -EPROTO;
}

static int run_by_agent(const struct program *program, unsigned amount, const struct program_settings *settings,
                        const struct guest_target *target, double *done)
{
    char line[64], answer[256];
    int result;

    snprintf(line, sizeof(line), "%s %u\n", program->name, amount);
    result = ask_agent(settings, target, line, answer, sizeof(answer), done);
    if (result == -EPROTO)
        report_error("%s in the %s guest: %s", program->name, target->side, answer);
    return result;
}

/* 0, or -errno, said: nobody answers there. The load generators themselves would try for long. */
static int probe_service(const struct guest_target *target, const char *service, unsigned port)
{
    int fd = connect_to(target, port);

    if (fd < 0) {
        report_error("nobody answers at the %s guest's %s, %s:%u", target->side, service, target->host, port);
        return -EHOSTUNREACH;
    }
    close(fd);
    return 0;
}

/* Runs a load generator of this machine, which says all in `output`: 0, or -errno, and `output` says why. -ENOENT: it
 * is not installed. */
static int run_here(const struct program_settings *settings, char *const argv[], const char *package, char *output,
                    size_t size)
{
    int result = child_run(argv, true, output, size, settings->limit_ns);

    if (result == -ENOENT)
        snprintf(output, size, "%s does not start: %s (Debian's package %s)", argv[0], strerror(ENOENT), package);
    else if (result < 0)
        snprintf(output, size, "%s", why_not(result));
    return result > 0 ? -EPROTO : result;
}

static int run_redis_benchmark(const struct program *program, unsigned amount, const struct program_settings *settings,
                               const struct guest_target *target, double *done)
{
    char port[8], count[16], output[4096];
    char *const argv[] = {"redis-benchmark", "-h", (char *)target->host, "-p", port, "-c", "10", "-n", count, "-P",
                          (char *)program->detail, "-t", "incr", "--csv", NULL};
    int result = probe_service(target, "redis", settings->redis_port);

    if (result != 0)
        return result;
    snprintf(port, sizeof(port), "%u", settings->redis_port);
    snprintf(count, sizeof(count), "%u", amount);
    result = run_here(settings, argv, "redis-tools", output, sizeof(output));
    /* a line that begins with "INCR", and no lines of progress before it; an error comes with status 0, too */
    if (result == 0 && strstr(output, "\"INCR\",") == NULL)
        result = -EPROTO;
    if (result != 0)
        report_error("redis-benchmark against the %s guest at %s:%u: %.200s", target->side, target->host,
                     settings->redis_port, output);
    *done = amount;
    return result;
}

static int run_wrk(const struct program *program, unsigned amount, const struct program_settings *settings,
                   const struct guest_target *target, double *done)
{
    bool is_ipv6 = strchr(target->host, ':') != NULL;
    char url[320], duration[16], output[4096];
    /* A guest may be slow. Not slower than that: wrk asks for 8 bytes of memory for each microsecond. */
    char *const argv[] = {"wrk", "--threads", "1", "--connections", "10", "--duration", duration, "--timeout",
                          "60s", url,         NULL};
    const char *counted;
    int result = probe_service(target, "nginx", settings->http_port);

    if (result != 0)
        return result;
    snprintf(url, sizeof(url), "http://%s%s%s:%u/%s", is_ipv6 ? "[" : "", target->host, is_ipv6 ? "]" : "",
             settings->http_port, program->detail);
    snprintf(duration, sizeof(duration), "%us", amount);
    result = run_here(settings, argv, "wrk", output, sizeof(output));
    /* "  1234 requests in 5.00s, ...": the line begins with the count */
    counted = result == 0 ? strstr(output, " requests in ") : NULL;
    while (counted != NULL && counted > output && counted[-1] != '\n')
        counted--;
    *done = counted != NULL ? strtod(counted, NULL) : 0;
    if (result == 0 && (!(*done > 0) || strstr(output, "Socket errors") != NULL || strstr(output, "Non-2xx") != NULL))
        result = -EPROTO;
    if (result != 0)
        report_error("wrk against %s: %.400s", url, output);
    return result;
}

int program_run(const struct program *program, unsigned amount, const struct program_settings *settings,
                const struct guest_target *target, double *done)
{
    switch (program->runner) {
    case REDIS_BENCHMARK:
        return run_redis_benchmark(program, amount, settings, target, done);
    case WRK:
        return run_wrk(program, amount, settings, target, done);
    case AGENT:
        break;
    }
    return run_by_agent(program, amount, settings, target, done);
}

int program_prepare(const struct program *program, const struct program_settings *settings,
                    const struct guest_target *target, char *why, size_t size)
{
    static char *const wrk_version[] = {"wrk", "--version", NULL};
    char line[64];
    double done;

    if (program->runner == REDIS_BENCHMARK)
        return 0;
    if (program->runner == WRK && run_here(settings, wrk_version, "wrk", why, size) == -ENOENT)
        return -EPROTO; /* any other status is no matter: it is 1, whatever wrk says */
    snprintf(line, sizeof(line), "prepare %s\n", program->runner == WRK ? "nginx" : program->name);
    return ask_agent(settings, target, line, why, size, &done);
}
