/* The fleet's keys in etcd; see registry.h. */
#include "fleet/registry.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <openssl/evp.h>

#include "base/clock.h"
#include "fleet/etcd_client.h"

#define DEADLINE_NS (2 * NS_PER_S)
#define PREFIX      "ftvmm/.fleet/"
#define HOSTS       PREFIX "hosts/"
#define CLAIMS      PREFIX "claims/"
#define KEY_BYTES   (sizeof(CLAIMS) + FLEET_NAME_BYTES)
#define PAGE_KEYS   100 /* of a listing: an answer must stay below what the client takes */

_Static_assert(FLEET_WHY_BYTES == ETCD_WHY_BYTES, "one sentence fits into the other");

struct fleet {
    struct etcd_client *client;
};

int fleet_open(struct fleet **out, const char *urls, const char *auth_dir, const char *auth_option,
               const atomic_bool *cancel)
{
    struct fleet *fleet = calloc(1, sizeof(*fleet));
    int rc;

    *out = NULL;
    if (fleet == NULL)
        return -ENOMEM;
    rc = etcd_client_open(&fleet->client, urls, auth_dir, auth_option, cancel);
    if (rc < 0) {
        free(fleet);
        return rc;
    }
    *out = fleet;
    return 0;
}

void fleet_close(struct fleet *fleet)
{
    if (fleet == NULL)
        return;
    etcd_client_close(fleet->client);
    free(fleet);
}

/* ---- bytes as etcd's gateway wants them ---- */

/* Adds a string of any length, in base64. */
static void add_bytes(cJSON *object, const char *name, const char *text)
{
    size_t length = strlen(text);
    char *coded = malloc((length + 2) / 3 * 4 + 1);

    if (coded == NULL)
        return; /* etcd refuses a request without its key */
    EVP_EncodeBlock((unsigned char *)coded, (const unsigned char *)text, (int)length);
    cJSON_AddStringToObject(object, name, coded);
    free(coded);
}

/* 64-bit numbers travel as strings. */
static void add_number(cJSON *object, const char *name, int64_t number)
{
    char text[24];

    snprintf(text, sizeof(text), "%lld", (long long)number);
    cJSON_AddStringToObject(object, name, text);
}

static int64_t number_of(const cJSON *object, const char *name)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));

    return text != NULL ? strtoll(text, NULL, 10) : 0;
}

/* The bytes of a base64 string, 0 behind them; freed by the caller. NULL: there is none. */
static char *bytes_of(const cJSON *object, const char *name, size_t *count)
{
    const char *coded = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));
    size_t length = coded != NULL ? strlen(coded) : 0;
    char *bytes = coded != NULL && length % 4 == 0 ? malloc(length / 4 * 3 + 1) : NULL;
    int got = bytes != NULL ? EVP_DecodeBlock((unsigned char *)bytes, (const unsigned char *)coded, (int)length) : -1;

    if (got < 0) {
        free(bytes);
        return NULL;
    }
    for (size_t i = length; i > 0 && coded[i - 1] == '=' && got > 0; i--) /* EVP counts the padding as bytes */
        got--;
    bytes[got] = '\0';
    *count = (size_t)got;
    return bytes;
}

static cJSON *post(struct fleet *fleet, const char *path, cJSON *request, char why[FLEET_WHY_BYTES], int *rc)
{
    char *body = cJSON_PrintUnformatted(request);
    cJSON *answer = NULL;

    cJSON_Delete(request);
    *rc = -ENOMEM;
    snprintf(why, FLEET_WHY_BYTES, "no memory");
    if (body != NULL)
        answer = etcd_client_post_any(fleet->client, path, body, DEADLINE_NS, why, rc);
    free(body);
    return answer;
}

__attribute__((format(printf, 3, 4))) static int fail(char why[FLEET_WHY_BYTES], int rc, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, FLEET_WHY_BYTES, format, args);
    va_end(args);
    return rc;
}

/* ---- transactions ---- */

/* {"compare":[],"success":[]}; with `compare` the condition `target` ("CREATE", "MOD") of `key` EQUAL `revision`. */
static void add_condition(cJSON *txn, const char *key, const char *target, int64_t revision)
{
    cJSON *list = cJSON_GetObjectItem(txn, "compare"), *condition = cJSON_CreateObject();

    if (list == NULL)
        list = cJSON_AddArrayToObject(txn, "compare");
    add_bytes(condition, "key", key);
    cJSON_AddStringToObject(condition, "target", target);
    cJSON_AddStringToObject(condition, "result", "EQUAL");
    add_number(condition, target[0] == 'C' ? "create_revision" : "mod_revision", revision);
    cJSON_AddItemToArray(list, condition);
}

static cJSON *add_operation(cJSON *txn, const char *kind, const char *key)
{
    cJSON *list = cJSON_GetObjectItem(txn, "success"), *operation = cJSON_CreateObject(), *inner;

    if (list == NULL)
        list = cJSON_AddArrayToObject(txn, "success");
    inner = cJSON_AddObjectToObject(operation, kind);
    add_bytes(inner, "key", key);
    cJSON_AddItemToArray(list, operation);
    return inner;
}

