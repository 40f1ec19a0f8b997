/*
 * Clients of the answering guest on the LAN of a test (cables.h), and what the LAN has seen. Each client asks one thing
 * after the other, sends it again until it is answered, and keeps the history of its calls and returns.
 */
#ifndef FTVMM_TESTS_LAN_CLIENTS_H
#define FTVMM_TESTS_LAN_CLIENTS_H

#include "bench/linearizable.h"
#include "tests/unit/lockstep/answering_guest.h"
#include "tests/unit/lockstep/cables.h"

/* An answer as it came out of a host. */
struct lan_answer {
    uint64_t at_ns;
    enum cable_place from;
    struct answering_message message;
};

struct lan_history {
    struct linearizable_operation *operations;
    size_t count, room;
};

struct lan_clients {
    struct cables *cables;
    uint8_t guest_mac[6];
    unsigned count;
    unsigned seed;
    _Atomic uint64_t pause_ns; /* between an answer and the next question */
    atomic_bool stops;         /* no new questions */
    struct lan_client {
        struct answering_message asked;
        atomic_bool waits;
        uint64_t called_ns, sent_ns, free_ns;
        _Atomic uint64_t answered; /* so far */
    } clients[ANSWERING_CLIENTS];
    struct lan_history reg, counter;
    struct lan_answer *answers; /* all that passed, in order */
    size_t answers_count, answers_room;
    bool no_memory;
    _Atomic uint64_t refused; /* the guest does not know us any more */
    /* The longest time without any answer that began between the marks, and when it ended. */
    _Atomic uint64_t mark_ns, mark_end_ns, last_ns, silence_ns, silence_end_ns;
};

/* Starts the switch with them. 0 or -errno. */
int lan_clients_start(struct lan_clients *clients, struct cables *cables, const uint8_t guest_mac[6], unsigned count,
                      uint64_t pause_ns, unsigned seed);
/* Silence is measured anew from now on; and what begins from now on is not measured any more. */
void lan_clients_mark(struct lan_clients *clients);
void lan_clients_mark_end(struct lan_clients *clients);
/* Waits until each client has had so many more answers; false: not within `limit_ns`. */
bool lan_clients_await(struct lan_clients *clients, uint64_t more, uint64_t limit_ns);
/* Asks nothing new, and waits for what is asked for at most so long. */
void lan_clients_quiet(struct lan_clients *clients, uint64_t limit_ns);
/* Stops the switch; the histories are complete then. */
void lan_clients_stop(struct lan_clients *clients);
void lan_clients_close(struct lan_clients *clients);

/*
 * After the stop: was there one guest? An operation of the guest has one answer, whoever sends it, however often; once an
 * answer to something new came from another host, the one before sends at most what has been sent, or what the new one sends
 * as well; so the guest goes to another host no more often than `moves_max`; both histories are linearizable. True; or false,
 * and `why` says what is wrong.
 */
bool lan_clients_judge(const struct lan_clients *clients, unsigned moves_max, char *why, size_t why_bytes);

#endif
