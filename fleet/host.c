/* Presence, ledger, choice; see host.h. */
#include "fleet/host.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>

static const char *const states[] = {
    [FLEET_ASKED] = "asked", [FLEET_STARTED] = "started", [FLEET_REFUSED] = "refused",
};

const char *fleet_claim_state_name(enum fleet_claim_state state)
{
    return states[state];
}

bool fleet_name_is_valid(const char *name)
{
    size_t length = strlen(name);

    if (length == 0 || length >= FLEET_NAME_BYTES || name[0] == '.')
        return false;
    for (const char *c = name; *c != '\0'; c++)
        if (!isalnum((unsigned char)*c) && strchr("-_.", *c) == NULL)
            return false;
    return true;
}

bool fleet_address_is_valid(const char *address)
{
    size_t length = strlen(address);

    if (length >= FLEET_ADDRESS_BYTES)
        return false;
    for (const char *c = address; *c != '\0'; c++)
        if (!isgraph((unsigned char)*c))
            return false;
    return (strncmp(address, "verbs:", 6) == 0 && length > 6) || (strncmp(address, "tcp:", 4) == 0 && length > 4) ||
           (strncmp(address, "shm:", 4) == 0 && length > 4);
}

/* ---- the values ---- */

__attribute__((format(printf, 2, 3))) static int bad(char why[FLEET_WHY_BYTES], const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, FLEET_WHY_BYTES, format, args);
    va_end(args);
    return -EBADMSG;
}

/* A string of at most room - 1 plain bytes. `what` is checked by the caller. */
static bool take_text(const cJSON *object, const char *name, char *out, size_t room)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));

    if (text == NULL || strlen(text) >= room)
        return false;
    for (const char *c = text; *c != '\0'; c++)
        if (!isprint((unsigned char)*c)) /* it will be shown on terminals */
            return false;
    strcpy(out, text);
    return true;
}

static bool take_number(const cJSON *object, const char *name, uint32_t *out)
{
    double number = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(object, name));

    if (!(number >= 0 && number <= UINT32_MAX) || floor(number) != number)
        return false;
    *out = (uint32_t)number;
    return true;
}

static cJSON *parse(const char *text, size_t bytes, char why[FLEET_WHY_BYTES])
{
    cJSON *object = bytes < FLEET_VALUE_BYTES ? cJSON_ParseWithLength(text, bytes) : NULL;
    double version = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(object, "version"));

    if (bytes >= FLEET_VALUE_BYTES)
        bad(why, "it has %zu bytes, more than any of ours", bytes);
    else if (!cJSON_IsObject(object))
        bad(why, "it is no JSON object");
    else if (version != 1)
        bad(why, "it is not of version 1");
    else
        return object;
    cJSON_Delete(object);
    return NULL;
}

static char *print(cJSON *object)
{
    char *text = cJSON_PrintUnformatted(object);

    cJSON_Delete(object);
    return text;
}

cJSON *fleet_vms_json(const struct fleet_host *host)
{
    cJSON *vms = cJSON_CreateArray();

    for (unsigned i = 0; i < host->vm_count; i++) {
        cJSON *vm = cJSON_CreateObject();

        cJSON_AddStringToObject(vm, "name", host->vms[i].name);
        cJSON_AddStringToObject(vm, "address", host->vms[i].address);
        cJSON_AddNumberToObject(vm, "memory_mib", host->vms[i].memory_mib);
        cJSON_AddItemToArray(vms, vm);
    }
    return vms;
}

char *fleet_presence_encode(const struct fleet_host *host)
{
    cJSON *object = cJSON_CreateObject();

    cJSON_AddNumberToObject(object, "version", 1);
    cJSON_AddStringToObject(object, "boot", host->boot);
    cJSON_AddStringToObject(object, "cpu", host->cpu);
    cJSON_AddStringToObject(object, "microcode", host->microcode);
    cJSON_AddNumberToObject(object, "memory_mib", host->memory_mib);
    cJSON_AddNumberToObject(object, "guests", host->guests);
    cJSON_AddItemToObject(object, "vms", fleet_vms_json(host));
    return print(object);
}

