/*
 * The arbiter as keys in an etcd cluster. A claim is a transaction "if this pair's key is as we know it and the claim's
 * key does not exist, write the claim": etcd decides it once, by its majority, whichever member was asked. The value
 * names its owner, so a claim whose answer was lost is recognised as our own, at another member too.
 *
 * No leases: a claim under a lease would vanish when its owner fails to renew it, and then the loser could win the same
 * generation while the owner's guest still runs. All reads are linearizable (etcd's default).
 *
 * Keys: ftvmm/VM/GENERATION/pair (a generation in use), ftvmm/VM/GENERATION/live (its claim); GENERATION has 20 digits,
 * so that keys sort as numbers do.
 */
#include "vmm/arbiter_kind.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "base/clock.h"
#include "base/report.h"
#include "fleet/etcd_client.h"

/* A claim is repeated, so it soon turns to the next member; if none answers in time, time grows, so that a slow cluster
 * is decided by in the end. */
#define CLAIM_NS (250 * NS_PER_MS)
#define CLAIM_MIN_NS (50 * NS_PER_MS)
#define CLAIM_MAX_NS (4 * NS_PER_S)
/* Whoever starts or joins a pair asks once. */
#define SET_UP_NS (4 * NS_PER_S)

#define TEXT_BYTES 160   /* a base64 key or value */
#define BODY_BYTES 1536

struct cluster {
    struct etcd_client *client;
    char *vm;
    char owner[TEXT_BYTES]; /* base64 */
    char pair[TEXT_BYTES];  /* base64: value of the generation begun or checked: this pair's, nobody else's */
    uint64_t first_deadline_ns, deadline_ns;
};

static void base64(const char *text, char out[TEXT_BYTES])
{
    size_t length = strlen(text);

    if (length > (TEXT_BYTES - 1) / 4 * 3)
        report_bug("'%s' is too long for an etcd key of ours", text);
    EVP_EncodeBlock((unsigned char *)out, (const unsigned char *)text, (int)length);
}

static void key_of(const struct cluster *cluster, uint64_t generation, const char *kind, char key[TEXT_BYTES])
{
    char text[96];

    snprintf(text, sizeof(text), "ftvmm/%s/%020llu/%s", cluster->vm, (unsigned long long)generation, kind);
    base64(text, key);
}

/* The value of `key` in a range's answer; NULL: there is none. */
static const char *range_value(const cJSON *range, const char *key)
{
    const cJSON *kv = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(range, "kvs"), 0);
    const char *found = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(kv, "key"));
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(kv, "value"));

    return found != NULL && strcmp(found, key) == 0 && value != NULL && *value != '\0' ? value : NULL;
}

/* Of the i-th range in a transaction's answer. */
static const char *response_value(const cJSON *answer, int i, const char *key)
{
    const cJSON *response = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(answer, "responses"), i);

    return range_value(cJSON_GetObjectItemCaseSensitive(response, "response_range"), key);
}

/* The transaction's condition held, and it wrote. */
static bool response_put(const cJSON *answer)
{
    const cJSON *responses = cJSON_GetObjectItemCaseSensitive(answer, "responses");

    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(answer, "succeeded")) &&
           cJSON_GetArraySize(responses) == 1 &&
           cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(responses, 0), "response_put") != NULL;
}

static void etcd_close(void *place)
{
    struct cluster *cluster = place;

    if (cluster == NULL)
        return;
    etcd_client_close(cluster->client);
    free(cluster->vm);
    free(cluster);
}

/*
 * Proves now, not at a failover, that claims can be written: by a transaction whose condition never holds (a key
 * created before revision 0), since rights, quota and majority are asked for either way.
 */
