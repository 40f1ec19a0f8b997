/* Reads a recording through the channel's file link, prints each record, and counts; see log.h. */
#include "vmm/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cjson/cJSON.h>

#include "base/clock.h"
#include "base/report.h"
#include "channel/channel.h"
#include "vmm/event.h"
#include "vmm/kept_files.h"
#include "vmm/time_pack.h"

/* How far the log could be read. */
enum log_end {
    LOG_END_WHOLE,   /* up to the guest's end */
    LOG_END_AT_TO,   /* up to the position asked for; what lies behind it was not looked at */
    LOG_END_CUT,     /* it stops before the guest's end */
    LOG_END_KEPT,    /* so it does, as a log that a backup has kept may */
    LOG_END_DAMAGED, /* and nothing behind that can be used */
};

struct kind_count {
    uint64_t records, bytes;
};

/* What the records from --from to --to add up to. */
struct log_sums {
    struct kind_count kinds[EVENT_KIND_ROOM];
    struct kind_count all; /* sum of the kinds */
    uint64_t first_lsn, last_lsn;
    uint64_t first_position, last_position;
    uint64_t first_time_ns, last_time_ns; /* virtual time before the first record, and after the last */
    struct event_page_count syncs;
    struct event_page_count open_sync; /* of the PAGES records of a forced sync whose SYNC is yet to come */
    uint64_t sync_most_pages;
};

struct log_reading {
    const struct log_options *options;
    const char *path;
    FILE *out;
    struct channel_hello hello;
    struct log_sums sums;
    uint64_t file_bytes; /* read so far, without the file's head */
    uint64_t position;   /* of the last record */
    uint64_t time_ns;    /* virtual time after the last record */
    enum log_end end;
};

/* ---- one record as text ---- */

static void text_number(void *ctx, const char *name, uint64_t value)
{
    fprintf(ctx, " %s=%" PRIu64, name, value);
}

static void text_hex(void *ctx, const char *name, uint64_t value)
{
    fprintf(ctx, " %s=0x%016" PRIx64, name, value);
}

static void text_text(void *ctx, const char *name, const char *value)
{
    fprintf(ctx, " %s=\"%s\"", name, value);
}

static void print_text(FILE *out, const struct channel_record *record)
{
    const struct event_reader reader = { .ctx = out, .number = text_number, .hex = text_hex, .text = text_text };

    fprintf(out, "%10" PRIu64 " %10" PRIu64 " %-13s", record->lsn, record->position, event_name(record->kind));
    event_read(record, &reader);
    fputc('\n', out);
}

/* ---- one record as JSON ---- */

static void json_number(void *ctx, const char *name, uint64_t value)
{
    cJSON_AddNumberToObject(ctx, name, (double)value);
}

/* A double does not hold 64 bits. */
static void json_hex(void *ctx, const char *name, uint64_t value)
{
    char text[19];

    snprintf(text, sizeof(text), "0x%016" PRIx64, value);
    cJSON_AddStringToObject(ctx, name, text);
}

static void json_text(void *ctx, const char *name, const char *value)
{
    cJSON_AddStringToObject(ctx, name, value);
}

/* Prints the object as one line, and frees it. */
static int json_line(FILE *out, cJSON *object)
{
    char *line = cJSON_PrintUnformatted(object);
    int rc = line != NULL ? 0 : -ENOMEM;

    if (rc == 0)
        fprintf(out, "%s\n", line);
    cJSON_free(line);
    cJSON_Delete(object);
    return rc;
}

static int print_json(FILE *out, const struct channel_record *record)
{
    cJSON *object = cJSON_CreateObject();
    const struct event_reader reader = { .ctx = object, .number = json_number, .hex = json_hex, .text = json_text };

    json_number(object, "lsn", record->lsn);
    json_number(object, "position", record->position);
    json_text(object, "kind", event_name(record->kind));
    json_number(object, "bytes", record->bytes);
    event_read(record, &reader);
    return json_line(out, object);
}

/* ---- counting ---- */

