/*
 * The control socket of a running ftvmm: a thread that answers operators (ftctl) and, if asked for, a monitoring
 * system. It reads what others count and sets the few marks that ask for something; nothing waits for it. Bounded in
 * clients, memory and time, whoever connects and whatever they say.
 *
 * The protocol: a Unix stream socket; one request a line, a JSON object with "command"; one answer a line, a JSON
 * object with "ok", and "error" if that is false. See control_request.h. Metrics: HTTP/1, GET /metrics.
 */
#ifndef FTVMM_VMM_CONTROL_H
#define FTVMM_VMM_CONTROL_H

#include <stdbool.h>

#define CONTROL_DIRECTORY          "/run/ftvmm" /* VM.sock in there, if nothing else is said */
#define CONTROL_REQUEST_MAX_BYTES  4096u

struct control;
struct lockstep;

struct control_options {
    const char *path;    /* of the socket; NULL: CONTROL_DIRECTORY/VM.sock if that directory is ours; "none": none */
    const char *metrics; /* ADDRESS:PORT, a loopback address; NULL: none */
    const char *vm;
    struct lockstep *ls;
    bool *joining_cancelled; /* set when a stop is asked for; may be NULL */
};

/* Opens what is asked for and starts the thread. *out is NULL if there is nothing to listen on. 0 or -errno, said in
 * words: a socket in use by a living process, no permission, an address that others could reach. */
int control_open(struct control **out, const struct control_options *options);
/* Answers who waits, as the session has ended, and closes. Accepts NULL. */
void control_close(struct control *control);

#endif
