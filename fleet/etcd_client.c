/* Requests to etcd's JSON gateway, by libcurl. Certificates are always verified, redirects never followed. */
#include "fleet/etcd_client.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <curl/curl.h>

#include "base/clock.h"
#include "base/private_file.h"
#include "base/report.h"

#define ANSWER_MAX_BYTES ((size_t)64 << 10)
#define PEM_MAX_BYTES ((size_t)256 << 10)
#define USER_MAX_BYTES 512

/* google.rpc.Code, as etcd gives it in "code". */
#define CODE_INVALID_ARGUMENT 3
#define CODE_PERMISSION_DENIED 7
#define CODE_FAILED_PRECONDITION 9
#define CODE_UNAUTHENTICATED 16

struct pem {
    char *bytes; /* NULL: none */
    size_t count;
};

struct etcd_client {
    CURL *curl;
    const atomic_bool *cancel;
    const char *auth_option;
    unsigned endpoints, answered;
    char *urls[ETCD_ENDPOINTS_MAX];
    struct pem ca, cert, key;
    char user[USER_MAX_BYTES + 1]; /* NAME\0PASSWORD\0; empty: none */
    const char *password;          /* in it */
    struct curl_slist *headers;    /* with the token, when logged in */
    bool logged_in;
    /* -- of the request under way -- */
    char answer[ANSWER_MAX_BYTES + 1];
    size_t answer_bytes;
    char curl_error[CURL_ERROR_SIZE];
};

/* ---- opening: endpoints ---- */

static int url_refuse(const char *url, const char *why)
{
    report_error("etcd endpoint '%s': %s; it should look like https://10.0.0.1:2379", url, why);
    return -EINVAL;
}

static bool url_has(CURLU *parsed, CURLUPart part)
{
    char *text = NULL;
    bool has = curl_url_get(parsed, part, &text, 0) == CURLUE_OK && *text != '\0';

    curl_free(text);
    return has;
}

static int url_check(const struct etcd_client *client, const char *url)
{
    const char *first = client->urls[0];
    char secret_in_url[160];
    CURLU *parsed = curl_url();
    char *path = NULL;
    int rc = 0;

    if (parsed == NULL)
        return -ENOMEM;
    snprintf(secret_in_url, sizeof(secret_in_url), "a command line is no place for a user or password; put them into "
             "the file 'user' of %s DIR", client->auth_option);
    if ((strncmp(url, "https://", 8) != 0 && strncmp(url, "http://", 7) != 0) ||
        curl_url_set(parsed, CURLUPART_URL, url, 0) != CURLUE_OK)
        rc = url_refuse(url, "it is no http:// or https:// URL");
    else if (url_has(parsed, CURLUPART_USER) || url_has(parsed, CURLUPART_PASSWORD)) /* nor is it repeated here */
        rc = url_refuse("...@...", secret_in_url);
    else if (!url_has(parsed, CURLUPART_PORT))
        rc = url_refuse(url, "its port is missing (etcd's usual one is 2379)");
    else if (curl_url_get(parsed, CURLUPART_PATH, &path, 0) != CURLUE_OK || strcmp(path, "/") != 0 ||
             url_has(parsed, CURLUPART_QUERY) || url_has(parsed, CURLUPART_FRAGMENT))
        rc = url_refuse(url, "nothing may follow the port");
    else if (strncmp(url, first, 5) != 0)
        rc = url_refuse(url, "http:// and https:// endpoints do not mix");
    curl_free(path);
    curl_url_cleanup(parsed);
    return rc;
}

static int urls_take(struct etcd_client *client, const char *urls)
{
    while (*urls != '\0') {
        size_t length = strcspn(urls, ",");
        char *url;
        int rc;

        if (client->endpoints == ETCD_ENDPOINTS_MAX)
            return url_refuse(urls, "there are more than 8 endpoints");
        url = client->urls[client->endpoints] = strndup(urls, length);
        if (url == NULL)
            return -ENOMEM;
        client->endpoints++;
        rc = url_check(client, url);
        if (rc < 0)
            return rc;
        if (url[length - 1] == '/')
            url[length - 1] = '\0';
        for (unsigned i = 0; i + 1 < client->endpoints; i++)
            if (strcmp(client->urls[i], url) == 0)
                return url_refuse(url, "it is named twice");
        urls += length;
        if (*urls == ',' && *++urls == '\0')
            return url_refuse("", "there is none behind the last comma");
    }
    return client->endpoints > 0 ? 0 : url_refuse("", "there is none");
}

