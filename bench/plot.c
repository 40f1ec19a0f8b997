/* Draws plots as SVG; see plot.h. */
#include "bench/plot.h"

#include <math.h>
#include <string.h>

#define WIDTH     900.0
#define LEFT      70.0
#define RIGHT     220.0 /* the names of the lines stand there */
#define HEAD      40.0  /* above a plot, for its title */
#define HEIGHT    320.0 /* of a plot of lines */
#define FOOT      40.0
#define NINES     5.0   /* the axis of percentiles ends at 99.999 % */
#define BAR       16.0
#define BARS_LEFT 330.0
#define BARS_TEXT 120.0 /* the figures stand behind the bars */

/* Of middling lightness: they stand out from white and from black. */
static const char *const colours[] = { "#3b82c4", "#d9693f", "#3f9d63", "#9a6fd0", "#b98f1c", "#808080",
                                       "#d66aa8", "#2aa3a8", "#7a9a2e", "#b0524d", "#5f7fe0", "#a07850" };
#define COLOURS (sizeof(colours) / sizeof(colours[0]))

void plot_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        case '\'': fputs("&#39;", out); break;
        default:
            /* what XML forbids */
            fputc((unsigned char)*text < ' ' && *text != '\n' && *text != '\t' ? '?' : *text, out);
        }
    }
}

void plot_begin(FILE *out, double height, bool standalone, const char *title)
{
    fprintf(out, "<svg %sviewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" role=\"img\" "
                 "font-family=\"sans-serif\" font-size=\"12\" fill=\"currentColor\"><title>",
            standalone ? "xmlns=\"http://www.w3.org/2000/svg\" " : "", WIDTH, height, WIDTH, height);
    plot_text(out, title);
    fputs("</title>\n", out);
    if (standalone)
        fputs("<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n", out);
}

void plot_end(FILE *out)
{
    fputs("</svg>\n", out);
}

static void text_at(FILE *out, double x, double y, const char *anchor, const char *text)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    plot_text(out, text);
    fputs("</text>\n", out);
}

static void grid(FILE *out, double x, double y, char direction, double to)
{
    fprintf(out, "<path d=\"M%.1f %.1f%c%.1f\" stroke=\"currentColor\" stroke-opacity=\"0.2\"/>\n", x, y, direction,
            to);
}

static void line_begin(FILE *out, const struct plot_line *line, unsigned number)
{
    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"%s points=\"", colours[number % COLOURS],
            line->dashed ? " stroke-dasharray=\"5 3\"" : "");
}

static void legend(FILE *out, double top, const char *name, unsigned number)
{
    double y = top + 20 * number + 10;

    fprintf(out, "<path d=\"M%.1f %.1fh24\" stroke=\"%s\" stroke-width=\"2\"/>\n", WIDTH - RIGHT + 12, y,
            colours[number % COLOURS]);
    text_at(out, WIDTH - RIGHT + 42, y + 4, "start", name);
}

static double lines_end(double top, unsigned count)
{
    double legend_height = 20.0 * count;

    return top + HEAD + (legend_height > HEIGHT ? legend_height : HEIGHT) + FOOT;
}

/* ---- percentiles: x in nines, y a logarithm of ns ---- */

static double nines_x(double nines)
{
    return LEFT + nines / NINES * (WIDTH - LEFT - RIGHT);
}

static double log_of(double ns)
{
    return log10(ns < 1 ? 1 : ns);
}

static void label_ns(char label[32], double exponent)
{
    static const char *const units[] = { "ns", "us", "ms", "s" };
    unsigned unit = exponent < 3 ? 0 : exponent < 6 ? 1 : exponent < 9 ? 2 : 3;

    snprintf(label, 32, "%.0f %s", pow(10, exponent - 3.0 * unit), units[unit]);
}

