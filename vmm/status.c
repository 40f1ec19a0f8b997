/* Builds the status document from the counters; see status.h. Units stand in the names. */
#include "vmm/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "vmm/instructions.h"

static void add(cJSON *object, const char *name, uint64_t value)
{
    cJSON_AddNumberToObject(object, name, (double)value);
}

static void add_failover(cJSON *root, const struct lockstep *ls)
{
    const struct failover_receipt *receipt = &ls->receipt;
    uint64_t seen_ns = COUNT_GET(receipt->peer_seen_ns);
    const struct {
        const char *name;
        uint64_t at_ns;
    } steps[] = {
        { "detected_us", COUNT_GET(receipt->detected_ns) }, { "fenced_us", COUNT_GET(receipt->fenced_ns) },
        { "drained_us", COUNT_GET(receipt->drained_ns) },   { "decided_us", COUNT_GET(receipt->decided_ns) },
        { "live_us", COUNT_GET(receipt->live_ns) },         { "first_frame_us", COUNT_GET(receipt->first_frame_ns) },
    };
    cJSON *failover;

    if (COUNT_GET(receipt->detected_ns) <= COUNT_GET(ls->handover.reached_ns))
        return; /* no silence, or none since the guest came here as planned */
    /* Times count from the peer's last sign of life. */
    failover = cJSON_AddObjectToObject(root, "failover");
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        if (steps[i].at_ns != 0)
            add(failover, steps[i].name, (steps[i].at_ns - seen_ns) / NS_PER_US);
    add(failover, "resent_frames", COUNT_GET(receipt->resent_frames));
}

void status_add_handover(cJSON *root, struct lockstep *ls)
{
    static const char *const states[] = {
        [HANDOVER_NONE] = "none", [HANDOVER_ASKED] = "asked", [HANDOVER_UNDER_WAY] = "under way",
        [HANDOVER_DONE] = "done", [HANDOVER_FAILED] = "failed", [HANDOVER_CANCELLED] = "cancelled",
    };
    const struct handover *handover = &ls->handover;
    enum handover_state state = handover_state_now(handover);
    uint64_t reached_ns = COUNT_GET(handover->reached_ns);
    uint64_t from_ns = reached_ns != 0 ? reached_ns : COUNT_GET(handover->asked_ns);
    const struct {
        const char *name;
        uint64_t at_ns;
    } steps[] = {
        /* primary: since it was asked for */
        { "stopped_us", COUNT_GET(handover->stopped_ns) }, { "sent_us", COUNT_GET(handover->sent_ns) },
        { "logged_us", COUNT_GET(handover->logged_ns) },   { "taken_us", COUNT_GET(handover->taken_ns) },
        /* backup: since the record was reached */
        { "decided_us", reached_ns != 0 ? COUNT_GET(ls->receipt.decided_ns) : 0 },
        { "live_us", COUNT_GET(handover->live_ns) },
        { "first_frame_us", reached_ns != 0 ? COUNT_GET(ls->receipt.first_frame_ns) : 0 },
    };
    cJSON *object;

    if (state == HANDOVER_NONE)
        return;
    object = cJSON_AddObjectToObject(root, "handover");
    cJSON_AddStringToObject(object, "state", states[state]);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        if (steps[i].at_ns >= from_ns)
            add(object, steps[i].name, (steps[i].at_ns - from_ns) / NS_PER_US);
    if (COUNT_GET(handover->live_ns) != 0)
        add(object, "resent_frames", COUNT_GET(ls->receipt.resent_frames));
}

static void add_percentiles(cJSON *object, const char *name, const struct histogram *histogram)
{
    const struct {
        const char *name;
        uint64_t ns;
    } figures[] = {
        { "sum_us", histogram->sum },
        { "p50_us", histogram_percentile(histogram, 50) },
        { "p90_us", histogram_percentile(histogram, 90) },
        { "p99_us", histogram_percentile(histogram, 99) },
        { "p999_us", histogram_percentile(histogram, 99.9) },
        { "max_us", histogram->max },
    };
    cJSON *into = cJSON_AddObjectToObject(object, name);

    add(into, "samples", histogram->samples);
    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
        cJSON_AddNumberToObject(into, figures[i].name, (double)figures[i].ns / (double)NS_PER_US);
}

