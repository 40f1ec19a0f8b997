/* ftbench report: one page from results of any workload, for people. It shows what is in them and judges nothing. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "bench/arguments.h"
#include "bench/page.h"
#include "bench/plot.h"
#include "bench/result_file.h"
#include "bench/statistics.h"
#include "bench/workloads.h"

#define EXIT_NOT_WRITTEN 1
#define EXIT_USAGE 2
#define BARS_MAX METRICS_MAX

/* ---- numbers as text: a few may be in use at once ---- */

static char *buffer(void)
{
    static char buffers[PAGE_COLUMNS_MAX + 2][64];
    static unsigned next;

    return buffers[next++ % (PAGE_COLUMNS_MAX + 2)];
}

static const char *plain(double value)
{
    char *text = buffer();

    snprintf(text, 64, "%.6g", value);
    return text;
}

static const char *duration(double ns)
{
    char *text = buffer();

    if (ns < 1e3)
        snprintf(text, 64, "%.0f ns", ns);
    else if (ns < 1e6)
        snprintf(text, 64, "%.2f us", ns / 1e3);
    else if (ns < 1e9)
        snprintf(text, 64, "%.2f ms", ns / 1e6);
    else
        snprintf(text, 64, "%.2f s", ns / 1e9);
    return text;
}

/* A scalar or a list of them; false: it is neither. */
static bool value_text(const cJSON *value, char *text, size_t size)
{
    const cJSON *item;
    size_t used = 0;

    if (cJSON_IsNumber(value))
        snprintf(text, size, "%.9g", value->valuedouble);
    else if (cJSON_IsString(value))
        snprintf(text, size, "%s", value->valuestring);
    else if (cJSON_IsBool(value))
        snprintf(text, size, "%s", cJSON_IsTrue(value) ? "yes" : "no");
    else if (cJSON_IsNull(value))
        snprintf(text, size, "not known");
    else if (cJSON_IsArray(value) && cJSON_IsNumber(value->child)) {
        text[0] = '\0';
        cJSON_ArrayForEach(item, value)
            if (used < size)
                used += (size_t)snprintf(text + used, size - used, "%s%.9g", used > 0 ? ", " : "", item->valuedouble);
    } else
        return false;
    return true;
}

/* ---- where and how it was measured ---- */

static void show_pair(struct page *page, const char *name, const char *value)
{
    const char *cells[] = { name, value };

    page_row(page, cells);
}

static void show_machine(struct page *page, const cJSON *result, const char *name, const char *words)
{
    const cJSON *machine = cJSON_GetObjectItemCaseSensitive(result, name);
    const char *rdma = result_file_text(machine, "rdma_devices");
    char text[400];

    if (machine == NULL)
        return;
    snprintf(text, sizeof(text), "%.95s, %.0f cores%s, %.95s, RDMA devices: %.95s", result_file_text(machine, "cpu"),
             result_file_number(machine, "cores", 0),
             cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(machine, "virtual")) ? " (virtual)" : "",
             result_file_text(machine, "kernel"), rdma[0] != '\0' ? rdma : "none");
    show_pair(page, words, text);
}

static void show_noise(struct page *page, const cJSON *result)
{
    const cJSON *noise = cJSON_GetObjectItemCaseSensitive(result, "noise");
    char text[256];

    if (noise == NULL)
        return;
    snprintf(text, sizeof(text), "a loop that only looks at the clock lost %.3f %% of its time, the longest gap "
                                 "%.1f us; stolen %.2f %%; load %.2f", result_file_number(noise, "lost_percent", 0),
             result_file_number(noise, "longest_gap_us", 0), result_file_number(noise, "stolen_percent", 0),
             result_file_number(noise, "load", 0));
    show_pair(page, "noise", text);
}

/* Scalars of an object that nothing else shows. */
static void show_scalars(struct page *page, const cJSON *object)
{
    static const char *const shown[] = { "format", "notes", "model" };
    const cJSON *item;
    char text[512];

    cJSON_ArrayForEach(item, object)
    {
        bool elsewhere = item->string == NULL || strcmp(item->string, "acknowledged_per_second") == 0;

        for (size_t i = 0; i < sizeof(shown) / sizeof(shown[0]); i++)
            elsewhere = elsewhere || strcmp(item->string, shown[i]) == 0;
        if (!elsewhere && value_text(item, text, sizeof(text)))
            show_pair(page, item->string, text);
    }
}

