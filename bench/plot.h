/*
 * Plots as SVG, for a file of its own or inside a page: text and axes take the colour of what surrounds them, so that
 * they can be read on a light and on a dark ground. Every name is escaped.
 */
#ifndef FTVMM_BENCH_PLOT_H
#define FTVMM_BENCH_PLOT_H

#include <stdbool.h>
#include <stdio.h>

#define PLOT_POINTS_MAX 1000

/* A point: x (percentiles: nines, so that 99 % is 2; time: seconds), y. */
struct plot_line {
    const char *name;
    bool dashed;
    unsigned count;
    double (*points)[2];
};

struct plot_bar {
    const char *name;
    bool strong; /* ours */
    double median, min, max;
};

/* Text for HTML, XML and attributes in double quotes. */
void plot_text(FILE *out, const char *text);

/* One <svg> with plots below each other: begin, plots, end. `standalone`: with a namespace and a white ground. */
void plot_begin(FILE *out, double height, bool standalone, const char *title);
void plot_end(FILE *out);

/* Each draws at `top`, and returns where the next may begin; out NULL: only that. */
double plot_percentiles(FILE *out, double top, const char *title, const struct plot_line *lines, unsigned count);
double plot_time(FILE *out, double top, const char *title, const struct plot_line *line);
double plot_bars(FILE *out, double top, const char *title, const struct plot_bar *bars, unsigned count);

#endif
