/*
 * A document with headings, sentences, tables and plots, written as one self-contained HTML page (no script, nothing
 * from elsewhere, light or dark as the reader's system is) or as Markdown, which has no plots. All text is escaped.
 */
#ifndef FTVMM_BENCH_PAGE_H
#define FTVMM_BENCH_PAGE_H

#include <stdbool.h>
#include <stdio.h>

#define PAGE_COLUMNS_MAX 10

struct page {
    FILE *out;
    bool markdown;
    unsigned columns; /* of the table that is open */
};

void page_begin(struct page *page, const char *title);
void page_end(struct page *page);

void page_heading(struct page *page, unsigned level, const char *text); /* 1 to 3 */
void page_paragraph(struct page *page, const char *text);
void page_strong(struct page *page, const char *text); /* a paragraph that must not be missed */

/* `heads` are so many; the first column is text, the others are numbers unless `words`. */
void page_table_begin(struct page *page, const char *const *heads, unsigned columns, bool words);
void page_row(struct page *page, const char *const *cells);
void page_table_end(struct page *page);

#endif
