/* One counter of perf_event_open(2); see instructions.h. */
#include "vmm/instructions.h"

#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

int instructions_open(void)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_HARDWARE,
        .size = sizeof(attr),
        .config = PERF_COUNT_HW_INSTRUCTIONS,
        .exclude_host = 1,
    };

    return (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC); /* no wrapper in the C library */
}

uint64_t instructions_read(int fd)
{
    uint64_t count = 0;

    return fd >= 0 && read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}
