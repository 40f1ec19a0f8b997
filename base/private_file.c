/* Files with secrets: refused if others could have read or written them. */
#include "base/private_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/report.h"

static int check(int fd, const char *path, const char *what, size_t least_bytes, size_t most_bytes, const char *remedy)
{
    struct stat status;

    if (fstat(fd, &status) != 0)
        return -errno;
    if (!S_ISREG(status.st_mode)) {
        report_error("%s '%s': it is no regular file; %s", what, path, remedy);
        return -EINVAL;
    }
    if (status.st_uid != geteuid() && status.st_uid != 0) {
        report_error("%s '%s': it belongs to user %u, who could change it; it must be ours or root's: "
                     "'chown %u %s'", what, path, (unsigned)status.st_uid, (unsigned)geteuid(), path);
        return -EACCES;
    }
    if ((status.st_mode & 077) != 0) {
        report_error("%s '%s': its mode %04o lets others at it; 'chmod 600 %s', and if others were about, make a new "
                     "one", what, path, (unsigned)status.st_mode & 07777, path);
        return -EACCES;
    }
    if (status.st_size < (off_t)least_bytes || status.st_size > (off_t)most_bytes) {
        report_error("%s '%s': it has %lld bytes, and must have %zu to %zu; %s", what, path,
                     (long long)status.st_size, least_bytes, most_bytes, remedy);
        return -EINVAL;
    }
    return 0;
}

int private_file_open(const char *path, const char *what, size_t least_bytes, size_t most_bytes, const char *remedy)
{
    /* O_NONBLOCK: a FIFO of that name must not keep us. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc;

    if (fd < 0) {
        rc = -errno;
        report_error("%s '%s': cannot be opened: %s; %s", what, path, strerror(-rc), remedy);
        return rc;
    }
    rc = check(fd, path, what, least_bytes, most_bytes, remedy);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}
