/* The plots of a run in one SVG file: latency percentiles of all series, and throughput of all sizes. */
#include "bench/result.h"

#include <math.h>
#include <string.h>

#include "bench/plot.h"
#include "bench/statistics.h"

#define STEPS 100 /* points of a line, a twentieth of a nine apart */

static unsigned lines_of(const struct bench_result *result, double points[SERIES_MAX][STEPS + 1][2],
                         struct plot_line lines[SERIES_MAX])
{
    for (unsigned i = 0; i < result->series_count; i++) {
        const struct series *series = &result->series[i];
        /* No further than samples reach: beyond 1 - 1/samples there is only the maximum. */
        double end = series->ns.samples > 0 ? log10((double)series->ns.samples) : -1;
        unsigned count = 0;

        for (; count <= STEPS && count / 20.0 <= end; count++) {
            points[i][count][0] = count / 20.0;
            points[i][count][1] = (double)histogram_percentile(&series->ns, 100 * (1 - pow(10, -(count / 20.0))));
        }
        lines[i] = (struct plot_line){ .name = series->name, .dashed = series->role == METRIC_YARDSTICK,
                                       .count = count, .points = points[i] };
    }
    return result->series_count;
}

static unsigned rates_of(const struct bench_result *result, struct plot_bar bars[METRICS_MAX])
{
    unsigned count = 0;

    for (unsigned i = 0; i < result->metric_count; i++) {
        const struct metric *metric = &result->metrics[i];
        struct summary summary;

        if (strstr(metric->name, "_per_s.") == NULL)
            continue;
        summary = statistics_summarize(metric->values, metric->count);
        bars[count++] = (struct plot_bar){ .name = metric->name, .strong = metric->role == METRIC_OURS,
                                           .median = summary.median, .min = summary.min, .max = summary.max };
    }
    return count;
}

bool result_write_svg(const struct bench_result *result, FILE *out)
{
    static const char latency[] = "latency by percentile";
    static const char rates[] = "throughput per second: median, and the range of the rounds";
    static double points[SERIES_MAX][STEPS + 1][2];
    struct plot_line lines[SERIES_MAX];
    struct plot_bar bars[METRICS_MAX];
    unsigned line_count = lines_of(result, points, lines), bar_count = rates_of(result, bars);
    double middle = plot_percentiles(NULL, 0, latency, lines, line_count);

    plot_begin(out, plot_bars(NULL, middle, rates, bars, bar_count), true, result->workload);
    plot_percentiles(out, 0, latency, lines, line_count);
    plot_bars(out, middle, rates, bars, bar_count);
    plot_end(out);
    return !ferror(out);
}
