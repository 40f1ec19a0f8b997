/* What the code under test says on standard error, between words_begin and words_end. */
#ifndef FTVMM_TESTS_WORDS_H
#define FTVMM_TESTS_WORDS_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"

static int words_fd = -1, words_stderr = -1;
static bool words_kept;

static inline void words_begin(void)
{
    if (words_fd < 0) {
        words_fd = memfd_create("words", MFD_CLOEXEC);
        words_stderr = dup(STDERR_FILENO);
    }
    assert_true(words_fd >= 0 && words_stderr >= 0);
    /* Threads speak at once. What shares a memfd's offset is not serialised; what appends is. */
    assert_int_equal(fcntl(words_fd, F_SETFL, O_APPEND), 0);
    assert_int_equal(ftruncate(words_fd, 0), 0);
    dup2(words_fd, STDERR_FILENO);
    words_kept = true;
}

static inline const char *words_read(void)
{
    static char words[65536];
    ssize_t bytes = pread(words_fd, words, sizeof(words) - 1, 0);

    words[bytes < 0 ? 0 : bytes] = '\0';
    return words;
}

static inline const char *words_end(void)
{
    words_kept = false;
    dup2(words_stderr, STDERR_FILENO);
    return words_read();
}

/* Until it was said, by another thread perhaps. */
static inline void words_await(const char *what)
{
    uint64_t give_up_ns = clock_now_ns() + 10 * NS_PER_S;

    while (strstr(words_read(), what) == NULL) {
        assert_true(clock_now_ns() < give_up_ns);
        clock_sleep_ns(NS_PER_MS);
    }
}

/* A teardown: a test that ended amidst it has failed, and shows what was said. */
static inline int words_show(void **state)
{
    (void)state;
    if (words_kept)
        fputs(words_end(), stderr);
    return 0;
}

#endif
