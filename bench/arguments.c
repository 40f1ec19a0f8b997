/* Reads command lines and prints their help; see arguments.h. */
#include "bench/arguments.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"

#define ARGUMENTS_MAX 32
#define FIRST         1000 /* what getopt_long(3) returns for the first one: above all characters */
#define HELP_COLUMN   23

static void print_help(const struct command_line *line)
{
    fputs(line->usage, stdout);
    for (const struct argument *argument = line->arguments; argument->name != NULL; argument++) {
        char option[64];

        snprintf(option, sizeof(option), "--%s %s", argument->name, argument->value != NULL ? argument->value : "");
        printf("  %-*s ", HELP_COLUMN - 3, option);
        for (const char *words = argument->words; *words != '\0'; words++) {
            putchar(*words);
            if (*words == '\n')
                printf("%*s", HELP_COLUMN, "");
        }
        putchar('\n');
    }
    if (line->print_more != NULL)
        line->print_more();
    printf("\nexit status: %s\n", line->exit_status);
}

int arguments_read(const struct command_line *line, int argc, char **argv, void *settings)
{
    struct option known[ARGUMENTS_MAX + 2] = {{"help", no_argument, NULL, 'h'}};
    int option;

    for (int i = 0; line->arguments[i].name != NULL; i++) {
        const struct argument *argument = &line->arguments[i];

        if (i == ARGUMENTS_MAX)
            report_bug("`ftbench %s` has too many options", line->workload);
        known[1 + i] = (struct option){argument->name, argument->value != NULL, NULL, FIRST + i};
    }
    while ((option = getopt_long(argc, argv, line->words == WORDS_BEHIND ? "+h" : "h", known, NULL)) != -1) {
        const struct argument *argument;

        if (option == 'h') {
            print_help(line);
            return 1;
        }
        if (option == '?')
            return -EINVAL; /* getopt_long has said it */
        argument = &line->arguments[option - FIRST];
        if (!argument->take(argument, optarg, (char *)settings + argument->place))
            return -EINVAL;
    }
    if (line->words == WORDS_NONE && optind < argc) {
        report_error("'%s' is no option; `ftbench %s --help` lists them", argv[optind], line->workload);
        return -EINVAL;
    }
    return 0;
}

/* ---- values ---- */

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

bool argument_take_text(const struct argument *argument, const char *text, void *place)
{
    (void)argument;
    *(const char **)place = text;
    return true;
}

bool argument_take_flag(const struct argument *argument, const char *text, void *place)
{
    (void)text;
    *(bool *)place = argument->max != 0;
    return true;
}

bool argument_take_unsigned(const struct argument *argument, const char *text, void *place)
{
    return argument_unsigned(argument->name, text, (unsigned)argument->min, (unsigned)argument->max, place);
}

bool argument_take_number(const struct argument *argument, const char *text, void *place)
{
    uint64_t number;

    if (!argument_number(argument->name, text, argument->min, argument->max, &number))
        return false;
    *(uint64_t *)place = number * argument->unit;
    return true;
}

bool argument_take_seconds(const struct argument *argument, const char *text, void *place)
{
    double seconds;

    if (!argument_real(argument->name, text, 0.1, 86400, "seconds", &seconds))
        return false;
    *(uint64_t *)place = (uint64_t)(seconds * (double)NS_PER_S);
    return true;
}

bool argument_take_list(const struct argument *argument, const char *text, void *place)
{
    unsigned *count = (unsigned *)((char *)place - argument->place + argument->count_place);

    return argument_list(argument->name, text, (uint32_t)argument->min, (uint32_t)argument->max,
                         (uint32_t)argument->unit, place, argument->room, count);
}

bool argument_server(const char *host, const char *json_path, FILE **json)
{
    if (host == NULL) {
        report_error("--host is missing: which redis server?");
        return false;
    }
    if (json_path != NULL && (*json = fopen(json_path, "we")) == NULL) {
        report_error("cannot write %s: %s", json_path, strerror(errno));
        return false;
    }
    return true;
}