static void show_circumstances(struct page *page, const cJSON *result)
{
    static const char *const heads[] = { "what", "value" };
    const char *notes = result_file_text(result, "notes");

    page_table_begin(page, heads, 2, true);
    show_machine(page, result, "machine", "machine");
    show_machine(page, result, "peer_machine", "other machine");
    show_noise(page, result);
    if (notes[0] != '\0')
        show_pair(page, "note", notes);
    show_scalars(page, result);
    show_scalars(page, cJSON_GetObjectItemCaseSensitive(result, "settings"));
    page_table_end(page);
}

static void show_inputs(struct page *page, const cJSON *result)
{
    static const char *const heads[] = { "input", "value", "unit", "from" };
    const cJSON *inputs = cJSON_GetObjectItemCaseSensitive(result, "inputs"), *input;

    if (!cJSON_IsArray(inputs))
        return;
    page_heading(page, 3, "What the model was given");
    page_table_begin(page, heads, 4, true);
    cJSON_ArrayForEach(input, inputs)
    {
        const char *cells[] = { result_file_text(input, "what"), plain(result_file_number(input, "value", NAN)),
                                result_file_text(input, "unit"), result_file_text(input, "origin") };

        page_row(page, cells);
    }
    page_table_end(page);
}

/* ---- latencies ---- */

static void show_latency_table(struct page *page, const cJSON *all)
{
    static const char *const heads[] = { "latency", "role", "p50", "p90", "p99", "p99.9", "p99.99", "max", "samples" };
    const cJSON *series;

    page_table_begin(page, heads, 9, false);
    cJSON_ArrayForEach(series, all)
    {
        const char *cells[9] = { result_file_text(series, "name"), result_file_text(series, "role") };

        for (unsigned i = 2; i < 8; i++)
            cells[i] = duration(result_file_number(series, heads[i], 0));
        cells[8] = plain(result_file_number(series, "samples", 0));
        page_row(page, cells);
    }
    page_table_end(page);
}

/* The points of a curve in nines. */
static unsigned read_curve(const cJSON *series, double points[PLOT_POINTS_MAX][2])
{
    const cJSON *point;
    unsigned count = 0;

    cJSON_ArrayForEach(point, cJSON_GetObjectItemCaseSensitive(series, "curve"))
    {
        const cJSON *percentile = cJSON_GetArrayItem(point, 0), *ns = cJSON_GetArrayItem(point, 1);

        if (count == PLOT_POINTS_MAX || !cJSON_IsNumber(percentile) || !cJSON_IsNumber(ns) ||
            !(percentile->valuedouble >= 0 && percentile->valuedouble < 100))
            continue;
        points[count][0] = -log10(1 - percentile->valuedouble / 100);
        points[count++][1] = ns->valuedouble;
    }
    return count;
}

static void show_latency(struct page *page, const cJSON *result)
{
    static const char title[] = "latency by percentile";
    static double points[SERIES_MAX][PLOT_POINTS_MAX][2];
    const cJSON *all = cJSON_GetObjectItemCaseSensitive(result, "latency_ns"), *series;
    struct plot_line lines[SERIES_MAX];
    unsigned count = 0;

    if (cJSON_GetArraySize(all) == 0)
        return;
    page_heading(page, 3, "Latency");
    show_latency_table(page, all);
    if (page->markdown)
        return;
    cJSON_ArrayForEach(series, all)
    {
        if (count == SERIES_MAX)
            break;
        lines[count] = (struct plot_line){ .name = result_file_text(series, "name"),
                                           .dashed = strcmp(result_file_text(series, "role"), "yardstick") == 0,
                                           .count = read_curve(series, points[count]), .points = points[count] };
        count++;
    }
    plot_begin(page->out, plot_percentiles(NULL, 0, title, lines, count), false, title);
    plot_percentiles(page->out, 0, title, lines, count);
    plot_end(page->out);
}

