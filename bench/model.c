/* Formulas and a small simulation of queues; see model.h. */
#include "bench/model.h"

#include <math.h>

#include "base/clock.h"
#include "bench/shuffle.h"

/* A packet of RoCEv2: preamble 8, Ethernet 14, IPv4 20, UDP 8, BTH 12, ICRC 4, FCS 4, gap 12 (IEEE 802.3; IBTA 1.4,
 * annex 17); the first one of a write has an RETH of 16. */
#define PACKET_BYTES  4096.0
#define AROUND_BYTES  82.0
#define RETH_BYTES    16.0
#define COALESCED_BYTES 65536.0 /* of a write when records wait: as long as the channel makes them */
#define SMALLEST_FRAME_BYTES 64.0

double model_wire_bytes(double bytes)
{
    double packets = fmax(ceil(bytes / PACKET_BYTES), 1);

    return bytes + packets * AROUND_BYTES + RETH_BYTES;
}

double model_wire_ns(double bytes, double link_gbit)
{
    return model_wire_bytes(bytes) * 8 / link_gbit;
}

static double record_ns(const struct model *model, double bytes)
{
    return model->record_ns + model->record_byte_ns * bytes;
}

double model_commit_to_ack_ns(const struct model *model, double bytes, double link_gbit)
{
    return record_ns(model, bytes) + model_wire_ns(bytes, link_gbit) + model->write_ns;
}

double model_records_per_s(const struct model *model, double bytes, double link_gbit, int *by_link)
{
    double cpu = (double)NS_PER_S / record_ns(model, bytes);
    double link = (double)NS_PER_S / (model_wire_ns(COALESCED_BYTES, link_gbit) * bytes / COALESCED_BYTES);

    *by_link = link < cpu;
    return fmin(cpu, link);
}

/* The request's records, in one go. */
static double append_ns(const struct model *model)
{
    return model->records * model->record_ns + model->log_bytes * model->record_byte_ns;
}

/* The link's time for the request's log. */
static double log_wire_ns(const struct model *model, double link_gbit)
{
    double writes = fmax(model->log_writes, 1);

    return writes * model_wire_ns(model->log_bytes / writes, link_gbit);
}

double model_vcpu_ns(const struct model *model, int is_protected)
{
    return model->guest_ns + model->exits * model->exit_ns + (is_protected ? append_ns(model) : 0);
}

double model_hold_ns(const struct model *model, double link_gbit)
{
    /* the record that the reply waits for is a small one; those before it have gone while the guest worked */
    return model_wire_ns(SMALLEST_FRAME_BYTES, link_gbit) + model->write_ns + model->poll_ns / 2;
}

double model_request_ns(const struct model *model, int is_protected, double link_gbit)
{
    /* unprotected, too, the reply waits for the thread that polls */
    return model->outside_ns + model_vcpu_ns(model, is_protected) +
           (is_protected ? model_hold_ns(model, link_gbit) : model->poll_ns / 2);
}

double model_requests_per_s(const struct model *model, int is_protected, double link_gbit, int *by_link)
{
    double vcpu_ns = model_vcpu_ns(model, is_protected);
    double link_ns = is_protected ? log_wire_ns(model, link_gbit) : 0;

    *by_link = link_ns > vcpu_ns;
    return (double)NS_PER_S / fmax(vcpu_ns, link_ns);
}

/* From 0 to 1, neither of them. */
static double next_random(uint64_t *state)
{
    return (shuffle_next(state, 1u << 30) + 0.5) / (1u << 30);
}

void model_simulate(const struct model *model, int is_protected, double link_gbit, double per_s, uint64_t count,
                    uint64_t seed, struct histogram *request_ns)
{
    double vcpu_ns = model_vcpu_ns(model, is_protected), wire_ns = log_wire_ns(model, link_gbit);
    double arrives_ns = 0, vcpu_free_ns = 0, link_free_ns = 0;
    uint64_t state = seed;

    for (uint64_t i = 0; i < count; i++) {
        double leaves_ns;

        arrives_ns += -log(next_random(&state)) * (double)NS_PER_S / per_s;
        vcpu_free_ns = fmax(arrives_ns, vcpu_free_ns) + vcpu_ns;
        leaves_ns = vcpu_free_ns;
        if (is_protected) {
            /* what was logged on the way has gone when the last record comes, unless the link is behind */
            link_free_ns = fmax(fmax(arrives_ns, link_free_ns) + wire_ns,
                                vcpu_free_ns + model_wire_ns(SMALLEST_FRAME_BYTES, link_gbit));
            leaves_ns = link_free_ns + model->write_ns;
        }
        leaves_ns += next_random(&state) * model->poll_ns;
        histogram_record(request_ns, (uint64_t)(leaves_ns - arrives_ns + model->outside_ns));
    }
}
