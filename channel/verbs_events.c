/* Waits for and translates rdma_cm's events. */
#include "channel/verbs_events.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>

#define SLICE_MS 20

int verbs_events_create(struct rdma_event_channel **events)
{
    *events = rdma_create_event_channel();
    if (*events == NULL)
        return -errno;
    return fcntl((*events)->fd, F_SETFL, fcntl((*events)->fd, F_GETFL) | O_NONBLOCK) == 0 ? 0 : -errno;
}

int verbs_event_wait(struct rdma_event_channel *events, struct rdma_cm_event **event)
{
    struct pollfd ready = { .fd = events->fd, .events = POLLIN };

    if (poll(&ready, 1, SLICE_MS) <= 0)
        return -EAGAIN;
    return rdma_get_cm_event(events, event) != 0 ? -EAGAIN : 0;
}

int verbs_event_failed(const struct rdma_cm_event *event, const char **why)
{
    if (event->event == RDMA_CM_EVENT_ADDR_ERROR && event->status == -ENODEV)
        return -ENODEV;
    if (event->event == RDMA_CM_EVENT_ADDR_ERROR)
        *why = "the host does not answer on that network (no such address, or it is down)";
    else if (event->event == RDMA_CM_EVENT_REJECTED && event->status == 8)
        *why = "the host is there, but nobody listens on that port; start who should";
    else if (event->event == RDMA_CM_EVENT_REJECTED)
        *why = "the host refuses the connection without saying why";
    else if (event->event == RDMA_CM_EVENT_UNREACHABLE)
        *why = "the host does not answer to RDMA (is the interface's RDMA link up on both sides? 'rdma link')";
    else
        *why = rdma_event_str(event->event);
    return -EAGAIN;
}

int verbs_ack_timeout_set(struct rdma_cm_id *id)
{
    struct ibv_device_attr device;
    uint8_t timeout = VERBS_ACK_TIMEOUT;

    if (ibv_query_device(id->verbs, &device) == 0 && device.vendor_id == VERBS_VENDOR_SOFT)
        timeout = VERBS_ACK_TIMEOUT_SOFT;
    return rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout)) == 0 ? 0 : -errno;
}

void verbs_peer_name(struct rdma_cm_id *id, const char *prefix, char *text, size_t bytes)
{
    const struct sockaddr *address = rdma_get_peer_addr(id);
    char host[64] = "?", port[16] = "?";

    getnameinfo(address, address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in),
                host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(text, bytes, "%s:%s:%s", prefix, host, port);
}
