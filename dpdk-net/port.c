/* Opening and closing a DPDK port; see port.h. Cold: each failure gets a sentence of its own. */
#include "dpdk-net/port.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "base/report.h"
#include "dpdk-net/eal.h"
#include "dpdk-net/interface.h"

#define RECEIVE_DESCRIPTORS 512u
#define TRANSMIT_DESCRIPTORS 512u
/* Both queues full, a burst in each hand and two threads' caches, rounded to what suits a mempool (2^n - 1). */
#define POOL_MBUFS 2047u
/* The same for frames so large that they would need too much of EAL's memory. */
#define LARGE_FRAME_BYTES 4096u
#define LARGE_DESCRIPTORS 256u
#define LARGE_POOL_MBUFS 1023u
/* Kept by each thread that DPDK knows, up to half as many more: the one that opens the port, and the one that polls it
 * (eal_thread_begin). */
#define POOL_CACHE_MBUFS 128u
/* AF_XDP's driver takes 2048 at once for the kernel to fill, and has as many in its other rings. */
#define XDP_POOL_MBUFS 8191u
#define DEVICE_MAX_BYTES 256u
/* Drivers that put a header of theirs ahead of a frame (virtio: 12 bytes) want room for it. */
#define DRIVER_HEADER_BYTES 32u

/* AF_PACKET's ring has slots of one size. Ahead of the frame the kernel keeps its own header, aligned, and what of the
 * Ethernet header sticks out of it (net/packet/af_packet.c, tpacket_rcv). The driver's default is 2048. */
#define PACKET_SLOT_BYTES 2048u
#define PACKET_AHEAD_BYTES 80u
#define PACKET_BLOCK_BYTES 4096u

#define CHECKSUMS_OUT (RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM)
#define SEGMENTS_OUT (RTE_ETH_TX_OFFLOAD_TCP_TSO | RTE_ETH_TX_OFFLOAD_MULTI_SEGS)
#define CHECKSUMS_IN (RTE_ETH_RX_OFFLOAD_IPV4_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM)

/* What the text turned into. */
struct device {
    char text[DEVICE_MAX_BYTES];      /* for rte_dev_probe */
    char name[64];                    /* its part before the first comma */
    char interface[DEVICE_MAX_BYTES]; /* the Linux interface below it, or "" */
    uint32_t buffer_bytes;            /* that a received frame may need */
    unsigned buffers;
    bool is_pci;
};

/* "0000:3b:00.0" or "3b:00.0"; EAL knows a device by the long form. */
static bool parse_pci(const char *text, char address[64])
{
    unsigned domain = 0, bus, slot, function;
    int used = -1;

    if (sscanf(text, "%4x:%2x:%2x.%1u%n", &domain, &bus, &slot, &function, &used) != 4 || used < 0) {
        domain = 0;
        used = -1;
        if (sscanf(text, "%2x:%2x.%1u%n", &bus, &slot, &function, &used) != 3 || used < 0)
            return false;
    }
    if (text[used] != '\0' && text[used] != ',')
        return false;
    snprintf(address, 64, "%04x:%02x:%02x.%u", domain, bus, slot, function);
    return true;
}

static const char *after(const char *text, const char *prefix)
{
    size_t bytes = strlen(prefix);

    return strncmp(text, prefix, bytes) == 0 ? text + bytes : NULL;
}

/* Of AF_PACKET's ring, and of a memif's buffers, for frames of this MTU. */
static uint32_t packet_slot_bytes(uint32_t mtu)
{
    uint32_t bytes = NET_LINK_BYTES + mtu + PACKET_AHEAD_BYTES;

    return bytes <= PACKET_SLOT_BYTES ? PACKET_SLOT_BYTES
                                      : (bytes + PACKET_BLOCK_BYTES - 1) / PACKET_BLOCK_BYTES * PACKET_BLOCK_BYTES;
}

/* A device string of the user's own says how large AF_PACKET's slots are, or leaves them as they are. */
static bool given_slots_fit(const char *text, uint32_t mtu, uint32_t *slot_bytes)
{
    const char *given = strstr(text, ",framesz=");

    *slot_bytes = given != NULL ? (uint32_t)strtoul(given + 9, NULL, 10) : PACKET_SLOT_BYTES;
    if (*slot_bytes <= UINT16_MAX && *slot_bytes >= NET_LINK_BYTES + mtu + PACKET_AHEAD_BYTES)
        return true;
    report_error("port '%s' has room for frames of %u bytes, too little for an MTU of %u; give af_packet:IFACE, or add "
                 ",framesz=%u,blocksz=%u", text, *slot_bytes, mtu, packet_slot_bytes(mtu), packet_slot_bytes(mtu));
    return false;
}