static int probe(struct cluster *cluster)
{
    unsigned endpoints = etcd_client_endpoints(cluster->client), answers = 0;
    char body[BODY_BYTES], key[TEXT_BYTES], why[ETCD_ENDPOINTS_MAX][ETCD_WHY_BYTES];
    bool silent[ETCD_ENDPOINTS_MAX] = { false };
    int error = 0;

    key_of(cluster, 0, "pair", key);
    snprintf(body, sizeof(body),
             "{\"compare\":[{\"key\":\"%s\",\"target\":\"CREATE\",\"result\":\"LESS\",\"create_revision\":\"0\"}],"
             "\"success\":[{\"request_put\":{\"key\":\"%s\",\"value\":\"%s\"}}]}", key, key, cluster->owner);
    for (unsigned i = 0; i < endpoints; i++) {
        cJSON *answer = etcd_client_post(cluster->client, i, "/v3/kv/txn", body, SET_UP_NS, why[i], &error);

        silent[i] = answer == NULL;
        if (answer != NULL && answers++ == 0)
            etcd_client_set_answered(cluster->client, i);
        cJSON_Delete(answer);
        if (answer == NULL && error != -EHOSTUNREACH) {
            report_error("the arbiter refuses: %s", why[i]);
            return error;
        }
    }
    if (answers == 0) {
        report_error("no member of the arbiter's etcd cluster serves us; %s; are they up, and a majority of them?",
                     why[0]);
        return error;
    }
    for (unsigned i = 0; i < endpoints; i++)
        if (silent[i])
            report_warning("a member of the arbiter's etcd cluster does not serve us; %s", why[i]);
    return 0;
}

static int etcd_open(void **place, const char *where, const struct arbiter_options *options, const char *owner,
                     const atomic_bool *closing)
{
    struct cluster *cluster = calloc(1, sizeof(*cluster));
    int rc = -ENOMEM;

    if (cluster == NULL)
        return -ENOMEM;
    base64(owner, cluster->owner);
    cluster->first_deadline_ns = options->deadline_ns != 0 ? options->deadline_ns : CLAIM_NS;
    if (cluster->first_deadline_ns < CLAIM_MIN_NS)
        cluster->first_deadline_ns = CLAIM_MIN_NS;
    if (cluster->first_deadline_ns > CLAIM_MAX_NS)
        cluster->first_deadline_ns = CLAIM_MAX_NS;
    cluster->deadline_ns = cluster->first_deadline_ns;
    cluster->vm = strdup(options->vm);
    if (cluster->vm != NULL)
        rc = etcd_client_open(&cluster->client, where, options->auth_dir, "--arbiter-auth", closing);
    if (rc == 0)
        rc = probe(cluster);
    if (rc < 0) {
        etcd_close(cluster);
        return rc;
    }
    *place = cluster;
    return 0;
}

/* 0: none yet. */
static int highest_generation(struct cluster *cluster, uint64_t *highest, char why[ETCD_WHY_BYTES])
{
    char body[BODY_BYTES], from[TEXT_BYTES], to[TEXT_BYTES], prefix[64], key[TEXT_BYTES] = "";
    unsigned long long number;
    const char *text;
    int rc = 0, end = 0;
    cJSON *answer;
    const cJSON *kv;

    snprintf(prefix, sizeof(prefix), "ftvmm/%s/", cluster->vm);
    base64(prefix, from);
    prefix[strlen(prefix) - 1] = '/' + 1;
    base64(prefix, to);
    snprintf(body, sizeof(body), "{\"key\":\"%s\",\"range_end\":\"%s\",\"limit\":\"1\",\"sort_order\":\"DESCEND\","
             "\"sort_target\":\"KEY\",\"keys_only\":true}", from, to);
    answer = etcd_client_post_any(cluster->client, "/v3/kv/range", body, SET_UP_NS, why, &rc);
    if (answer == NULL)
        return rc;
    *highest = 0;
    kv = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(answer, "kvs"), 0);
    text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(kv, "key"));
    if (kv != NULL) {
        if (text != NULL && strlen(text) < TEXT_BYTES &&
            EVP_DecodeBlock((unsigned char *)key, (const unsigned char *)text, (int)strlen(text)) > 0 &&
            strncmp(key, prefix, strlen(prefix) - 1) == 0 &&
            sscanf(key + strlen(prefix), "%20llu/%n", &number, &end) == 1 && end == 21 && number < INT64_MAX) {
            *highest = number;
        } else {
            snprintf(why, ETCD_WHY_BYTES, "the key after all of '%s' is none of ftvmm's; remove what begins with "
                     "ftvmm/%s/ and was not made by it", cluster->vm, cluster->vm);
            rc = -EBADMSG;
        }
    }
    cJSON_Delete(answer);
    return rc;
}

