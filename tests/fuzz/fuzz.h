/*
 * What fuzz targets have in common. A target is one file with one LLVMFuzzerTestOneInput: it feeds the bytes to a
 * decoder and aborts (fuzz_check) when the decoder breaks a promise. It is built twice: against libFuzzer, and against
 * fuzz_main.c, which runs the kept inputs of corpus/NAME as an ordinary test. meson.build has the list.
 */
#ifndef FTVMM_TESTS_FUZZ_H
#define FTVMM_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* 0: always. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Reads every byte, so that sanitizers see those that must not be read. (fuzz_support.c; not inline, or a compiler
 * would leave out what nobody uses.) */
uint64_t fuzz_touch(const void *data, size_t bytes);

#define fuzz_check(what)                                                                                               \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                                         \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
