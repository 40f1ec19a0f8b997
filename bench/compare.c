/* ftbench compare: what changed between two results of one workload, beyond the noise of either. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "base/report.h"
#include "bench/arguments.h"
#include "bench/result_file.h"
#include "bench/statistics.h"
#include "bench/workloads.h"

#define EXIT_WORSE 1
#define EXIT_USAGE 2
#define EXIT_NOT_COMPARABLE 3

/* Equal, or both missing. */
static bool same(const cJSON *old, const cJSON *new, const char *name)
{
    const cJSON *ours = cJSON_GetObjectItemCaseSensitive(old, name);
    const cJSON *theirs = cJSON_GetObjectItemCaseSensitive(new, name);

    return ours == NULL ? theirs == NULL : theirs != NULL && cJSON_Compare(ours, theirs, true);
}

/* Says why not. */
static bool are_comparable(const cJSON *old, const cJSON *new)
{
    /* what the workloads' settings have, where a difference makes two figures of one name two things */
    static const char *const needed[] = { "frame_bytes", "windows", "ring_bytes", "connections", "pipeline", "streams" };
    const cJSON *ours = cJSON_GetObjectItemCaseSensitive(old, "settings");
    const cJSON *theirs = cJSON_GetObjectItemCaseSensitive(new, "settings");

    if (!same(old, new, "format")) {
        report_error("not comparable: the one is of `%s`, the other of `%s`", result_file_text(old, "format"),
                     result_file_text(new, "format"));
        return false;
    }
    if (!same(old, new, "link") || !same(old, new, "one_machine") || !same(old, new, "part")) {
        report_error("not comparable: the links differ, or what was measured on them");
        return false;
    }
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
        if (!same(ours, theirs, needed[i])) {
            report_error("not comparable: %s differ; measure again with the same options", needed[i]);
            return false;
        }
    if (!same(old, new, "machine") || !same(old, new, "peer_machine"))
        report_warning("the machines differ: what changed may be theirs");
    if (!same(ours, theirs, "spin_us") || !same(ours, theirs, "sleep_us"))
        report_warning("the ends waited in different ways (--spin-us, --sleep-us)");
    return true;
}

struct comparison {
    double tolerance;
    bool all;
    bool ratios_only; /* a yardstick has changed */
    unsigned judged, better, worse, moved_yardsticks;
};

/* Of a metric of both results. */
struct pair {
    const char *name, *role;
    struct summary was, is;
    enum change change;
};

/* false: there is nothing to compare. */
static bool pair_read(const cJSON *old_result, const cJSON *new, double tolerance, struct pair *pair)
{
    const char *better = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(new, "better"));
    double before[VALUES_MAX], after[VALUES_MAX];
    unsigned before_count, after_count;
    const cJSON *old;

    pair->name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(new, "name"));
    pair->role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(new, "role"));
    old = pair->name != NULL ? result_file_metric(old_result, pair->name) : NULL;
    if (pair->role == NULL || better == NULL || strcmp(pair->role, metric_role_name(METRIC_FACT)) == 0 ||
        !result_file_values(old, before, &before_count) || !result_file_values(new, after, &after_count))
        return false;
    pair->change = statistics_compare(before, before_count, after, after_count, strcmp(better, "lower") == 0,
                                      tolerance);
    pair->was = statistics_summarize(before, before_count);
    pair->is = statistics_summarize(after, after_count);
    return true;
}

static bool has_role(const struct pair *pair, enum metric_role role)
{
    return strcmp(pair->role, metric_role_name(role)) == 0;
}

/* A round has too few samples beyond p99 for its own value to say much. */
static bool is_far_tail(const char *name)
{
    size_t length = strlen(name);

    return strstr(name, "_ns.p99.") != NULL || (length > 4 && strcmp(name + length - 4, ".max") == 0);
}

