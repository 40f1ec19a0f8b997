/* Looks at the host without changing it; see check.h. */
#include "vmm/check.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "dpdk-net/net.h"
#include "dpdk-net/survey.h"
#include "vmm/arbiter.h"
#include "vmm/vcpu.h"
#include "witness/device.h"

static bool say(bool good, const char *what, const char *found, const char *remedy)
{
    printf("%-4s %-22s %s%s%s\n", good ? "ok" : "MISS", what, found, good || *remedy == '\0' ? "" : "; ", good ? "" : remedy);
    return good;
}

static bool check_kvm(void)
{
    struct guest_memory memory = { .bytes = 2 << 20 };
    struct vcpu vcpu;
    int rc;

    memory.base = mmap(NULL, memory.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory.base == MAP_FAILED)
        return say(false, "KVM", "no memory to try it", "");
    rc = vcpu_open(&vcpu, &memory, true); /* says what is wrong */
    vcpu_close(&vcpu);
    munmap(memory.base, memory.bytes);
    return say(rc == 0, "KVM", rc == 0 ? "a vCPU with all capabilities can be made" : "cannot be used", "see the error above");
}

/* A KVM without svm or vmx emulates kernel code in software; a Linux guest does not run on it. */
static bool check_virtualization(void)
{
    char line[4096];
    bool found = false;
    FILE *file = fopen("/proc/cpuinfo", "r");

    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL)
        found = strncmp(line, "flags", 5) == 0 && (strstr(line, " svm") != NULL || strstr(line, " vmx") != NULL);
    if (file != NULL)
        fclose(file);
    return say(found, "hardware virtualization", found ? "svm or vmx" : "neither svm nor vmx in /proc/cpuinfo",
               "switch it on in the firmware, or use scripts/lab");
}

/* For comparing by eye: joining compares the guest's CPUID, which has no microcode in it. */
static void check_processor(void)
{
    static const char *const keys[] = { "vendor_id", "cpu family", "model", "model name", "stepping", "microcode" };
    char line[4096], values[6][64] = { "?", "?", "?", "?", "?", "?" }, found[512];
    FILE *file = fopen("/proc/cpuinfo", "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL && line[0] != '\n') { /* the first of them */
        char *colon = strchr(line, ':');
        size_t length = colon != NULL ? (size_t)(colon - line) : 0;

        while (length > 0 && (line[length - 1] == '\t' || line[length - 1] == ' '))
            length--;
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
            if (length > 0 && length == strlen(keys[i]) && strncmp(line, keys[i], length) == 0)
                (void)sscanf(colon + 1, " %63[^\n]", values[i]);
    }
    if (file != NULL)
        fclose(file);
    snprintf(found, sizeof(found),
             "%s (%s, family %s, model %s, stepping %s), microcode %s: must be the same on both hosts", values[3],
             values[0], values[1], values[2], values[4], values[5]);
    (void)say(true, "processor", found, "");
}

static bool check_rdma(void)
{
    char found[256] = "no device";
    DIR *dir = opendir("/sys/class/infiniband");
    struct dirent *entry;
    bool good = false;

    while (dir != NULL && !good && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.') {
            snprintf(found, sizeof(found), "device %.200s", entry->d_name);
            good = true;
        }
    if (dir != NULL)
        closedir(dir);
    return say(good, "RDMA", found, "soft-RoCE: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev IFACE");
}

/* For the arbiter rdma: only. */
static bool check_atomics(void)
{
    char names[256];

    witness_devices_with_atomics(names, sizeof(names));
    return say(names[0] != '\0', "RDMA atomics", names[0] != '\0' ? names : "no device",
               "only --arbiter rdma: needs them");
}

/* Asked for by --arbiter: is it of use to this host and VM? */
static bool check_arbiter(const struct options *options)
{
    struct arbiter_options wanted = { .address = options->arbiter, .vm = options->vm,
                                      .auth_dir = options->arbiter_auth };
    struct arbiter *arbiter;
    int rc = arbiter_open(&arbiter, &wanted); /* says what is wrong */

    arbiter_close(arbiter);
    return say(rc == 0, "arbiter", options->arbiter, "see the error above");
}

static bool check_huge_pages(void)
{
    unsigned long long free_pages = 0;
    char line[128], found[64];
    FILE *file = fopen("/proc/meminfo", "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        (void)sscanf(line, "HugePages_Free: %llu", &free_pages);
    if (file != NULL)
        fclose(file);
    snprintf(found, sizeof(found), "%llu free", free_pages);
    return say(free_pages >= 64, "huge pages", found, "sysctl vm.nr_hugepages=128 (it works without, more slowly)");
}

static bool check_memlock(void)
{
    struct rlimit limit;
    char found[64] = "unlimited";
    bool good;

    getrlimit(RLIMIT_MEMLOCK, &limit);
    good = limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= (64u << 20);
    if (limit.rlim_cur != RLIM_INFINITY)
        snprintf(found, sizeof(found), "%llu KiB", (unsigned long long)limit.rlim_cur / 1024);
    return say(good, "locked memory", found, "ulimit -l unlimited (RDMA registers the ring)");
}

/* The clock that would be used, and why; for the PMU's counter it is tried. */
static bool check_clock(const struct options *options, bool kvm)
{
    struct guest_clock_choice choice = { .clock = GUEST_CLOCK_EXITS, .why = "not tried, there is no KVM" };
    int rc = kvm ? guest_clock_choose(options->lockstep.clock, &choice) : 0;
    char found[480];

    if (rc < 0)
        return say(false, "clock", choice.why, "--clock exits, or auto, does without");
    snprintf(found, sizeof(found), "%s%s: %s", guest_clock_name(choice.clock),
             choice.clock == GUEST_CLOCK_EXITS ? ", with forced syncs" : "", choice.why);
    return say(true, "clock", found, "");
}

static void say_kind(bool good, const char *what, const char *found, const char *remedy)
{
    (void)say(good, what, found, remedy);
}

/* Opens the port as a guest's would be, and closes it again. */
static bool check_port(const struct options *options)
{
    struct net_options ports = { .port = options->net_port, .mtu = options->machine.mtu };
    char found[256];
    struct net *net;
    int rc;

    if (options->net_port == NULL)
        return true;
    memcpy(ports.mac, options->machine.mac, sizeof(ports.mac));
    rc = net_open(&net, &ports); /* says what is wrong */
    if (rc < 0)
        return say(false, "--net", options->net_port, "see the error above");
    (void)net_poll_standby(net, 0); /* looks at the link */
    net_describe(net, found, sizeof(found));
    net_close(net);
    return say(true, "--net", found, "");
}

int check_run(const struct options *options)
{
    bool kvm = check_kvm(), good = kvm;

    good = check_virtualization() && good;
    check_processor();
    good = check_clock(options, kvm) && good;
    good = check_rdma() && good;
    good = check_memlock() && good;
    (void)check_huge_pages();
    (void)check_atomics();
    if (options->arbiter != NULL)
        good = check_arbiter(options) && good;
    net_survey(say_kind);
    good = check_port(options) && good;
    return good ? 0 : 1;
}