static int presence_take(struct fleet_host *host, const cJSON *object, char why[FLEET_WHY_BYTES])
{
    const cJSON *vms = cJSON_GetObjectItemCaseSensitive(object, "vms"), *item;

    if (!take_text(object, "boot", host->boot, sizeof(host->boot)) ||
        !take_text(object, "cpu", host->cpu, sizeof(host->cpu)) ||
        !take_text(object, "microcode", host->microcode, sizeof(host->microcode)) ||
        !take_number(object, "memory_mib", &host->memory_mib) || !take_number(object, "guests", &host->guests))
        return bad(why, "boot, cpu, microcode, memory_mib or guests is missing or none of ours");
    if (!cJSON_IsArray(vms))
        return bad(why, "vms is no list");
    cJSON_ArrayForEach(item, vms) {
        struct fleet_vm *vm = &host->vms[host->vm_count];

        if (host->vm_count == FLEET_VMS_MAX)
            return bad(why, "it names more than %u VMs", FLEET_VMS_MAX);
        if (!take_text(item, "name", vm->name, sizeof(vm->name)) || !vm_name_is_valid(vm->name) ||
            !take_text(item, "address", vm->address, sizeof(vm->address)) || !fleet_address_is_valid(vm->address) ||
            !take_number(item, "memory_mib", &vm->memory_mib))
            return bad(why, "a VM in it has no good name, address or memory_mib");
        host->vm_count++;
    }
    return 0;
}

int fleet_presence_decode(struct fleet_host *host, const char *text, size_t bytes, char why[FLEET_WHY_BYTES])
{
    cJSON *object = parse(text, bytes, why);
    int rc = -EBADMSG;

    host->vm_count = 0;
    if (object != NULL)
        rc = presence_take(host, object, why);
    if (rc < 0)
        host->vm_count = 0;
    host->present = rc == 0;
    cJSON_Delete(object);
    return rc;
}

cJSON *fleet_claims_json(const struct fleet_host *host)
{
    cJSON *claims = cJSON_CreateArray();

    for (unsigned i = 0; i < host->claim_count; i++) {
        const struct fleet_claim *from = &host->claims[i];
        cJSON *claim = cJSON_CreateObject();

        cJSON_AddStringToObject(claim, "vm", from->vm);
        cJSON_AddStringToObject(claim, "id", from->id);
        cJSON_AddStringToObject(claim, "by", from->by);
        cJSON_AddStringToObject(claim, "state", states[from->state]);
        cJSON_AddNumberToObject(claim, "memory_mib", from->memory_mib);
        cJSON_AddStringToObject(claim, "address", from->address);
        cJSON_AddStringToObject(claim, "why", from->why);
        cJSON_AddItemToArray(claims, claim);
    }
    return claims;
}

char *fleet_ledger_encode(const struct fleet_host *host)
{
    cJSON *object = cJSON_CreateObject();

    cJSON_AddNumberToObject(object, "version", 1);
    cJSON_AddItemToObject(object, "claims", fleet_claims_json(host));
    return print(object);
}

static bool claim_take(struct fleet_claim *claim, const cJSON *object)
{
    char state[16];

    if (!take_text(object, "vm", claim->vm, sizeof(claim->vm)) || !vm_name_is_valid(claim->vm) ||
        !take_text(object, "id", claim->id, sizeof(claim->id)) || strlen(claim->id) != FLEET_ID_BYTES - 1 ||
        strspn(claim->id, "0123456789abcdef") != FLEET_ID_BYTES - 1 ||
        !take_text(object, "by", claim->by, sizeof(claim->by)) || !take_text(object, "state", state, sizeof(state)) ||
        !take_number(object, "memory_mib", &claim->memory_mib) ||
        !take_text(object, "address", claim->address, sizeof(claim->address)) ||
        !take_text(object, "why", claim->why, sizeof(claim->why)))
        return false;
    for (unsigned i = 0; i < sizeof(states) / sizeof(states[0]); i++)
        if (strcmp(state, states[i]) == 0) {
            claim->state = (enum fleet_claim_state)i;
            return claim->state != FLEET_STARTED || fleet_address_is_valid(claim->address);
        }
    return false;
}

int fleet_ledger_decode(struct fleet_host *host, const char *text, size_t bytes, char why[FLEET_WHY_BYTES])
{
    cJSON *object = parse(text, bytes, why);
    const cJSON *claims = cJSON_GetObjectItemCaseSensitive(object, "claims"), *item;
    int rc = object == NULL ? -EBADMSG : cJSON_IsArray(claims) ? 0 : bad(why, "claims is no list");

    host->claim_count = 0;
    if (rc == 0)
        cJSON_ArrayForEach(item, claims) {
            if (host->claim_count == FLEET_CLAIMS_MAX) {
                rc = bad(why, "it holds more than %u claims", FLEET_CLAIMS_MAX);
                break;
            }
            if (!claim_take(&host->claims[host->claim_count], item)) {
                rc = bad(why, "claim %u in it is none of ours", host->claim_count);
                break;
            }
            host->claim_count++;
        }
    if (rc < 0)
        host->claim_count = 0;
    cJSON_Delete(object);
    return rc;
}