static void count_sync(struct log_sums *sums, const struct channel_record *record)
{
    if (record->kind == EVENT_PAGES)
        event_count_pages(record, &sums->open_sync);
    if (record->kind != EVENT_SYNC)
        return;
    sums->syncs.pages += sums->open_sync.pages;
    sums->syncs.zero_pages += sums->open_sync.zero_pages;
    sums->syncs.delta_pages += sums->open_sync.delta_pages;
    if (sums->open_sync.pages > sums->sync_most_pages)
        sums->sync_most_pages = sums->open_sync.pages;
    sums->open_sync = (struct event_page_count){ 0 };
}

static void count(struct log_reading *reading, const struct channel_record *record, uint64_t time_before_ns)
{
    struct log_sums *sums = &reading->sums;
    uint64_t bytes = channel_frame_bytes(record->bytes);

    if (sums->all.records == 0) {
        sums->first_lsn = record->lsn;
        sums->first_position = record->position;
        sums->first_time_ns = time_before_ns;
    }
    sums->last_lsn = record->lsn;
    sums->last_position = record->position;
    sums->last_time_ns = reading->time_ns;
    sums->all.records++;
    sums->all.bytes += bytes;
    sums->kinds[record->kind].records++;
    sums->kinds[record->kind].bytes += bytes;
    count_sync(sums, record);
}

/* ---- the summary ---- */

static double per_second(uint64_t count, uint64_t ns)
{
    return ns > 0 ? (double)count * (double)NS_PER_S / (double)ns : 0;
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole > 0 ? 100.0 * (double)part / (double)whole : 0;
}

static const char *end_words(enum log_end end)
{
    switch (end) {
    case LOG_END_WHOLE: return "whole";
    case LOG_END_AT_TO: return "read up to --to";
    case LOG_END_CUT: return "cut off";
    case LOG_END_KEPT: return "kept up to here";
    case LOG_END_DAMAGED: return "damaged";
    }
    return "unknown";
}

static void configuration_text(const struct channel_hello *hello, char text[33])
{
    for (size_t i = 0; i < sizeof(hello->digest); i++)
        snprintf(text + 2 * i, 3, "%02x", hello->digest[i]);
}

static void vm_text(const struct channel_hello *hello, char text[4 * 32 + 1])
{
    event_printable(hello->vm, strnlen(hello->vm, sizeof(hello->vm)), text);
}

static void summary_text(const struct log_reading *reading)
{
    const struct log_sums *sums = &reading->sums;
    uint64_t covered_ns = sums->last_time_ns - sums->first_time_ns, syncs = sums->kinds[EVENT_SYNC].records;
    char vm[4 * 32 + 1], configuration[33];
    FILE *out = reading->out;

    vm_text(&reading->hello, vm);
    configuration_text(&reading->hello, configuration);
    fprintf(out, "log          %s: vm %s, generation %" PRIu64 ", configuration %s\n", reading->path, vm,
            reading->hello.generation, configuration);
    fprintf(out, "state        %s; %" PRIu64 " bytes read\n", end_words(reading->end), reading->file_bytes);
    fprintf(out, "records      %" PRIu64 " in %" PRIu64 " bytes, LSN %" PRIu64 " to %" PRIu64 "\n", sums->all.records,
            sums->all.bytes, sums->first_lsn, sums->last_lsn);
    fprintf(out, "positions    %" PRIu64 " to %" PRIu64 "\n", sums->first_position, sums->last_position);
    fprintf(out, "virtual time %.6f s, from %.6f s to %.6f s\n", (double)covered_ns / NS_PER_S,
            (double)sums->first_time_ns / NS_PER_S, (double)sums->last_time_ns / NS_PER_S);
    if (covered_ns > 0)
        fprintf(out, "rate         %.0f records and %.0f bytes a second of virtual time\n",
                per_second(sums->all.records, covered_ns), per_second(sums->all.bytes, covered_ns));
    fprintf(out, "forced syncs %" PRIu64 " with %" PRIu64 " pages, %" PRIu64 " of them zeroes and %" PRIu64
            " by their changed words; at most %" PRIu64 " pages in one\n", syncs, sums->syncs.pages,
            sums->syncs.zero_pages, sums->syncs.delta_pages, sums->sync_most_pages);
    fprintf(out, "\n%-13s %10s %7s %14s %7s\n", "kind", "records", "share", "bytes", "share");
    for (uint16_t kind = 0; kind < EVENT_KIND_ROOM; kind++)
        if (sums->kinds[kind].records > 0)
            fprintf(out, "%-13s %10" PRIu64 " %6.2f%% %14" PRIu64 " %6.2f%%\n", event_name(kind),
                    sums->kinds[kind].records, percent(sums->kinds[kind].records, sums->all.records),
                    sums->kinds[kind].bytes, percent(sums->kinds[kind].bytes, sums->all.bytes));
}