/* A vdev's name must be unique in the process; each open takes a new number. */
static int parse_device(const char *text, uint32_t mtu, struct device *device)
{
    uint32_t slot_bytes = packet_slot_bytes(mtu);
    static unsigned next_number;
    const char *rest, *given = NULL;
    int written;

    memset(device, 0, sizeof(*device));
    device->buffer_bytes = NET_LINK_BYTES + mtu + DRIVER_HEADER_BYTES;
    device->buffers = NET_LINK_BYTES + mtu > LARGE_FRAME_BYTES ? LARGE_POOL_MBUFS : POOL_MBUFS;
    if ((rest = after(text, "af_packet:")) != NULL) {
        given = rest;
        written = snprintf(device->text, sizeof(device->text), "net_af_packet%u,iface=%s", next_number, rest);
        if (slot_bytes != PACKET_SLOT_BYTES && written < (int)sizeof(device->text))
            written += snprintf(device->text + written, sizeof(device->text) - (size_t)written,
                                ",framesz=%u,blocksz=%u,framecnt=%u", slot_bytes, slot_bytes, LARGE_DESCRIPTORS);
        device->buffer_bytes = slot_bytes;
        snprintf(device->interface, sizeof(device->interface), "%s", rest);
    } else if ((rest = after(text, "af_xdp:")) != NULL) {
        given = rest;
        written = snprintf(device->text, sizeof(device->text), "net_af_xdp%u,iface=%s", next_number, rest);
        snprintf(device->interface, sizeof(device->interface), "%s", rest);
    } else if ((rest = after(text, "tap:")) != NULL) {
        given = rest;
        written = snprintf(device->text, sizeof(device->text), "net_tap%u,iface=%s", next_number, rest);
    } else if ((rest = after(text, "memif:")) != NULL) {
        const char *comma = strchr(rest, ',');
        bool client = comma != NULL && strcmp(comma, ",client") == 0;

        if (comma != NULL && !client && strcmp(comma, ",server") != 0) {
            report_error("port '%s': after the socket only ',client' or ',server' can follow", text);
            return -EINVAL;
        }
        given = comma != rest ? rest : "";
        written = snprintf(device->text, sizeof(device->text), "net_memif%u,role=%s,socket=%.*s,socket-abstract=%s",
                           next_number, client ? "client" : "server",
                           comma != NULL ? (int)(comma - rest) : (int)strlen(rest), rest,
                           rest[0] == '/' ? "no" : "yes");
        if (slot_bytes != PACKET_SLOT_BYTES && written < (int)sizeof(device->text))
            written += snprintf(device->text + written, sizeof(device->text) - (size_t)written, ",bsize=%u",
                                slot_bytes);
    } else if (parse_pci(text, device->name)) {
        const char *comma = strchr(text, ',');

        written = snprintf(device->text, sizeof(device->text), "%s%s", device->name, comma != NULL ? comma : "");
        device->is_pci = true;
    } else if (after(text, "net_") != NULL || after(text, "eth_") != NULL) {
        const char *interface = strstr(text, ",iface=");

        written = snprintf(device->text, sizeof(device->text), "%s", text);
        if (interface != NULL && (after(text, "net_af_packet") != NULL || after(text, "net_af_xdp") != NULL))
            snprintf(device->interface, sizeof(device->interface), "%.*s", (int)strcspn(interface + 7, ","),
                     interface + 7);
        if (after(text, "net_af_packet") != NULL && !given_slots_fit(text, mtu, &device->buffer_bytes))
            return -EINVAL;
    } else {
        report_error("port '%s' is not understood; give af_packet:IFACE, af_xdp:IFACE, tap:NAME, "
                     "memif:SOCKET[,client], a PCI address (0000:3b:00.0) or a DPDK device "
                     "(net_virtio_user0,path=/dev/vhost-net)", text);
        return -EINVAL;
    }
    next_number++;
    if (written >= (int)sizeof(device->text)) {
        report_error("port '%.40s...' is longer than %u characters", text, DEVICE_MAX_BYTES - 1);
        return -EINVAL;
    }
    if (given != NULL && (given[0] == '\0' || (strchr(given, ',') != NULL && after(text, "memif:") == NULL))) {
        report_error("port '%s' must name one interface or socket after the colon", text);
        return -EINVAL;
    }
    if (!device->is_pci)
        snprintf(device->name, sizeof(device->name), "%.*s", (int)strcspn(device->text, ","), device->text);
    if (after(device->name, "net_af_xdp") != NULL)
        device->buffers = XDP_POOL_MBUFS;
    return 0;
}

/* "net_af_packet" of "net_af_packet0". */
static int driver_length(const char *name)
{
    int length = (int)strlen(name);

    while (length > 0 && isdigit((unsigned char)name[length - 1]))
        length--;
    return length;
}