/* ---- looking into it ---- */

const struct fleet_vm *fleet_host_vm(const struct fleet_host *host, const char *vm)
{
    for (unsigned i = 0; i < host->vm_count; i++)
        if (strcmp(host->vms[i].name, vm) == 0)
            return &host->vms[i];
    return NULL;
}

struct fleet_claim *fleet_host_claim(struct fleet_host *host, const char *id)
{
    for (unsigned i = 0; i < host->claim_count; i++)
        if (strcmp(host->claims[i].id, id) == 0)
            return &host->claims[i];
    return NULL;
}

struct fleet_claim *fleet_host_add_claim(struct fleet_host *host)
{
    struct fleet_claim *claim = &host->claims[host->claim_count];

    if (host->claim_count == FLEET_CLAIMS_MAX)
        return NULL;
    host->claim_count++;
    *claim = (struct fleet_claim){ 0 };
    return claim;
}

void fleet_host_remove_claim(struct fleet_host *host, struct fleet_claim *claim)
{
    host->claim_count--;
    memmove(claim, claim + 1, (size_t)(&host->claims[host->claim_count] - claim) * sizeof(*claim));
}

/* Of memory and of guests: what is left of `all`. Claims that exceed it, however that came, leave nothing. */
static uint32_t left_of(uint32_t all, uint64_t taken)
{
    return taken < all ? all - (uint32_t)taken : 0;
}

uint32_t fleet_host_free_mib(const struct fleet_host *host)
{
    uint64_t taken = 0;

    for (unsigned i = 0; i < host->claim_count; i++)
        taken += host->claims[i].state != FLEET_REFUSED ? host->claims[i].memory_mib : 0;
    return left_of(host->memory_mib, taken);
}

uint32_t fleet_host_free_guests(const struct fleet_host *host)
{
    uint64_t taken = 0;

    for (unsigned i = 0; i < host->claim_count; i++)
        taken += host->claims[i].state != FLEET_REFUSED;
    return left_of(host->guests, taken);
}

/* ---- the choice ---- */

const char *fleet_host_unfit(const struct fleet_host *host, const struct fleet_wish *wish)
{
    const struct fleet_vm *vm = fleet_host_vm(host, wish->vm);

    if (!host->present)
        return "its agent is not there";
    if (strcmp(host->name, wish->own_host) == 0 || (wish->own_boot != NULL && strcmp(host->boot, wish->own_boot) == 0))
        return "the guest runs there";
    if (strcmp(host->cpu, wish->cpu) != 0)
        return "another model of CPU";
    if (vm == NULL)
        return "it has no description of this VM";
    if (vm->memory_mib != wish->memory_mib)
        return "its description gives the VM another memory_mib";
    for (unsigned i = 0; i < host->claim_count; i++)
        if (strcmp(host->claims[i].vm, wish->vm) == 0 && host->claims[i].state != FLEET_REFUSED)
            return strcmp(host->claims[i].by, wish->own_host) == 0 ? NULL : "it has a guest of this name";
    if (fleet_host_free_mib(host) < wish->memory_mib)
        return "too little memory is free";
    if (fleet_host_free_guests(host) == 0)
        return "it holds as many guests as it may";
    if (host->claim_count == FLEET_CLAIMS_MAX)
        return "its list of claims is full";
    return NULL;
}

bool fleet_host_better(const struct fleet_host *a, const struct fleet_host *b, const struct fleet_wish *wish)
{
    bool a_same = strcmp(a->microcode, wish->microcode) == 0, b_same = strcmp(b->microcode, wish->microcode) == 0;
    uint32_t a_mib = fleet_host_free_mib(a), b_mib = fleet_host_free_mib(b);
    uint32_t a_guests = fleet_host_free_guests(a), b_guests = fleet_host_free_guests(b);

    if (a_same != b_same)
        return a_same;
    if (a_mib != b_mib)
        return a_mib > b_mib;
    if (a_guests != b_guests)
        return a_guests > b_guests;
    return strcmp(a->name, b->name) < 0;
}
