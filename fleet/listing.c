/* Listing; see listing.h. */
#include "fleet/listing.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

static void show_host(const struct fleet_host *host, const char *trouble)
{
    if (trouble != NULL)
        printf("%-16s ? %s\n", host->name, trouble);
    else if (!host->present)
        printf("%-16s away\n", host->name);
    else
        printf("%-16s %u of %u MiB free, %u of %u guests; %s, microcode %s\n", host->name, fleet_host_free_mib(host),
               host->memory_mib, fleet_host_free_guests(host), host->guests, host->cpu, host->microcode);
    for (unsigned i = 0; i < host->vm_count; i++)
        printf("    may hold  %-16s %u MiB at %s\n", host->vms[i].name, host->vms[i].memory_mib, host->vms[i].address);
    for (unsigned i = 0; i < host->claim_count; i++) {
        const struct fleet_claim *claim = &host->claims[i];

        printf("    %-9s %-16s %u MiB, asked for by %s%s%s\n", fleet_claim_state_name(claim->state), claim->vm,
               claim->memory_mib, claim->by[0] != '\0' ? claim->by : "?", claim->why[0] != '\0' ? ": " : "",
               claim->why);
    }
}

static cJSON *host_json(const struct fleet_host *host, const char *trouble)
{
    cJSON *object = cJSON_CreateObject();

    cJSON_AddStringToObject(object, "name", host->name);
    cJSON_AddBoolToObject(object, "present", host->present);
    if (trouble != NULL)
        cJSON_AddStringToObject(object, "error", trouble);
    if (host->present) {
        cJSON_AddStringToObject(object, "cpu", host->cpu);
        cJSON_AddStringToObject(object, "microcode", host->microcode);
        cJSON_AddNumberToObject(object, "memory_mib", host->memory_mib);
        cJSON_AddNumberToObject(object, "free_mib", fleet_host_free_mib(host));
        cJSON_AddNumberToObject(object, "guests", host->guests);
        cJSON_AddNumberToObject(object, "free_guests", fleet_host_free_guests(host));
    }
    cJSON_AddItemToObject(object, "vms", fleet_vms_json(host));
    cJSON_AddItemToObject(object, "claims", fleet_claims_json(host));
    return object;
}

int listing_print(struct fleet *fleet, bool json, char why[FLEET_WHY_BYTES])
{
    static char names[FLEET_HOSTS_MAX][FLEET_NAME_BYTES];
    struct fleet_host *host = malloc(sizeof(*host));
    cJSON *root = cJSON_CreateObject(), *hosts = cJSON_AddArrayToObject(root, "hosts");
    unsigned count = 0, strange = 0;
    int rc = host != NULL ? fleet_list(fleet, true, names, &count, &strange, why) : -ENOMEM;

    for (unsigned i = 0; i < count && rc == 0; i++) {
        const char *trouble = NULL;

        rc = fleet_read(fleet, names[i], host, why);
        if (rc == -EBADMSG || rc == -EPROTO) { /* of this host alone */
            trouble = why;
            rc = 0;
        }
        if (rc == 0 && json)
            cJSON_AddItemToArray(hosts, host_json(host, trouble));
        else if (rc == 0)
            show_host(host, trouble);
    }
    if (rc == 0 && json) {
        char *text;

        cJSON_AddNumberToObject(root, "strange_keys", strange);
        text = cJSON_PrintUnformatted(root);
        puts(text != NULL ? text : "{}");
        free(text);
    } else if (rc == 0) {
        if (count == 0)
            puts("no host is in the fleet");
        if (strange > 0)
            printf("%u keys of etcd behind ftvmm/.fleet/ are none of ours\n", strange);
    }
    cJSON_Delete(root);
    free(host);
    return rc;
}
