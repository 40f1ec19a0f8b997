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
/* Both queues full and a burst in each hand, rounded to what suits a mempool (2^n - 1). */
#define POOL_MBUFS 2047u
#define DEVICE_MAX_BYTES 256u

/* What the text turned into. */
struct device {
    char text[DEVICE_MAX_BYTES];      /* for rte_dev_probe */
    char name[64];                    /* its part before the first comma */
    char interface[DEVICE_MAX_BYTES]; /* the Linux interface below it, or "" */
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

/* A vdev's name must be unique in the process; each open takes a new number. */
static int parse_device(const char *text, struct device *device)
{
    static unsigned next_number;
    const char *rest, *given = NULL;
    int written;

    memset(device, 0, sizeof(*device));
    if ((rest = after(text, "af_packet:")) != NULL) {
        given = rest;
        written = snprintf(device->text, sizeof(device->text), "net_af_packet%u,iface=%s", next_number, rest);
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
    } else {
        report_error("port '%s' is not understood; give af_packet:IFACE, tap:NAME, memif:SOCKET[,client], a PCI "
                     "address (0000:3b:00.0) or a DPDK device (net_af_packet0,iface=eth1)", text);
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

static int start(struct port *port)
{
    struct rte_eth_conf configuration = { 0 };
    uint16_t receive_descriptors = RECEIVE_DESCRIPTORS, transmit_descriptors = TRANSMIT_DESCRIPTORS;
    int socket = rte_eth_dev_socket_id(port->id);
    const char *step;
    int error;

    step = "configure";
    error = rte_eth_dev_configure(port->id, 1, 1, &configuration);
    if (error != 0)
        goto fail;
    error = rte_eth_dev_adjust_nb_rx_tx_desc(port->id, &receive_descriptors, &transmit_descriptors);
    if (error != 0)
        goto fail;
    step = "set up the queues of";
    error = rte_eth_rx_queue_setup(port->id, 0, receive_descriptors, (unsigned)socket, NULL, port->pool);
    if (error == 0)
        error = rte_eth_tx_queue_setup(port->id, 0, transmit_descriptors, (unsigned)socket, NULL);
    if (error != 0)
        goto fail;
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

int port_open(struct port *port, const char *text)
{
    static unsigned next_pool;
    struct device device;
    char pool_name[32];
    int error;

    memset(port, 0, sizeof(*port));
    error = parse_device(text, &device);
    if (error == 0 && device.interface[0] != '\0')
        error = interface_check(device.interface);
    if (error == 0 && after(device.name, "net_tap") != NULL)
        error = interface_check_tun();
    if (error == 0)
        error = eal_start(device.is_pci ? device.text : NULL);
    if (error != 0)
        return error;
    error = probe(port, &device);
    if (error != 0)
        goto fail;
    snprintf(pool_name, sizeof(pool_name), "ftvmm_%u", next_pool++);
    /* No per-lcore caches: the I/O thread is not one of EAL's. */
    port->pool = rte_pktmbuf_pool_create(pool_name, POOL_MBUFS, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
                                         rte_eth_dev_socket_id(port->id));
    if (port->pool == NULL) {
        error = -rte_errno;
        report_error("no memory for %u packet buffers: %s", POOL_MBUFS, strerror(-error));
        goto fail;
    }
    eal_words_clear();
    error = start(port);
    (void)eal_words();
    if (error != 0)
        goto fail;
    if (device.interface[0] != '\0')
        interface_stop_merging(device.interface);
    return 0;
fail:
    port_close(port);
    return error;
}

void port_close(struct port *port)
{
    struct rte_eth_dev_info info = { 0 };

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
