/* One line a fact; numbers with the unit that fits their size. */
#include "ftctl/show.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const cJSON *find(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = find(object, name);

    return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

static const char *text(const cJSON *object, const char *name)
{
    const char *value = cJSON_GetStringValue(find(object, name));

    return value != NULL ? value : "?";
}

/* Buffers of format_*: a few may be in one printf. */
static char *buffer(void)
{
    static char buffers[8][32];
    static unsigned next;

    return buffers[next++ % 8];
}

static const char *format_us(double us)
{
    char *out = buffer();

    if (us < 1000)
        snprintf(out, 32, "%.0f us", us);
    else if (us < 1e6)
        snprintf(out, 32, "%.1f ms", us / 1e3);
    else
        snprintf(out, 32, "%.2f s", us / 1e6);
    return out;
}

static const char *format_ms(double ms)
{
    char *out = buffer();
    unsigned long long s = (unsigned long long)(ms / 1000);

    if (s >= 86400)
        snprintf(out, 32, "%llu d %02llu h", s / 86400, s / 3600 % 24);
    else if (s >= 3600)
        snprintf(out, 32, "%llu h %02llu min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(out, 32, "%llu min %02llu s", s / 60, s % 60);
    else
        snprintf(out, 32, "%.1f s", ms / 1000);
    return out;
}

static const char *format_bytes(double bytes)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    char *out = buffer();
    unsigned i = 0;

    while (bytes >= 1000 && i < 4) {
        bytes /= 1000;
        i++;
    }
    snprintf(out, 32, i == 0 ? "%.0f %s" : "%.1f %s", bytes, units[i]);
    return out;
}

