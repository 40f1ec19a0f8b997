/*
 * A client of etcd's v3 JSON gateway (etcd documentation, "gRPC gateway"): endpoints, credentials, and one request at
 * one endpoint with a deadline. What to ask, and what an answer means, is for arbiter_etcd.c and registry.c.
 *
 * Threads: one at a time.
 */
#ifndef FTVMM_FLEET_ETCD_CLIENT_H
#define FTVMM_FLEET_ETCD_CLIENT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#define ETCD_WHY_BYTES 256
#define ETCD_ENDPOINTS_MAX 8

struct etcd_client;

/*
 * `urls`: http:// or https://, host and port, comma between them. `auth_dir` (https only; NULL: none) may hold ca.pem
 * (without it the system's authorities count), cert.pem with key.pem, and user, one line NAME:PASSWORD; the latter two
 * must be closed to others. `auth_option` is what the operator calls that directory ("--arbiter-auth"). Requests are
 * given up soon after `cancel` is set. Connects to nobody yet. 0 or -errno, said in words.
 */
int etcd_client_open(struct etcd_client **out, const char *urls, const char *auth_dir, const char *auth_option,
                     const atomic_bool *cancel);
void etcd_client_close(struct etcd_client *client); /* accepts NULL */

unsigned etcd_client_endpoints(const struct etcd_client *client);
const char *etcd_client_url(const struct etcd_client *client, unsigned endpoint);

/*
 * POSTs `body` to `path` ("/v3/kv/txn") at an endpoint, within the deadline, logging in before if need be. Returns the
 * answer, to be deleted by the caller, or NULL, with the reason in `why` as "URL: words" and in *error: -EACCES (this
 * member refuses us), -EPROTO (it is no etcd, or refuses the request), -EHOSTUNREACH (no answer, or it cannot serve
 * now).
 */
cJSON *etcd_client_post(struct etcd_client *client, unsigned endpoint, const char *path, const char *body,
                        uint64_t deadline_ns, char why[ETCD_WHY_BYTES], int *error);

/* The same at one endpoint after the other, that which answered last first, until one answers. A request that changes
 * something may have been carried out more than once, or although NULL is returned. */
cJSON *etcd_client_post_any(struct etcd_client *client, const char *path, const char *body, uint64_t deadline_ns,
                            char why[ETCD_WHY_BYTES], int *error);
/* Which one post_any begins with; and that this one has answered. */
unsigned etcd_client_answered(const struct etcd_client *client);
void etcd_client_set_answered(struct etcd_client *client, unsigned endpoint);

#endif
