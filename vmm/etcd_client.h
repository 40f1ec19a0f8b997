/*
 * A client of etcd's v3 JSON gateway (etcd documentation, "gRPC gateway"): endpoints, credentials, and one request at
 * one endpoint with a deadline. What to ask, and what an answer means, is arbiter_etcd.c's.
 *
 * Threads: one at a time.
 */
#ifndef FTVMM_VMM_ETCD_CLIENT_H
#define FTVMM_VMM_ETCD_CLIENT_H

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
 * must be closed to others. Requests are given up soon after `cancel` is set. Connects to nobody yet.
 * 0 or -errno, said in words.
 */
int etcd_client_open(struct etcd_client **out, const char *urls, const char *auth_dir, const atomic_bool *cancel);
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

#endif