static int summary_json(const struct log_reading *reading)
{
    const struct log_sums *sums = &reading->sums;
    uint64_t covered_ns = sums->last_time_ns - sums->first_time_ns;
    cJSON *root = cJSON_CreateObject(), *syncs, *kinds;
    char vm[4 * 32 + 1], configuration[33];

    vm_text(&reading->hello, vm);
    configuration_text(&reading->hello, configuration);
    json_text(root, "vm", vm);
    json_number(root, "generation", reading->hello.generation);
    json_text(root, "configuration", configuration);
    json_text(root, "state", end_words(reading->end));
    json_number(root, "file_bytes", reading->file_bytes);
    json_number(root, "records", sums->all.records);
    json_number(root, "record_bytes", sums->all.bytes);
    json_number(root, "first_lsn", sums->first_lsn);
    json_number(root, "last_lsn", sums->last_lsn);
    json_number(root, "first_position", sums->first_position);
    json_number(root, "last_position", sums->last_position);
    json_number(root, "first_time_ns", sums->first_time_ns);
    json_number(root, "last_time_ns", sums->last_time_ns);
    cJSON_AddNumberToObject(root, "records_per_s", per_second(sums->all.records, covered_ns));
    cJSON_AddNumberToObject(root, "bytes_per_s", per_second(sums->all.bytes, covered_ns));
    syncs = cJSON_AddObjectToObject(root, "forced_syncs");
    json_number(syncs, "count", sums->kinds[EVENT_SYNC].records);
    json_number(syncs, "pages", sums->syncs.pages);
    json_number(syncs, "zero_pages", sums->syncs.zero_pages);
    json_number(syncs, "delta_pages", sums->syncs.delta_pages);
    json_number(syncs, "most_pages", sums->sync_most_pages);
    kinds = cJSON_AddObjectToObject(root, "kinds");
    for (uint16_t kind = 0; kind < EVENT_KIND_ROOM; kind++)
        if (sums->kinds[kind].records > 0) {
            cJSON *one = cJSON_AddObjectToObject(kinds, event_name(kind));

            json_number(one, "records", sums->kinds[kind].records);
            json_number(one, "bytes", sums->kinds[kind].bytes);
        }
    return json_line(reading->out, root);
}

/* ---- the whole ---- */

/* The looks of a TIME record that event_check has seen: the reading is at the last of them. False: the first goes back. */
static bool take_times(struct log_reading *reading, const struct channel_record *record)
{
    struct time_reader looks;
    bool forward = time_reader_begin(&looks, record->position, record->payload, record->bytes) &&
                   looks.time_ns >= reading->time_ns;

    while (forward && time_reader_next(&looks) > 0)
        ;
    reading->time_ns = looks.time_ns;
    reading->position = looks.position;
    return forward;
}

/* One record that is well-formed: 0, or what makes an end of the reading. */
static int take(struct log_reading *reading, const struct channel_record *record)
{
    const struct log_options *options = reading->options;
    uint64_t time_before_ns = reading->time_ns;
    bool forward;

    if (record->position < reading->position) {
        report_error("%s: the record with LSN %" PRIu64 " goes back from position %" PRIu64 " to %" PRIu64,
                     reading->path, record->lsn, reading->position, record->position);
        return -EBADMSG;
    }
    reading->position = record->position;
    forward = record->kind != EVENT_TIME || take_times(reading, record);
    if (record->kind == EVENT_MACHINE && reading->time_ns == 0) /* a guest that has run before */
        reading->time_ns = reading->sums.first_time_ns = time_before_ns =
            ((const struct event_machine *)record->payload)->machine.time_ns;
    if (!forward) {
        report_error("%s: virtual time goes back in the record with LSN %" PRIu64, reading->path, record->lsn);
        return -EBADMSG;
    }
    if (record->position < options->from)
        return 0;
    count(reading, record, time_before_ns);
    if (options->summary || (options->kinds != 0 && !(options->kinds >> record->kind & 1)))
        return 0;
    if (options->json)
        return print_json(reading->out, record);
    print_text(reading->out, record);
    return 0;
}

