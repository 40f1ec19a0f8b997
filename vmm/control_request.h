/*
 * What a request at the control socket means, and what is answered. Knows no sockets.
 *
 *   {"command":"status"}       the status document (status.h) as "status"
 *   {"command":"events"}       the changes of state so far as "events"; with "follow":true each later one on a line of
 *                              its own as "event", until the session ends
 *   {"command":"failover"}     primary: hands the guest over to the backup; answered when that is decided, with the
 *                              steps as "handover"
 *   {"command":"protect"}      alone: the guest is to get a new backup, at "address" or where it was to be last; answered
 *                              when it has one, or when an attempt has failed
 *   {"command":"unprotect"}    primary: goes on alone; answered when the arbiter has answered. Alone: no new backup is
 *                              wanted
 *   {"command":"stop"}         primary, alone: stops the guest in order, on both hosts; answered when it has ended
 */
#ifndef FTVMM_VMM_CONTROL_REQUEST_H
#define FTVMM_VMM_CONTROL_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/protect.h"

struct cJSON;
struct journal_entry;
struct lockstep;

struct control_target {
    const char *vm;
    struct lockstep *ls;
    bool *joining_cancelled; /* may be NULL */
};

enum control_command {
    CONTROL_STATUS,
    CONTROL_EVENTS,
    CONTROL_FAILOVER,
    CONTROL_UNPROTECT,
    CONTROL_STOP,
    CONTROL_PROTECT,
};

struct control_request {
    enum control_command command;
    bool follow;         /* events: the answer is not the end of it */
    char address[PROTECT_ADDRESS_BYTES]; /* protect; empty: none was given */
    uint64_t limit_ns;   /* when to answer what is not decided by then */
};

/*
 * Reads `line` (without its newline; any bytes), and begins what it asks for. The answer, to be deleted by the caller;
 * NULL: *request has to wait, see control_request_outcome. Control thread.
 */
struct cJSON *control_request_begin(const struct control_target *target, const char *line, size_t bytes,
                                    struct control_request *request, uint64_t now_ns);

/* The answer to a request that waits; NULL: not yet. `closing`: nothing more will come. */
struct cJSON *control_request_outcome(const struct control_target *target, const struct control_request *request,
                                      uint64_t now_ns, bool closing);

/* {"ok":false,"error":...} */
__attribute__((format(printf, 1, 2))) struct cJSON *control_error(const char *format, ...);
/* One change of state, as it stands in "events" and behind "event". */
struct cJSON *control_event(const struct journal_entry *entry);

#endif