/* A counter's throughput, second by second: a pause is a gap in it. */
static void show_seconds(struct page *page, const cJSON *result)
{
    static const char title[] = "acknowledged a second, by seconds since the start";
    static double points[PLOT_POINTS_MAX][2];
    const cJSON *seconds = cJSON_GetObjectItemCaseSensitive(result, "acknowledged_per_second"), *value;
    struct plot_line line = { .name = "acknowledged", .points = points };

    cJSON_ArrayForEach(value, seconds)
    {
        if (line.count == PLOT_POINTS_MAX || !cJSON_IsNumber(value))
            break;
        points[line.count][0] = line.count;
        points[line.count++][1] = fmax(value->valuedouble, 0);
    }
    if (line.count < 2 || page->markdown)
        return;
    page_heading(page, 3, "Throughput over time");
    plot_begin(page->out, plot_time(NULL, 0, title, &line), false, title);
    plot_time(page->out, 0, title, &line);
    plot_end(page->out);
}

/* ---- metrics ---- */

static bool is_percentile(const char *name)
{
    return strstr(name, "_ns.p") != NULL || strstr(name, "_ns.max") != NULL;
}

static bool summary_of(const cJSON *metric, struct summary *summary)
{
    double values[VALUES_MAX];
    unsigned count;

    if (is_percentile(result_file_text(metric, "name")) || !result_file_values(metric, values, &count))
        return false;
    *summary = statistics_summarize(values, count);
    return true;
}

/* Metrics that belong into one plot: rates, or those whose names begin alike. */
static size_t family_length(const char *name)
{
    return strcspn(name, ".");
}

static bool same_family(const char *one, const char *other)
{
    static const char rate[] = "_per_s.";
    bool rates = strstr(one, rate) != NULL;

    if (rates || strstr(other, rate) != NULL)
        return rates && strstr(other, rate) != NULL;
    return family_length(one) == family_length(other) && strncmp(one, other, family_length(one)) == 0;
}

static void show_bars(struct page *page, const cJSON *first)
{
    static struct plot_bar bars[BARS_MAX];
    const char *name = result_file_text(first, "name");
    const cJSON *metric;
    bool ranges = false;
    unsigned count = 0;
    char title[128];

    for (metric = first; metric != NULL && count < BARS_MAX; metric = metric->next) {
        struct summary summary;

        if (!same_family(name, result_file_text(metric, "name")) || !summary_of(metric, &summary))
            continue;
        bars[count++] = (struct plot_bar){ .name = result_file_text(metric, "name"),
                                           .strong = strcmp(result_file_text(metric, "role"), "yardstick") != 0,
                                           .median = summary.median, .min = summary.min, .max = summary.max };
        ranges = ranges || summary.min != summary.max;
    }
    if (count < 2)
        return;
    if (strstr(name, "_per_s.") != NULL)
        name = "per second";
    snprintf(title, sizeof(title), "%.*s%s", (int)family_length(name), name,
             ranges ? ": median, and the range of the rounds" : "");
    plot_begin(page->out, plot_bars(NULL, 0, title, bars, count), false, title);
    plot_bars(page->out, 0, title, bars, count);
    plot_end(page->out);
}

static void show_metrics(struct page *page, const cJSON *result)
{
    static const char *const heads[] = { "metric", "role", "median", "min", "max", "spread", "rounds" };
    const cJSON *metrics = cJSON_GetObjectItemCaseSensitive(result, "metrics"), *metric, *before;
    struct summary summary;
    bool any = false;

    cJSON_ArrayForEach(metric, metrics)
        any = any || summary_of(metric, &summary);
    if (!any)
        return;
    page_heading(page, 3, "Figures, by round");
    cJSON_ArrayForEach(metric, metrics)
    {
        const char *name = result_file_text(metric, "name");
        bool is_first = !page->markdown && summary_of(metric, &summary) &&
                        strcmp(result_file_text(metric, "role"), "fact") != 0;

        for (before = metrics->child; is_first && before != metric; before = before->next)
            is_first = !same_family(name, result_file_text(before, "name"));
        if (is_first)
            show_bars(page, metric);
    }
    page_table_begin(page, heads, 7, false);
    cJSON_ArrayForEach(metric, metrics)
    {
        if (summary_of(metric, &summary)) {
            char *spread = buffer();
            const char *cells[] = {
                result_file_text(metric, "name"), result_file_text(metric, "role"), plain(summary.median),
                plain(summary.min), plain(summary.max), spread,
                plain(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(metric, "values"))),
            };

            snprintf(spread, 64, "%.1f %%", 100 * statistics_spread(&summary));
            page_row(page, cells);
        }
    }
    page_table_end(page);
}

