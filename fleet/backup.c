/* Backups as processes; see backup.h. */
#include "fleet/backup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/report.h"

#define SUFFIX ".backup"

/* Opens VM's file. */
static int file_open(const struct backup_owner *owner, const char *vm, int flags)
{
    char path[4096];

    if ((size_t)snprintf(path, sizeof(path), "%s/%s" SUFFIX, owner->run_dir, vm) >= sizeof(path))
        return -ENAMETOOLONG;
    int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);

    return fd >= 0 ? fd : -errno;
}

/* In the new process. Never returns. */
static void become(const struct backup_owner *owner, const struct description *description, int lock_fd)
{
    char memory[16], timeout[16], spare[FLEET_NAME_BYTES + 16];
    const char *words[DESCRIPTION_ARGUMENTS_MAX + 20];
    unsigned count = 0;
    sigset_t none;
    int null = open("/dev/null", O_RDONLY);

    snprintf(memory, sizeof(memory), "%u", description->vm.memory_mib);
    snprintf(timeout, sizeof(timeout), "%u", owner->join_timeout_s);
    snprintf(spare, sizeof(spare), "fleet:%s", owner->host);
    /* What the description may say otherwise, what it says, what it may not. */
    words[count++] = owner->ftvmm;
    words[count++] = "backup";
    words[count++] = "--spare";
    words[count++] = spare;
    words[count++] = "--fleet";
    words[count++] = owner->urls;
    if (owner->auth_dir != NULL) {
        words[count++] = "--fleet-auth";
        words[count++] = owner->auth_dir;
    }
    words[count++] = "--join-timeout";
    words[count++] = timeout;
    for (unsigned i = 0; i < description->argument_count; i++)
        words[count++] = description->arguments[i];
    words[count++] = "--name";
    words[count++] = description->vm.name;
    words[count++] = "--memory";
    words[count++] = memory;
    words[count++] = "--listen";
    words[count++] = description->vm.address;
    words[count] = NULL;
    setsid(); /* a terminal's signals are not for it */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    dprintf(lock_fd, "%d\n", (int)getpid());
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || fcntl(lock_fd, F_SETFD, 0) < 0)
        _exit(126);
    execvp(owner->ftvmm, (char *const *)words);
    report_error("'%s' cannot be started: %s; name it with --ftvmm", owner->ftvmm, strerror(errno));
    _exit(127);
}

int backup_start(const struct backup_owner *owner, const struct description *description,
                 const struct fleet_claim *claim)
{
    int fd = file_open(owner, claim->vm, O_RDWR | O_CREAT), rc = fd < 0 ? fd : 0;
    pid_t pid = -1;

    if (rc == 0 && flock(fd, LOCK_EX | LOCK_NB) != 0)
        rc = -errno;
    if (rc == 0 && (ftruncate(fd, 0) != 0 || dprintf(fd, "%s %u %s %s\n", claim->id, claim->memory_mib,
                                                     claim->by[0] != '\0' ? claim->by : "-", claim->address) < 0))
        rc = -errno;
    if (rc == 0 && (pid = fork()) < 0)
        rc = -errno;
    if (pid == 0)
        become(owner, description, fd);
    if (rc < 0)
        report_error("no backup of '%s' is started: %s", claim->vm, strerror(-rc));
    else
        report_info("a backup of '%s' is started, process %d, at %s, for host %s", claim->vm, (int)pid, claim->address,
                    claim->by);
    if (fd >= 0)
        close(fd); /* the lock is the new process's */
    return rc < 0 ? rc : 0;
}

bool backup_lives(const struct backup_owner *owner, const char *vm, struct fleet_claim *claim)
{
    int fd = file_open(owner, vm, O_RDONLY);
    char text[512] = "";
    ssize_t got;
    bool lives;

    if (fd < 0)
        return false;
    lives = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    got = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (!lives || got <= 0)
        return false;
    *claim = (struct fleet_claim){ .state = FLEET_STARTED };
    snprintf(claim->vm, sizeof(claim->vm), "%s", vm);
    if (sscanf(text, "%16[0-9a-f] %u %63s %255s", claim->id, &claim->memory_mib, claim->by, claim->address) != 4)
        return false;
    if (strcmp(claim->by, "-") == 0)
        claim->by[0] = '\0';
    return true;
}

unsigned backups_living(const struct backup_owner *owner, struct fleet_claim claims[FLEET_CLAIMS_MAX])
{
    DIR *dir = opendir(owner->run_dir);
    struct dirent *entry;
    unsigned count = 0;

    while (dir != NULL && count < FLEET_CLAIMS_MAX && (entry = readdir(dir)) != NULL) {
        size_t length = strlen(entry->d_name), name = length - strlen(SUFFIX);
        char vm[VM_NAME_BYTES];

        if (length <= strlen(SUFFIX) || name >= sizeof(vm) || strcmp(entry->d_name + name, SUFFIX) != 0)
            continue;
        snprintf(vm, sizeof(vm), "%.*s", (int)name, entry->d_name);
        if (vm_name_is_valid(vm) && backup_lives(owner, vm, &claims[count]))
            count++;
    }
    if (dir != NULL)
        closedir(dir);
    return count;
}