/* ---- opening: credentials ---- */

static int read_all(int fd, const char *path, struct pem *pem)
{
    ssize_t got;

    pem->bytes = malloc(PEM_MAX_BYTES + 1);
    if (pem->bytes == NULL)
        return -ENOMEM;
    got = read(fd, pem->bytes, PEM_MAX_BYTES + 1);
    if (got <= 0 || (size_t)got > PEM_MAX_BYTES) {
        int rc = got < 0 ? -errno : -EINVAL;

        report_error("'%s': %s", path,
                     got < 0 ? strerror(-rc) : got == 0 ? "it is empty" : "it is too long for a PEM file");
        return rc;
    }
    pem->count = (size_t)got;
    return 0;
}

/* Everybody may read it, but who can write it decides whom we trust. */
static int public_open(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;
    int rc;

    if (fd < 0 || fstat(fd, &status) != 0) {
        rc = -errno;
        report_error("'%s' does not open: %s", path, strerror(-rc));
    } else if (!S_ISREG(status.st_mode) || (status.st_mode & 022) != 0 ||
               (status.st_uid != geteuid() && status.st_uid != 0)) {
        rc = -EACCES;
        report_error("'%s' must be a regular file, ours or root's, that nobody else can write: 'chmod 644 %s'", path,
                     path);
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

/* A file that need not be there: 1 if it is not. `remedy` NULL: it holds no secret. */
static int credential_read(const char *dir, const char *name, const char *remedy, size_t most_bytes, struct pem *pem)
{
    char path[4096];
    int fd, rc;

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
        return -ENAMETOOLONG;
    if (access(path, F_OK) != 0 && errno == ENOENT)
        return 1;
    if (remedy != NULL) {
        fd = private_file_open(path, "arbiter credential", 1, most_bytes, remedy);
        if (fd < 0)
            return fd;
    } else {
        fd = public_open(path);
        if (fd < 0)
            return fd;
    }
    rc = read_all(fd, path, pem);
    close(fd);
    return rc;
}

static int user_take(struct etcd_client *client, const char *dir, const struct pem *file)
{
    char *colon, *end = memchr(file->bytes, '\n', file->count);
    size_t length = end != NULL ? (size_t)(end - file->bytes) : file->count;

    if ((end != NULL && length + 1 != file->count) || memchr(file->bytes, '\0', file->count) != NULL)
        goto malformed;
    memcpy(client->user, file->bytes, length);
    client->user[length] = '\0';
    colon = strchr(client->user, ':');
    if (colon == NULL || colon == client->user || colon[1] == '\0')
        goto malformed;
    *colon = '\0';
    client->password = colon + 1;
    return 0;
malformed:
    report_error("'%s/user' must be one line NAME:PASSWORD", dir);
    return -EINVAL;
}

static void pem_free(struct pem *pem)
{
    if (pem->bytes != NULL)
        explicit_bzero(pem->bytes, pem->count);
    free(pem->bytes);
    *pem = (struct pem){ 0 };
}

static int credentials_read(struct etcd_client *client, const char *dir)
{
    struct pem user = { 0 };
    struct stat status;
    int rc;

    if (strncmp(client->urls[0], "https://", 8) != 0) {
        report_error("%s needs https:// endpoints: over '%s' a password could be read on the way, and nobody proves "
                     "who he is", client->auth_option, client->urls[0]);
        return -EINVAL;
    }
    rc = stat(dir, &status) != 0 ? -errno : S_ISDIR(status.st_mode) ? 0 : -ENOTDIR;
    if (rc < 0) {
        report_error("%s '%s' is no directory with ca.pem, cert.pem, key.pem, user: %s", client->auth_option, dir,
                     strerror(-rc));
        return rc;
    }
    if ((status.st_mode & 022) != 0 || (status.st_uid != geteuid() && status.st_uid != 0)) {
        report_error("%s '%s' must be ours or root's, and nobody else may write there: 'chmod 755 %s'",
                     client->auth_option, dir, dir);
        return -EACCES;
    }
    rc = credential_read(dir, "ca.pem", NULL, 0, &client->ca);
    if (rc >= 0)
        rc = credential_read(dir, "cert.pem", NULL, 0, &client->cert);
    if (rc >= 0)
        rc = credential_read(dir, "key.pem", "it should hold the private key of cert.pem", PEM_MAX_BYTES, &client->key);
    if (rc >= 0)
        rc = credential_read(dir, "user", "it should hold one line NAME:PASSWORD", USER_MAX_BYTES, &user);
    if (rc == 0)
        rc = user_take(client, dir, &user);
    pem_free(&user);
    if (rc < 0)
        return rc;
    if ((client->cert.bytes == NULL) != (client->key.bytes == NULL)) {
        report_error("'%s' has %s without %s: a client certificate needs both, or remove it", dir,
                     client->cert.bytes != NULL ? "cert.pem" : "key.pem",
                     client->cert.bytes != NULL ? "key.pem" : "cert.pem");
        return -EINVAL;
    }
    if (client->ca.bytes == NULL && client->cert.bytes == NULL && client->password == NULL) {
        report_error("'%s' has none of ca.pem, cert.pem with key.pem, and user", dir);
        return -EINVAL;
    }
    return 0;
}

/* ---- opening: libcurl ---- */

static size_t take_bytes(char *bytes, size_t one, size_t count, void *arg)
{
    struct etcd_client *client = arg;

    if (count * one > ANSWER_MAX_BYTES - client->answer_bytes)
        return 0; /* ends the request: CURLE_WRITE_ERROR */
    memcpy(client->answer + client->answer_bytes, bytes, count * one);
    client->answer_bytes += count * one;
    return count * one;
}

/* libcurl calls this at least once a second. */
static int look_for_cancel(void *arg, curl_off_t down_all, curl_off_t down, curl_off_t up_all, curl_off_t up)
{
    const struct etcd_client *client = arg;

    (void)down_all, (void)down, (void)up_all, (void)up;
    return atomic_load(client->cancel);
}

static CURLcode set_blob(CURL *curl, CURLoption option, const struct pem *pem)
{
    struct curl_blob blob = { .data = pem->bytes, .len = pem->count, .flags = CURL_BLOB_NOCOPY };

    return pem->bytes != NULL ? curl_easy_setopt(curl, option, &blob) : CURLE_OK;
}

static int curl_prepare(struct etcd_client *client)
{
    CURL *curl;
    CURLcode rc;

    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) /* never undone: a thread left behind may use it */
        return -ENOMEM;
    curl = client->curl = curl_easy_init();
    if (curl == NULL)
        return -ENOMEM;
#define SET(option, value)                          \
    do {                                            \
        rc = curl_easy_setopt(curl, option, value); \
        if (rc != CURLE_OK)                         \
            goto fail;                              \
    } while (0)
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, ""); /* nor one from the environment */
    SET(CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2);
    if (client->ca.bytes != NULL) { /* this one alone, not the system's as well */
        SET(CURLOPT_CAINFO, NULL);
        SET(CURLOPT_CAPATH, NULL);
    }
    SET(CURLOPT_KEYPASSWD, ""); /* an encrypted key fails rather than ask on the terminal */
    SET(CURLOPT_WRITEFUNCTION, take_bytes);
    SET(CURLOPT_WRITEDATA, client);
    SET(CURLOPT_XFERINFOFUNCTION, look_for_cancel);
    SET(CURLOPT_XFERINFODATA, client);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_ERRORBUFFER, client->curl_error);
