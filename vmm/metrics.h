/* The status document in the text format of Prometheus (exposition format 0.0.4), and the little HTTP around it. */
#ifndef FTVMM_VMM_METRICS_H
#define FTVMM_VMM_METRICS_H

#include <stddef.h>

struct cJSON;

#define METRICS_TEXT_MAX_BYTES 24576u

/* Writes all metrics that `status` (status.h) has into text[room]. The length; 0: no room. */
size_t metrics_format(const struct cJSON *status, char *text, size_t room);

/* Is this, up to and with the empty line, a request for the metrics? 200, or the HTTP status that refuses it. */
unsigned metrics_request_check(const char *request, size_t bytes);

#endif