static void add_exits(cJSON *root, const struct machine *machine)
{
    cJSON *exits = cJSON_AddObjectToObject(root, "exits");

    for (unsigned exit = 0; exit <= VCPU_EXIT_FAILED; exit++)
        add(exits, vcpu_exit_name((enum vcpu_exit)exit), COUNT_GET(machine->exits_by_kind[exit]));
    add(exits, "user_tsc_reads", COUNT_GET(machine->user_tsc_reads));
    add(exits, "window_steps", COUNT_GET(machine->vcpu.window_steps));
}

static void add_channel(cJSON *root, const struct lockstep *ls)
{
    struct channel_statistics statistics;
    cJSON *channel;

    if (ls->channel == NULL)
        return;
    channel_get_statistics(ls->channel, &statistics);
    channel = cJSON_AddObjectToObject(root, "channel");
    add(channel, "records", statistics.records);
    add(channel, "record_bytes", statistics.record_bytes);
    add(channel, "writes", statistics.writes);
    add(channel, "stalls", statistics.stalls);
    add(channel, "torn", statistics.torn);
    add(channel, "damaged", statistics.damaged);
    add(channel, "resumes", statistics.resumes);
    add(channel, "bytes_per_s", COUNT_GET(ls->log_bytes_per_s));
    add_percentiles(channel, "ack_latency", &ls->ack_ns);
}

/* How far the backup is behind, and what the guest pays for it. */
static void add_pace(cJSON *root, const struct lockstep *ls)
{
    struct channel_lag now = { 0 };
    cJSON *lag, *pace;

    if (ls->channel == NULL)
        return;
    if (lockstep_role_now(ls) == ROLE_PRIMARY) /* who is alone has nobody who lags */
        channel_get_lag(ls->channel, &now);
    lag = cJSON_AddObjectToObject(root, "lag");
    add(lag, "records", now.records);
    add(lag, "bytes", now.bytes);
    add(lag, "ms", now.age_ns / NS_PER_MS);
    pace = cJSON_AddObjectToObject(root, "pace");
    cJSON_AddNumberToObject(pace, "percent", COUNT_GET(ls->pace_permille) / 10.0);
    add(pace, "rested_ms", COUNT_GET(ls->rested_ns) / NS_PER_MS);
    add(pace, "ring_full_stalls", COUNT_GET(ls->ring_full_stalls));
    add(pace, "ring_full_ms", COUNT_GET(ls->ring_full_ns) / NS_PER_MS);
}

static void add_net(cJSON *root, const struct lockstep *ls)
{
    struct net_statistics statistics;
    cJSON *net;

    if (ls->net == NULL)
        return;
    net_get_statistics(ls->net, &statistics);
    net = cJSON_AddObjectToObject(root, "net");
    add(net, "received_frames", statistics.received);
    add(net, "transmitted_frames", statistics.transmitted);
    add(net, "received_bytes", statistics.received_bytes);
    add(net, "transmitted_bytes", statistics.transmitted_bytes);
    add(net, "received_for_others", statistics.received_for_others);
    add(net, "segmented_frames", statistics.segmented);
    add(net, "link_up", net_link_up(ls->net));
    add(net, "dropped_receive_full", statistics.dropped_receive_full);
    add(net, "dropped_oversize", statistics.dropped_oversize);
    add(net, "dropped_port_missed", statistics.dropped_port_missed);
    add(net, "dropped_card_receive", COUNT_GET(ls->card_received_dropped));
    add(net, "dropped_card_send", COUNT_GET(ls->card_sent_dropped));
    add(net, "dropped_hold_full", statistics.dropped_hold_full);
    add(net, "dropped_hold_oversize", statistics.dropped_hold_oversize);
    add(net, "dropped_malformed", statistics.dropped_malformed);
    add(net, "dropped_transmit", statistics.dropped_transmit);
    add(net, "dropped_port_transmit", statistics.dropped_port_transmit);
    add(net, "hold_full_stalls", COUNT_GET(ls->hold_full_stalls));
    add(net, "hold_full_ms", COUNT_GET(ls->hold_full_ns) / NS_PER_MS);
    add_percentiles(net, "output_hold", net_hold_histogram(ls->net));
    add_percentiles(net, "output_pass", net_pass_histogram(ls->net));
    add_percentiles(net, "output_send", net_send_histogram(ls->net));
}

