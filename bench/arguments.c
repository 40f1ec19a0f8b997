/* Reads numbers from command lines; see arguments.h. */
#include "bench/arguments.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"

bool argument_file(int option, const char *value, struct result_files *files)
{
    switch (option) {
    case ARGUMENT_JSON:
        files->json = value;
        return true;
    case ARGUMENT_CSV:
        files->csv = value;
        return true;
    case ARGUMENT_SVG:
        files->svg = value;
        return true;
    default:
        return false;
    }
}

bool argument_none_left(int argc, char **argv, const char *workload)
{
    if (optind >= argc)
        return true;
    report_error("'%s' is no option; `ftbench %s --help` lists them", argv[optind], workload);
    return false;
}

bool argument_number(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || *out < min || *out > max) {
        report_error("--%s is '%s'; it must be a whole number from %llu to %llu", name, text, (unsigned long long)min,
                     (unsigned long long)max);
        return false;
    }
    return true;
}

bool argument_unsigned(const char *name, const char *text, unsigned min, unsigned max, unsigned *out)
{
    uint64_t number = 0;

    if (!argument_number(name, text, min, max, &number))
        return false;
    *out = (unsigned)number;
    return true;
}

bool argument_real(const char *name, const char *text, double min, double max, const char *unit, double *out)
{
    char *end;

    *out = strtod(text, &end);
    if (end == text || *end != '\0' || !(*out >= min && *out <= max)) {
        report_error("--%s is '%s'; it must be a number of %s from %g to %g", name, text, unit, min, max);
        return false;
    }
    return true;
}

bool argument_seconds(const char *name, const char *text, uint64_t *out_ns)
{
    double seconds;

    if (!argument_real(name, text, 0.1, 86400, "seconds", &seconds))
        return false;
    *out_ns = (uint64_t)(seconds * (double)NS_PER_S);
    return true;
}

bool argument_list(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t multiple_of, uint32_t *out,
                   unsigned room, unsigned *count)
{
    char number[16];

    for (*count = 0;; text++) {
        size_t length = strcspn(text, ",");
        uint64_t value;

        if (*count == room) {
            report_error("--%s has more than %u numbers", name, room);
            return false;
        }
        snprintf(number, sizeof(number), "%.*s", (int)length, text);
        if (length >= sizeof(number) || !argument_number(name, number, min, max, &value))
            return false;
        if (value % multiple_of != 0) {
            report_error("--%s has %s; each must be a multiple of %u", name, number, multiple_of);
            return false;
        }
        out[(*count)++] = (uint32_t)value;
        text += length;
        if (*text == '\0')
            return true;
    }
}