static void judge(struct comparison *comparison, const struct pair *pair)
{
    const char *verdict = "";

    if (has_role(pair, METRIC_YARDSTICK)) {
        verdict = pair->change != CHANGE_NONE ? "the yardstick changed" : "";
    } else if (is_far_tail(pair->name) || (comparison->ratios_only && !has_role(pair, METRIC_RATIO))) {
        verdict = pair->change != CHANGE_NONE ? "changed, not judged" : "";
    } else {
        comparison->judged++;
        comparison->worse += pair->change == CHANGE_WORSE;
        comparison->better += pair->change == CHANGE_BETTER;
        verdict = pair->change == CHANGE_WORSE ? "WORSE" : pair->change == CHANGE_BETTER ? "better" : "";
    }
    if (comparison->all || pair->change != CHANGE_NONE)
        printf("%-44s %14.6g %14.6g %8.3f %8.1f %% %8.1f %%  %s\n", pair->name, pair->was.median, pair->is.median,
               pair->was.median != 0 ? pair->is.median / pair->was.median : NAN,
               100 * statistics_spread(&pair->was), 100 * statistics_spread(&pair->is), verdict);
}

static int compare(const cJSON *old, const cJSON *new, struct comparison *comparison)
{
    const cJSON *metrics = cJSON_GetObjectItemCaseSensitive(new, "metrics"), *metric;
    struct pair pair;

    if (!are_comparable(old, new))
        return EXIT_NOT_COMPARABLE;
    cJSON_ArrayForEach(metric, metrics)
    {
        if (pair_read(old, metric, comparison->tolerance, &pair) && has_role(&pair, METRIC_YARDSTICK) &&
            !is_far_tail(pair.name))
            comparison->moved_yardsticks += pair.change != CHANGE_NONE;
    }
    comparison->ratios_only = comparison->moved_yardsticks > 0;
    printf("%-44s %14s %14s %8s %10s %10s\n", "metric", "old", "new", "new/old", "spread", "spread");
    cJSON_ArrayForEach(metric, metrics)
    {
        if (pair_read(old, metric, comparison->tolerance, &pair))
            judge(comparison, &pair);
    }
    if (comparison->judged == 0) {
        report_error("not comparable: the two results have no metric in common%s",
                     comparison->ratios_only ? " but yardsticks, and those changed: the machine was another one" : "");
        return EXIT_NOT_COMPARABLE;
    }
    if (comparison->ratios_only)
        report_warning("%u yardsticks changed beyond their noise, so the machine was another one: only the ratios are "
                       "judged", comparison->moved_yardsticks);
    printf("%u metrics judged: %u worse, %u better, %u within the noise\n", comparison->judged, comparison->worse,
           comparison->better, comparison->judged - comparison->worse - comparison->better);
    return comparison->worse > 0 ? EXIT_WORSE : 0;
}

/* ---- options ---- */

static bool take_tolerance(const struct argument *argument, const char *text, void *place)
{
    struct comparison *comparison = place;
    double percent;

    if (!argument_real(argument->name, text, 0, 1000, "percent", &percent))
        return false;
    comparison->tolerance = percent / 100;
    return true;
}

static const struct argument arguments[] = {
    { "tolerance", "PERCENT", "default 5", .take = take_tolerance },
    { "all", NULL, "show metrics that did not change, too", ARGUMENT_FLAG(struct comparison, all, true) },
    { 0 },
};

static const struct command_line command_line = {
    .workload = "compare",
    .usage =
        "usage: ftbench compare [OPTION...] OLD.json NEW.json\n\n"
        "Compares two results of one workload (--json). A metric has changed if the ranges of its rounds do not\n"
        "overlap and its medians differ by more than the tolerance; anything less is noise. If a yardstick has\n"
        "changed, the machine was another one, and only the ratios are judged. Percentiles above p99 never are.\n\n",
    .arguments = arguments,
    .exit_status = "0 nothing is worse, 1 something is, 2 usage, 3 not comparable",
    .words = WORDS_ANYWHERE,
};

int compare_main(int argc, char **argv)
{
    struct comparison comparison = { .tolerance = 0.05 };
    int status = arguments_read(&command_line, argc, argv, &comparison);
    cJSON *old, *new;

    if (status != 0)
        return status > 0 ? 0 : EXIT_USAGE;
    if (argc - optind != 2) {
        report_error("compare takes two files, OLD.json and NEW.json; `ftbench compare --help` tells more");
        return EXIT_USAGE;
    }
    old = result_file_read(argv[optind]);
    new = result_file_read(argv[optind + 1]);
    status = old != NULL && new != NULL ? compare(old, new, &comparison) : EXIT_NOT_COMPARABLE;
    cJSON_Delete(old);
    cJSON_Delete(new);
    return status;
}
