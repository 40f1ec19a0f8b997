/*
 * The CPU's counter of retired conditional branches, by perf_event_open(2), counting in guest mode only. Which event
 * counts exactly, and how late its interrupt may come, is known from rr (src/PerfCounters.cc and PerfCounters_x86.h).
 */
#include "vmm/branch_counter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A period that does not end. Bit 63 must be clear. */
#define NEVER (UINT64_C(1) << 62)

struct perf_counter {
    struct branch_counter counter;
    int fd;
};

/* rr's event codes are 0x5101c4, 0x5111c4 and 0x5100d1: the upper byte (enable, interrupt, user mode) is perf's own
 * affair, and here kernel code counts as well. */
#define INTEL_CONDITIONAL 0x01c4u
#define INTEL_CONDITIONAL_ICELAKE 0x11c4u
#define ZEN_CONDITIONAL 0x00d1u
#define INTEL_SKID 125u
#define ZEN_SKID 10000u

static const struct {
    uint8_t model;
    const char *name;
    uint16_t config;
} intel_models[] = {
    { 0x2a, "Sandy Bridge", INTEL_CONDITIONAL },       { 0x2d, "Sandy Bridge", INTEL_CONDITIONAL },
    { 0x3a, "Ivy Bridge", INTEL_CONDITIONAL },         { 0x3e, "Ivy Bridge", INTEL_CONDITIONAL },
    { 0x3c, "Haswell", INTEL_CONDITIONAL },            { 0x3f, "Haswell", INTEL_CONDITIONAL },
    { 0x45, "Haswell", INTEL_CONDITIONAL },            { 0x46, "Haswell", INTEL_CONDITIONAL },
    { 0x3d, "Broadwell", INTEL_CONDITIONAL },          { 0x47, "Broadwell", INTEL_CONDITIONAL },
    { 0x4f, "Broadwell", INTEL_CONDITIONAL },          { 0x56, "Broadwell", INTEL_CONDITIONAL },
    { 0x4e, "Skylake", INTEL_CONDITIONAL },            { 0x5e, "Skylake", INTEL_CONDITIONAL },
    { 0x55, "Skylake", INTEL_CONDITIONAL },            { 0x8e, "Kaby Lake", INTEL_CONDITIONAL },
    { 0x9e, "Kaby Lake", INTEL_CONDITIONAL },          { 0xa5, "Comet Lake", INTEL_CONDITIONAL },
    { 0xa6, "Comet Lake", INTEL_CONDITIONAL },         { 0x7d, "Ice Lake", INTEL_CONDITIONAL_ICELAKE },
    { 0x7e, "Ice Lake", INTEL_CONDITIONAL_ICELAKE },   { 0x6a, "Ice Lake", INTEL_CONDITIONAL_ICELAKE },
    { 0x6c, "Ice Lake", INTEL_CONDITIONAL_ICELAKE },   { 0xa7, "Rocket Lake", INTEL_CONDITIONAL_ICELAKE },
    { 0x8c, "Tiger Lake", INTEL_CONDITIONAL_ICELAKE }, { 0x8d, "Tiger Lake", INTEL_CONDITIONAL_ICELAKE },
    { 0x8f, "Sapphire Rapids", INTEL_CONDITIONAL_ICELAKE }, { 0xcf, "Emerald Rapids", INTEL_CONDITIONAL_ICELAKE },
    { 0xad, "Granite Rapids", INTEL_CONDITIONAL_ICELAKE },
};

int branch_event_find(const char *vendor, unsigned family, unsigned model, struct branch_event *event)
{
    if (memcmp(vendor, "AuthenticAMD", 12) == 0 && (family == 0x17 || family == 0x19 || family == 0x1a)) {
        *event = (struct branch_event){ .config = ZEN_CONDITIONAL, .skid_margin = ZEN_SKID, .name = "AMD Zen",
                                        .is_zen = 1 };
        return 0;
    }
    for (size_t i = 0; i < sizeof(intel_models) / sizeof(intel_models[0]); i++)
        if (memcmp(vendor, "GenuineIntel", 12) == 0 && family == 6 && intel_models[i].model == model) {
            *event = (struct branch_event){ .config = intel_models[i].config, .skid_margin = INTEL_SKID,
                                            .name = intel_models[i].name };
            return 0;
        }
    return -ENOTSUP;
}