#undef SET
    rc = set_blob(curl, CURLOPT_CAINFO_BLOB, &client->ca);
    if (rc == CURLE_OK)
        rc = set_blob(curl, CURLOPT_SSLCERT_BLOB, &client->cert);
    if (rc == CURLE_OK)
        rc = set_blob(curl, CURLOPT_SSLKEY_BLOB, &client->key);
    if (rc == CURLE_OK)
        return 0;
fail:
    report_error("libcurl refuses an option that the arbiter needs: %s", curl_easy_strerror(rc));
    return -ENOTSUP;
}

int etcd_client_open(struct etcd_client **out, const char *urls, const char *auth_dir, const char *auth_option,
                     const atomic_bool *cancel)
{
    struct etcd_client *client = calloc(1, sizeof(*client));
    int rc;

    *out = NULL;
    if (client == NULL)
        return -ENOMEM;
    client->cancel = cancel;
    client->auth_option = auth_option;
    rc = urls_take(client, urls);
    if (rc == 0 && auth_dir != NULL)
        rc = credentials_read(client, auth_dir);
    if (rc == 0)
        rc = curl_prepare(client);
    if (rc < 0) {
        etcd_client_close(client);
        return rc;
    }
    *out = client;
    return 0;
}

void etcd_client_close(struct etcd_client *client)
{
    if (client == NULL)
        return;
    curl_easy_cleanup(client->curl);
    curl_slist_free_all(client->headers);
    pem_free(&client->ca);
    pem_free(&client->cert);
    pem_free(&client->key);
    for (unsigned i = 0; i < client->endpoints; i++)
        free(client->urls[i]);
    explicit_bzero(client, sizeof(*client)); /* the password; a token in an answer */
    free(client);
}