static void add_request_steps(cJSON *root, const struct lockstep *ls)
{
    cJSON *steps;

    if (ls->net == NULL)
        return;
    steps = cJSON_AddObjectToObject(root, "request_steps");
    add_percentiles(steps, "input_wait", &ls->steps.input_wait_ns);
    add_percentiles(steps, "guest", &ls->steps.guest_ns);
    add_percentiles(steps, "exit", &ls->steps.exit_ns);
    add_percentiles(steps, "append", &ls->steps.append_ns);
}

static void add_disk(cJSON *root, const struct lockstep *ls)
{
    struct disk_statistics statistics;
    cJSON *disk;

    if (ls->disk == NULL)
        return;
    disk_get_statistics(ls->disk, &statistics);
    disk = cJSON_AddObjectToObject(root, "disk");
    add(disk, "reads", statistics.reads);
    add(disk, "read_bytes", statistics.read_bytes);
    add(disk, "writes", statistics.writes);
    add(disk, "write_bytes", statistics.write_bytes);
    add(disk, "flushes", statistics.flushes);
    add(disk, "errors", statistics.errors);
    add(disk, "under_way", statistics.under_way);
}

/* What the arbiter said when it was last asked who may go on. */
static void add_arbiter(cJSON *root, const struct lockstep *ls)
{
    struct arbiter_status status;
    const char *state = "idle";
    cJSON *arbiter;

    if (ls->arbiter == NULL)
        return;
    arbiter_get_status(ls->arbiter, &status);
    switch (status.verdict) {
    case ARBITER_WON: state = "won"; break;
    case ARBITER_LOST: state = "lost"; break;
    case ARBITER_UNREACHABLE: state = "unreachable"; break;
    case ARBITER_ASKING: state = status.asking ? "asking" : "idle"; break;
    }
    arbiter = cJSON_AddObjectToObject(root, "arbiter");
    cJSON_AddStringToObject(arbiter, "state", state);
    add(arbiter, "asks", status.asks);
    add(arbiter, "asking_ms", status.asking_ns / NS_PER_MS);
    if (status.verdict == ARBITER_UNREACHABLE)
        cJSON_AddStringToObject(arbiter, "why", status.why);
}

/* How far a new backup is, or why there is none. */
static void add_protection(cJSON *root, const struct lockstep *ls)
{
    struct protect_status status;
    cJSON *protection;

    if (ls->protector == NULL)
        return;
    protect_get_status(ls->protector, &status);
    protection = cJSON_AddObjectToObject(root, "protection");
    cJSON_AddStringToObject(protection, "state", protect_state_name(status.state));
    cJSON_AddBoolToObject(protection, "wanted", status.wanted);
    if (status.address[0] != '\0')
        cJSON_AddStringToObject(protection, "spare", status.address);
    if (status.host[0] != '\0') {
        cJSON_AddStringToObject(protection, "spare_host", status.host);
        cJSON_AddStringToObject(protection, "spare_address", status.host_address);
    }
    add(protection, "attempts", status.attempts);
    add(protection, "completed", status.completed);
    if (status.why[0] != '\0')
        cJSON_AddStringToObject(protection, "why", status.why);
    if (status.began_ns == 0)
        return;
    add(protection, "rounds", status.rounds);
    add(protection, "sent_pages", status.sent_pages);
    add(protection, "zero_pages", status.zero_pages);
    add(protection, "sent_blocks", status.sent_blocks);
    add(protection, "sent_bytes", status.sent_bytes);
    add(protection, "all_bytes", status.all_bytes);
    add(protection, "left_bytes", status.left_bytes);
    if (status.state == PROTECT_COPYING || status.state == PROTECT_PAUSED) {
        uint64_t there = status.all_bytes - (status.left_now_bytes < status.all_bytes ? status.left_now_bytes : status.all_bytes);

        cJSON_AddNumberToObject(protection, "percent", (double)(there * 1000 / (status.all_bytes | 1)) / 10);
        add(protection, "bytes_per_s", status.bytes_per_s);
        add(protection, "eta_ms", status.eta_ns / NS_PER_MS);
    }
    add(protection, "took_ms", status.took_ns / NS_PER_MS);
    add(protection, "pause_us", status.pause_ns / NS_PER_US);
}