static void show_goals(struct page *page, const cJSON *result)
{
    static const char *const heads[] = { "goal", "limit", "met" };
    const cJSON *goals = cJSON_GetObjectItemCaseSensitive(result, "goals"), *goal;

    if (cJSON_GetArraySize(goals) == 0)
        return;
    page_heading(page, 3, "Goals");
    page_table_begin(page, heads, 3, true);
    cJSON_ArrayForEach(goal, goals)
    {
        const cJSON *met = cJSON_GetObjectItemCaseSensitive(goal, "met");
        double at_most = result_file_number(goal, "at_most", NAN);
        char *limit = buffer();
        const char *cells[] = { result_file_text(goal, "what"), limit,
                                cJSON_IsTrue(met) ? "met" : cJSON_IsFalse(met) ? "MISSED" : "not known" };

        snprintf(limit, 64, "%s %.4g", isnan(at_most) ? "at least" : "at most",
                 isnan(at_most) ? result_file_number(goal, "at_least", NAN) : at_most);
        page_row(page, cells);
    }
    page_table_end(page);
}

/* ---- the whole ---- */

static void show_result(struct page *page, const char *path, const cJSON *result)
{
    char heading[256];

    snprintf(heading, sizeof(heading), "%s: %.200s", result_file_workload(result),
             strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path);
    page_heading(page, 2, heading);
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(result, "model")))
        page_strong(page, "A model, not a measurement.");
    show_circumstances(page, result);
    show_inputs(page, result);
    show_latency(page, result);
    show_seconds(page, result);
    show_metrics(page, result);
    show_goals(page, result);
}

static int write_page(struct page *page, const char *title, char **paths, cJSON **results, unsigned count)
{
    page_begin(page, title);
    for (unsigned i = 0; i < count; i++)
        show_result(page, paths[i], results[i]);
    page_end(page);
    return fflush(page->out) == 0 && !ferror(page->out) ? 0 : -EIO;
}

/* ---- options ---- */

struct report {
    const char *out_path; /* NULL: standard output */
    const char *title;
    bool markdown;
};

static const struct argument arguments[] = {
    { "out", "FILE", "default: standard output", ARGUMENT_TEXT(struct report, out_path) },
    { "markdown", NULL, "Markdown instead of HTML", ARGUMENT_FLAG(struct report, markdown, true) },
    { "title", "TEXT", "default: ftbench", ARGUMENT_TEXT(struct report, title) },
    { 0 },
};

static const struct command_line command_line = {
    .workload = "report",
    .usage = "usage: ftbench report [OPTION...] RESULT.json...\n\n"
             "Makes one page of results (--json of any workload): machines and noise, tables, plots. HTML without\n"
             "script and without anything from elsewhere, or Markdown without plots.\n\n",
    .arguments = arguments,
    .exit_status = "0 written, 1 a result cannot be read or the page not written, 2 usage",
    .words = WORDS_ANYWHERE,
};

static int report_results(const struct report *report, char **paths, unsigned count)
{
    cJSON **results = calloc(count, sizeof(*results));
    struct page page = { .markdown = report->markdown };
    int result = results != NULL ? 0 : -ENOMEM;

    for (unsigned i = 0; result == 0 && i < count; i++)
        if ((results[i] = result_file_read(paths[i])) == NULL)
            result = -EINVAL;
    if (result == 0) { /* all are read: only now is an older page overwritten */
        errno = 0;
        page.out = report->out_path != NULL ? fopen(report->out_path, "we") : stdout;
        result = page.out != NULL ? write_page(&page, report->title, paths, results, count) : -EIO;
        if (result != 0)
            report_error("cannot write %s: %s", report->out_path != NULL ? report->out_path : "standard output",
                         strerror(errno));
        if (page.out != NULL && page.out != stdout)
            fclose(page.out);
    }
    for (unsigned i = 0; results != NULL && i < count; i++)
        cJSON_Delete(results[i]);
    free(results);
    return result;
}

int report_main(int argc, char **argv)
{
    struct report report = { .title = "ftbench" };
    int result = arguments_read(&command_line, argc, argv, &report);

    if (result != 0)
        return result > 0 ? 0 : EXIT_USAGE;
    if (optind >= argc) {
        report_error("report takes results, RESULT.json...; `ftbench report --help` tells more");
        return EXIT_USAGE;
    }
    return report_results(&report, argv + optind, (unsigned)(argc - optind)) == 0 ? 0 : EXIT_NOT_WRITTEN;
}
