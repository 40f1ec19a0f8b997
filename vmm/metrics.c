/* One table: where a metric stands in the status document, and what it is called, in base units. */
#include "vmm/metrics.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>

struct metric {
    const char *path; /* in the status document; ends in a number or a truth */
    const char *name; /* without "ftvmm_" */
    const char *type;
    double scale; /* from the document's unit to the metric's */
    const char *help;
};

static const struct metric metrics[] = {
    { "protected", "protected", "gauge", 1, "1 on a primary that hears its backup." },
    { "running", "running", "gauge", 1, "1 while the guest runs here, live or in replay." },
    { "lost_arbitration", "lost_arbitration", "gauge", 1, "1 if the other host has the guest." },
    { "generation", "generation", "gauge", 1, "Generation of the pair." },
    { "uptime_ms", "uptime_seconds", "gauge", 1e-3, "Since the process began." },
    { "virtual_ms", "guest_time_seconds", "gauge", 1e-3, "Time of the guest." },
    { "lag.records", "lag_records", "gauge", 1, "Records that the backup has not replayed." },
    { "lag.bytes", "lag_bytes", "gauge", 1, "Bytes of the ring that are not free again." },
    { "lag.ms", "lag_seconds", "gauge", 1e-3, "Age of the oldest record that the backup has not replayed." },
    { "pace.percent", "pace_ratio", "gauge", 1e-2, "Share of its CPU that the guest is denied for the backup's sake." },
    { "pace.rested_ms", "pace_rested_seconds_total", "counter", 1e-3, "How long the guest rested so far." },
    { "pace.ring_full_stalls", "ring_full_stalls_total", "counter", 1, "How often the guest waited for room." },
    { "pace.ring_full_ms", "ring_full_seconds_total", "counter", 1e-3, "How long the guest waited for room." },
    { "protection.attempts", "new_backup_attempts_total", "counter", 1, "Tries to give the guest a new backup." },
    { "protection.completed", "new_backups_total", "counter", 1, "Those that did." },
    { "protection.sent_bytes", "transfer_sent_bytes", "gauge", 1, "Sent to the new backup, or to the last one." },
    { "protection.percent", "transfer_ratio", "gauge", 1e-2, "How much of RAM and disk the new backup has." },
    { "protection.pause_us", "transfer_pause_seconds", "gauge", 1e-6, "How long the guest stood still for the last." },
    { "channel.records", "log_records_total", "counter", 1, "Records logged (primary) or received (backup)." },
    { "channel.record_bytes", "log_bytes_total", "counter", 1, "Their bytes in the ring." },
    { "lockstep.time_records", "time_records_total", "counter", 1, "Records of host time." },
    { "lockstep.time_inputs", "time_inputs_total", "counter", 1, "Times of the host given to the guest." },
    { "lockstep.time_bytes", "time_bytes_total", "counter", 1, "Bytes of the log's records of host time." },
    { "lockstep.frame_records", "frame_records_total", "counter", 1, "Records of frames that came." },
    { "lockstep.output_records", "output_records_total", "counter", 1, "Records that frames waited for." },
    { "channel.writes", "log_writes_total", "counter", 1, "Link operations that carried records." },
    { "channel.torn", "log_torn_total", "counter", 1, "Looks at a record that was still arriving." },
    { "channel.resumes", "log_resumes_total", "counter", 1, "Broken connections that were joined again." },
    { "lockstep.positions", "positions_total", "counter", 1, "Positions of the guest so far." },
    { "lockstep.positions_compared", "positions_compared_total", "counter", 1, "Positions found equal (--verify)." },
    { "lockstep.places", "places_total", "counter", 1, "Positions that are places between two exits (--clock)." },
    { "lockstep.forced_syncs", "forced_syncs_total", "counter", 1, "Forced syncs: the guest's state was copied." },
    { "lockstep.forced_pages", "forced_sync_pages_total", "counter", 1, "Pages that they carried." },
    { "lockstep.forced_zero_pages", "forced_sync_zero_pages_total", "counter", 1, "Of these, pages of zeroes." },
    { "lockstep.forced_delta_pages", "forced_sync_delta_pages_total", "counter", 1,
      "Of these, pages of which only the words that had changed were sent." },
    { "lockstep.forced_bytes", "forced_sync_bytes_total", "counter", 1, "Bytes of the log for forced syncs." },
    { "lockstep.clock_reads", "clock_reads_total", "counter", 1, "Exits at which the guest looked at a clock." },
    { "lockstep.instructions", "guest_instructions_total", "counter", 1, "The guest's, where they can be counted." },
    { "lockstep.run_ms", "guest_run_seconds_total", "counter", 1e-3, "Time in KVM_RUN." },
    { "lockstep.checked_pages", "checked_pages_total", "counter", 1, "Pages digested to compare RAM." },
    { "lockstep.checked_ms", "checked_seconds_total", "counter", 1e-3, "Time that took." },
    { "lockstep.forced_ms", "forced_sync_seconds_total", "counter", 1e-3, "Time that they took." },
    { "lockstep.divergences", "divergences_total", "counter", 1, "The two machines were found to differ." },
    { "lockstep.healed", "healed_total", "counter", 1, "Differences healed: the machine was sent anew." },
    { "net.received_frames", "net_received_frames_total", "counter", 1, "Frames from the guest's cable." },
    { "net.received_bytes", "net_received_bytes_total", "counter", 1, "Their bytes." },
    { "net.transmitted_frames", "net_transmitted_frames_total", "counter", 1, "Frames to the guest's cable." },
    { "net.transmitted_bytes", "net_transmitted_bytes_total", "counter", 1, "Their bytes." },
    { "net.segmented_frames", "net_segmented_frames_total", "counter", 1, "Large frames of the guest cut up here." },
    { "net.link_up", "net_link_up", "gauge", 1, "1 if the port of the guest's cable has a link." },
    { "net.hold_full_stalls", "net_hold_full_stalls_total", "counter", 1,
      "How often the guest waited for room for its frames." },
    { "net.hold_full_ms", "net_hold_full_seconds_total", "counter", 1e-3, "How long it did." },
};

