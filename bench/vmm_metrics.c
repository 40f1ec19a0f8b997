/* Fetches and searches metrics in Prometheus' text format; see vmm_metrics.h. */
#include "bench/vmm_metrics.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

#include "base/clock.h"
#include "base/report.h"

#define BYTES_MAX (1u << 20)
#define TIMEOUT_S 10L

static size_t take(char *bytes, size_t size, size_t count, void *ctx)
{
    return ftell(ctx) + (long)(size * count) <= (long)BYTES_MAX ? fwrite(bytes, size, count, ctx) : 0;
}

/* Transfers into `into`. NULL, or why not. */
static const char *fetch(const char *address, FILE *into, char why[CURL_ERROR_SIZE])
{
    CURL *curl = curl_easy_init();
    CURLcode code = CURLE_OUT_OF_MEMORY;
    char url[300];

    why[0] = '\0';
    if (curl == NULL)
        return "no memory";
    snprintf(url, sizeof(url), "http://%s/metrics", address);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, TIMEOUT_S);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, into);
    code = curl_easy_setopt(curl, CURLOPT_URL, url);
    if (code == CURLE_OK)
        code = curl_easy_perform(curl);
    curl_easy_cleanup(curl);
    if (code == CURLE_OK)
        return NULL;
    return why[0] != '\0' ? why : curl_easy_strerror(code);
}

int vmm_metrics_read(struct vmm_metrics *metrics, const char *address)
{
    char why_buffer[CURL_ERROR_SIZE];
    const char *why;
    size_t bytes;
    FILE *into;

    vmm_metrics_fini(metrics);
    into = open_memstream(&metrics->text, &bytes);
    if (into == NULL)
        return -ENOMEM;
    why = fetch(address, into, why_buffer);
    if (fclose(into) != 0 && why == NULL)
        why = "no memory";
    metrics->at_ns = clock_now_ns();
    if (why == NULL && strstr(metrics->text, "ftvmm_info{") == NULL)
        why = "what answers is no ftvmm";
    if (why == NULL)
        return 0;
    report_error("no metrics from %s: %s; start ftvmm with --metrics 127.0.0.1:PORT and forward that port here "
                 "(ssh -L, socat)", address, why);
    vmm_metrics_fini(metrics);
    return -EHOSTUNREACH;
}

void vmm_metrics_fini(struct vmm_metrics *metrics)
{
    free(metrics->text);
    metrics->text = NULL;
}

/* The text behind "ftvmm_NAME" at the beginning of a line, or NULL. */
static const char *find(const struct vmm_metrics *metrics, const char *name)
{
    size_t length = strlen(name);
    const char *line = metrics->text;

    while (line != NULL && *line != '\0') {
        if (strncmp(line, "ftvmm_", 6) == 0 && strncmp(line + 6, name, length) == 0)
            return line + 6 + length;
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return NULL;
}

double vmm_metrics_value(const struct vmm_metrics *metrics, const char *name)
{
    char with_space[160];
    const char *value;

    snprintf(with_space, sizeof(with_space), "%s ", name);
    value = find(metrics, with_space);
    return value != NULL ? strtod(value, NULL) : 0;
}

bool vmm_metrics_is(const struct vmm_metrics *metrics, const char *label)
{
    const char *info = find(metrics, "info{"), *end = info != NULL ? strchr(info, '\n') : NULL;

    return end != NULL && memmem(info, (size_t)(end - info), label, strlen(label)) != NULL;
}
