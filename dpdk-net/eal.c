/* Starts DPDK's environment with what a machine has; see eal.h. */
#include "dpdk-net/eal.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>

#include "base/report.h"

/* One port's mbufs and rings fit four times; more makes the start slower (5,000 MB took 28 s). */
#define EAL_MEMORY_MB 64u
#define WORDS_MAX_BYTES 256u
#define LINES_PASSED_ON 50u

static bool started;
static char started_for_pci[32];

/* ---- what DPDK says ---- */

static char words[WORDS_MAX_BYTES];   /* guarded by the stream's own lock, and by one opener at a time */
static _Atomic bool words_are_kept;   /* while a port is opened; later complaints are passed on */
static unsigned lines_passed_on;

static ssize_t hear_words(void *cookie, const char *line, size_t bytes)
{
    (void)cookie;
    if (rte_log_cur_msg_loglevel() > (int)RTE_LOG_ERR)
        return (ssize_t)bytes;
    while (bytes > 0 && (line[bytes - 1] == '\n' || line[bytes - 1] == ' '))
        bytes--;
    if (atomic_load_explicit(&words_are_kept, memory_order_relaxed)) {
        if (words[0] == '\0' && bytes > 0)
            snprintf(words, sizeof(words), "%.*s", (int)(bytes < WORDS_MAX_BYTES ? bytes : WORDS_MAX_BYTES - 1), line);
    } else if (lines_passed_on < LINES_PASSED_ON && bytes > 0) {
        /* a driver that complains about every frame must not fill the operator's disk */
        lines_passed_on++;
        report_warning("DPDK: %.*s%s", (int)bytes, line,
                       lines_passed_on == LINES_PASSED_ON ? " (and no more of its lines will be shown)" : "");
    }
    return (ssize_t)bytes;
}

static int hear_dpdk(void)
{
    cookie_io_functions_t functions = { .write = hear_words };
    FILE *stream = fopencookie(NULL, "w", functions);

    if (stream == NULL)
        return -ENOMEM;
    setvbuf(stream, NULL, _IOLBF, 0);
    if (rte_openlog_stream(stream) != 0) {
        fclose(stream);
        return -ENOMEM;
    }
    return 0;
}

void eal_words_clear(void)
{
    words[0] = '\0';
    atomic_store_explicit(&words_are_kept, true, memory_order_relaxed);
}

const char *eal_words(void)
{
    atomic_store_explicit(&words_are_kept, false, memory_order_relaxed);
    return words;
}

/* ---- start ---- */

/* Free huge pages of any size, in MB. */
static unsigned long free_huge_mb(void)
{
    static const char sizes_path[] = "/sys/kernel/mm/hugepages";
    DIR *sizes = opendir(sizes_path);
    unsigned long total_kb = 0;
    struct dirent *entry;

    if (sizes == NULL)
        return 0;
    while ((entry = readdir(sizes)) != NULL) {
        unsigned long page_kb, pages;
        char path[sizeof(sizes_path) + sizeof(entry->d_name) + 32];
        FILE *file;

        if (sscanf(entry->d_name, "hugepages-%lukB", &page_kb) != 1)
            continue;
        snprintf(path, sizeof(path), "%s/%s/free_hugepages", sizes_path, entry->d_name);
        file = fopen(path, "re");
        if (file == NULL)
            continue;
        if (fscanf(file, "%lu", &pages) == 1)
            total_kb += page_kb * pages;
        fclose(file);
    }
    closedir(sizes);
    return total_kb / 1024;
}

/* "0@(0,1,5)": one EAL lcore that may run where the caller may, so that no CPU gets an idle EAL thread. */
static int build_lcores(const cpu_set_t *allowed, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "0@(");
    const char *comma = "";

    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, allowed))
            continue;
        used += (size_t)snprintf(text + used, used < size ? size - used : 0, "%s%d", comma, cpu);
        comma = ",";
    }
    used += (size_t)snprintf(text + used, used < size ? size - used : 0, ")");
    return used < size ? 0 : -E2BIG;
}