double plot_percentiles(FILE *out, double top, const char *title, const struct plot_line *lines, unsigned count)
{
    static const char *const marks[] = { "0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %" };
    double low = 18, high = 0, end = lines_end(top, count);
    char label[32];

    if (out == NULL)
        return end;
    for (unsigned i = 0; i < count; i++)
        for (unsigned p = 0; p < lines[i].count; p++) {
            low = fmin(low, floor(log_of(lines[i].points[p][1])));
            high = fmax(high, ceil(log_of(lines[i].points[p][1])));
        }
    if (high <= low)
        high = low + 1;
    text_at(out, LEFT, top + HEAD - 16, "start", title);
    top += HEAD;
    for (double decade = low; decade <= high; decade++) {
        double y = top + HEIGHT * (1 - (decade - low) / (high - low));

        grid(out, LEFT, y, 'H', WIDTH - RIGHT);
        label_ns(label, decade);
        text_at(out, LEFT - 6, y + 4, "end", label);
    }
    for (int nines = 0; nines <= (int)NINES; nines++) {
        grid(out, nines_x(nines), top, 'V', top + HEIGHT);
        text_at(out, nines_x(nines), top + HEIGHT + 16, "middle", marks[nines]);
    }
    for (unsigned i = 0; i < count; i++) {
        line_begin(out, &lines[i], i);
        for (unsigned p = 0; p < lines[i].count; p++)
            if (lines[i].points[p][0] <= NINES)
                fprintf(out, "%.1f,%.1f ", nines_x(lines[i].points[p][0]),
                        top + HEIGHT * (1 - (log_of(lines[i].points[p][1]) - low) / (high - low)));
        fputs("\"/>\n", out);
        legend(out, top, lines[i].name, i);
    }
    return end;
}

/* ---- a value over time ---- */

double plot_time(FILE *out, double top, const char *title, const struct plot_line *line)
{
    double most = 1, last = 1, end = lines_end(top, 1);
    char label[32];

    if (out == NULL)
        return end;
    for (unsigned p = 0; p < line->count; p++) {
        last = fmax(last, line->points[p][0]);
        most = fmax(most, line->points[p][1]);
    }
    text_at(out, LEFT, top + HEAD - 16, "start", title);
    top += HEAD;
    for (int quarter = 0; quarter <= 4; quarter++) {
        double y = top + HEIGHT * (1 - quarter / 4.0), x = LEFT + quarter / 4.0 * (WIDTH - LEFT - RIGHT);

        grid(out, LEFT, y, 'H', WIDTH - RIGHT);
        grid(out, x, top, 'V', top + HEIGHT);
        snprintf(label, sizeof(label), most < 10 ? "%.2f" : "%.0f", most * quarter / 4);
        text_at(out, LEFT - 6, y + 4, "end", label);
        snprintf(label, sizeof(label), "%.3g s", last * quarter / 4);
        text_at(out, x, top + HEIGHT + 16, "middle", label);
    }
    line_begin(out, line, 0);
    for (unsigned p = 0; p < line->count; p++)
        fprintf(out, "%.1f,%.1f ", LEFT + line->points[p][0] / last * (WIDTH - LEFT - RIGHT),
                top + HEIGHT * (1 - line->points[p][1] / most));
    fputs("\"/>\n", out);
    legend(out, top, line->name, 0);
    return end;
}

/* ---- bars, with the range of the rounds as a line ---- */

double plot_bars(FILE *out, double top, const char *title, const struct plot_bar *bars, unsigned count)
{
    double y = top + HEAD, most = 0, scale;
    char label[32];

    if (out == NULL)
        return y + BAR * count + FOOT / 2;
    for (unsigned i = 0; i < count; i++)
        most = fmax(most, bars[i].max);
    scale = (WIDTH - BARS_LEFT - BARS_TEXT) / (most > 0 ? most : 1);
    text_at(out, LEFT, top + HEAD - 16, "start", title);
    for (unsigned i = 0; i < count; i++, y += BAR) {
        /* what is below nothing has no length */
        double median = fmax(bars[i].median, 0) * scale, min = fmax(bars[i].min, 0) * scale,
               max = fmax(bars[i].max, 0) * scale;

        text_at(out, BARS_LEFT - 6, y + BAR - 4, "end", bars[i].name);
        fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", BARS_LEFT, y, median,
                BAR - 3, bars[i].strong ? colours[0] : "#999999");
        fprintf(out, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"currentColor\"/>\n", BARS_LEFT + min, y + (BAR - 3) / 2,
                BARS_LEFT + max);
        snprintf(label, sizeof(label), "%.4g", bars[i].median);
        text_at(out, BARS_LEFT + max + 6, y + BAR - 4, "start", label);
    }
    return y + FOOT / 2;
}