__attribute__((format(printf, 2, 3))) static void fact(const char *name, const char *format, ...)
{
    va_list args;

    printf("  %-18s ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

static void show_percentiles(const char *name, const cJSON *object)
{
    if (object == NULL || number(object, "samples") == 0)
        return;
    fact(name, "p50 %s, p99 %s, p99.9 %s, at most %s (%.0f samples)", format_us(number(object, "p50_us")),
         format_us(number(object, "p99_us")), format_us(number(object, "p999_us")), format_us(number(object, "max_us")),
         number(object, "samples"));
}

static void show_exits(const cJSON *exits)
{
    bool any = false;
    const cJSON *item;

    if (exits == NULL)
        return;
    printf("  %-18s ", "exits");
    cJSON_ArrayForEach(item, exits)
        if (cJSON_IsNumber(item) && item->valuedouble > 0) {
            printf("%s%s %.0f", any ? ", " : "", item->string, item->valuedouble);
            any = true;
        }
    puts(any ? "" : "none");
}

struct step {
    const char *name, *words;
};

static void show_steps(const cJSON *object, const struct step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (find(object, steps[i].name) != NULL)
            printf("    %10s  %s\n", format_us(number(object, steps[i].name)), steps[i].words);
    if (find(object, "resent_frames") != NULL)
        printf("    %10.0f  held frames sent again\n", number(object, "resent_frames"));
}

static void show_failover(const cJSON *failover)
{
    static const struct step steps[] = {
        { "detected_us", "silence noticed" },
        { "fenced_us", "the log shut to the other host" },
        { "drained_us", "what was left replayed" },
        { "decided_us", "the arbiter's answer" },
        { "live_us", "live" },
        { "first_frame_us", "the guest's first frame sent" },
    };

    if (failover == NULL)
        return;
    puts("  failover, since the peer's last sign of life");
    show_steps(failover, steps, sizeof(steps) / sizeof(steps[0]));
}

void show_handover(const cJSON *handover)
{
    static const struct step steps[] = {
        { "stopped_us", "the guest stood still" },
        { "sent_us", "what it had sent was acknowledged and gone" },
        { "logged_us", "the backup was told" },
        { "taken_us", "heard that the backup has the guest" },
        { "decided_us", "the arbiter's answer" },
        { "live_us", "live" },
        { "first_frame_us", "the guest's first frame sent" },
    };
    bool on_backup;

    if (handover == NULL)
        return;
    on_backup = find(handover, "live_us") != NULL || find(handover, "decided_us") != NULL;
    printf("  planned switch-over: %s; since it was %s\n", text(handover, "state"),
           on_backup ? "the backup's turn" : "asked for");
    show_steps(handover, steps, sizeof(steps) / sizeof(steps[0]));
}

static void show_divergences(const cJSON *lockstep)
{
    const cJSON *last = find(lockstep, "last_divergence");

    if (last == NULL)
        fact("divergences", "%.0f", number(lockstep, "divergences"));
    else
        fact("divergences", "%.0f, %.0f healed; the last one at position %.0f%s%s", number(lockstep, "divergences"),
             number(lockstep, "healed"), number(last, "position"), find(last, "healed_ms") != NULL ? ", healed in " : "",
             find(last, "healed_ms") != NULL ? format_ms(number(last, "healed_ms")) : "");
}

static void show_protection(const cJSON *status)
{
    const cJSON *channel = find(status, "channel"), *lag = find(status, "lag"), *pace = find(status, "pace");
    const cJSON *net = find(status, "net"), *lockstep = find(status, "lockstep");

    if (lag != NULL && strcmp(text(status, "role"), "primary") == 0)
        fact("backup's lag", "%.0f records, %s, %.0f ms; the guest is slowed by %.1f %%", number(lag, "records"),
             format_bytes(number(lag, "bytes")), number(lag, "ms"), number(pace, "percent"));
    show_percentiles("ack latency", find(channel, "ack_latency"));
    show_percentiles("output held", find(net, "output_hold"));
    if (channel != NULL)
        fact("log", "%.0f records, %s, now %s/s", number(channel, "records"),
             format_bytes(number(channel, "record_bytes")), format_bytes(number(channel, "bytes_per_s")));
    if (lockstep != NULL) {
        fact("positions", "%.0f, of them %.0f places; clock %s", number(lockstep, "positions"),
             number(lockstep, "places"), text(lockstep, "clock"));
        fact("forced syncs", "%.0f (%.0f pages, %.0f of them zero, %.0f as changed words, %s, %.0f ms)",
             number(lockstep, "forced_syncs"), number(lockstep, "forced_pages"), number(lockstep, "forced_zero_pages"),
             number(lockstep, "forced_delta_pages"), format_bytes(number(lockstep, "forced_bytes")),
             number(lockstep, "forced_ms"));
        show_percentiles("forced sync pause", find(lockstep, "forced_pause"));
        show_divergences(lockstep);
    }
}

/* A new backup: on its way, or how the last one came. */
/* What a backup keeps for the time after its primary. */
static void show_kept_log(const cJSON *kept)
{
    if (kept == NULL)
        return;
    fact("kept log", "%s; %.0f parts begun, %s in the present one; it broke off %.0f times", text(kept, "state"),
         number(kept, "parts"), format_bytes(number(kept, "part_bytes")), number(kept, "breaks"));
}

static void show_new_backup(const cJSON *protection)
{
    const char *state;

    if (protection == NULL)
        return;
    state = text(protection, "state");
    if (find(protection, "why") != NULL)
        fact("no new backup", "%s", text(protection, "why"));
    if (find(protection, "spare_host") != NULL)
        fact("host by the fleet", "%s, at %s", text(protection, "spare_host"), text(protection, "spare_address"));
    if (strcmp(state, "idle") != 0)
        fact("new backup", "%s, %s; %s sent in %.0f rounds, %s left at the last", find(protection, "spare") != NULL ?
             text(protection, "spare") : "?", state, format_bytes(number(protection, "sent_bytes")),
             number(protection, "rounds"), format_bytes(number(protection, "left_bytes")));
    if (find(protection, "percent") != NULL)
        fact("copied", "%.1f %% of %s, now %s/s, about %s to go in this round", number(protection, "percent"),
             format_bytes(number(protection, "all_bytes")), format_bytes(number(protection, "bytes_per_s")),
             format_ms(number(protection, "eta_ms")));
    if (strcmp(state, "idle") != 0)
        return;
    if (number(protection, "took_ms") > 0)
        fact("new backup", "came after %s, %s sent; the guest stood still for %s", format_ms(number(protection, "took_ms")),
             format_bytes(number(protection, "sent_bytes")), format_us(number(protection, "pause_us")));
}

void show_status(const cJSON *status)
{
    const char *state = text(status, "state");

    printf("%s: %s, %s", text(status, "vm"), text(status, "role"), state);
    if (strcmp(text(status, "role"), "backup") != 0)
        printf(", %s", cJSON_IsTrue(find(status, "protected")) ? "protected" : "NOT PROTECTED");
    if (number(status, "generation") > 0)
        printf(", generation %.0f", number(status, "generation"));
    putchar('\n');
    if (cJSON_IsTrue(find(status, "lost_arbitration")))
        fact("the other host", "has the guest");
    if (find(status, "ended") != NULL)
        fact("guest ended", "%s", text(status, "ended"));
    fact("up", "%s; guest time %s", format_ms(number(status, "uptime_ms")), format_ms(number(status, "virtual_ms")));
    show_protection(status);
    show_new_backup(find(status, "protection"));
    if (find(find(status, "arbiter"), "why") != NULL)
        fact("arbiter", "%s: %s", text(find(status, "arbiter"), "state"), text(find(status, "arbiter"), "why"));
    show_kept_log(find(status, "kept_log"));
    show_exits(find(status, "exits"));
    show_failover(find(status, "failover"));
    show_handover(find(status, "handover"));
}

void show_event(const cJSON *event)
{
    printf("%s  %-12s %s\n", text(event, "time"), text(event, "event"), text(event, "detail"));
}