/* Reads up to the end, whichever; sets it. -ENOMEM or -EIO: could not even print. */
static int read_all(struct log_reading *reading, struct channel *channel)
{
    struct channel_record record;
    struct channel_statistics statistics;
    bool guest_ended = false, kept = false;
    int rc;

    while ((rc = channel_next(channel, &record)) == 0) {
        if (record.position > reading->options->to)
            break;
        rc = event_check(&record);
        if (rc == 0)
            rc = take(reading, &record);
        if (rc == 0 && ferror(reading->out))
            rc = -EIO;
        if (rc < 0)
            break;
        guest_ended = record.kind == EVENT_END;
        if (record.kind == EVENT_START)
            kept = ((const struct event_start *)record.payload)->kept;
        channel_consume(channel);
    }
    channel_get_statistics(channel, &statistics);
    reading->file_bytes = statistics.record_bytes;
    if (rc == -ENOMEM || rc == -EIO)
        return rc;
    if (rc == 0)
        reading->end = LOG_END_AT_TO;
    else if (rc != -ENODATA)
        reading->end = LOG_END_DAMAGED;
    else
        reading->end = guest_ended ? LOG_END_WHOLE : kept ? LOG_END_KEPT : LOG_END_CUT;
    if (reading->end == LOG_END_CUT)
        report_warning("%s: the log ends at position %" PRIu64 " without the guest's end: it was cut off, or is still "
                       "being written", reading->path, reading->position);
    return 0;
}

/* One file. The process's exit status. */
static int print_file(const struct log_options *options, const char *path, FILE *out)
{
    struct log_reading reading = { .options = options, .path = path, .out = out };
    struct channel *channel;
    int rc = channel_open_log(&channel, path);

    if (rc < 0)
        return 1;
    reading.hello = *channel_peer(channel);
    rc = read_all(&reading, channel);
    channel_close(channel);
    if (rc == 0 && !options->json) {
        if (!options->summary)
            fputc('\n', out);
        summary_text(&reading);
    } else if (rc == 0 && options->summary) {
        rc = summary_json(&reading);
    }
    if (rc == -ENOMEM) {
        report_error("%s: no memory to print it", path);
        return 1;
    }
    if (fflush(out) != 0 || ferror(out)) {
        report_error("%s: what is printed is not taken: the disk is full, or the reader has gone", path);
        return 1;
    }
    return reading.end == LOG_END_CUT || reading.end == LOG_END_DAMAGED;
}

/* All parts of the last run. */
static int print_kept(const struct log_options *options, FILE *out)
{
    struct kept_file *files;
    char path[KEPT_PATH_BYTES];
    size_t count, first;
    int status = 0;

    if (kept_files_list(options->path, &files, &count) < 0)
        return 1;
    if (!kept_files_last_run(files, count, &first)) {
        report_error("the directory '%s' has no part of a kept log that is whole", options->path);
        first = count;
        status = 1;
    }
    for (size_t i = first; i < count; i++) {
        if (!files[i].whole || kept_file_path(options->path, &files[i], path) < 0)
            continue;
        if (!options->json)
            fprintf(out, "%s%s\n", i == first ? "" : "\n", path);
        status |= print_file(options, path, out);
    }
    free(files);
    return status;
}

int log_print(const struct log_options *options, FILE *out)
{
    struct stat status;

    if (stat(options->path, &status) == 0 && S_ISDIR(status.st_mode))
        return print_kept(options, out);
    return print_file(options, options->path, out);
}
