/* The two plots of a run in one SVG file: latency percentiles of all series, and throughput of all sizes. */
#include "bench/channel_result.h"

#include <math.h>
#include <string.h>

#include "bench/statistics.h"

#define WIDTH  900.0
#define LEFT   70.0
#define RIGHT  220.0 /* the names of the lines stand there */
#define TOP    40.0
#define HEIGHT 320.0 /* of the plot of percentiles */
#define NINES  5.0   /* its axis ends at 99.999 % */
#define BAR    16.0
#define BARS_LEFT 330.0

static const char *const colours[SERIES_MAX] = { "#1b6ca8", "#c8553d", "#2e8b57", "#8a5fbf", "#b8860b", "#555555",
                                                 "#d0589c", "#00868b" };

static double percentile_x(double nines)
{
    return LEFT + nines / NINES * (WIDTH - LEFT - RIGHT);
}

static double latency_y(double ns, double low, double high)
{
    return TOP + HEIGHT * (1 - (log10(ns < 1 ? 1 : ns) - low) / (high - low));
}

static void text_at(FILE *out, double x, double y, const char *anchor, const char *text)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, text);
}

static void plot_percentiles(const struct bench_result *result, FILE *out)
{
    static const char *const marks[] = { "0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %" };
    double low = 18, high = 0;
    char label[64];

    for (unsigned i = 0; i < result->series_count; i++) {
        const struct histogram *ns = &result->series[i].ns;
        double first = log10((double)histogram_percentile(ns, 0) + 1), last = log10((double)ns->max + 1);

        low = first < low ? floor(first) : low;
        high = last > high ? ceil(last) : high;
    }
    if (high <= low)
        high = low + 1;
    text_at(out, LEFT, TOP - 16, "start", "latency by percentile");
    for (double decade = low; decade <= high; decade++) {
        double y = latency_y(pow(10, decade), low, high);

        fprintf(out, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/>\n", LEFT, y, WIDTH - RIGHT);
        if (decade < 3)
            snprintf(label, sizeof(label), "%.0f ns", pow(10, decade));
        else if (decade < 6)
            snprintf(label, sizeof(label), "%.0f us", pow(10, decade - 3));
        else
            snprintf(label, sizeof(label), "%.0f ms", pow(10, decade - 6));
        text_at(out, LEFT - 6, y + 4, "end", label);
    }
    for (int nines = 0; nines <= (int)NINES; nines++) {
        fprintf(out, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#ddd\"/>\n", percentile_x(nines), TOP, TOP + HEIGHT);
        text_at(out, percentile_x(nines), TOP + HEIGHT + 16, "middle", marks[nines]);
    }
    for (unsigned i = 0; i < result->series_count; i++) {
        const struct series *series = &result->series[i];
        const char *colour = colours[i % SERIES_MAX];
        /* No further than samples reach: beyond 1 - 1/samples there is only the maximum. */
        double end = series->ns.samples > 0 ? log10((double)series->ns.samples) : 0;

        fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"%s points=\"", colour,
                series->role == METRIC_YARDSTICK ? " stroke-dasharray=\"5 3\"" : "");
        for (double nines = 0; nines <= NINES && nines <= end; nines += 0.05)
            fprintf(out, "%.1f,%.1f ", percentile_x(nines),
                    latency_y((double)histogram_percentile(&series->ns, 100 * (1 - pow(10, -nines))), low, high));
        fprintf(out, "\"/>\n<path d=\"M%.1f %.1fh24\" stroke=\"%s\" stroke-width=\"2\"/>\n", WIDTH - RIGHT + 12,
                TOP + 20 * i + 10, colour);
        text_at(out, WIDTH - RIGHT + 42, TOP + 20 * i + 14, "start", series->name);
    }
}

static bool is_bar(const struct metric *metric)
{
    return strstr(metric->name, "_per_s.") != NULL;
}

/* Bars of all rates, with the range of the rounds as a line. */
static void plot_rates(const struct bench_result *result, double top, FILE *out)
{
    double most = 1, y = top, scale;
    char label[96];

    for (unsigned i = 0; i < result->metric_count; i++)
        if (is_bar(&result->metrics[i]))
            most = fmax(most, statistics_summarize(result->metrics[i].values, result->metrics[i].count).max);
    scale = (WIDTH - BARS_LEFT - 120) / most;
    text_at(out, LEFT, top - 16, "start", "throughput per second: median, and the range of the rounds");
    for (unsigned i = 0; i < result->metric_count; i++) {
        const struct metric *metric = &result->metrics[i];
        struct summary summary;

        if (!is_bar(metric))
            continue;
        summary = statistics_summarize(metric->values, metric->count);
        text_at(out, BARS_LEFT - 6, y + BAR - 4, "end", metric->name);
        fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", BARS_LEFT, y,
                summary.median * scale, BAR - 3, metric->role == METRIC_OURS ? colours[0] : "#aaa");
        fprintf(out, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"black\"/>\n", BARS_LEFT + summary.min * scale,
                y + (BAR - 3) / 2, BARS_LEFT + summary.max * scale);
        snprintf(label, sizeof(label), "%.4g", summary.median);
        text_at(out, BARS_LEFT + summary.max * scale + 6, y + BAR - 4, "start", label);
        y += BAR;
    }
}

bool svg_write(const struct bench_result *result, FILE *out)
{
    double bars_top = TOP + HEIGHT + 80;
    unsigned bars = 0;

    for (unsigned i = 0; i < result->metric_count; i++)
        bars += is_bar(&result->metrics[i]);
    fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
                 "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n", WIDTH,
            bars_top + BAR * bars + 20);
    plot_percentiles(result, out);
    plot_rates(result, bars_top, out);
    fprintf(out, "</svg>\n");
    return !ferror(out);
}
