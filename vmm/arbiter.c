/*
 * The arbiter as a directory on shared storage. A claim is a hard link: link(2) fails if the name is there, on
 * NFS too, where O_EXCL alone once was not enough. The linked file names its owner, so a claim whose answer was
 * lost (a retry over NFS) is recognised as our own.
 *
 * Files in the directory: VM.GENERATION.pair (a generation in use), VM.GENERATION.live (its claim).
 */
#include "vmm/arbiter.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/report.h"

struct arbiter {
    char *path;
    char vm[32];
    char owner[96]; /* host name, pid and a random token: nobody else's */
    int dir_fd;
};

static bool name_is_valid(const char *vm)
{
    size_t length = strlen(vm);

    if (length == 0 || length >= sizeof(((struct arbiter *)0)->vm) || vm[0] == '.')
        return false;
    for (const char *c = vm; *c; c++)
        if (!isalnum((unsigned char)*c) && strchr("-_.", *c) == NULL)
            return false;
    return true;
}

static int owner_make(char *owner, size_t bytes)
{
    char host[48] = "";
    uint64_t token[2];

    if (getrandom(token, sizeof(token), 0) != sizeof(token))
        return -EIO;
    gethostname(host, sizeof(host) - 1);
    snprintf(owner, bytes, "%s %d %016llx%016llx\n", host, (int)getpid(), (unsigned long long)token[0],
             (unsigned long long)token[1]);
    return 0;
}

/* Makes `name` with our owner line in it, if it does not exist. 0, -EEXIST, or another -errno. */
static int create_linked(struct arbiter *arbiter, const char *name)
{
    char temporary[96];
    size_t length = strlen(arbiter->owner);
    int rc = 0;
    int fd;

    snprintf(temporary, sizeof(temporary), ".claim.%.*s", 32, strrchr(arbiter->owner, ' ') + 1);
    fd = openat(arbiter->dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    if (write(fd, arbiter->owner, length) != (ssize_t)length || fsync(fd) < 0)
        rc = errno != 0 ? -errno : -EIO;
    if (close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && linkat(arbiter->dir_fd, temporary, arbiter->dir_fd, name, 0) < 0)
        rc = -errno;
    unlinkat(arbiter->dir_fd, temporary, 0);
    return rc;
}

int arbiter_open(struct arbiter **out, const char *address, const char *vm)
{
    struct arbiter *arbiter;
    const char *path;
    char probe[64];
    int rc;

    *out = NULL;
    if (strncmp(address, "dir:", 4) != 0 || address[4] == '\0') {
        report_error("no arbiter '%s': this version knows dir:PATH, a directory that both hosts share", address);
        return -EINVAL;
    }
    if (!name_is_valid(vm)) {
        report_error("'%s' is no name for a virtual machine: use up to 31 letters, digits, '-', '_' and '.'", vm);
        return -EINVAL;
    }
    path = address + 4;
    arbiter = calloc(1, sizeof(*arbiter));
    if (arbiter == NULL)
        return -ENOMEM;
    arbiter->dir_fd = -1;
    snprintf(arbiter->vm, sizeof(arbiter->vm), "%s", vm);
    arbiter->path = strdup(path);
    rc = arbiter->path == NULL ? -ENOMEM : owner_make(arbiter->owner, sizeof(arbiter->owner));
    if (rc < 0)
        goto fail;
    arbiter->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (arbiter->dir_fd < 0) {
        rc = -errno;
        report_error("the arbiter directory '%s' does not open: %s; mount the shared storage on both hosts, or "
                     "create it there", path, strerror(-rc));
        goto fail;
    }
    /* Prove now, not at a failover, that links can be made here. */
    snprintf(probe, sizeof(probe), ".probe.%.32s", strrchr(arbiter->owner, ' ') + 1);
    rc = create_linked(arbiter, probe);
    unlinkat(arbiter->dir_fd, probe, 0);
    if (rc < 0) {
        report_error("the arbiter directory '%s' takes no claim: %s; it must be writable and have hard links", path,
                     strerror(-rc));
        goto fail;
    }
    *out = arbiter;
    return 0;
fail:
    arbiter_close(arbiter);
    return rc;
}

void arbiter_close(struct arbiter *arbiter)
{
    if (arbiter == NULL)
        return;
    if (arbiter->dir_fd >= 0)
        close(arbiter->dir_fd);
    free(arbiter->path);
    free(arbiter);
}

static uint64_t highest_generation(const struct arbiter *arbiter)
{
    uint64_t highest = 0;
    size_t prefix = strlen(arbiter->vm);
    int fd = openat(arbiter->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;

    if (dir == NULL)
        return 0;
    while ((entry = readdir(dir)) != NULL) {
        unsigned long long generation;
        char kind[8];

        if (strncmp(entry->d_name, arbiter->vm, prefix) == 0 && entry->d_name[prefix] == '.' &&
            sscanf(entry->d_name + prefix + 1, "%llu.%7s", &generation, kind) == 2 && generation > highest)
            highest = generation;
    }
    closedir(dir);
    return highest;
}

static void file_name(const struct arbiter *arbiter, uint64_t generation, const char *kind, char name[96])
{
    snprintf(name, 96, "%s.%llu.%s", arbiter->vm, (unsigned long long)generation, kind);
}

int arbiter_begin(struct arbiter *arbiter, uint64_t *generation)
{
    char name[96];

    for (unsigned tries = 0; tries < 16; tries++) { /* each loss means that somebody else began one */
        uint64_t next = highest_generation(arbiter) + 1;
        int rc;

        file_name(arbiter, next, "pair", name);
        rc = create_linked(arbiter, name);
        if (rc == 0) {
            *generation = next;
            return 0;
        }
        if (rc != -EEXIST) {
            report_error("the arbiter directory '%s' takes no new generation: %s", arbiter->path, strerror(-rc));
            return rc;
        }
    }
    report_error("others begin generations of '%s' all the time; is it started in several places?", arbiter->vm);
    return -EBUSY;
}

int arbiter_check(struct arbiter *arbiter, uint64_t generation)
{
    char name[96];

    file_name(arbiter, generation, "pair", name);
    if (faccessat(arbiter->dir_fd, name, R_OK, 0) == 0)
        return 0;
    int error = errno;
    report_error("the arbiter directory '%s' knows nothing of generation %llu of '%s' (%s): both hosts must be given "
                 "the same shared directory", arbiter->path, (unsigned long long)generation, arbiter->vm,
                 strerror(error));
    return -error;
}

enum arbiter_verdict arbiter_claim(struct arbiter *arbiter, uint64_t generation)
{
    char name[96], owner[sizeof(arbiter->owner)] = "";
    ssize_t got;
    int rc, fd;

    file_name(arbiter, generation, "live", name);
    rc = create_linked(arbiter, name);
    if (rc == 0)
        return ARBITER_WON;
    if (rc != -EEXIST)
        return ARBITER_UNREACHABLE;
    fd = openat(arbiter->dir_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return ARBITER_UNREACHABLE;
    got = read(fd, owner, sizeof(owner) - 1);
    close(fd);
    if (got <= 0)
        return ARBITER_UNREACHABLE;
    return strcmp(owner, arbiter->owner) == 0 ? ARBITER_WON : ARBITER_LOST;
}