static int call_eal_init(const char *pci_address, const char *lcores, bool huge_pages)
{
    /* rte_eal_init keeps pointers to these */
    static char arguments[16][8 * CPU_SETSIZE];
    static char *argv[17];
    char memory[16];
    const char *list[16];
    int argc = 0;

    snprintf(memory, sizeof(memory), "%u", EAL_MEMORY_MB);
    list[argc++] = "ftvmm";
    list[argc++] = "--lcores";
    list[argc++] = lcores;
    list[argc++] = "--no-telemetry";
    if (pci_address == NULL) {
        list[argc++] = "--no-pci"; /* or EAL takes the machine's own NICs */
    } else {
        list[argc++] = "-a";
        list[argc++] = pci_address;
    }
    list[argc++] = "-m";
    list[argc++] = memory;
    if (huge_pages) {
        list[argc++] = "--in-memory"; /* several processes may start at once; nothing stays behind */
    } else {
        list[argc++] = "--no-huge";
        list[argc++] = "--no-shconf";
    }
    for (int i = 0; i < argc; i++) {
        snprintf(arguments[i], sizeof(arguments[i]), "%s", list[i]);
        argv[i] = arguments[i];
    }
    return rte_eal_init(argc, argv) < 0 ? -rte_errno : 0;
}

int eal_start(const char *pci_address)
{
    char lcores[8 * CPU_SETSIZE - 1];
    cpu_set_t allowed;
    bool huge_pages;
    int error;

    if (started) {
        if (pci_address != NULL && strcmp(pci_address, started_for_pci) != 0) {
            report_error("DPDK is running already and was not started for the PCI device %s; open the PCI port first, "
                         "or in a process of its own", pci_address);
            return -EBUSY;
        }
        return 0;
    }
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return -errno;
    error = build_lcores(&allowed, lcores, sizeof(lcores));
    if (error == 0)
        error = hear_dpdk();
    if (error != 0)
        return error;
    huge_pages = free_huge_mb() >= EAL_MEMORY_MB;
    if (pci_address != NULL && !huge_pages) {
        report_error("PCI port %s needs huge pages for its DMA, and this machine has %lu MB of them free, of %u MB "
                     "needed; sysctl vm.nr_hugepages=%u", pci_address, free_huge_mb(), EAL_MEMORY_MB,
                     EAL_MEMORY_MB / 2);
        return -ENOMEM;
    }
    eal_words_clear();
    error = call_eal_init(pci_address, lcores, huge_pages);
    /* EAL pins its caller, who is ours and not EAL's */
    if (pthread_setaffinity_np(pthread_self(), sizeof(allowed), &allowed) != 0)
        report_warning("cannot restore the CPU affinity that DPDK changed");
    if (error != 0) {
        report_error("DPDK (EAL) does not start: %s; it says: \"%s\"%s", strerror(-error), eal_words(),
                     error == -EACCES || error == -EPERM ? "; run as root or with CAP_IPC_LOCK" : "");
        return error;
    }
    (void)eal_words();
    started = true;
    snprintf(started_for_pci, sizeof(started_for_pci), "%s", pci_address != NULL ? pci_address : "");
    if (huge_pages)
        report_info("DPDK runs on huge pages (%u MB)", EAL_MEMORY_MB);
    else
        report_info("DPDK runs without huge pages (%lu MB free, %u wanted); enough for af_packet, tap and memif, "
                    "slower in the TLB", free_huge_mb(), EAL_MEMORY_MB);
    return 0;
}

void eal_thread_begin(void)
{
    if (started && rte_lcore_id() == LCORE_ID_ANY)
        (void)rte_thread_register();
}

void eal_thread_end(void)
{
    if (started && rte_lcore_id() != LCORE_ID_ANY && rte_eal_lcore_role(rte_lcore_id()) == ROLE_NON_EAL)
        rte_thread_unregister();
}
