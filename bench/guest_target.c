/* Where a guest is, and what its ftvmm counts; see guest_target.h. */
#include "bench/guest_target.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/report.h"

void guest_targets_init(struct guest_target targets[GUEST_SIDES], unsigned default_port)
{
    targets[0] = (struct guest_target){.side = "protected", .is_protected = true, .default_port = default_port};
    targets[1] = (struct guest_target){.side = "unprotected", .default_port = default_port};
    targets[2] = (struct guest_target){.side = "other", .is_other = true, .default_port = default_port};
}

bool guest_target_take(const struct argument *argument, const char *text, void *place)
{
    struct guest_target *target = place;
    static const char key[] = ",metrics=";
    const char *metrics = strstr(text, key), *colon;
    size_t length = metrics != NULL ? (size_t)(metrics - text) : strlen(text);

    target->text = text;
    target->port = target->default_port;
    if (length == 0 || length >= sizeof(target->host) || strcspn(text, ",") != length ||
        (metrics != NULL &&
         (strlen(metrics + strlen(key)) >= sizeof(target->metrics) || strchr(metrics + strlen(key), ':') == NULL))) {
        report_error("--%s is '%s'; it must be HOST[:PORT][,metrics=HOST:PORT]", argument->name, text);
        return false;
    }
    if (metrics != NULL && target->is_other) {
        report_error("--%s is '%s'; it has no metrics that could be read here", argument->name, text);
        return false;
    }
    if (metrics != NULL)
        strcpy(target->metrics, metrics + strlen(key));
    memcpy(target->host, text, length);
    target->host[length] = '\0';
    colon = strchr(target->host, ':');
    if (colon == NULL || strchr(colon + 1, ':') != NULL) /* none, or an IPv6 address */
        return true;
    target->host[colon - target->host] = '\0';
    return argument_unsigned(argument->name, colon + 1, 1, 65535, &target->port);
}

bool guest_targets_given(const struct guest_target targets[GUEST_SIDES])
{
    for (unsigned i = 0; i < GUEST_SIDES; i++)
        if (targets[i].text == NULL && !targets[i].is_other) {
            report_error("--%s is missing: the two guests are measured against each other", targets[i].side);
            return false;
        }
    return true;
}

unsigned guest_targets_count(const struct guest_target targets[GUEST_SIDES])
{
    unsigned count = 0;

    while (count < GUEST_SIDES && targets[count].text != NULL)
        count++;
    return count;
}

void guest_targets_fini(struct guest_target targets[GUEST_SIDES])
{
    for (unsigned i = 0; i < GUEST_SIDES; i++) {
        vmm_metrics_fini(&targets[i].before);
        vmm_metrics_fini(&targets[i].after);
    }
}

static int check_role(const struct guest_target *target)
{
    bool fits = target->is_protected ? vmm_metrics_value(&target->before, "protected") == 1
                                     : vmm_metrics_is(&target->before, "role=\"alone\"");

    if (fits)
        return 0;
    report_error(target->is_protected
                     ? "the guest of %s, said to be protected, is not: its ftvmm must be the primary of a pair"
                     : "the guest of %s, said to be unprotected, is not alone: its ftvmm must be an `ftvmm run`",
                 target->metrics);
    return -EINVAL;
}

int guest_target_begin(struct guest_target *target)
{
    int result;

    if (target->metrics[0] == '\0')
        return 0;
    result = vmm_metrics_read(&target->before, target->metrics);
    return result == 0 ? check_role(target) : result;
}

int guest_target_end(struct guest_target *target)
{
    return target->metrics[0] != '\0' ? vmm_metrics_read(&target->after, target->metrics) : 0;
}

double guest_target_growth(const struct guest_target *target, const char *name)
{
    return vmm_metrics_value(&target->after, name) - vmm_metrics_value(&target->before, name);
}

double guest_target_seconds(const struct guest_target *target)
{
    return (double)(target->after.at_ns - target->before.at_ns) / (double)NS_PER_S;
}

void guest_targets_add_ratios(struct bench_result *result, const char *rate, const char *what)
{
    static const char *const sides[][2] = {
        {"protected", "unprotected"}, {"protected", "other"}, {"unprotected", "other"}};
    char ratio[64], above[64], below[64];

    for (size_t i = 0; i < sizeof(sides) / sizeof(sides[0]); i++) {
        snprintf(ratio, sizeof(ratio), "%s_to_%s.%s", sides[i][0], sides[i][1], what);
        snprintf(above, sizeof(above), "%s.%s", rate, sides[i][0]);
        snprintf(below, sizeof(below), "%s.%s", rate, sides[i][1]);
        result_add_ratio(result, ratio, false, above, below, 1);
    }
}

void guest_target_add_counts(struct bench_result *result, const struct guest_target *target, const char *unit,
                             double count)
{
    static const struct {
        const char *counter, *name;
        bool of_the_log;
    } counts[] = {
        {"positions_total", "exits", false},
        {"exits_total{kind=\"io\"}", "io_exits", false},
        {"exits_total{kind=\"hlt\"}", "hlt_exits", false},
        {"exits_total{kind=\"window\"}", "window_exits", false},
        {"exits_total{kind=\"interrupted\"}", "kicks", false},
        {"net_received_frames_total", "frames_in", false},
        {"net_transmitted_frames_total", "frames_out", false},
        {"log_records_total", "records", true},
        {"time_records_total", "time_records", true},
        {"output_records_total", "output_records", true},
        {"log_bytes_total", "log_bytes", true},
        {"log_writes_total", "log_writes", true},
        {"forced_syncs_total", "forced_syncs", true},
        {"forced_sync_pages_total", "forced_pages", true},
    };
    char name[64];

    if (target->metrics[0] == '\0')
        return;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (counts[i].of_the_log && !target->is_protected)
            continue;
        snprintf(name, sizeof(name), "%s_per_%s.%s", counts[i].name, unit, target->side);
        result_add(result, name, METRIC_FACT, true, guest_target_growth(target, counts[i].counter) / count);
    }
}
