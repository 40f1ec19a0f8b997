/* This machine; see cpu.h. */
#include "fleet/cpu.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/report.h"

/* "name\t: value" */
static void take(const char *line, const char *name, char *out, size_t room)
{
    size_t length = strlen(name);
    const char *colon = strchr(line, ':');

    if (strncmp(line, name, length) != 0 || colon == NULL ||
        strspn(line + length, "\t ") != (size_t)(colon - line) - length)
        return;
    colon += 1 + strspn(colon + 1, " ");
    snprintf(out, room, "%.*s", (int)strcspn(colon, "\n"), colon);
}

int fleet_cpu_read(char *cpu, size_t cpu_bytes, char *microcode, size_t microcode_bytes)
{
    char line[4096], vendor[24] = "", family[12] = "", model[12] = "", stepping[12] = "";
    FILE *file = fopen("/proc/cpuinfo", "r");
    int rc = file == NULL ? -errno : 0;

    snprintf(microcode, microcode_bytes, "?");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL && line[0] != '\n') {
        take(line, "vendor_id", vendor, sizeof(vendor));
        take(line, "cpu family", family, sizeof(family));
        take(line, "model", model, sizeof(model));
        take(line, "stepping", stepping, sizeof(stepping));
        take(line, "microcode", microcode, microcode_bytes);
    }
    if (file != NULL)
        fclose(file);
    if (rc == 0 && (vendor[0] == '\0' || family[0] == '\0' || model[0] == '\0' || stepping[0] == '\0'))
        rc = -ENOTSUP;
    if (rc < 0)
        report_error("/proc/cpuinfo does not tell this host's CPU: %s", strerror(-rc));
    else
        snprintf(cpu, cpu_bytes, "%s %s-%s-%s", vendor, family, model, stepping);
    return rc;
}

int fleet_boot_read(char *boot, size_t bytes)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    int rc = file != NULL && fgets(boot, (int)bytes, file) != NULL ? 0 : -EIO;

    if (file != NULL)
        fclose(file);
    if (rc < 0)
        report_error("/proc/sys/kernel/random/boot_id cannot be read: is /proc mounted?");
    else
        boot[strcspn(boot, "\n")] = '\0';
    return rc;
}