static int probe(struct port *port, const struct device *device)
{
    int error;

    snprintf(port->name, sizeof(port->name), "%s", device->name);
    if (rte_eth_dev_get_port_by_name(port->name, &port->id) == 0) { /* EAL's own start found the PCI device */
        port->probed = true;
        return 0;
    }
    eal_words_clear();
    error = rte_dev_probe(device->text);
    if (error == 0 && rte_eth_dev_get_port_by_name(port->name, &port->id) == 0) {
        (void)eal_words();
        port->probed = true;
        return 0;
    }
    if (device->is_pci) {
        report_error("PCI device %s gives no DPDK port (\"%s\"); is it there (lspci), and bound to vfio-pci, or to its "
                     "own kernel driver for mlx4/mlx5?", device->name, eal_words());
    } else if (error == -EFAULT || error == -ENODEV || error == 0) { /* no bus knows the name */
        report_error("DPDK has no driver for '%.*s' (\"%s\"); drivers are plug-ins in %s, on Debian packages like "
                     "librte-net-af-packet23", driver_length(device->name), device->name, eal_words(),
                     RTE_EAL_PMD_PATH);
        return -ENODEV;
    } else {
        report_error("DPDK cannot open '%s': %s; it says: \"%s\"%s", device->text, strerror(-error), eal_words(),
                     geteuid() != 0 ? "; run as root, or with CAP_NET_RAW and CAP_NET_ADMIN" : "");
    }
    return error != 0 ? error : -ENODEV;
}

static bool is_driver(const char *name, const char *driver)
{
    return name != NULL && strcmp(name, driver) == 0;
}

/* What is asked of the port's hardware. A tap's driver says that it can do all of it, and does it in software. */
static void choose_offloads(struct port *port, const struct rte_eth_dev_info *info, struct rte_eth_conf *configuration)
{
    if (is_driver(info->driver_name, "net_tap"))
        return;
    port->sums = (info->tx_offload_capa & CHECKSUMS_OUT) == CHECKSUMS_OUT;
    port->segments = port->sums && (info->tx_offload_capa & SEGMENTS_OUT) == SEGMENTS_OUT;
    port->ip_sums = port->segments && (info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_IPV4_CKSUM) != 0;
    configuration->txmode.offloads = (port->sums ? CHECKSUMS_OUT : 0) | (port->segments ? SEGMENTS_OUT : 0) |
                                     (port->ip_sums ? RTE_ETH_TX_OFFLOAD_IPV4_CKSUM : 0);
    configuration->rxmode.offloads = info->rx_offload_capa & CHECKSUMS_IN;
}

/* The driver's own limit, where it has one that can be set. AF_PACKET would change the interface's, which is the
 * operator's (interface_check has looked at it). */
static int set_mtu(const struct port *port, const struct rte_eth_dev_info *info, uint32_t mtu)
{
    int error = 0;

    if (mtu > NET_MTU_DEFAULT && port->interface[0] == '\0')
        error = rte_eth_dev_set_mtu(port->id, (uint16_t)mtu);
    if (error == 0 || error == -ENOTSUP)
        return 0;
    report_error("port %s (driver %s) does not take an MTU of %u: %s; its packets have at most %u bytes. Give a smaller --mtu, "
                 "or another kind of port", port->name, info->driver_name, mtu, strerror(-error),
                 info->max_mtu + NET_LINK_BYTES < info->max_rx_pktlen ? info->max_mtu
                                                                      : info->max_rx_pktlen - NET_LINK_BYTES);
    return -EINVAL;
}

static int start(struct port *port, bool is_pci, uint32_t mtu)
{
    bool large = NET_LINK_BYTES + mtu > LARGE_FRAME_BYTES;
    uint16_t receive_descriptors = large ? LARGE_DESCRIPTORS : RECEIVE_DESCRIPTORS;
    uint16_t transmit_descriptors = large ? LARGE_DESCRIPTORS : TRANSMIT_DESCRIPTORS;
    struct rte_eth_conf configuration = { 0 };
    int socket = rte_eth_dev_socket_id(port->id);
    struct rte_eth_dev_info info;
    const char *step;
    int error;

    step = "ask";
    error = rte_eth_dev_info_get(port->id, &info);
    if (error != 0)
        goto fail;
    snprintf(port->driver, sizeof(port->driver), "%.31s", info.driver_name);
    choose_offloads(port, &info, &configuration);
    port->keeps = !is_driver(info.driver_name, "net_af_packet") && !is_driver(info.driver_name, "net_tap") &&
                  !is_driver(info.driver_name, "net_pcap");
    step = "configure";
    if (is_pci)
        configuration.rxmode.mtu = mtu;
    error = rte_eth_dev_configure(port->id, 1, 1, &configuration);
    if (error == 0)
        error = rte_eth_dev_adjust_nb_rx_tx_desc(port->id, &receive_descriptors, &transmit_descriptors);
    if (error != 0)
        goto fail;
    step = "set up the queues of";
    error = rte_eth_rx_queue_setup(port->id, 0, receive_descriptors, (unsigned)socket, NULL, port->pool);
    if (error == 0)
        error = rte_eth_tx_queue_setup(port->id, 0, transmit_descriptors, (unsigned)socket, NULL);
    if (error != 0)
        goto fail;
    if (!is_pci && set_mtu(port, &info, mtu) != 0)
        return -EINVAL;
    step = "start";
    error = rte_eth_dev_start(port->id);
    if (error != 0)
        goto fail;
    port->started = true;
    error = rte_eth_promiscuous_enable(port->id);
    if (error != 0 && error != -ENOTSUP) /* memif and tap hear everything anyway */
        report_warning("port %s does not become promiscuous (%s); frames for the guest's MAC may not arrive",
                       port->name, strerror(-error));
    return 0;
fail:
    report_error("cannot %s port %s: %s; DPDK says: \"%s\"", step, port->name, strerror(-error), eal_words());
    return error;
}

