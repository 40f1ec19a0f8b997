/*
 * What fuzz targets need besides the code under test: base/report.h, whose words are put together, so that sanitizers
 * see what goes into them, and not said; and a reader of bytes.
 */
#include "base/report.h"

#include "fuzz.h"

#include <stdarg.h>

uint64_t fuzz_touch(const void *data, size_t bytes)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < bytes; i++)
        sum += ((const uint8_t *)data)[i];
    return sum;
}

static void report(const char *format, va_list arguments)
{
    char line[1024];

    vsnprintf(line, sizeof(line), format, arguments);
}

#define REPORT(format)                                                                                                 \
    do {                                                                                                               \
        va_list arguments;                                                                                             \
        va_start(arguments, format);                                                                                   \
        report(format, arguments);                                                                                     \
        va_end(arguments);                                                                                             \
    } while (0)

void report_info(const char *format, ...)
{
    REPORT(format);
}

void report_warning(const char *format, ...)
{
    REPORT(format);
}

void report_error(const char *format, ...)
{
    REPORT(format);
}

void report_bug(const char *format, ...)
{
    REPORT(format);
    abort();
}