/* A transaction that writes: -EAGAIN if its conditions did not hold. */
static int commit(struct fleet *fleet, cJSON *txn, char why[FLEET_WHY_BYTES])
{
    int rc;
    cJSON *answer = post(fleet, "/v3/kv/txn", txn, why, &rc);

    if (answer == NULL)
        return rc;
    rc = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(answer, "succeeded"))
             ? 0
             : fail(why, -EAGAIN, "somebody else was first");
    cJSON_Delete(answer);
    return rc;
}

/* ---- who is there ---- */

/* One page of the keys behind `prefix` from `from` on; *from becomes the next one of all, empty: this was the last. */
static int list_page(struct fleet *fleet, const char *prefix, char from[KEY_BYTES],
                     char names[][FLEET_NAME_BYTES], unsigned *count, unsigned *strange, char why[FLEET_WHY_BYTES])
{
    cJSON *request = cJSON_CreateObject(), *answer;
    const cJSON *kvs, *kv;
    char end[KEY_BYTES];
    bool more;
    int rc;

    snprintf(end, sizeof(end), "%s", prefix);
    end[strlen(end) - 1] = '/' + 1;
    add_bytes(request, "key", from);
    add_bytes(request, "range_end", end);
    add_number(request, "limit", PAGE_KEYS);
    cJSON_AddTrueToObject(request, "keys_only");
    answer = post(fleet, "/v3/kv/range", request, why, &rc);
    if (answer == NULL)
        return rc;
    kvs = cJSON_GetObjectItemCaseSensitive(answer, "kvs");
    more = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(answer, "more"));
    from[0] = '\0';
    rc = 0;
    cJSON_ArrayForEach(kv, kvs) {
        size_t bytes = 0, skip = strlen(prefix);
        char *key = bytes_of(kv, "key", &bytes);
        bool good = key != NULL && bytes > skip && strlen(key) == bytes && strncmp(key, prefix, skip) == 0 &&
                    fleet_name_is_valid(key + skip);
        bool known = false;

        for (unsigned i = 0; good && i < *count; i++)
            known = known || strcmp(names[i], key + skip) == 0;
        if (good && !known && *count == FLEET_HOSTS_MAX)
            rc = fail(why, -E2BIG, "etcd knows more than %u hosts", FLEET_HOSTS_MAX);
        else if (good && !known)
            strcpy(names[(*count)++], key + skip);
        if (!good)
            (*strange)++;
        if (good && more) /* the first key behind it; '!' is less than all that a name may have */
            snprintf(from, KEY_BYTES, "%s!", key);
        free(key);
    }
    if (rc == 0 && more && from[0] == '\0')
        rc = fail(why, -EBADMSG, "what stands behind %s in etcd is none of ours; remove it", prefix);
    cJSON_Delete(answer);
    return rc;
}

int fleet_list(struct fleet *fleet, bool all, char names[][FLEET_NAME_BYTES], unsigned *count, unsigned *strange,
               char why[FLEET_WHY_BYTES])
{
    const char *const prefixes[] = { HOSTS, CLAIMS };
    int rc = 0;

    *count = *strange = 0;
    for (unsigned i = 0; i < (all ? 2 : 1) && rc == 0; i++) {
        char from[KEY_BYTES];

        snprintf(from, sizeof(from), "%s", prefixes[i]);
        for (unsigned pages = 0; rc == 0 && from[0] != '\0'; pages++)
            rc = pages <= FLEET_HOSTS_MAX / PAGE_KEYS + 1
                     ? list_page(fleet, prefixes[i], from, names, count, strange, why)
                     : fail(why, -E2BIG, "etcd holds too many keys behind %s", prefixes[i]);
    }
    return rc;
}

/* The i-th range of a transaction's answer: its only key, NULL: there is none. */
static const cJSON *response_kv(const cJSON *answer, int i)
{
    const cJSON *response = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(answer, "responses"), i);
    const cJSON *range = cJSON_GetObjectItemCaseSensitive(response, "response_range");

    return cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(range, "kvs"), 0);
}

static int take_value(const cJSON *kv, struct fleet_host *host,
                      int (*decode)(struct fleet_host *, const char *, size_t, char *), const char *what,
                      char why[FLEET_WHY_BYTES])
{
    char this_why[FLEET_WHY_BYTES] = "it is no base64";
    size_t bytes = 0;
    char *value = cJSON_HasObjectItem(kv, "value") ? bytes_of(kv, "value", &bytes) : strdup("");
    int rc = value != NULL ? decode(host, value, bytes, this_why) : -EBADMSG;

    free(value);
    return rc == 0 ? 0
                   : fail(why, rc, "the value of %s%.63s is none of ours: %.80s; 'etcdctl del' it", what, host->name,
                          this_why);
}

