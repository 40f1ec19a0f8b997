/* Requests, their conditions and their answers; see control_request.h. */
#include "vmm/control_request.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cjson/cJSON.h>

#include "vmm/lockstep.h"
#include "vmm/status.h"

/* An arbiter that does not answer may take for ever; a client should hear that nothing is decided. */
#define ANSWER_LIMIT_NS (30 * NS_PER_S)

static const char *const names[] = {
    [CONTROL_STATUS] = "status",       [CONTROL_EVENTS] = "events", [CONTROL_FAILOVER] = "failover",
    [CONTROL_UNPROTECT] = "unprotect", [CONTROL_STOP] = "stop",     [CONTROL_PROTECT] = "protect",
};

cJSON *control_error(const char *format, ...)
{
    cJSON *answer = cJSON_CreateObject();
    char sentence[512];
    va_list args;

    va_start(args, format);
    vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    cJSON_AddBoolToObject(answer, "ok", false);
    cJSON_AddStringToObject(answer, "error", sentence);
    return answer;
}

static cJSON *fine(void)
{
    cJSON *answer = cJSON_CreateObject();

    cJSON_AddBoolToObject(answer, "ok", true);
    return answer;
}

cJSON *control_event(const struct journal_entry *entry)
{
    cJSON *event = cJSON_CreateObject();
    time_t seconds = (time_t)(entry->unix_ns / (int64_t)NS_PER_S);
    char day[32], text[48];
    struct tm parts;

    gmtime_r(&seconds, &parts);
    strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text, sizeof(text), "%s.%03dZ", day, (int)(entry->unix_ns % (int64_t)NS_PER_S / (int64_t)NS_PER_MS));
    cJSON_AddStringToObject(event, "time", text);
    cJSON_AddNumberToObject(event, "monotonic_us", (double)(entry->at_ns / NS_PER_US));
    cJSON_AddStringToObject(event, "event", journal_kind_name(entry->kind));
    cJSON_AddStringToObject(event, "detail", entry->detail);
    return event;
}

static cJSON *answer_events(const struct lockstep *ls)
{
    cJSON *answer = fine(), *events = cJSON_AddArrayToObject(answer, "events");
    const struct journal_entry *entry;

    for (unsigned i = 0; (entry = journal_read(&ls->journal, i)) != NULL; i++)
        cJSON_AddItemToArray(events, control_event(entry));
    return answer;
}

/* Why a pair cannot be changed now; NULL: it can. */
static cJSON *refuse_change(const struct lockstep *ls, const char *what)
{
    enum handover_state state;

    if (!atomic_load_explicit(&ls->opened, memory_order_acquire) || !COUNT_GET(ls->running))
        return control_error("%s: the guest has not begun yet; 'ftctl status' tells when it has", what);
    if (COUNT_GET(ls->finished))
        return control_error("%s: the guest runs here no more", what);
    switch (lockstep_role_now(ls)) {
    case ROLE_BACKUP: return control_error("%s: this is the backup; ask its primary", what);
    case ROLE_ALONE: return control_error("%s: this guest has no backup", what);
    case ROLE_PRIMARY: break;
    }
    if (ls->arbiter == NULL)
        return control_error("%s: this guest is recorded to a file, and has no backup", what);
    if (COUNT_GET(ls->peer_lost))
        return control_error("%s: the backup is silent, and the arbiter is being asked already", what);
    if (COUNT_GET(ls->stop_requested))
        return control_error("%s: the guest is being stopped", what);
    state = handover_state_now(&ls->handover);
    if (state == HANDOVER_ASKED || state == HANDOVER_UNDER_WAY)
        return control_error("%s: a failover is under way already", what);
    if (COUNT_GET(ls->unprotect_requested))
        return control_error("%s: the backup is being left already", what);
    return NULL;
}

static cJSON *begin_stop(const struct control_target *target)
{
    struct lockstep *ls = target->ls;
    bool opened = atomic_load_explicit(&ls->opened, memory_order_acquire);

    if (opened && lockstep_role_now(ls) == ROLE_BACKUP)
        return control_error("stop: this is the backup; 'ftctl stop' at its primary stops the guest on both hosts, "
                             "'ftctl unprotect' there ends this backup alone");
    COUNT_SET(ls->stop_requested, true);
    if (target->joining_cancelled != NULL)
        __atomic_store_n(target->joining_cancelled, true, __ATOMIC_RELAXED);
    if (opened)
        lockstep_wake(ls);
    return NULL;
}

static cJSON *begin_failover(struct lockstep *ls)
{
    cJSON *refusal = refuse_change(ls, "failover");

    if (refusal == NULL && !handover_ask(ls))
        refusal = control_error("failover: one is under way already");
    return refusal;
}

/* A guest that is alone has nothing to leave, but may be about to get a backup. */
static cJSON *begin_unprotect(struct lockstep *ls)
{
    bool alone = atomic_load_explicit(&ls->opened, memory_order_acquire) && ls->protector != NULL &&
                 lockstep_role_now(ls) == ROLE_ALONE && !COUNT_GET(ls->finished);
    cJSON *refusal = alone ? NULL : refuse_change(ls, "unprotect");

    if (refusal != NULL)
        return refusal;
    if (ls->protector != NULL)
        protect_cancel(ls->protector);
    if (!alone)
        COUNT_SET(ls->unprotect_requested, true);
    return NULL;
}