/* Families of counters that differ in a label. */
static const struct {
    const char *path; /* of an object; each number in it is one member */
    const char *only; /* members whose names begin so, and the label has the rest; "" for all */
    const char *name, *label, *help;
} families[] = {
    { "exits", "", "exits_total", "kind", "Exits of the vCPU, and what else happens to it, by kind." },
    { "net", "dropped_", "net_dropped_frames_total", "cause", "Frames lost here, by cause." },
};

static const struct {
    const char *path, *name, *help;
} latencies[] = {
    { "channel.ack_latency", "ack_latency_seconds",
      "From a record's commit until the backup's host has it; one record at a time is timed." },
    { "lockstep.forced_pause", "forced_sync_pause_seconds",
      "How long the guest stood still for a forced sync (backup: how long loading one took)." },
    { "net.output_hold", "output_hold_seconds",
      "How long frames waited for the backup's acknowledgment." },
    { "net.output_pass", "output_pass_seconds",
      "How long frames that need no acknowledgment waited for the thread that sends them." },
    { "net.output_send", "output_send_seconds", "How long the port took to send them." },
    { "request_steps.input_wait", "input_wait_seconds", "From a frame's arrival until the guest was given it." },
    { "request_steps.guest", "request_guest_seconds",
      "From there to the exit by which the guest sent again, exits between included." },
    { "request_steps.exit", "request_exit_seconds", "From that exit to its first frame held." },
    { "request_steps.append", "request_append_seconds",
      "From there to the record committed that the frame waits for, its write posted." },
};

static const struct {
    const char *member, *quantile;
} quantiles[] = { { "p50_us", "0.5" }, { "p90_us", "0.9" }, { "p99_us", "0.99" }, { "p999_us", "0.999" } };

struct text {
    char *bytes;
    size_t used, room;
};

__attribute__((format(printf, 2, 3))) static void put(struct text *text, const char *format, ...)
{
    va_list args;
    int more;

    if (text->used >= text->room)
        return;
    va_start(args, format);
    more = vsnprintf(text->bytes + text->used, text->room - text->used, format, args);
    va_end(args);
    text->used += more > 0 ? (size_t)more : 0;
}

static void put_head(struct text *text, const char *name, const char *type, const char *help)
{
    put(text, "# HELP ftvmm_%s %s\n# TYPE ftvmm_%s %s\n", name, help, name, type);
}