int fleet_read(struct fleet *fleet, const char *name, struct fleet_host *host, char why[FLEET_WHY_BYTES])
{
    char presence_key[KEY_BYTES], ledger_key[KEY_BYTES];
    cJSON *txn = cJSON_CreateObject(), *answer;
    const cJSON *presence, *ledger;
    int rc;

    memset(host, 0, sizeof(*host));
    snprintf(host->name, sizeof(host->name), "%s", name);
    snprintf(presence_key, sizeof(presence_key), HOSTS "%s", name);
    snprintf(ledger_key, sizeof(ledger_key), CLAIMS "%s", name);
    add_operation(txn, "request_range", presence_key);
    add_operation(txn, "request_range", ledger_key);
    answer = post(fleet, "/v3/kv/txn", txn, why, &rc);
    if (answer == NULL)
        return rc;
    presence = response_kv(answer, 0);
    ledger = response_kv(answer, 1);
    host->presence_created = number_of(presence, "create_revision");
    host->presence_modified = number_of(presence, "mod_revision");
    host->ledger_modified = number_of(ledger, "mod_revision");
    rc = presence != NULL ? take_value(presence, host, fleet_presence_decode, HOSTS, why) : 0;
    if (ledger != NULL) {
        int ledger_rc = take_value(ledger, host, fleet_ledger_decode, CLAIMS, why);

        rc = ledger_rc < 0 ? ledger_rc : rc;
    }
    cJSON_Delete(answer);
    return rc;
}

static int put(struct fleet *fleet, cJSON *txn, const char *key, char *value, int64_t lease, char why[FLEET_WHY_BYTES])
{
    cJSON *operation = add_operation(txn, "request_put", key);
    bool fits = value != NULL && strlen(value) < FLEET_VALUE_BYTES;

    if (fits)
        add_bytes(operation, "value", value);
    if (lease != 0)
        add_number(operation, "lease", lease);
    free(value);
    if (fits)
        return commit(fleet, txn, why);
    cJSON_Delete(txn);
    return fail(why, -E2BIG, "what is to be written is too long");
}

int fleet_write_ledger(struct fleet *fleet, const struct fleet_host *host, bool while_present,
                       char why[FLEET_WHY_BYTES])
{
    char presence_key[KEY_BYTES], ledger_key[KEY_BYTES];
    cJSON *txn = cJSON_CreateObject();

    snprintf(presence_key, sizeof(presence_key), HOSTS "%s", host->name);
    snprintf(ledger_key, sizeof(ledger_key), CLAIMS "%s", host->name);
    add_condition(txn, ledger_key, "MOD", host->ledger_modified);
    if (while_present)
        add_condition(txn, presence_key, "CREATE", host->presence_created);
    return put(fleet, txn, ledger_key, fleet_ledger_encode(host), 0, why);
}

int fleet_write_presence(struct fleet *fleet, const struct fleet_host *host, int64_t lease, char why[FLEET_WHY_BYTES])
{
    char key[KEY_BYTES];
    cJSON *txn = cJSON_CreateObject();

    snprintf(key, sizeof(key), HOSTS "%s", host->name);
    add_condition(txn, key, "MOD", host->presence_modified);
    return put(fleet, txn, key, fleet_presence_encode(host), lease, why);
}

/* ---- leases ---- */

int fleet_lease_grant(struct fleet *fleet, unsigned seconds, int64_t *lease, char why[FLEET_WHY_BYTES])
{
    cJSON *request = cJSON_CreateObject(), *answer;
    int rc;

    add_number(request, "TTL", seconds);
    answer = post(fleet, "/v3/lease/grant", request, why, &rc);
    if (answer == NULL)
        return rc;
    *lease = number_of(answer, "ID");
    cJSON_Delete(answer);
    return *lease != 0 ? 0 : fail(why, -EPROTO, "etcd has granted a lease without an ID");
}

int fleet_lease_renew(struct fleet *fleet, int64_t lease, char why[FLEET_WHY_BYTES])
{
    cJSON *request = cJSON_CreateObject(), *answer;
    int rc;

    add_number(request, "ID", lease);
    answer = post(fleet, "/v3/lease/keepalive", request, why, &rc);
    if (answer == NULL)
        return rc;
    /* A lease that has run out is renewed for no time at all. */
    rc = number_of(cJSON_GetObjectItemCaseSensitive(answer, "result"), "TTL") > 0
             ? 0
             : fail(why, -ENOENT, "the lease has run out");
    cJSON_Delete(answer);
    return rc;
}

int fleet_lease_revoke(struct fleet *fleet, int64_t lease, char why[FLEET_WHY_BYTES])
{
    cJSON *request = cJSON_CreateObject(), *answer;
    int rc;

    add_number(request, "ID", lease);
    answer = post(fleet, "/v3/lease/revoke", request, why, &rc);
    cJSON_Delete(answer);
    return answer != NULL ? 0 : rc;
}