/*
 * Every member that answers must know the pair by one value: two URLs of different clusters would let both hosts win.
 * The value comes into cluster->pair, unless `expected` is known. A member that does not answer is found out when it is
 * asked for a claim, since the pair is part of that.
 */
static int look_everywhere(struct cluster *cluster, uint64_t generation, const char *expected)
{
    unsigned endpoints = etcd_client_endpoints(cluster->client), answers = 0;
    char body[BODY_BYTES], key[TEXT_BYTES], why[ETCD_WHY_BYTES];
    int error = 0;

    cluster->pair[0] = '\0';
    key_of(cluster, generation, "pair", key);
    snprintf(body, sizeof(body), "{\"key\":\"%s\"}", key);
    for (unsigned i = 0; i < endpoints; i++) {
        cJSON *answer = etcd_client_post(cluster->client, i, "/v3/kv/range", body, SET_UP_NS, why, &error);
        const char *value = range_value(answer, key);
        int rc = 0;

        if (answer == NULL)
            continue;
        answers++;
        if (value == NULL) {
            report_error("the etcd member %s knows nothing of generation %llu of '%s': all URLs, on both hosts, must "
                         "be of one cluster", etcd_client_url(cluster->client, i), (unsigned long long)generation,
                         cluster->vm);
            rc = -ENOENT;
        } else if (strlen(value) >= TEXT_BYTES || strcmp(value, expected != NULL ? expected : value) != 0) {
            report_error("the etcd member %s knows generation %llu of '%s' as another pair's: all URLs, on both hosts, "
                         "must be of one cluster", etcd_client_url(cluster->client, i),
                         (unsigned long long)generation, cluster->vm);
            rc = -ESTALE;
        } else {
            strcpy(cluster->pair, value);
            expected = cluster->pair;
        }
        cJSON_Delete(answer);
        if (rc < 0)
            return rc;
    }
    if (answers > 0)
        return 0;
    report_error("no member of the arbiter's etcd cluster tells of generation %llu: %s", (unsigned long long)generation,
                 why);
    return error;
}

static int etcd_begin(void *place, uint64_t *generation)
{
    struct cluster *cluster = place;
    char body[BODY_BYTES], key[TEXT_BYTES], why[ETCD_WHY_BYTES];

    for (unsigned tries = 0; tries < 16; tries++) { /* each loss means that somebody else began one */
        uint64_t highest = 0;
        int rc = highest_generation(cluster, &highest, why);
        cJSON *answer = NULL;
        bool ours;

        if (rc == 0) {
            key_of(cluster, highest + 1, "pair", key);
            snprintf(body, sizeof(body),
                     "{\"compare\":[{\"key\":\"%s\",\"target\":\"CREATE\",\"result\":\"EQUAL\","
                     "\"create_revision\":\"0\"}],"
                     "\"success\":[{\"request_put\":{\"key\":\"%s\",\"value\":\"%s\"}}]}", key, key, cluster->owner);
            answer = etcd_client_post_any(cluster->client, "/v3/kv/txn", body, SET_UP_NS, why, &rc);
        }
        if (answer == NULL) {
            report_error("the arbiter takes no new generation: %s", why);
            return rc;
        }
        ours = response_put(answer);
        cJSON_Delete(answer);
        if (ours) {
            *generation = highest + 1;
            return look_everywhere(cluster, *generation, cluster->owner);
        }
    }
    report_error("others begin generations of '%s' all the time; is it started in several places?", cluster->vm);
    return -EBUSY;
}