unsigned etcd_client_endpoints(const struct etcd_client *client)
{
    return client->endpoints;
}

const char *etcd_client_url(const struct etcd_client *client, unsigned endpoint)
{
    return client->urls[endpoint];
}

/* ---- requests ---- */

struct failure {
    char *why;
    const char *url;
    int *error;
};

/* Always NULL, so that it can be returned. What servers say may be of any make: one line of plain text comes out. */
__attribute__((format(printf, 3, 4))) static cJSON *fail_with(const struct failure *failure, int error,
                                                              const char *format, ...)
{
    int used = snprintf(failure->why, ETCD_WHY_BYTES, "%.80s: ", failure->url);
    va_list args;

    va_start(args, format);
    vsnprintf(failure->why + used, ETCD_WHY_BYTES - (size_t)used, format, args);
    va_end(args);
    for (char *c = failure->why; *c != '\0'; c++)
        if (!isprint((unsigned char)*c))
            *c = ' ';
    *failure->error = error;
    return NULL;
}

static cJSON *fail_transport(const struct etcd_client *client, const struct failure *failure, CURLcode code,
                             uint64_t deadline_ns)
{
    const char *detail = client->curl_error[0] != '\0' ? client->curl_error : curl_easy_strerror(code);
    bool tls = strncmp(failure->url, "https://", 8) == 0;

    switch ((int)code) {
    case CURLE_OPERATION_TIMEDOUT:
        return fail_with(failure, -EHOSTUNREACH, "no answer within %llu ms",
                         (unsigned long long)(deadline_ns / NS_PER_MS));
    case CURLE_PEER_FAILED_VERIFICATION:
        return fail_with(failure, -EACCES, "%s; ca.pem must be the authority that signed its certificate, which must "
                         "name this host", detail);
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
        return fail_with(failure, -EACCES, "%s; look at ca.pem, cert.pem and key.pem", detail);
    case CURLE_SSL_CONNECT_ERROR:
        return fail_with(failure, -EACCES, "no TLS: %s; is it an http:// endpoint, or a client certificate missing?",
                         detail);
    case CURLE_WRITE_ERROR:
        return fail_with(failure, -EPROTO, "its answer is longer than any of etcd's");
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
        return fail_with(failure, -EHOSTUNREACH, "%s; %s", detail, tls ? "does it want another client certificate?"
                                                                       : "is it an https:// endpoint?");
    case CURLE_UNSUPPORTED_PROTOCOL: /* also what is not HTTP at all */
    case CURLE_WEIRD_SERVER_REPLY:
        return fail_with(failure, -EPROTO, "it does not speak HTTP, so it is no etcd");
    default:
        return fail_with(failure, -EHOSTUNREACH, "%s", detail);
    }
}

