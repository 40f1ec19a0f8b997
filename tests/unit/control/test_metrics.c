/* Metrics: what a monitoring system reads, who may reach them, and what else is sent to such a port. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "tests/unit/cmocka_prelude.h"
#include "tests/unit/control/fake_session.h"
#include "tests/unit/ports.h"
#include "vmm/control.h"
#include "vmm/control_socket.h"
#include "vmm/metrics.h"
#include "vmm/status.h"

#define ANSWER_MS 5000

static char text[METRICS_TEXT_MAX_BYTES];

/* A metric's line: name, labels, a number. */
static bool line_is_well_formed(const char *line)
{
    char *end;

    if (*line == '#')
        return strncmp(line, "# HELP ftvmm_", 13) == 0 || strncmp(line, "# TYPE ftvmm_", 13) == 0;
    if (strncmp(line, "ftvmm_", 6) != 0)
        return false;
    while (islower((unsigned char)*line) || isdigit((unsigned char)*line) || *line == '_')
        line++;
    if (*line == '{') {
        line = strrchr(line, '}');
        if (line == NULL)
            return false;
        line++;
    }
    if (*line != ' ')
        return false;
    (void)strtod(line + 1, &end);
    return end != line + 1 && *end == '\0';
}

static void metrics_are_well_formed_and_in_base_units(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    cJSON *status, *pace, *append;
    char *line, *rest;

    (void)state;
    COUNT_SET(ls->forced_syncs, 12);
    COUNT_SET(ls->forced_delta_pages, 34);
    histogram_record(&ls->forced_pause_ns, 2 * NS_PER_MS);
    COUNT_SET(ls->heal.healed, 2);
    COUNT_SET(ls->forced_ns, 2500 * NS_PER_MS);
    COUNT_SET(ls->machine.exits_by_kind[VCPU_EXIT_HLT], 34);
    status = status_build("a\"\\b\nc", ls);
    pace = cJSON_AddObjectToObject(status, "pace"); /* as if there were a channel */
    cJSON_AddNumberToObject(pace, "percent", 12.5);
    append = cJSON_AddObjectToObject(cJSON_AddObjectToObject(status, "request_steps"), "append"); /* and a network card */
    cJSON_AddNumberToObject(append, "samples", 2);
    cJSON_AddNumberToObject(append, "sum_us", 5.5);
    cJSON_AddNumberToObject(append, "p50_us", 2.5);
    assert_true(metrics_format(status, text, sizeof(text)) > 0);
    assert_non_null(strstr(text, "\nftvmm_forced_syncs_total 12\n"));
    assert_non_null(strstr(text, "\nftvmm_forced_sync_delta_pages_total 34\n"));
    assert_non_null(strstr(text, "\nftvmm_forced_sync_pause_seconds_sum 0.002\n"));
    assert_non_null(strstr(text, "\nftvmm_healed_total 2\n"));
    assert_non_null(strstr(text, "\nftvmm_forced_sync_seconds_total 2.5\n"));
    assert_non_null(strstr(text, "\nftvmm_exits_total{kind=\"hlt\"} 34\n"));
    assert_non_null(strstr(text, "\nftvmm_protected 1\n"));
    assert_non_null(strstr(text, "\nftvmm_pace_ratio 0.125\n"));
    assert_non_null(strstr(text, "\nftvmm_request_append_seconds{quantile=\"0.5\"} 2.5e-06\n"));
    assert_non_null(strstr(text, "\nftvmm_request_append_seconds_sum 5.5e-06\n"));
    assert_non_null(strstr(text, "\nftvmm_request_append_seconds_count 2\n"));
    assert_non_null(strstr(text, "ftvmm_info{vm=\"a\\\"\\\\b\\nc\",role=\"primary\",state=\"running\"} 1\n"));
    for (line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
        if (!line_is_well_formed(line))
            fail_msg("no metric: %s", line);
    assert_int_equal(metrics_format(status, text, 500), 0); /* never half of them */
    cJSON_Delete(status);
    fake_session_close(ls);
}

static void request_is_refused_unless_it_gets_the_metrics(void **state)
{
    static const struct {
        const char *request;
        unsigned code;
    } cases[] = {
        { "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200 }, { "GET /metrics?a=b HTTP/1.0\r\n\r\n", 200 },
        { "GET / HTTP/1.1\r\n\r\n", 404 },                  { "GET /metricsx HTTP/1.1\r\n\r\n", 404 },
        { "POST /metrics HTTP/1.1\r\n\r\n", 405 },          { "GET /metrics\r\n\r\n", 400 },
        { "GET /metrics HTTP/2\r\n\r\n", 400 },             { "GET /metrics SPDY/1.1\r\n\r\n", 400 },
        { "\r\n\r\n", 405 },                                { "GET", 400 },
        { "", 400 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(metrics_request_check(cases[i].request, strlen(cases[i].request)), cases[i].code);
}

static void address_must_be_a_loopback_one(void **state)
{
    static const char *const refused[] = {
        "0.0.0.0:9101", "10.0.0.1:9101", "[::]:9101", "localhost:9101", "9101", ":9101", "127.0.0.1", "127.0.0.1:",
        "127.0.0.1:http", "127.0.0.1:99999", "", "[::ffff:10.0.0.1]:9101",
    };
    int fd;

    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        assert_int_equal(control_loopback_listen("--metrics", refused[i]), -EINVAL);
    fd = control_loopback_listen("--metrics", "127.0.0.1:0");
    assert_true(fd >= 0);
    close(fd);
}

static int dial(uint16_t port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* All that comes until the other end closes. */
static void hear(int fd)
{
    size_t bytes = 0;
    ssize_t got;

    do {
        struct pollfd readable = { .fd = fd, .events = POLLIN };

        assert_int_equal(poll(&readable, 1, ANSWER_MS), 1);
        got = recv(fd, text + bytes, sizeof(text) - 1 - bytes, 0);
        bytes += got > 0 ? (size_t)got : 0;
    } while (got > 0);
    text[bytes] = '\0';
    close(fd);
}

static void port_serves_metrics_and_nothing_else(void **state)
{
    struct lockstep *ls = fake_session_open(ROLE_PRIMARY, true);
    struct control_options options = { .path = "none", .vm = "fake", .ls = ls };
    struct control *control;
    char address[32];
    uint16_t port = (uint16_t)ports_free(1);
    int fd, idle[6];

    (void)state;
    snprintf(address, sizeof(address), "127.0.0.1:%u", port);
    options.metrics = address;
    assert_int_equal(control_open(&control, &options), 0);
    for (unsigned i = 0; i < 3; i++) { /* one after the other, in pieces */
        fd = dial(port);
        assert_int_equal(send(fd, "GET /metrics HTTP/1.1\r\nHost", 27, MSG_NOSIGNAL), 27);
        clock_sleep_ns(5 * NS_PER_MS);
        assert_int_equal(send(fd, ": x\r\n\r\n", 7, MSG_NOSIGNAL), 7);
        hear(fd);
        assert_int_equal(strncmp(text, "HTTP/1.1 200 OK\r\n", 17), 0);
        assert_non_null(strstr(text, "ftvmm_protected 1\n"));
        char *body = strstr(text, "\r\n\r\n"), *length = strstr(text, "Content-Length: ");
        assert_true(body != NULL && length != NULL);
        assert_int_equal(strlen(body + 4), atoi(length + 16));
    }
    fd = dial(port);
    assert_int_equal(send(fd, "{\"command\":\"stop\"}\n\n", 20, MSG_NOSIGNAL), 20);
    hear(fd);
    assert_int_equal(strncmp(text, "HTTP/1.1 405", 12), 0);
    assert_false(COUNT_GET(ls->stop_requested));
    /* More than there are places for: those beyond are closed, and when the others go it serves again. */
    for (unsigned i = 0; i < 6; i++)
        idle[i] = dial(port);
    hear(idle[5]);
    for (unsigned i = 0; i < 5; i++)
        close(idle[i]);
    clock_sleep_ns(50 * NS_PER_MS);
    fd = dial(port);
    assert_int_equal(send(fd, "GET /nothing HTTP/1.1\n\n", 23, MSG_NOSIGNAL), 23);
    hear(fd);
    assert_int_equal(strncmp(text, "HTTP/1.1 404", 12), 0);
    control_close(control);
    fake_session_close(ls);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(metrics_are_well_formed_and_in_base_units),
        cmocka_unit_test(request_is_refused_unless_it_gets_the_metrics),
        cmocka_unit_test(address_must_be_a_loopback_one),
        cmocka_unit_test(port_serves_metrics_and_nothing_else),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