static int make_pool(struct port *port, const struct device *device)
{
    uint32_t room_bytes = (RTE_PKTMBUF_HEADROOM + device->buffer_bytes + 63) & ~63u;
    static unsigned next_pool;
    char name[32];

    if (room_bytes < RTE_MBUF_DEFAULT_BUF_SIZE)
        room_bytes = RTE_MBUF_DEFAULT_BUF_SIZE;
    snprintf(name, sizeof(name), "ftvmm_%u", next_pool++);
    port->pool = rte_pktmbuf_pool_create(name, device->buffers, POOL_CACHE_MBUFS, 0, (uint16_t)room_bytes,
                                         rte_eth_dev_socket_id(port->id));
    if (port->pool != NULL)
        return 0;
    report_error("no memory for %u packet buffers of %u bytes: %s", device->buffers, room_bytes,
                 strerror(rte_errno));
    return -rte_errno;
}

int port_open(struct port *port, const char *text, uint32_t mtu)
{
    struct device device;
    int error;

    memset(port, 0, sizeof(*port));
    port->link_fd = port->packet_fd = -1;
    error = parse_device(text, mtu, &device);
    if (error == 0 && device.interface[0] != '\0')
        error = interface_check(device.interface, mtu);
    if (error == 0 && after(device.name, "net_tap") != NULL)
        error = interface_check_tun();
    if (error == 0)
        error = eal_start(device.is_pci ? device.text : NULL);
    if (error != 0)
        return error;
    snprintf(port->interface, sizeof(port->interface), "%.15s", device.interface); /* interface_check has seen it */
    if (port->interface[0] != '\0')
        port->link_fd = interface_open();
    error = probe(port, &device);
    if (error == 0)
        error = make_pool(port, &device);
    if (error != 0)
        goto fail;
    eal_words_clear();
    error = start(port, device.is_pci, mtu);
    (void)eal_words();
    if (error != 0)
        goto fail;
    if (device.interface[0] != '\0')
        interface_stop_merging(device.interface);
    if (after(device.name, "net_af_packet") != NULL) /* DPDK 22.11's driver does not count them */
        port->packet_fd = interface_packet_socket(device.interface);
    return 0;
fail:
    port_close(port);
    return error;
}

void port_look(struct port *port, struct port_look *look)
{
    struct rte_eth_stats statistics = { 0 };
    struct rte_eth_link link = { 0 };

    if (rte_eth_stats_get(port->id, &statistics) != 0)
        memset(&statistics, 0, sizeof(statistics));
    if (port->packet_fd >= 0)
        port->packet_drops += interface_packet_drops(port->packet_fd);
    look->missed = statistics.imissed + statistics.ierrors + statistics.rx_nombuf + port->packet_drops;
    look->lost_sending = statistics.oerrors;
    if (port->link_fd >= 0) /* the drivers on top of an interface say "up" whatever happens */
        look->link_up = interface_runs(port->link_fd, port->interface);
    else
        look->link_up = rte_eth_link_get_nowait(port->id, &link) != 0 || link.link_status == RTE_ETH_LINK_UP;
}

void port_close(struct port *port)
{
    struct rte_eth_dev_info info = { 0 };

    if (port->link_fd > 0) /* 0 in one that was never opened */
        close(port->link_fd);
    port->link_fd = -1;
    if (port->started)
        (void)rte_eth_dev_stop(port->id);
    port->started = false;
    if (port->probed) {
        /* closing alone would keep the name, and with af_packet the socket, until the process ends */
        struct rte_device *device = rte_eth_dev_info_get(port->id, &info) == 0 ? info.device : NULL;

        (void)rte_eth_dev_close(port->id);
        if (device != NULL)
            (void)rte_dev_remove(device);
    }
    port->probed = false;
    rte_mempool_free(port->pool);
    port->pool = NULL;
}