static void add_last_divergence(cJSON *lockstep, const struct heal *heal)
{
    cJSON *last;

    if (COUNT_GET(heal->last_unix) == 0)
        return;
    last = cJSON_AddObjectToObject(lockstep, "last_divergence");
    add(last, "unix_seconds", (uint64_t)COUNT_GET(heal->last_unix));
    add(last, "position", COUNT_GET(heal->last_position));
    if (COUNT_GET(heal->disk_compared_bytes) != 0) { /* so far, while it is compared */
        add(last, "disk_compared_bytes", COUNT_GET(heal->disk_compared_bytes));
        add(last, "disk_differing_bytes", COUNT_GET(heal->disk_differing_bytes));
    }
    if (COUNT_GET(heal->took_ns) == 0)
        return; /* it is not healed */
    add(last, "healed_ms", COUNT_GET(heal->took_ns) / NS_PER_MS);
    add(last, "pause_us", COUNT_GET(heal->pause_ns) / NS_PER_US);
    add(last, "sent_bytes", COUNT_GET(heal->sent_bytes));
    add(last, "differing_pages", COUNT_GET(heal->differing_pages));
}

/* What a backup keeps of the log, or has kept. */
static void add_kept_log(cJSON *root, const struct lockstep *ls)
{
    struct kept_log_status status;
    cJSON *kept;

    if (ls->kept == NULL)
        return;
    kept_log_get_status(ls->kept, &status);
    kept = cJSON_AddObjectToObject(root, "kept_log");
    cJSON_AddStringToObject(kept, "state", status.ended ? "ended" : status.recording ? "recording" : "broken");
    add(kept, "parts", status.parts);
    add(kept, "breaks", status.breaks);
    add(kept, "base_pages", status.base_pages);
    add(kept, "part_bytes", status.part_bytes);
}

static const char *state_name(const struct lockstep *ls)
{
    if (COUNT_GET(ls->finished))
        return "ended";
    if (!atomic_load_explicit(&ls->opened, memory_order_acquire))
        return "joining";
    if (!COUNT_GET(ls->running) && COUNT_GET(ls->heal.word) != 0)
        return "healing";
    return COUNT_GET(ls->running) ? "running" : "starting";
}

