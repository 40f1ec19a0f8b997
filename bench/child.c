/* Runs programs; see child.h. */
#include "bench/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

#define LISTEN_MS   20
#define NOT_STARTED 127 /* the exit status that a shell has for it */

int child_start(struct child *child, char *const argv[], bool errors_too, char *text, size_t size)
{
    int pipes[2], result = 0;

    *child = (struct child){.text = text, .size = size};
    text[0] = '\0';
    if (pipe2(pipes, O_CLOEXEC) != 0)
        return -errno;
    child->output = pipes[0];
    child->pid = fork();
    if (child->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(pipes[1], STDOUT_FILENO);
        if (errors_too)
            dup2(pipes[1], STDERR_FILENO);
        execvp(argv[0], argv);
        _exit(NOT_STARTED);
    }
    if (child->pid < 0) {
        result = -errno;
        close(pipes[0]);
    }
    close(pipes[1]);
    return result;
}

bool child_listen(struct child *child)
{
    struct pollfd ready = {.fd = child->output, .events = POLLIN};
    size_t room = child->size - 1 - child->used;
    char lost[512];
    ssize_t got;

    if (poll(&ready, 1, LISTEN_MS) <= 0)
        return true;
    got = room > 0 ? read(child->output, child->text + child->used, room) : read(child->output, lost, sizeof(lost));
    if (got > 0 && room > 0) {
        child->used += (size_t)got;
        child->text[child->used] = '\0';
    }
    return got > 0 || (got < 0 && errno == EINTR);
}

int child_end(struct child *child, int result)
{
    int status;

    close(child->output);
    if (result != 0)
        kill(child->pid, SIGKILL);
    waitpid(child->pid, &status, 0);
    if (result != 0)
        return result;
    if (!WIFEXITED(status))
        return -EIO;
    return WEXITSTATUS(status) == NOT_STARTED ? -ENOENT : WEXITSTATUS(status);
}

int child_run(char *const argv[], bool errors_too, char *text, size_t size, uint64_t limit_ns)
{
    uint64_t until_ns = clock_now_ns() + limit_ns;
    struct child child;
    int result = child_start(&child, argv, errors_too, text, size);

    if (result != 0)
        return result;
    while (result == 0 && child_listen(&child))
        if (clock_now_ns() >= until_ns)
            result = -ETIMEDOUT;
    return child_end(&child, result);
}
