/*
 * What measured steps predict for other hardware. A model: it knows no cache, no contention, no other traffic, and
 * takes every step for as long as its mean. docs/benchmarks.md has its formulas in words.
 *
 * A request is served by the guest's vCPU, in order (its own work, its exits, its records appended); its log then goes
 * over the link, in order (bytes by rate), and is acked after the write's own latency; the thread that polls notices
 * within a round. Unprotected, only the vCPU is in its way.
 */
#ifndef FTVMM_BENCH_MODEL_H
#define FTVMM_BENCH_MODEL_H

#include <stdint.h>

#include "base/histogram.h"

/* Times in ns, sizes in bytes, both of the mean request. */
struct model {
    double write_ns;        /* a signalled RDMA write of few bytes, from posting to its completion */
    double record_ns;       /* the CPU's work for a record, whatever its size */
    double record_byte_ns;  /* and for each of its bytes */
    double exit_ns;         /* an exit, served, and back in the guest */
    double poll_ns;         /* a round of the thread that polls */
    double guest_ns;        /* the guest's own work for a request */
    double outside_ns;      /* of a request, beyond its host: wire, network stacks, client */
    double exits, records, log_bytes, log_writes; /* of a request */
};

/* Bytes on the wire for a write of so many: RoCEv2's packets of 4096 and what goes around each. */
double model_wire_bytes(double bytes);
/* How long the link is busy with it, at a rate in Gb/s. */
double model_wire_ns(double bytes, double link_gbit);

/* A record in a frame of `bytes`, from its commit to its ack. */
double model_commit_to_ack_ns(const struct model *model, double bytes, double link_gbit);
/* Records a second in writes as long as the channel makes them; *by_link: the link is the limit, not the CPU. */
double model_records_per_s(const struct model *model, double bytes, double link_gbit, int *by_link);

/* How long a request keeps the vCPU. */
double model_vcpu_ns(const struct model *model, int is_protected);
/* How long its reply is held. */
double model_hold_ns(const struct model *model, double link_gbit);
/* One request at a time, as its client sees it. */
double model_request_ns(const struct model *model, int is_protected, double link_gbit);
/* The most requests a second. */
double model_requests_per_s(const struct model *model, int is_protected, double link_gbit, int *by_link);

/* `count` requests that arrive at random (Poisson) at `per_s`, and what each takes. */
void model_simulate(const struct model *model, int is_protected, double link_gbit, double per_s, uint64_t count,
                    uint64_t seed, struct histogram *request_ns);

#endif