/* An answer other than 200. *again: the token is not known there (any more). */
static cJSON *fail_status(const struct etcd_client *client, const struct failure *failure, long status, bool *again)
{
    cJSON *answer = cJSON_Parse(client->answer);
    const char *words = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "message"));
    const cJSON *code = cJSON_GetObjectItemCaseSensitive(answer, "code");

    if (words == NULL || !cJSON_IsNumber(code)) {
        if (status == 400 && strstr(client->answer, "HTTP request to an HTTPS server") != NULL)
            fail_with(failure, -EPROTO, "it wants https://");
        else if (strstr(client->answer, "CommonName of client") != NULL) /* it could be taken for a user */
            fail_with(failure, -EACCES, "its gateway takes no client certificate with a common name: make cert.pem "
                      "with a subject that has no CN (/O=ftvmm)");
        else
            fail_with(failure, -EPROTO, "it answers with HTTP status %ld, not as etcd's v3 JSON gateway does (etcd 3.4 "
                      "or later)", status);
    } else if (client->password != NULL && strstr(words, client->password) != NULL) {
        fail_with(failure, -EPROTO, "it refuses, in words that are not repeated here");
    } else {
        *again = client->logged_in && (code->valueint == CODE_UNAUTHENTICATED ||
                                       strstr(words, "invalid auth token") != NULL ||
                                       strstr(words, "auth store is old") != NULL);
        switch (code->valueint) {
        case CODE_INVALID_ARGUMENT:
            if (client->password == NULL && strstr(words, "user name"))
                fail_with(failure, -EACCES, "%.140s; it wants a user: %s DIR with the file 'user'", words,
                          client->auth_option);
            else
                fail_with(failure, -EACCES, "%.140s", words);
            break;
        case CODE_PERMISSION_DENIED:
            fail_with(failure, -EACCES, "%.100s; the user needs read and write on the keys ftvmm/", words);
            break;
        case CODE_UNAUTHENTICATED:
            fail_with(failure, -EACCES, "%.140s", words);
            break;
        case CODE_FAILED_PRECONDITION:
            fail_with(failure, -EACCES, "%.140s", words);
            break;
        default: /* no leader, request timed out, no space: it cannot serve now */
            fail_with(failure, -EHOSTUNREACH, "%.140s", words);
        }
    }
    cJSON_Delete(answer);
    return NULL;
}

static cJSON *post_once(struct etcd_client *client, const struct failure *failure, const char *path, const char *body,
                        uint64_t deadline_ns, bool *again)
{
    CURL *curl = client->curl;
    char url[512];
    long status = 0;
    CURLcode code;
    cJSON *answer;
    const cJSON *header;

    snprintf(url, sizeof(url), "%.400s%s", failure->url, path);
    client->answer_bytes = 0;
    client->curl_error[0] = '\0';
    *again = false;
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, client->headers);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(deadline_ns / NS_PER_MS));
    code = curl_easy_perform(curl);
    client->answer[client->answer_bytes] = '\0';
    if (code != CURLE_OK)
        return fail_transport(client, failure, code, deadline_ns);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        return fail_status(client, failure, status, again);
    answer = cJSON_ParseWithLength(client->answer, client->answer_bytes);
    header = cJSON_GetObjectItemCaseSensitive(answer, "header");
    if (header == NULL) /* one of a stream (lease/keepalive) is wrapped */
        header = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(answer, "result"), "header");
    if (!cJSON_IsObject(answer) || !cJSON_IsObject(header)) {
        cJSON_Delete(answer);
        return fail_with(failure, -EPROTO, "its answer is none of etcd's");
    }
    return answer;
}

/* The next requests carry `token` (NULL: none). */
static int headers_make(struct etcd_client *client, const char *token)
{
    char line[1024];
    struct curl_slist *more;

    curl_slist_free_all(client->headers);
    client->headers = curl_slist_append(NULL, "Content-Type: application/json");
    client->logged_in = false;
    if (client->headers == NULL)
        return -ENOMEM;
    if (token == NULL)
        return 0;
    if ((size_t)snprintf(line, sizeof(line), "Authorization: %s", token) >= sizeof(line) || strpbrk(token, "\r\n"))
        return -EPROTO;
    more = curl_slist_append(client->headers, line);
    if (more == NULL)
        return -ENOMEM;
    client->headers = more;
    client->logged_in = true;
    return 0;
}

