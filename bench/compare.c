/* ftbench compare: what changed between two results of ftbench channel, beyond the noise of either. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "base/report.h"
#include "bench/channel_result.h"
#include "bench/statistics.h"
#include "bench/workloads.h"

#define EXIT_WORSE 1
#define EXIT_USAGE 2
#define EXIT_NOT_COMPARABLE 3
#define FILE_BYTES_MAX (16u << 20)

static void print_help(void)
{
    printf("usage: ftbench compare [OPTION...] OLD.json NEW.json\n\n"
           "Compares two results of `ftbench channel --json`. A metric has changed if the ranges of its rounds do not\n"
           "overlap and its medians differ by more than the tolerance; anything less is noise.\n\n"
           "  --tolerance PERCENT  default 5\n"
           "  --all                show metrics that did not change, too\n\n"
           "exit status: 0 nothing is worse, 1 something is, 2 usage, 3 not comparable\n");
}

static cJSON *read_result(const char *path)
{
    FILE *file = fopen(path, "re");
    char *text = malloc(FILE_BYTES_MAX);
    size_t bytes = file != NULL && text != NULL ? fread(text, 1, FILE_BYTES_MAX, file) : 0;
    cJSON *json = NULL, *format;

    if (file == NULL || text == NULL)
        report_error("cannot read %s: %s", path, strerror(errno));
    else if (bytes == FILE_BYTES_MAX || (json = cJSON_ParseWithLength(text, bytes)) == NULL)
        report_error("%s is no JSON file, or an incomplete one", path);
    if (file != NULL)
        fclose(file);
    free(text);
    format = cJSON_GetObjectItemCaseSensitive(json, "format");
    if (json != NULL && (!cJSON_IsString(format) || strcmp(format->valuestring, RESULT_FORMAT) != 0)) {
        report_error("%s is no result of `ftbench channel --json` that this ftbench can read (%s)", path,
                     RESULT_FORMAT);
        cJSON_Delete(json);
        json = NULL;
    }
    return json;
}

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
    static const char *const needed[] = { "frame_bytes", "windows", "ring_bytes" };
    const cJSON *ours = cJSON_GetObjectItemCaseSensitive(old, "settings");
    const cJSON *theirs = cJSON_GetObjectItemCaseSensitive(new, "settings");

    if (!same(old, new, "link") || !same(old, new, "one_machine")) {
        report_error("not comparable: the links differ");
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

/* The values of a metric; false: it has none that can be used. */
static bool values_of(const cJSON *metric, double values[ROUNDS_MAX], unsigned *count)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(metric, "values"), *value;

    *count = 0;
    cJSON_ArrayForEach(value, array)
    {
        if (!cJSON_IsNumber(value) || *count == ROUNDS_MAX)
            return false;
        values[(*count)++] = value->valuedouble;
    }
    return *count > 0;
}

static const cJSON *metric_named(const cJSON *result, const char *name)
{
    const cJSON *metric;

    cJSON_ArrayForEach(metric, cJSON_GetObjectItemCaseSensitive(result, "metrics"))
    {
        const char *found = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metric, "name"));

        if (found != NULL && strcmp(found, name) == 0)
            return metric;
    }
    return NULL;
}

struct tally {
    unsigned compared, better, worse, moved_yardsticks;
};

static void compare_metric(const cJSON *old, const cJSON *new, double tolerance, bool all, struct tally *tally)
{
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(new, "name"));
    const char *role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(new, "role"));
    const char *better = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(new, "better"));
    double before[ROUNDS_MAX], after[ROUNDS_MAX];
    unsigned before_count, after_count;
    struct summary was, is;
    const char *verdict = "";
    enum change change;

    if (role == NULL || better == NULL || strcmp(role, metric_role_name(METRIC_FACT)) == 0 ||
        !values_of(old, before, &before_count) || !values_of(new, after, &after_count))
        return;
    change = statistics_compare(before, before_count, after, after_count, strcmp(better, "lower") == 0, tolerance);
    was = statistics_summarize(before, before_count);
    is = statistics_summarize(after, after_count);
    if (strcmp(role, metric_role_name(METRIC_YARDSTICK)) == 0) {
        verdict = change != CHANGE_NONE ? "the yardstick itself changed" : "";
        tally->moved_yardsticks += change != CHANGE_NONE;
    } else {
        tally->compared++;
        tally->worse += change == CHANGE_WORSE;
        tally->better += change == CHANGE_BETTER;
        verdict = change == CHANGE_WORSE ? "WORSE" : change == CHANGE_BETTER ? "better" : "";
    }
    if (all || change != CHANGE_NONE)
        printf("%-44s %14.6g %14.6g %8.3f %8.1f %% %8.1f %%  %s\n", name, was.median, is.median,
               was.median != 0 ? is.median / was.median : NAN, 100 * statistics_spread(&was),
               100 * statistics_spread(&is), verdict);
}

static int compare(const cJSON *old, const cJSON *new, double tolerance, bool all)
{
    struct tally tally = { 0 };
    const cJSON *metric;

    if (!are_comparable(old, new))
        return EXIT_NOT_COMPARABLE;
    printf("%-44s %14s %14s %8s %10s %10s\n", "metric", "old", "new", "new/old", "spread", "spread");
    cJSON_ArrayForEach(metric, cJSON_GetObjectItemCaseSensitive(new, "metrics"))
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metric, "name"));
        const cJSON *before = name != NULL ? metric_named(old, name) : NULL;

        if (before != NULL)
            compare_metric(before, metric, tolerance, all, &tally);
    }
    if (tally.compared == 0) {
        report_error("not comparable: the two results have no metric in common");
        return EXIT_NOT_COMPARABLE;
    }
    if (tally.moved_yardsticks > 0)
        report_warning("%u yardsticks changed beyond their noise, so the machine was not the same; trust the ratios",
                       tally.moved_yardsticks);
    printf("%u metrics compared: %u worse, %u better, %u within the noise\n", tally.compared, tally.worse, tally.better,
           tally.compared - tally.worse - tally.better);
    return tally.worse > 0 ? EXIT_WORSE : 0;
}

int compare_main(int argc, char **argv)
{
    enum { TOLERANCE = 1, ALL, HELP };
    static const struct option known[] = {
        { "tolerance", required_argument, NULL, TOLERANCE }, { "all", no_argument, NULL, ALL },
        { "help", no_argument, NULL, HELP },                 { NULL, 0, NULL, 0 },
    };
    double tolerance = 5;
    bool all = false;
    cJSON *old, *new;
    char *end;
    int option, status;

    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case TOLERANCE:
            tolerance = strtod(optarg, &end);
            if (end == optarg || *end != '\0' || !(tolerance >= 0 && tolerance <= 1000)) {
                report_error("--tolerance is '%s'; it must be a number of percent from 0 to 1000", optarg);
                return EXIT_USAGE;
            }
            break;
        case ALL:
            all = true;
            break;
        case HELP:
        case 'h':
            print_help();
            return 0;
        default:
            return EXIT_USAGE; /* getopt has said it */
        }
    }
    if (argc - optind != 2) {
        report_error("compare takes two files, OLD.json and NEW.json; `ftbench compare --help` tells more");
        return EXIT_USAGE;
    }
    old = read_result(argv[optind]);
    new = read_result(argv[optind + 1]);
    status = old != NULL && new != NULL ? compare(old, new, tolerance / 100, all) : EXIT_NOT_COMPARABLE;
    cJSON_Delete(old);
    cJSON_Delete(new);
    return status;
}
