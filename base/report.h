/* Sentences for the operator: what happened, what was found, what mends it. */
#ifndef FTVMM_BASE_REPORT_H
#define FTVMM_BASE_REPORT_H

/*
 * Each writes one line to stderr, with the time since the program started and the program's name in
 * front. printf-style; no trailing newline in `format`. Any thread; one write(2) a line. Never called
 * per event: the hot paths count, and somebody else reports the counters.
 */
__attribute__((format(printf, 1, 2))) void report_info(const char *format, ...);
__attribute__((format(printf, 1, 2))) void report_warning(const char *format, ...);
__attribute__((format(printf, 1, 2))) void report_error(const char *format, ...);

/* What this thread's last report_error said, cut to 255 bytes; "" before the first. */
const char *report_last_error(void);

/* An invariant of our own is broken: says so and aborts, in release builds too. */
__attribute__((noreturn, format(printf, 1, 2))) void report_bug(const char *format, ...);

/* The name in front of every line; the string must outlive the program. Default "ftvmm". */
void report_set_program(const char *name);

#endif
