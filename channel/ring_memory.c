/* Maps ring memory. */
#include "channel/ring_memory.h"

#include "base/report.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES (2u * 1024 * 1024)

static size_t mapped_bytes(size_t bytes)
{
    /* munmap of huge pages wants whole ones; the same length for both kinds keeps close simple. */
    return (bytes + HUGE_PAGE_BYTES - 1) & ~(size_t)(HUGE_PAGE_BYTES - 1);
}

void *ring_memory_open(size_t bytes, const char *what)
{
    size_t length = mapped_bytes(bytes);
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);

    if (memory != MAP_FAILED)
        return memory;
    memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        report_error("no memory for the %s: %zu bytes: %s; give a smaller ring", what, length, strerror(errno));
        return NULL;
    }
    report_info("the %s lies in normal pages: fewer than %zu huge pages of 2 MiB are free "
                "(sysctl vm.nr_hugepages=N provides them)", what, length / HUGE_PAGE_BYTES);
    return memory;
}

void ring_memory_close(void *memory, size_t bytes)
{
    if (memory != NULL)
        munmap(memory, mapped_bytes(bytes));
}