static const cJSON *find(const cJSON *object, const char *path)
{
    char name[48];

    while (object != NULL && *path != '\0') {
        size_t length = strcspn(path, ".");

        snprintf(name, sizeof(name), "%.*s", (int)length, path);
        object = cJSON_GetObjectItemCaseSensitive(object, name);
        path += length + (path[length] == '.');
    }
    return object;
}

static double number_of(const cJSON *item)
{
    return cJSON_IsNumber(item) ? item->valuedouble : cJSON_IsTrue(item) ? 1 : 0;
}

/* The VM's name is checked only where there is an arbiter, so anything may stand in it. */
static void put_label_value(struct text *text, const char *value)
{
    for (; *value; value++) {
        if (*value == '\n')
            put(text, "\\n");
        else
            put(text, "%s%c", *value == '\\' || *value == '"' ? "\\" : "", *value);
    }
}

static void put_info(struct text *text, const cJSON *status)
{
    static const char *const labels[] = { "vm", "role", "state" };
    const char *separator = "{";

    put_head(text, "info", "gauge", "Always 1; what this process is stands in the labels.");
    put(text, "ftvmm_info");
    for (size_t i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
        const char *value = cJSON_GetStringValue(find(status, labels[i]));

        put(text, "%s%s=\"", separator, labels[i]);
        put_label_value(text, value != NULL ? value : "");
        put(text, "\"");
        separator = ",";
    }
    put(text, "} 1\n");
}

size_t metrics_format(const cJSON *status, char *bytes, size_t room)
{
    struct text text = { .bytes = bytes, .room = room };
    const cJSON *object, *item;

    put_info(&text, status);
    for (size_t i = 0; i < sizeof(metrics) / sizeof(metrics[0]); i++) {
        item = find(status, metrics[i].path);
        if (item == NULL)
            continue;
        put_head(&text, metrics[i].name, metrics[i].type, metrics[i].help);
        put(&text, "ftvmm_%s %.15g\n", metrics[i].name, number_of(item) * metrics[i].scale);
    }
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        size_t skip = strlen(families[i].only);

        object = find(status, families[i].path);
        if (object == NULL)
            continue;
        put_head(&text, families[i].name, "counter", families[i].help);
        cJSON_ArrayForEach(item, object)
            if (cJSON_IsNumber(item) && strncmp(item->string, families[i].only, skip) == 0)
                put(&text, "ftvmm_%s{%s=\"%s\"} %.15g\n", families[i].name, families[i].label, item->string + skip,
                    item->valuedouble);
    }
    for (size_t i = 0; i < sizeof(latencies) / sizeof(latencies[0]); i++) {
        object = find(status, latencies[i].path);
        if (object == NULL)
            continue;
        put_head(&text, latencies[i].name, "summary", latencies[i].help);
        for (size_t q = 0; q < sizeof(quantiles) / sizeof(quantiles[0]); q++)
            put(&text, "ftvmm_%s{quantile=\"%s\"} %.15g\n", latencies[i].name, quantiles[q].quantile,
                number_of(find(object, quantiles[q].member)) * 1e-6);
        put(&text, "ftvmm_%s_sum %.15g\n", latencies[i].name, number_of(find(object, "sum_us")) * 1e-6);
        put(&text, "ftvmm_%s_count %.15g\n", latencies[i].name, number_of(find(object, "samples")));
    }
    return text.used < text.room ? text.used : 0;
}

unsigned metrics_request_check(const char *request, size_t bytes)
{
    static const char target[] = "/metrics", method[] = "GET ";
    const char *end = memchr(request, '\n', bytes), *path, *after;

    if (end == NULL || memchr(request, '\0', (size_t)(end - request)) != NULL)
        return 400;
    if ((size_t)(end - request) < strlen(method) || memcmp(request, method, strlen(method)) != 0)
        return 405;
    path = request + strlen(method);
    after = memchr(path, ' ', (size_t)(end - path));
    if (after == NULL || end - after < 8 || memcmp(after, " HTTP/1.", 8) != 0)
        return 400;
    if ((size_t)(after - path) < strlen(target) || memcmp(path, target, strlen(target)) != 0 ||
        ((size_t)(after - path) > strlen(target) && path[strlen(target)] != '?'))
        return 404;
    return 200;
}
