/* Writes HTML or Markdown; see page.h. */
#include "bench/page.h"

#include <string.h>

#include "bench/plot.h"

/* Canvas and CanvasText are the reader's own colours (CSS Color 4, 6.2). The policy forbids what would come from
 * elsewhere, should anything ever try. */
static const char head[] =
    "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
    "<meta name=\"viewport\" content=\"width=device-width\">\n"
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    "<style>\n"
    ":root { color-scheme: light dark; }\n"
    "body { background: Canvas; color: CanvasText; font: 15px/1.45 system-ui, sans-serif; max-width: 62rem;"
    " margin: 2rem auto; padding: 0 1rem; }\n"
    "table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }\n"
    "th, td { padding: .15rem .7rem .15rem 0; text-align: right; border-bottom: 1px solid rgba(128, 128, 128, .35); }\n"
    "th:first-child, td:first-child, table.words td { text-align: left; }\n"
    "th { font-weight: 600; }\n"
    "svg { max-width: 100%; height: auto; display: block; }\n"
    "h2 { margin-top: 3rem; border-top: 2px solid rgba(128, 128, 128, .5); padding-top: 1rem; }\n"
    ".wide { overflow-x: auto; }\n"
    "</style>\n<title>";

/* What Markdown or a table in it would take for its own. */
static void markdown_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\n')
            fputc(' ', out);
        else if (*text == '<')
            fputs("&lt;", out);
        else
            fprintf(out, "%s%c", strchr("\\`*[]|", *text) != NULL ? "\\" : "", *text);
    }
}

static void put(struct page *page, const char *text)
{
    if (page->markdown)
        markdown_text(page->out, text);
    else
        plot_text(page->out, text);
}

void page_begin(struct page *page, const char *title)
{
    if (!page->markdown) {
        fputs(head, page->out);
        put(page, title);
        fputs("</title>\n</head>\n<body>\n", page->out);
    }
    page_heading(page, 1, title);
}

void page_end(struct page *page)
{
    if (!page->markdown)
        fputs("</body>\n</html>\n", page->out);
}

static void element(struct page *page, const char *open, const char *close, const char *mark, const char *text)
{
    fputs(page->markdown ? mark : open, page->out);
    put(page, text);
    fputs(page->markdown ? (strcmp(mark, "**") == 0 ? "**\n\n" : "\n\n") : close, page->out);
}

void page_heading(struct page *page, unsigned level, const char *text)
{
    static const char *const opens[] = { "<h1>", "<h2>", "<h3>" };
    static const char *const closes[] = { "</h1>\n", "</h2>\n", "</h3>\n" };
    static const char *const marks[] = { "# ", "## ", "### " };

    element(page, opens[level - 1], closes[level - 1], marks[level - 1], text);
}

void page_paragraph(struct page *page, const char *text)
{
    element(page, "<p>", "</p>\n", "", text);
}

void page_strong(struct page *page, const char *text)
{
    element(page, "<p><strong>", "</strong></p>\n", "**", text);
}

void page_table_begin(struct page *page, const char *const *heads, unsigned columns, bool words)
{
    page->columns = columns;
    if (!page->markdown)
        fprintf(page->out, "<div class=\"wide\"><table%s>\n<tr>", words ? " class=\"words\"" : "");
    for (unsigned i = 0; i < columns; i++) {
        fputs(page->markdown ? "| " : "<th>", page->out);
        put(page, heads[i]);
        fputs(page->markdown ? " " : "</th>", page->out);
    }
    fputs(page->markdown ? "|\n" : "</tr>\n", page->out);
    for (unsigned i = 0; page->markdown && i < columns; i++)
        fputs(i == 0 || words ? "|---" : "|---:", page->out);
    if (page->markdown)
        fputs("|\n", page->out);
}

void page_row(struct page *page, const char *const *cells)
{
    if (!page->markdown)
        fputs("<tr>", page->out);
    for (unsigned i = 0; i < page->columns; i++) {
        fputs(page->markdown ? "| " : "<td>", page->out);
        put(page, cells[i]);
        fputs(page->markdown ? " " : "</td>", page->out);
    }
    fputs(page->markdown ? "|\n" : "</tr>\n", page->out);
}

void page_table_end(struct page *page)
{
    fputs(page->markdown ? "\n" : "</table></div>\n", page->out);
}