static int etcd_check(void *place, uint64_t generation)
{
    return look_everywhere(place, generation, NULL);
}

/* ARBITER_UNREACHABLE, with the reason, for any answer that decides nothing. */
static enum arbiter_verdict claim_judge(const struct cluster *cluster, const cJSON *answer, const char *pair_key,
                                        const char *live_key, const char *url, char *why)
{
    const char *pair, *live;

    if (response_put(answer))
        return ARBITER_WON;
    pair = response_value(answer, 0, pair_key);
    live = response_value(answer, 1, live_key);
    if (pair == NULL || strcmp(pair, cluster->pair) != 0)
        snprintf(why, ARBITER_WHY_BYTES, "%.80s no longer knows this pair: etcd was emptied, or is another cluster",
                 url);
    else if (live == NULL)
        snprintf(why, ARBITER_WHY_BYTES, "%.80s: its answer is none of etcd's", url);
    else
        return strcmp(live, cluster->owner) == 0 ? ARBITER_WON : ARBITER_LOST;
    return ARBITER_UNREACHABLE;
}

static enum arbiter_verdict etcd_claim(void *place, uint64_t generation, char *why)
{
    struct cluster *cluster = place;
    unsigned endpoints = etcd_client_endpoints(cluster->client), first = etcd_client_answered(cluster->client);
    char body[BODY_BYTES], pair_key[TEXT_BYTES], live_key[TEXT_BYTES];
    bool refused = false;

    key_of(cluster, generation, "pair", pair_key);
    key_of(cluster, generation, "live", live_key);
    snprintf(body, sizeof(body),
             "{\"compare\":[{\"key\":\"%s\",\"target\":\"VALUE\",\"result\":\"EQUAL\",\"value\":\"%s\"},"
             "{\"key\":\"%s\",\"target\":\"CREATE\",\"result\":\"EQUAL\",\"create_revision\":\"0\"}],"
             "\"success\":[{\"request_put\":{\"key\":\"%s\",\"value\":\"%s\"}}],"
             "\"failure\":[{\"request_range\":{\"key\":\"%s\"}},{\"request_range\":{\"key\":\"%s\"}}]}",
             pair_key, cluster->pair, live_key, live_key, cluster->owner, pair_key, live_key);
    for (unsigned i = 0; i < endpoints; i++) {
        unsigned endpoint = (first + i) % endpoints;
        enum arbiter_verdict verdict = ARBITER_UNREACHABLE;
        char this_why[ARBITER_WHY_BYTES];
        int error = -EPROTO;
        cJSON *answer = etcd_client_post(cluster->client, endpoint, "/v3/kv/txn", body, cluster->deadline_ns, this_why,
                                         &error);

        if (answer != NULL)
            verdict = claim_judge(cluster, answer, pair_key, live_key, etcd_client_url(cluster->client, endpoint),
                                  this_why);
        cJSON_Delete(answer);
        if (verdict != ARBITER_UNREACHABLE) {
            etcd_client_set_answered(cluster->client, endpoint);
            cluster->deadline_ns = cluster->first_deadline_ns;
            return verdict;
        }
        if (!refused) /* a refusal tells more than silence */
            memcpy(why, this_why, sizeof(this_why));
        refused = error != -EHOSTUNREACH;
    }
    cluster->deadline_ns *= 2;
    if (cluster->deadline_ns > CLAIM_MAX_NS)
        cluster->deadline_ns = CLAIM_MAX_NS;
    return ARBITER_UNREACHABLE;
}

const struct arbiter_kind arbiter_etcd = {
    .prefix = "etcd:",
    .usage = "etcd:https://HOST:PORT[,...], the members of an etcd cluster",
    .open = etcd_open,
    .close = etcd_close,
    .begin = etcd_begin,
    .check = etcd_check,
    .claim = etcd_claim,
};