/* Intel SDM 2A, CPUID. */
int branch_event_here(struct branch_event *event)
{
    unsigned eax = 0, ebx, ecx = 0, edx, family, model;
    char vendor[12];

    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    memcpy(vendor, &ebx, 4);
    memcpy(vendor + 4, &edx, 4);
    memcpy(vendor + 8, &ecx, 4);
    eax = 1;
    ecx = 0;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    family = eax >> 8 & 15;
    model = eax >> 4 & 15;
    if (family == 6 || family == 15)
        model |= (eax >> 16 & 15) << 4;
    if (family == 15)
        family += eax >> 20 & 255;
    return branch_event_find(vendor, family, model, event);
}

static struct perf_counter *of(struct branch_counter *counter)
{
    return (struct perf_counter *)counter;
}

static int perf_request(struct branch_counter *counter, unsigned long request, void *argument)
{
    return ioctl(of(counter)->fd, request, argument) < 0 ? -errno : 0;
}

static int perf_start(struct branch_counter *counter)
{
    int rc = perf_request(counter, PERF_EVENT_IOC_RESET, NULL);

    return rc < 0 ? rc : perf_request(counter, PERF_EVENT_IOC_ENABLE, NULL);
}

static int perf_read(struct branch_counter *counter, uint64_t *count)
{
    ssize_t bytes = read(of(counter)->fd, count, sizeof(*count));

    if (bytes < 0)
        return -errno;
    return bytes == sizeof(*count) ? 0 : -ENODATA; /* a pinned event that found no counter reads as nothing */
}

static int perf_arm(struct branch_counter *counter, uint64_t at)
{
    uint64_t count, period;
    int rc = perf_read(counter, &count);

    if (rc < 0)
        return rc;
    period = at > count ? at - count : 1;
    return perf_request(counter, PERF_EVENT_IOC_PERIOD, &period);
}

static int perf_disarm(struct branch_counter *counter)
{
    uint64_t period = NEVER;

    return perf_request(counter, PERF_EVENT_IOC_PERIOD, &period);
}

static void perf_stop(struct branch_counter *counter)
{
    close(of(counter)->fd);
    free(of(counter));
}

static const struct branch_counter_ops perf_ops = {
    .start = perf_start, .read = perf_read, .arm = perf_arm, .disarm = perf_disarm, .stop = perf_stop,
};

/* The counter's interrupt is to reach this thread, as a kick. */
static int send_signals_here(int fd, int kick_signal)
{
    struct f_owner_ex owner = { .type = F_OWNER_TID, .pid = (pid_t)syscall(SYS_gettid) };

    if (fcntl(fd, F_SETOWN_EX, &owner) < 0 || fcntl(fd, F_SETSIG, kick_signal) < 0 ||
        fcntl(fd, F_SETFL, O_ASYNC) < 0)
        return -errno;
    return 0;
}

int perf_counter_open(struct branch_counter **counter, const struct branch_event *event, int kick_signal)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_RAW,
        .size = sizeof(attr),
        .config = event->config,
        .sample_period = NEVER,
        .disabled = 1,
        .pinned = 1,       /* shared with another event in turns it would miss branches */
        .exclude_host = 1,
    };
    struct perf_counter *perf;
    int rc;

    *counter = NULL;
    perf = calloc(1, sizeof(*perf));
    if (perf == NULL)
        return -ENOMEM;
    perf->counter = (struct branch_counter){ .ops = &perf_ops, .skid_margin = event->skid_margin };
    perf->fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (perf->fd < 0) {
        rc = -errno;
        free(perf);
        return rc;
    }
    rc = send_signals_here(perf->fd, kick_signal);
    if (rc < 0) {
        perf_stop(&perf->counter);
        return rc;
    }
    *counter = &perf->counter;
    return 0;
}

const char *perf_counter_error(int error)
{
    switch (error) {
    case -ENOENT: return "no PMU on this machine: perf_event_open answers ENOENT";
    case -EOPNOTSUPP: return "no PMU that can interrupt on this machine: perf_event_open answers EOPNOTSUPP";
    case -EACCES:
    case -EPERM:
        return "the PMU is not for this user: run as root, with CAP_PERFMON, or set kernel.perf_event_paranoid to 1 or "
               "less";
    case -ENOSYS: return "this kernel has no perf_event_open";
    case -EINVAL: return "this kernel's PMU does not count guests alone: perf_event_open answers EINVAL";
    case -EBUSY: return "the PMU's counters are taken: perf_event_open answers EBUSY; is the NMI watchdog on?";
    case -ENODATA: return "the PMU's counters are taken: another user has them all; is the NMI watchdog on?";
    default: return strerror(-error);
    }
}
