/* Asks devices for atomic operations; see device.h. */
#include "witness/device.h"

#include <infiniband/verbs.h>
#include <stdio.h>
#include <string.h>

bool witness_device_has_atomics(struct ibv_context *device)
{
    struct ibv_device_attr attributes;

    return ibv_query_device(device, &attributes) == 0 && attributes.atomic_cap != IBV_ATOMIC_NONE &&
           attributes.max_qp_rd_atom > 0 && attributes.max_qp_init_rd_atom > 0;
}

void witness_devices_with_atomics(char *names, size_t bytes)
{
    int count = 0;
    struct ibv_device **devices = ibv_get_device_list(&count);

    names[0] = '\0';
    for (int i = 0; devices != NULL && i < count; i++) {
        struct ibv_context *device = ibv_open_device(devices[i]);
        size_t used = strlen(names);

        if (device == NULL)
            continue;
        if (witness_device_has_atomics(device))
            snprintf(names + used, bytes - used, "%s%s", used > 0 ? " " : "", ibv_get_device_name(devices[i]));
        ibv_close_device(device);
    }
    if (devices != NULL)
        ibv_free_device_list(devices);
}