static cJSON *begin_protect(struct lockstep *ls, const struct control_request *request)
{
    if (!atomic_load_explicit(&ls->opened, memory_order_acquire) || !COUNT_GET(ls->running))
        return control_error("protect: the guest has not begun yet; 'ftctl status' tells when it has");
    if (COUNT_GET(ls->finished))
        return control_error("protect: the guest runs here no more");
    if (lockstep_role_now(ls) == ROLE_BACKUP)
        return control_error("protect: this is the backup; ask its primary");
    if (ls->protector == NULL)
        return control_error("protect: this ftvmm was started without --arbiter; without one both hosts could go live "
                             "after a network failure");
    if (strncmp(request->address, FLEET_SPARE_PREFIX, strlen(FLEET_SPARE_PREFIX)) == 0 &&
        request->address[strlen(FLEET_SPARE_PREFIX)] != '\0')
        return control_error("protect: 'fleet:' stands alone here; this host's name was given with --spare, or is its host "
                             "name");
    if (!protect_ask(ls->protector, request->address[0] != '\0' ? request->address : NULL))
        return control_error("protect: where? No --spare was given; name the new backup's address: verbs:HOST:PORT, "
                             "tcp:HOST:PORT, shm:NAME or fleet:");
    return NULL;
}

static bool parse(cJSON *object, struct control_request *request)
{
    const char *command = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "command")), *address;

    for (size_t i = 0; command != NULL && i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(command, names[i]) == 0) {
            request->command = (enum control_command)i;
            request->follow = i == CONTROL_EVENTS && cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, "follow"));
            address = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "address"));
            snprintf(request->address, sizeof(request->address), "%s", address != NULL ? address : "");
            return address == NULL || strlen(address) < sizeof(request->address);
        }
    return false;
}

cJSON *control_request_begin(const struct control_target *target, const char *line, size_t bytes,
                             struct control_request *request, uint64_t now_ns)
{
    const char *end = NULL;
    cJSON *object, *answer;
    bool known;

    *request = (struct control_request){ .limit_ns = now_ns + ANSWER_LIMIT_NS };
    object = cJSON_ParseWithLengthOpts(line, bytes, &end, false);
    while (object != NULL && end < line + bytes && (*end == ' ' || *end == '\t' || *end == '\r'))
        end++;
    if (!cJSON_IsObject(object) || end != line + bytes) {
        cJSON_Delete(object);
        return control_error("a request is one JSON object on a line, {\"command\":\"status\"}");
    }
    known = parse(object, request);
    cJSON_Delete(object);
    if (!known)
        return control_error("\"command\" takes status, events, failover, protect, unprotect or stop");
    switch (request->command) {
    case CONTROL_STATUS:
        answer = fine();
        cJSON_AddItemToObject(answer, "status", status_build(target->vm, target->ls));
        return answer;
    case CONTROL_EVENTS: return answer_events(target->ls);
    case CONTROL_FAILOVER: return begin_failover(target->ls);
    case CONTROL_PROTECT: return begin_protect(target->ls, request);
    case CONTROL_UNPROTECT: return begin_unprotect(target->ls);
    case CONTROL_STOP: return begin_stop(target);
    }
    return control_error("no such command");
}

static cJSON *with_handover(cJSON *answer, struct lockstep *ls)
{
    status_add_handover(answer, ls);
    return answer;
}

static cJSON *failover_outcome(struct lockstep *ls)
{
    switch (handover_state_now(&ls->handover)) {
    case HANDOVER_DONE: return with_handover(fine(), ls);
    case HANDOVER_FAILED:
        if (lockstep_role_now(ls) == ROLE_ALONE)
            return with_handover(control_error("failover: the backup did not take over; the guest goes on here, "
                                               "alone"), ls);
        return with_handover(control_error("failover: not decided when this host was stopped; the backup may go "
                                           "live"), ls);
    case HANDOVER_CANCELLED:
        return with_handover(control_error("failover: called off, since the guest ended or the pair came apart first; "
                                           "'ftctl status' tells"), ls);
    case HANDOVER_NONE:
    case HANDOVER_ASKED:
    case HANDOVER_UNDER_WAY: break;
    }
    return NULL;
}

static cJSON *unprotect_outcome(const struct lockstep *ls)
{
    if (COUNT_GET(ls->lost_arbitration))
        return control_error("unprotect: the backup has gone live; this host has stopped its guest");
    return lockstep_role_now(ls) == ROLE_ALONE ? fine() : NULL;
}

/* A new backup that does not come is waited for; one that cannot be had is said. */
static cJSON *protect_outcome(struct lockstep *ls)
{
    struct protect_status status;

    if (lockstep_is_protected(ls))
        return fine();
    protect_get_status(ls->protector, &status);
    return status.why[0] != '\0' ? control_error("protect: %s; it is tried again until 'ftctl unprotect'", status.why)
                                 : NULL;
}

static cJSON *outcome_now(const struct control_target *target, enum control_command command, bool closing)
{
    struct lockstep *ls = target->ls;

    switch (command) {
    case CONTROL_FAILOVER: return failover_outcome(ls);
    case CONTROL_PROTECT: return protect_outcome(target->ls);
    case CONTROL_UNPROTECT: return unprotect_outcome(ls);
    case CONTROL_STOP: return closing || atomic_load_explicit(&ls->finished, memory_order_acquire) ? fine() : NULL;
    case CONTROL_STATUS:
    case CONTROL_EVENTS: break;
    }
    return control_error("no such command");
}

cJSON *control_request_outcome(const struct control_target *target, const struct control_request *request,
                               uint64_t now_ns, bool closing)
{
    cJSON *answer = outcome_now(target, request->command, closing);

    if (answer == NULL && closing)
        answer = control_error("%s: the guest has ended before it was done", names[request->command]);
    if (answer == NULL && now_ns > request->limit_ns)
        answer = control_error("%s: asked for, and not done after %llu s; it goes on, and 'ftctl status' tells of it",
                               names[request->command], (unsigned long long)(ANSWER_LIMIT_NS / NS_PER_S));
    return answer;
}
