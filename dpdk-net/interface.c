/* Checks and settings of Linux interfaces; see interface.h. Source: netdevice(7), packet(7), linux/ethtool.h. */
#include "dpdk-net/interface.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>

#include "base/report.h"

#define PACKET_ANY 0 /* receives nothing until bound: only the permission is asked for */

int interface_check(const char *name, uint32_t mtu)
{
    struct ifreq request = { 0 };
    int fd;

    if (strlen(name) == 0 || strlen(name) >= IFNAMSIZ) {
        report_error("'%s' cannot be a network interface: a name has 1 to %d characters", name, IFNAMSIZ - 1);
        return -EINVAL;
    }
    if (if_nametoindex(name) == 0) {
        report_error("network interface %s does not exist; `ip link` lists those that do", name);
        return -ENODEV;
    }
    fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, PACKET_ANY);
    if (fd < 0) {
        int error = errno;

        if (error == EPERM || error == EACCES)
            report_error("no permission to send raw frames on %s; run as root, or with CAP_NET_RAW and CAP_NET_ADMIN",
                         name);
        else
            report_error("cannot open a packet socket: %s", strerror(error));
        return error == EACCES ? -EPERM : -error;
    }
    memcpy(request.ifr_name, name, strlen(name) + 1);
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_UP) == 0)
        report_warning("network interface %s is down, no frame will pass; ip link set %s up", name, name);
    if (ioctl(fd, SIOCGIFMTU, &request) == 0 && request.ifr_mtu < (int)mtu) {
        report_error("network interface %s has an MTU of %d, and the guest is told %u; ip link set %s mtu %u, or --mtu %d "
                     "on both hosts", name, request.ifr_mtu, mtu, name, mtu, request.ifr_mtu);
        close(fd);
        return -EINVAL;
    }
    close(fd);
    return 0;
}

int interface_open(void)
{
    return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

bool interface_runs(int fd, const char *name)
{
    struct ifreq request = { 0 };

    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    return ioctl(fd, SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & (IFF_UP | IFF_RUNNING)) == (IFF_UP | IFF_RUNNING);
}

int interface_packet_socket(const char *name)
{
    int index = (int)if_nametoindex(name), found = -1;
    DIR *files = opendir("/proc/self/fd");
    struct dirent *entry;

    while (files != NULL && (entry = readdir(files)) != NULL) {
        int fd = atoi(entry->d_name), domain = 0;
        struct sockaddr_ll address = { 0 };
        socklen_t bytes = sizeof(domain), address_bytes = sizeof(address);

        if (entry->d_name[0] == '.' || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0 ||
            domain != AF_PACKET || getsockname(fd, (struct sockaddr *)&address, &address_bytes) != 0)
            continue;
        if (index > 0 && address.sll_ifindex == index && fd > found)
            found = fd; /* the youngest */
    }
    if (files != NULL)
        closedir(files);
    return found;
}

uint64_t interface_packet_drops(int fd)
{
    struct tpacket_stats statistics = { 0 }; /* packet(7): asking sets them back */
    socklen_t bytes = sizeof(statistics);

    return getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &bytes) == 0 ? statistics.tp_drops : 0;
}

int interface_check_tun(void)
{
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    int error = fd < 0 ? errno : 0;

    if (fd >= 0)
        close(fd);
    if (error == ENOENT || error == ENODEV) {
        report_error("this machine has no TUN/TAP device (/dev/net/tun: %s); modprobe tun", strerror(error));
        return -ENODEV;
    }
    if (error == EACCES || error == EPERM) {
        report_error("no permission to use /dev/net/tun; run as root, or with CAP_NET_ADMIN and access to it");
        return -EPERM;
    }
    return 0;
}

/* ---- merging of received frames ---- */

static int ethtool(int fd, const char *name, void *command)
{
    struct ifreq request = { .ifr_data = command };

    memcpy(request.ifr_name, name, strlen(name) + 1);
    return ioctl(fd, SIOCETHTOOL, &request) == 0 ? 0 : -errno;
}

/* The bit of the feature called `feature`, or -1: this kernel has none of that name. */
static int feature_bit(int fd, const char *name, const char *feature, unsigned *words)
{
    struct {
        struct ethtool_sset_info info;
        uint32_t count;
    } set = { .info = { .cmd = ETHTOOL_GSSET_INFO, .sset_mask = 1u << ETH_SS_FEATURES } };
    struct ethtool_gstrings *names;
    int bit = -1;

    if (ethtool(fd, name, &set) != 0 || set.info.sset_mask == 0 || set.count == 0 || set.count > 1024)
        return -1;
    names = calloc(1, sizeof(*names) + (size_t)set.count * ETH_GSTRING_LEN);
    if (names == NULL)
        return -1;
    names->cmd = ETHTOOL_GSTRINGS;
    names->string_set = ETH_SS_FEATURES;
    names->len = set.count;
    if (ethtool(fd, name, names) == 0)
        for (unsigned i = 0; i < names->len && bit < 0; i++)
            if (strncmp((const char *)names->data + (size_t)i * ETH_GSTRING_LEN, feature, ETH_GSTRING_LEN) == 0)
                bit = (int)i;
    free(names);
    *words = (set.count + 31) / 32;
    return bit;
}

/* 1: was on and is now off; 0: was off, or unknown here; -errno: is still on. */
static int feature_stop(int fd, const char *name, const char *feature)
{
    struct ethtool_gfeatures *now;
    struct ethtool_sfeatures *want;
    unsigned words = 0;
    int bit = feature_bit(fd, name, feature, &words);
    int result = -ENOMEM;

    if (bit < 0)
        return 0;
    now = calloc(1, sizeof(*now) + words * sizeof(now->features[0]));
    want = calloc(1, sizeof(*want) + words * sizeof(want->features[0]));
    if (now == NULL || want == NULL)
        goto done;
    now->cmd = ETHTOOL_GFEATURES;
    now->size = words;
    result = ethtool(fd, name, now);
    if (result != 0)
        goto done;
    if ((now->features[bit / 32].active & 1u << bit % 32) == 0)
        goto done; /* off already */
    want->cmd = ETHTOOL_SFEATURES;
    want->size = words;
    want->features[bit / 32].valid = 1u << bit % 32;
    result = ethtool(fd, name, want);
    if (result != 0)
        goto done;
    now->size = words;
    result = ethtool(fd, name, now);
    if (result == 0)
        result = (now->features[bit / 32].active & 1u << bit % 32) == 0 ? 1 : -EOPNOTSUPP;
done:
    free(now);
    free(want);
    return result;
}

void interface_stop_merging(const char *name)
{
    static const char *const features[] = { "rx-gro", "rx-gro-hw", "rx-lro" };
    char stopped[64] = "";
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        int result = feature_stop(fd, name, features[i]);
        size_t used = strlen(stopped);

        if (result > 0)
            snprintf(stopped + used, sizeof(stopped) - used, " %s", features[i]);
        else if (result < 0)
            report_warning("%s merges arriving frames and that cannot be switched off (%s: %s); merged frames are too "
                           "large for the guest and will be dropped; ethtool -K %s gro off lro off", name, features[i],
                           strerror(-result), name);
    }
    if (stopped[0] != '\0')
        report_info("switched off on %s:%s (merged frames would not fit the guest's MTU)", name, stopped);
    close(fd);
}