/* True: requests have a token now, or need none. */
static bool log_in(struct etcd_client *client, const struct failure *failure, uint64_t deadline_ns)
{
    cJSON *request, *answer;
    const cJSON *token;
    char *body;
    bool again;
    int rc;

    if (client->logged_in)
        return true;
    rc = headers_make(client, NULL);
    if (rc < 0)
        fail_with(failure, rc, "%s", strerror(-rc));
    if (rc < 0 || client->password == NULL)
        return rc == 0;
    request = cJSON_CreateObject();
    cJSON_AddStringToObject(request, "name", client->user);
    cJSON_AddStringToObject(request, "password", client->password);
    body = cJSON_PrintUnformatted(request);
    explicit_bzero(cJSON_GetObjectItem(request, "password")->valuestring, strlen(client->password));
    cJSON_Delete(request);
    if (body == NULL) {
        fail_with(failure, -ENOMEM, "%s", strerror(ENOMEM));
        return false;
    }
    answer = post_once(client, failure, "/v3/auth/authenticate", body, deadline_ns, &again);
    explicit_bzero(body, strlen(body));
    free(body);
    if (answer == NULL)
        return false;
    token = cJSON_GetObjectItemCaseSensitive(answer, "token");
    rc = cJSON_IsString(token) && token->valuestring[0] != '\0' ? headers_make(client, token->valuestring) : -EPROTO;
    cJSON_Delete(answer);
    if (rc < 0)
        fail_with(failure, rc, "it lets the user in without a usable token");
    return rc == 0;
}

cJSON *etcd_client_post(struct etcd_client *client, unsigned endpoint, const char *path, const char *body,
                        uint64_t deadline_ns, char why[ETCD_WHY_BYTES], int *error)
{
    struct failure failure = { .why = why, .url = client->urls[endpoint], .error = error };
    uint64_t until_ns = clock_now_ns() + deadline_ns;
    cJSON *answer = NULL;
    bool again = true;

    /* Tokens run out (after 5 minutes by default) and are lost with a member's restart: then once more. */
    for (unsigned tries = 0; tries < 2 && again && answer == NULL; tries++) {
        uint64_t now_ns = clock_now_ns();

        if (now_ns + NS_PER_MS > until_ns)
            return fail_transport(client, &failure, CURLE_OPERATION_TIMEDOUT, deadline_ns);
        if (!log_in(client, &failure, until_ns - now_ns))
            return NULL;
        now_ns = clock_now_ns();
        if (now_ns + NS_PER_MS > until_ns)
            return fail_transport(client, &failure, CURLE_OPERATION_TIMEDOUT, deadline_ns);
        answer = post_once(client, &failure, path, body, until_ns - now_ns, &again);
        if (again)
            client->logged_in = false;
    }
    return answer;
}

cJSON *etcd_client_post_any(struct etcd_client *client, const char *path, const char *body, uint64_t deadline_ns,
                            char why[ETCD_WHY_BYTES], int *error)
{
    unsigned first = client->answered;

    *error = 0;
    for (unsigned i = 0; i < client->endpoints; i++) {
        unsigned endpoint = (first + i) % client->endpoints;
        char this_why[ETCD_WHY_BYTES];
        int this_error;
        cJSON *answer = etcd_client_post(client, endpoint, path, body, deadline_ns, this_why, &this_error);

        if (answer != NULL) {
            client->answered = endpoint;
            return answer;
        }
        if (*error == 0 || *error == -EHOSTUNREACH) { /* a refusal tells more than silence */
            *error = this_error;
            memcpy(why, this_why, ETCD_WHY_BYTES);
        }
    }
    return NULL;
}

unsigned etcd_client_answered(const struct etcd_client *client)
{
    return client->answered;
}

void etcd_client_set_answered(struct etcd_client *client, unsigned endpoint)
{
    client->answered = endpoint;
}