cJSON *status_build(const char *vm, struct lockstep *ls)
{
    uint64_t now_ns = clock_now_ns();
    /* S2 pairs S1 in session.c: the pointers that are followed below. */
    bool opened = atomic_load_explicit(&ls->opened, memory_order_acquire);
    cJSON *root = cJSON_CreateObject(), *lockstep;
    const char *ended = event_end_name(COUNT_GET(ls->ended));
    char digest[17];

    cJSON_AddStringToObject(root, "vm", vm);
    cJSON_AddStringToObject(root, "role", role_name(lockstep_role_now(ls)));
    cJSON_AddStringToObject(root, "state", state_name(ls));
    add(root, "uptime_ms", (now_ns - ls->began_ns) / NS_PER_MS);
    cJSON_AddBoolToObject(root, "protected", opened && lockstep_is_protected(ls));
    cJSON_AddBoolToObject(root, "running", COUNT_GET(ls->running) && !COUNT_GET(ls->finished));
    cJSON_AddBoolToObject(root, "lost_arbitration", COUNT_GET(ls->lost_arbitration));
    if (!opened)
        return root;
    add(root, "generation", COUNT_GET(ls->generation));
    add(root, "virtual_ms", COUNT_GET(ls->virtual_ns) / NS_PER_MS);
    if (ended != NULL) {
        cJSON_AddStringToObject(root, "ended", ended);
        snprintf(digest, sizeof(digest), "%016llx", (unsigned long long)COUNT_GET(ls->end_ram_digest));
        cJSON_AddStringToObject(root, "ram_digest", digest);
        cJSON_AddBoolToObject(root, "end_compared", COUNT_GET(ls->end_compared));
    }
    lockstep = cJSON_AddObjectToObject(root, "lockstep");
    add(lockstep, "positions", COUNT_GET(ls->positions));
    add(lockstep, "positions_compared", COUNT_GET(ls->positions_compared));
    add(lockstep, "segments_compared", COUNT_GET(ls->segments_compared));
    if (ls->verify != NULL) {
        add(lockstep, "checked_pages", COUNT_GET(ls->verify->pages));
        add(lockstep, "checked_ms", COUNT_GET(ls->verify->spent_ns) / NS_PER_MS);
    }
    add(lockstep, "divergences", COUNT_GET(ls->divergences));
    add(lockstep, "healed", COUNT_GET(ls->heal.healed));
    add_last_divergence(lockstep, &ls->heal);
    add(lockstep, "time_inputs", COUNT_GET(ls->time_inputs));
    add(lockstep, "time_records", COUNT_GET(ls->time_records));
    add(lockstep, "time_bytes", COUNT_GET(ls->time_bytes));
    add(lockstep, "frame_records", COUNT_GET(ls->frame_records));
    add(lockstep, "disk_records", COUNT_GET(ls->disk_records));
    add(lockstep, "output_records", COUNT_GET(ls->output_records));
    cJSON_AddStringToObject(lockstep, "clock", guest_clock_name(ls->clock));
    add(lockstep, "places", COUNT_GET(ls->places));
    add(lockstep, "places_refused", COUNT_GET(ls->places_refused));
    add(lockstep, "forced_syncs", COUNT_GET(ls->forced_syncs));
    add(lockstep, "forced_pages", COUNT_GET(ls->forced_pages));
    add(lockstep, "forced_max_pages", COUNT_GET(ls->forced_max_pages));
    add(lockstep, "forced_zero_pages", COUNT_GET(ls->forced_zero_pages));
    add(lockstep, "forced_delta_pages", COUNT_GET(ls->forced_delta_pages));
    add(lockstep, "forced_bytes", COUNT_GET(ls->forced_bytes));
    add(lockstep, "forced_ms", COUNT_GET(ls->forced_ns) / NS_PER_MS);
    add_percentiles(lockstep, "forced_pause", &ls->forced_pause_ns);
    add(lockstep, "clock_reads", COUNT_GET(ls->clock_reads));
    if (COUNT_GET(ls->instructions) != 0)
        add(lockstep, "instructions", instructions_read(COUNT_GET(ls->instructions) - 1));
    add(lockstep, "run_ms", COUNT_GET(ls->run_ns) / NS_PER_MS);
    add_exits(root, &ls->machine);
    pthread_mutex_lock(&ls->channel_lock);
    add_channel(root, ls);
    add_pace(root, ls);
    pthread_mutex_unlock(&ls->channel_lock);
    add_net(root, ls);
    add_request_steps(root, ls);
    add_disk(root, ls);
    add_arbiter(root, ls);
    add_protection(root, ls);
    add_kept_log(root, ls);
    add_failover(root, ls);
    status_add_handover(root, ls);
    return root;
}

int status_write(const char *path, const char *vm, struct lockstep *ls)
{
    cJSON *root = status_build(vm, ls);
    char *text = cJSON_Print(root);
    char temporary[4096];
    int rc = 0, fd;

    cJSON_Delete(root);
    if (text == NULL)
        return -ENOMEM;
    snprintf(temporary, sizeof(temporary), "%s.new", path);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        rc = -errno;
    if (fd >= 0 && close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && rename(temporary, path) < 0)
        rc = -errno;
    free(text);
    return rc;
}
