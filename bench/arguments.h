/*
 * The command lines of ftbench's workloads. Each has one table of its options, from which they are read and its help is
 * printed; the rows that several have in common are here.
 */
#ifndef FTVMM_BENCH_ARGUMENTS_H
#define FTVMM_BENCH_ARGUMENTS_H

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "bench/result.h"

/* One option. */
struct argument {
    const char *name;  /* without "--" */
    const char *value; /* what its value is called in the help, "N"; NULL: it has none */
    const char *words; /* for the help; may have several lines */
    /* Reads `text` into `place`. false: it is wrong, and that was said. */
    bool (*take)(const struct argument *argument, const char *text, void *place);
    size_t place;       /* in the workload's settings; left out: all of them */
    uint64_t min, max;  /* of numbers; max: what a flag becomes */
    uint64_t unit;      /* of times: its ns; of lists: what each number must be a multiple of */
    size_t count_place; /* of lists: where their length goes, an unsigned */
    unsigned room;      /* of lists */
};

/* What follows name, value and words in a row: where in the settings (a struct) the value goes, and what it may be. */
#define ARGUMENT_TEXT(settings, member) ARGUMENT_INTO(argument_take_text, settings, member, const char *)
/* No value: the option makes it true or false. */
#define ARGUMENT_FLAG(settings, member, is) ARGUMENT_INTO(argument_take_flag, settings, member, bool), .max = (is)
/* A whole number. */
#define ARGUMENT_UNSIGNED(settings, member, least, most)                                                               \
    ARGUMENT_INTO(argument_take_unsigned, settings, member, unsigned), .min = (least), .max = (most)
#define ARGUMENT_NUMBER(settings, member, least, most) ARGUMENT_TIME(settings, member, least, most, 1)
/* A whole number of units of so many ns; in ns. */
#define ARGUMENT_TIME(settings, member, least, most, unit_ns)                                                          \
    ARGUMENT_INTO(argument_take_number, settings, member, uint64_t), .min = (least), .max = (most), .unit = (unit_ns)
/* A number of seconds from 0.1 to 86400; in ns. */
#define ARGUMENT_SECONDS(settings, member) ARGUMENT_INTO(argument_take_seconds, settings, member, uint64_t)
/* "N,N,...": whole numbers, each a multiple of `multiple_of`, into an array. */
#define ARGUMENT_LIST(settings, array, count, least, most, multiple_of)                                                \
    ARGUMENT_INTO(argument_take_list, settings, array[0], uint32_t), .min = (least), .max = (most),                    \
        .unit = (multiple_of), .count_place = offsetof(settings, count),                                               \
        .room = sizeof(((settings *)0)->array) / sizeof(uint32_t)
/* Does not compile if the member is of another type. */
#define ARGUMENT_INTO(function, settings, member, type)                                                                \
    .take = (function), .place = offsetof(settings, member) + _Generic(&((settings *)0)->member, type *: 0)

bool argument_take_text(const struct argument *argument, const char *text, void *place);
bool argument_take_flag(const struct argument *argument, const char *text, void *place);
bool argument_take_unsigned(const struct argument *argument, const char *text, void *place);
bool argument_take_number(const struct argument *argument, const char *text, void *place);
bool argument_take_seconds(const struct argument *argument, const char *text, void *place);
bool argument_take_list(const struct argument *argument, const char *text, void *place);

/* Rows in common, for settings with members of these names: rounds, limit_ns, seed, note, files. */
#define ARGUMENT_ROUNDS(settings, words) {"rounds", "N", words, ARGUMENT_UNSIGNED(settings, rounds, 1, ROUNDS_MAX)}
#define ARGUMENT_LIMIT(settings, words) {"limit", "S", words, ARGUMENT_SECONDS(settings, limit_ns)}
#define ARGUMENT_SEED(settings, words) {"seed", "N", words, ARGUMENT_NUMBER(settings, seed, 0, UINT32_MAX)}
#define ARGUMENT_NOTE(settings, words) {"note", "TEXT", words "; goes into the result", ARGUMENT_TEXT(settings, note)}
#define ARGUMENT_FILES(settings)                                                                                       \
    {"json", "FILE", "the result as JSON too; - is standard output", ARGUMENT_TEXT(settings, files.json)},             \
    {"csv", "FILE", "likewise, as CSV", ARGUMENT_TEXT(settings, files.csv)},                                           \
    {"svg", "FILE", "likewise, as plots", ARGUMENT_TEXT(settings, files.svg)}
/* The same for what watches a redis server: host, port, run_ns, patience_ns, json_path. */
#define ARGUMENT_SERVER(settings)                                                                                      \
    {"host", "ADDRESS", "of the redis server", ARGUMENT_TEXT(settings, host)},                                         \
    {"port", "N", "default 6379", ARGUMENT_UNSIGNED(settings, port, 1, 65535)},                                        \
    {"seconds", "S", "default 30; SIGTERM or SIGINT ends earlier", ARGUMENT_SECONDS(settings, run_ns)},                \
    {"patience", "S", "silence that a connection bears before it is closed, default 60",                               \
     ARGUMENT_SECONDS(settings, patience_ns)},                                                                         \
    {"json", "FILE", "the result as JSON too", ARGUMENT_TEXT(settings, json_path)}

/* Besides options. */
enum argument_words {
    WORDS_NONE,
    WORDS_ANYWHERE, /* they are in argv from getopt(3)'s optind on */
    WORDS_BEHIND,   /* likewise; from the first one on nothing is an option */
};

/* A workload's command line. */
struct command_line {
    const char *workload;             /* as in `ftbench net guest` */
    const char *usage;                /* how it is called, and what it does: the help before the options */
    const struct argument *arguments; /* the last one without a name; --help is not among them */
    void (*print_more)(void);         /* the help behind the options, or NULL */
    const char *exit_status;          /* what each means, for the help */
    enum argument_words words;
};

/* Reads all of it into the settings, which have their defaults. 0: go on; 1: help was given; -EINVAL, said. */
int arguments_read(const struct command_line *line, int argc, char **argv, void *settings);

/* ---- values: each reads `text`, that of the option --NAME. false: it is wrong, and that was said ---- */

/* A whole number from min to max. */
bool argument_number(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out);
/* The same for an unsigned; max fits one. */
bool argument_unsigned(const char *name, const char *text, unsigned min, unsigned max, unsigned *out);
/* A number from min to max, with or without a fraction; `unit` is for the sentence. */
bool argument_real(const char *name, const char *text, double min, double max, const char *unit, double *out);
/* "N,N,..." of at most `room` whole numbers, each a multiple of `multiple_of`. */
bool argument_list(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t multiple_of, uint32_t *out,
                   unsigned room, unsigned *count);

/* For ARGUMENT_SERVER: --host was given, and the file of --json is open, if one was. false: not, and that was said. */
bool argument_server(const char *host, const char *json_path, FILE **json);

#endif
