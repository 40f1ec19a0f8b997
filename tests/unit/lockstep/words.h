/* What the code under test says on standard error, between words_begin and words_end. */
#ifndef FTVMM_TESTS_LOCKSTEP_WORDS_H
#define FTVMM_TESTS_LOCKSTEP_WORDS_H

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static int words_fd = -1, words_stderr = -1;

static inline void words_begin(void)
{
    if (words_fd < 0) {
        words_fd = memfd_create("words", MFD_CLOEXEC);
        fcntl(words_fd, F_SETFL, O_APPEND); /* a memfd's offset is not locked: two threads would write to one place */
        words_stderr = dup(STDERR_FILENO);
    }
    assert_true(words_fd >= 0 && words_stderr >= 0);
    assert_int_equal(ftruncate(words_fd, 0), 0);
    lseek(words_fd, 0, SEEK_SET);
    dup2(words_fd, STDERR_FILENO);
}

static inline const char *words_end(void)
{
    static char words[16384];
    ssize_t bytes;

    dup2(words_stderr, STDERR_FILENO);
    bytes = pread(words_fd, words, sizeof(words) - 1, 0);
    words[bytes < 0 ? 0 : bytes] = '\0';
    return words;
}

#endif
