/*
 * The arbiter as a directory on shared storage. A claim is a hard link: link(2) fails if the name is there, on
 * NFS too, where O_EXCL alone once was not enough. The linked file names its owner, so a claim whose answer was
 * lost (a retry over NFS) is recognised as our own.
 *
 * Files in the directory: VM.GENERATION.pair (a generation in use), VM.GENERATION.live (its claim).
 */
#include "vmm/arbiter_kind.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/report.h"

#define LINE_BYTES 100
#define NAME_BYTES 96

struct directory {
    char *path;
    char *vm;
    char owner[LINE_BYTES]; /* our line in a file */
    char pair[LINE_BYTES];  /* the line of the generation begun or checked: this pair's, nobody else's */
    int fd;
};

/* Makes `name` with our owner line in it, if it does not exist. 0, -EEXIST, or another -errno. */
static int create_linked(struct directory *directory, const char *name)
{
    char temporary[NAME_BYTES];
    size_t length = strlen(directory->owner);
    int rc = 0;
    int fd;

    snprintf(temporary, sizeof(temporary), ".claim.%.32s", strrchr(directory->owner, ' ') + 1);
    fd = openat(directory->fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    errno = 0;
    if (write(fd, directory->owner, length) != (ssize_t)length || fsync(fd) < 0)
        rc = errno != 0 ? -errno : -EIO;
    if (close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && linkat(directory->fd, temporary, directory->fd, name, 0) < 0)
        rc = -errno;
    unlinkat(directory->fd, temporary, 0);
    return rc;
}

/* 0, or -errno: -ENODATA for a file without a line. */
static int read_line(struct directory *directory, const char *name, char line[LINE_BYTES])
{
    int fd = openat(directory->fd, name, O_RDONLY | O_CLOEXEC);
    int rc = 0;
    ssize_t got;

    if (fd < 0)
        return -errno;
    got = read(fd, line, LINE_BYTES - 1);
    if (got <= 0)
        rc = got < 0 ? -errno : -ENODATA;
    else
        line[got] = '\0';
    close(fd);
    return rc;
}

static void file_name(const struct directory *directory, uint64_t generation, const char *kind, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "%s.%llu.%s", directory->vm, (unsigned long long)generation, kind);
}

static void dir_close(void *place)
{
    struct directory *directory = place;

    if (directory == NULL)
        return;
    if (directory->fd >= 0)
        close(directory->fd);
    free(directory->path);
    free(directory->vm);
    free(directory);
}

static int dir_open(void **place, const char *where, const struct arbiter_options *options, const char *owner,
                    const atomic_bool *closing)
{
    struct directory *directory;
    char probe[NAME_BYTES];
    int rc = -ENOMEM;

    (void)closing; /* a system call that hangs cannot be told */
    if (options->auth_dir != NULL) {
        report_error("--arbiter-auth is for etcd over https://; a directory's rights are those of its files");
        return -EINVAL;
    }
    directory = calloc(1, sizeof(*directory));
    if (directory == NULL)
        return -ENOMEM;
    directory->fd = -1;
    directory->path = strdup(where);
    directory->vm = strdup(options->vm);
    snprintf(directory->owner, sizeof(directory->owner), "%s\n", owner);
    if (directory->path == NULL || directory->vm == NULL)
        goto fail;
    directory->fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory->fd < 0) {
        rc = -errno;
        report_error("the arbiter directory '%s' does not open: %s; mount the shared storage on both hosts, or "
                     "create it there", where, strerror(-rc));
        goto fail;
    }
    /* Prove now, not at a failover, that links can be made here. */
    snprintf(probe, sizeof(probe), ".probe.%.32s", strrchr(directory->owner, ' ') + 1);
    rc = create_linked(directory, probe);
    unlinkat(directory->fd, probe, 0);
    if (rc < 0) {
        report_error("the arbiter directory '%s' takes no claim: %s; it must be writable and have hard links", where,
                     strerror(-rc));
        goto fail;
    }
    *place = directory;
    return 0;
fail:
    dir_close(directory);
    return rc;
}

static int highest_generation(const struct directory *directory, uint64_t *highest)
{
    size_t prefix = strlen(directory->vm);
    int fd = openat(directory->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    int rc;

    *highest = 0;
    if (dir == NULL) {
        rc = -errno;
        if (fd >= 0)
            close(fd);
        return rc;
    }
    for (errno = 0; (entry = readdir(dir)) != NULL; errno = 0) {
        unsigned long long generation;
        char kind[8];

        if (strncmp(entry->d_name, directory->vm, prefix) == 0 && entry->d_name[prefix] == '.' &&
            sscanf(entry->d_name + prefix + 1, "%llu.%7s", &generation, kind) == 2 && generation > *highest)
            *highest = generation;
    }
    rc = -errno;
    closedir(dir);
    return rc;
}

static int dir_begin(void *place, uint64_t *generation)
{
    struct directory *directory = place;
    char name[NAME_BYTES];

    for (unsigned tries = 0; tries < 64; tries++) { /* each loss means that somebody else began one */
        uint64_t highest;
        int rc = highest_generation(directory, &highest);

        if (rc == 0) {
            file_name(directory, highest + 1, "pair", name);
            rc = create_linked(directory, name);
        }
        if (rc == 0) {
            *generation = highest + 1;
            memcpy(directory->pair, directory->owner, sizeof(directory->pair));
            return 0;
        }
        if (rc != -EEXIST) {
            report_error("the arbiter directory '%s' takes no new generation: %s", directory->path, strerror(-rc));
            return rc;
        }
    }
    report_error("others begin generations of '%s' all the time; is it started in several places?", directory->vm);
    return -EBUSY;
}

static int dir_check(void *place, uint64_t generation)
{
    struct directory *directory = place;
    char name[NAME_BYTES];
    int rc;

    file_name(directory, generation, "pair", name);
    rc = read_line(directory, name, directory->pair);
    if (rc < 0)
        report_error("the arbiter directory '%s' knows nothing of generation %llu of '%s' (%s): both hosts must be "
                     "given the same shared directory", directory->path, (unsigned long long)generation, directory->vm,
                     strerror(-rc));
    return rc;
}

static enum arbiter_verdict dir_claim(void *place, uint64_t generation, char *why)
{
    struct directory *directory = place;
    char name[NAME_BYTES], line[LINE_BYTES];
    int rc;

    file_name(directory, generation, "pair", name);
    rc = read_line(directory, name, line);
    if (rc == -ENOENT || (rc == 0 && strcmp(line, directory->pair) != 0)) {
        snprintf(why, ARBITER_WHY_BYTES, "directory '%.120s' no longer knows this pair: it was emptied, or is another",
                 directory->path);
        return ARBITER_UNREACHABLE;
    }
    if (rc == 0) {
        file_name(directory, generation, "live", name);
        rc = create_linked(directory, name);
        if (rc == 0)
            return ARBITER_WON;
    }
    if (rc == -EEXIST) {
        rc = read_line(directory, name, line);
        if (rc == 0)
            return strcmp(line, directory->owner) == 0 ? ARBITER_WON : ARBITER_LOST;
    }
    snprintf(why, ARBITER_WHY_BYTES, "directory '%.120s': %s", directory->path, strerror(-rc));
    return ARBITER_UNREACHABLE;
}

const struct arbiter_kind arbiter_dir = {
    .prefix = "dir:",
    .usage = "dir:PATH, a directory that both hosts share,",
    .open = dir_open,
    .close = dir_close,
    .begin = dir_begin,
    .check = dir_check,
    .claim = dir_claim,
};
