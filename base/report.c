/* Writes report lines: one line, one write(2), so that threads do not mix their words. */
#include "base/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"

static const char *program = "ftvmm";
static uint64_t start_ns;

__attribute__((constructor)) static void report_start(void)
{
    start_ns = clock_now_ns();
}

void report_set_program(const char *name)
{
    program = name;
}

static void report_line(const char *level, const char *format, va_list args)
{
    char line[1024];
    uint64_t since_ms = (clock_now_ns() - start_ns) / NS_PER_MS;
    int used = snprintf(line, sizeof(line), "%s [%llu.%03llu] %s", program,
                        (unsigned long long)(since_ms / 1000), (unsigned long long)(since_ms % 1000), level);
    int more = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, args);
    size_t bytes = (size_t)used + (more < 0 ? 0 : (size_t)more);

    if (bytes > sizeof(line) - 2)
        bytes = sizeof(line) - 2;
    line[bytes++] = '\n';
    if (write(STDERR_FILENO, line, bytes) < 0)
        return; /* nowhere left to say it */
}

#define REPORT_LINE(level)                                                                         \
    do {                                                                                           \
        va_list args;                                                                              \
        va_start(args, format);                                                                    \
        report_line(level, format, args);                                                          \
        va_end(args);                                                                              \
    } while (0)

void report_info(const char *format, ...)
{
    REPORT_LINE("");
}

void report_warning(const char *format, ...)
{
    REPORT_LINE("warning: ");
}

static __thread char last_error[256];

const char *report_last_error(void)
{
    return last_error;
}

void report_error(const char *format, ...)
{
    va_list words;

    va_start(words, format);
    vsnprintf(last_error, sizeof(last_error), format, words);
    va_end(words);
    REPORT_LINE("error: ");
}

void report_bug(const char *format, ...)
{
    REPORT_LINE("bug: ");
    abort();
}
