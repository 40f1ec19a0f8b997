/* Describes the machine, and measures how much of a CPU's time it takes away. */
#include "bench/machine.h"

#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/clock.h"

void machine_describe(struct machine *machine)
{
    struct ibv_device **devices;
    struct utsname kernel;
    char line[4096];
    int count = 0;
    FILE *file = fopen("/proc/cpuinfo", "re");

    memset(machine, 0, sizeof(*machine));
    snprintf(machine->cpu, sizeof(machine->cpu), "unknown");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        const char *value = strchr(line, ':');

        if (strncmp(line, "model name", 10) == 0 && value != NULL)
            snprintf(machine->cpu, sizeof(machine->cpu), "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
        if (strncmp(line, "flags", 5) == 0) {
            machine->virtual_machine = strstr(line, " hypervisor") != NULL;
            break; /* the other CPUs say the same */
        }
    }
    if (file != NULL)
        fclose(file);
    if (uname(&kernel) == 0)
        snprintf(machine->kernel, sizeof(machine->kernel), "%.40s %.50s", kernel.sysname, kernel.release);
    machine->cores = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    devices = ibv_get_device_list(&count);
    for (int i = 0; devices != NULL && i < count; i++) {
        size_t used = strlen(machine->rdma);

        snprintf(machine->rdma + used, sizeof(machine->rdma) - used, "%s%s", i > 0 ? " " : "",
                 ibv_get_device_name(devices[i]));
    }
    if (devices != NULL)
        ibv_free_device_list(devices);
}

void machine_noise_look(struct machine_noise *noise, uint64_t for_ns)
{
    uint64_t begin_ns = clock_now_ns(), before_ns = begin_ns, now_ns = begin_ns;

    while (now_ns - begin_ns < for_ns) {
        now_ns = clock_now_ns();
        if (now_ns - before_ns > MACHINE_GAP_NS) {
            noise->lost_ns += now_ns - before_ns;
            noise->gaps++;
        }
        if (now_ns - before_ns > noise->longest_ns)
            noise->longest_ns = now_ns - before_ns;
        before_ns = now_ns;
    }
    noise->looked_ns += now_ns - begin_ns;
}

uint64_t machine_stolen_ns(void)
{
    unsigned long long steal = 0;
    FILE *file = fopen("/proc/stat", "re");

    /* cpu user nice system idle iowait irq softirq steal (proc(5)) */
    if (file != NULL && fscanf(file, "cpu %*u %*u %*u %*u %*u %*u %*u %llu", &steal) != 1)
        steal = 0;
    if (file != NULL)
        fclose(file);
    return steal * NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK);
}

double machine_load(void)
{
    double load = 0;

    return getloadavg(&load, 1) == 1 ? load : 0;
}
