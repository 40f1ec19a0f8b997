/* Maps ring memory. */
#include "channel/ring_memory.h"

#include "base/report.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RING_SEALS      (F_SEAL_SHRINK | F_SEAL_GROW)
#define HUGE_PAGE_BYTES (2u * 1024 * 1024)

static size_t mapped_bytes(size_t bytes)
{
    /* munmap of huge pages wants whole ones; the same length for both kinds keeps close simple. */
    return (bytes + HUGE_PAGE_BYTES - 1) & ~(size_t)(HUGE_PAGE_BYTES - 1);
}

static void report_no_memory(const char *what, size_t length, int error)
{
    report_error("no memory for the %s: %zu bytes: %s; give a smaller ring", what, length, strerror(error));
}

static void report_normal_pages(const char *what, size_t length)
{
    report_info("the %s lies in normal pages: fewer than %zu huge pages of 2 MiB are free "
                "(sysctl vm.nr_hugepages=N provides them)", what, length / HUGE_PAGE_BYTES);
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
        report_no_memory(what, length, errno);
        return NULL;
    }
    report_normal_pages(what, length);
    return memory;
}

int ring_memory_share(size_t bytes, const char *what)
{
    size_t length = mapped_bytes(bytes);

    for (unsigned huge = MFD_HUGETLB | MFD_HUGE_2MB;; huge = 0) {
        int fd = memfd_create("ftvmm-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING | huge), error;

        /* fallocate: too little memory is an error here, not a SIGBUS later. */
        if (fd >= 0 && ftruncate(fd, (off_t)length) == 0 && fallocate(fd, 0, 0, (off_t)length) == 0 &&
            fcntl(fd, F_ADD_SEALS, RING_SEALS | F_SEAL_SEAL) == 0) {
            if (huge == 0)
                report_normal_pages(what, length);
            return fd;
        }
        error = errno;
        if (fd >= 0)
            close(fd);
        if (huge == 0) {
            report_no_memory(what, length, error);
            return -error;
        }
    }
}

bool ring_memory_fits(int fd, size_t bytes)
{
    struct stat status;

    return fstat(fd, &status) == 0 && status.st_size == (off_t)mapped_bytes(bytes) &&
           (fcntl(fd, F_GET_SEALS) & RING_SEALS) == RING_SEALS;
}

void *ring_memory_map(int fd, size_t bytes, const char *what)
{
    size_t length = mapped_bytes(bytes);
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);

    if (memory != MAP_FAILED)
        return memory;
    report_no_memory(what, length, errno);
    return NULL;
}

void ring_memory_close(void *memory, size_t bytes)
{
    if (memory != NULL)
        munmap(memory, mapped_bytes(bytes));
}
