/* Stops, tells, dumps; see replay.h. */
#include "vmm/replay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/report.h"
#include "vmm/machine_json.h"

#define WRITE_PAGES 256u /* at most at once */

int replay_dump_prepare(const char *directory)
{
    int error;

    if (mkdir(directory, 0700) == 0)
        return 0;
    error = errno;
    if (error == EEXIST)
        report_error("the dump's directory '%s' exists already; name a new one", directory);
    else
        report_error("the dump's directory '%s' cannot be made: %s", directory, strerror(error));
    return -error;
}

void replay_dump_forget(const char *directory)
{
    (void)rmdir(directory); /* it stays if something is in it */
}

static int file_create(const char *directory, const char *name, int *fd)
{
    char path[4096];

    if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    *fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return *fd < 0 ? -errno : 0;
}

static int write_at(int fd, const uint8_t *bytes, size_t count, uint64_t offset)
{
    while (count > 0) {
        ssize_t written = pwrite(fd, bytes, count, (off_t)offset);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? -errno : -EIO;
        bytes += written;
        count -= (size_t)written;
        offset += (uint64_t)written;
    }
    return 0;
}

static bool page_is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, GUEST_PAGE_BYTES - 1) == 0;
}

/* Pages of zeroes become holes. */
static int ram_write(int fd, const struct guest_memory *memory)
{
    uint64_t pages = memory->bytes / GUEST_PAGE_BYTES;
    int rc = ftruncate(fd, (off_t)memory->bytes) < 0 ? -errno : 0;

    for (uint64_t page = 0; page < pages && rc == 0;) {
        const uint8_t *from = memory->base + page * GUEST_PAGE_BYTES;
        uint64_t count = 0;

        while (count < WRITE_PAGES && page + count < pages && !page_is_zero(from + count * GUEST_PAGE_BYTES))
            count++;
        rc = write_at(fd, from, count * GUEST_PAGE_BYTES, page * GUEST_PAGE_BYTES);
        page += count > 0 ? count : 1;
    }
    return rc;
}

static int file_close(int fd, int rc)
{
    if (fd >= 0 && close(fd) < 0 && rc == 0)
        return -errno;
    return rc;
}

static int state_write(const char *directory, const struct machine *machine, const struct vcpu_state *vcpu,
                       uint64_t ram_digest)
{
    cJSON *root = machine_json(machine, vcpu);
    int fd = -1, rc = file_create(directory, "state.json", &fd);
    char *text;

    json_add_hex(cJSON_GetObjectItem(root, "machine"), "ram_digest", ram_digest);
    text = cJSON_Print(root);
    cJSON_Delete(root);
    if (rc == 0)
        rc = text != NULL ? write_at(fd, (const uint8_t *)text, strlen(text), 0) : -ENOMEM;
    cJSON_free(text);
    return file_close(fd, rc);
}

int replay_dump_write(const char *directory, const struct machine *machine, const struct vcpu_state *vcpu,
                      uint64_t ram_digest)
{
    int fd = -1, rc = file_create(directory, "ram", &fd);

    if (rc == 0)
        rc = ram_write(fd, &machine->memory);
    rc = file_close(fd, rc);
    if (rc == 0)
        rc = state_write(directory, machine, vcpu, ram_digest);
    if (rc < 0)
        report_error("the dump in '%s' cannot be written: %s", directory, strerror(-rc));
    return rc;
}

/* A line of registers that grows. */
struct register_line {
    char text[900];
    size_t count;
    unsigned registers;
};

#define LINE_REGISTERS 25 /* general and control registers come first; segments are for the dump */

static void line_add(void *ctx, const char *name, uint64_t value)
{
    struct register_line *line = ctx;

    if (line->registers++ < LINE_REGISTERS)
        line->count += (size_t)snprintf(line->text + line->count, sizeof(line->text) - line->count, " %s=%" PRIx64,
                                        name, value);
}

static void say_state(const struct machine *machine, const struct vcpu_state *vcpu, uint64_t ram_digest)
{
    const struct vcpu_registers registers = { .regs = vcpu->regs, .sregs = vcpu->sregs };
    struct register_line line = { .count = 0 };

    vcpu_registers_visit(&registers, line_add, &line);
    report_info("stopped at position %" PRIu64 ", virtual time %" PRIu64 " ns, exit %s; RAM digest %016" PRIx64
                ", vCPU digest %016" PRIx64, machine->position, machine->time_ns, vcpu_exit_name(machine->exit),
                ram_digest, vcpu_state_digest(vcpu));
    report_info("registers%s", line.text);
}

int replay_stopped(struct lockstep *ls, const char *directory)
{
    const struct machine *machine = &ls->machine;
    uint64_t until = ls->options.until_position, ram_digest;
    struct vcpu_state vcpu;
    int rc = 0;

    if (machine->position < until) {
        report_error("the %s at position %" PRIu64 ", before --until %" PRIu64,
                     machine->ended ? "guest has ended" : "log ends", machine->position, until);
        return -ERANGE;
    }
    if (until == 0 && directory == NULL && machine->ended != 0)
        return 0;
    /* The END record's digests are of a last access that is not complete; one that is not served cannot be. */
    if (machine->ended == 0 && !ls->position_open)
        rc = vcpu_complete(&ls->machine.vcpu);
    if (rc == 0)
        rc = vcpu_save(&ls->machine.vcpu, &vcpu);
    if (rc < 0)
        return rc;
    ram_digest = lockstep_ram_digest(ls);
    if (machine->ended == 0)
        say_state(machine, &vcpu, ram_digest);
    return directory != NULL ? replay_dump_write(directory, machine, &vcpu, ram_digest) : 0;
}
