/* Looks for drivers, devices and permissions of each kind of port; see survey.h. Starts no EAL. */
#include "dpdk-net/survey.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/capability.h>
#include <linux/magic.h>

#include <rte_build_config.h>

#define TEXT_BYTES 256u
#define PCI_DEVICES "/sys/bus/pci/devices"

/* DPDK's drivers are plug-ins, each in a package of its own. */
static bool has_driver(const char *name)
{
    char pattern[TEXT_BYTES];
    glob_t found;
    bool any;

    snprintf(pattern, sizeof(pattern), RTE_EAL_PMD_PATH "/librte_net_%s.so*", name);
    any = glob(pattern, 0, NULL, &found) == 0;
    globfree(&found);
    return any;
}

static bool has_capability(unsigned capability)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2] = { 0 };

    return syscall(SYS_capget, &header, data) == 0 && (data[capability / 32].effective >> capability % 32 & 1) != 0;
}

/* 0 if the file may be opened for reading and writing, else errno. */
static int open_error(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int error = fd < 0 ? errno : 0;

    if (fd >= 0)
        close(fd);
    return error;
}

/* A socket of that family: 0, or errno. */
static int socket_error(int family)
{
    int fd = socket(family, SOCK_RAW | SOCK_CLOEXEC, 0);
    int error = fd < 0 ? errno : 0;

    if (fd >= 0)
        close(fd);
    return error;
}

/* Says that the driver is missing, if it is. */
static bool lacks_driver(survey_say *say, const char *what, const char *name, const char *package)
{
    char remedy[TEXT_BYTES];

    if (has_driver(name))
        return false;
    snprintf(remedy, sizeof(remedy), "apt-get install librte-net-%s%s", package, strrchr(RTE_EAL_PMD_PATH, '-') + 1);
    remedy[strcspn(remedy, ".")] = '\0'; /* pmds-23.0 belongs to librte-net-...23 */
    say(false, what, "DPDK's driver is not installed", remedy);
    return true;
}

static void survey_af_packet(survey_say *say)
{
    int error = socket_error(AF_PACKET);

    if (lacks_driver(say, "port af_packet", "af_packet", "af-packet"))
        return;
    if (error != 0)
        say(false, "port af_packet", strerror(error), "run as root, or with CAP_NET_RAW and CAP_NET_ADMIN");
    else
        say(true, "port af_packet", "any Linux interface", "");
}

static void survey_af_xdp(survey_say *say)
{
    int error = socket_error(AF_XDP);
    struct statfs bpf;

    if (lacks_driver(say, "port af_xdp", "af_xdp", "af-xdp"))
        return;
    if (error == EAFNOSUPPORT)
        say(false, "port af_xdp", "this kernel has no AF_XDP", "a kernel with CONFIG_XDP_SOCKETS, or af_packet");
    else if (error != 0)
        say(false, "port af_xdp", strerror(error), "run as root, or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF");
    else if (statfs("/sys/fs/bpf", &bpf) != 0 || bpf.f_type != BPF_FS_MAGIC)
        say(false, "port af_xdp", "no bpf file system at /sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf");
    else
        say(true, "port af_xdp", "any Linux interface, frames of up to a page", "");
}

static void survey_tap(survey_say *say)
{
    int error = open_error("/dev/net/tun");

    if (lacks_driver(say, "port tap", "tap", "tap"))
        return;
    if (error == ENOENT || error == ENODEV || error == ENXIO)
        say(false, "port tap", "no /dev/net/tun", "modprobe tun");
    else if (error != 0 || !has_capability(CAP_NET_ADMIN))
        say(false, "port tap", error != 0 ? strerror(error) : "no permission to make interfaces",
            "run as root, or with CAP_NET_ADMIN");
    else
        say(true, "port tap", "makes an interface of this host, MTU up to 1500", "");
}

static void survey_memif(survey_say *say)
{
    if (!lacks_driver(say, "port memif", "memif", "memif"))
        say(true, "port memif", "shared memory with a software switch", "");
}

static void survey_virtio_user(survey_say *say)
{
    int error = open_error("/dev/vhost-net");

    if (lacks_driver(say, "port virtio_user", "virtio", "virtio"))
        return;
    if (error == 0)
        say(true, "port virtio_user", "the kernel's vhost, and vhost-user sockets", "");
    else
        say(true, "port virtio_user", "vhost-user sockets; not the kernel's vhost (modprobe vhost_net)", "");
}

/* A line of a file in a PCI device's directory, or the last part of where a link there leads. */
static bool read_pci(const char *device, const char *name, char *text, size_t size)
{
    char path[TEXT_BYTES + 64], target[TEXT_BYTES];
    ssize_t bytes;
    int fd;

    snprintf(path, sizeof(path), PCI_DEVICES "/%s/%s", device, name);
    bytes = readlink(path, target, sizeof(target) - 1);
    if (bytes > 0) {
        const char *last;

        target[bytes] = '\0';
        last = strrchr(target, '/');
        snprintf(text, size, "%s", last != NULL ? last + 1 : target);
        return true;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC);
    bytes = fd >= 0 ? read(fd, text, size - 1) : -1;
    if (fd >= 0)
        close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return bytes > 0;
}

/* Kernel drivers that leave a card to DPDK, and those beside which DPDK works. */
static bool leaves_to_dpdk(const char *driver)
{
    static const char *const names[] = { "vfio-pci", "uio_pci_generic", "igb_uio", "mlx4_core", "mlx5_core" };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(driver, names[i]) == 0)
            return true;
    return false;
}

static void survey_card(survey_say *say, const char *device)
{
    char driver[TEXT_BYTES], found[TEXT_BYTES], remedy[TEXT_BYTES];
    bool bound = read_pci(device, "driver", driver, sizeof(driver));

    snprintf(found, sizeof(found), "%.20s: driver %.64s", device, bound ? driver : "none");
    snprintf(remedy, sizeof(remedy), "if it is to be the guest's: modprobe vfio-pci; dpdk-devbind.py -b vfio-pci %.20s "
             "(package dpdk)", device);
    say(bound && leaves_to_dpdk(driver), "port PCI", found, remedy);
}

static void survey_pci(survey_say *say)
{
    DIR *devices = opendir(PCI_DEVICES);
    struct dirent *entry;
    bool any = false;
    char class[32];

    while (devices != NULL && (entry = readdir(devices)) != NULL)
        if (entry->d_name[0] != '.' && read_pci(entry->d_name, "class", class, sizeof(class)) &&
            strncmp(class, "0x02", 4) == 0) {
            survey_card(say, entry->d_name);
            any = true;
        }
    if (devices != NULL)
        closedir(devices);
    if (!any)
        say(false, "port PCI", "no network card", "");
}

void net_survey(survey_say *say)
{
    survey_af_packet(say);
    survey_af_xdp(say);
    survey_tap(say);
    survey_memif(say);
    survey_virtio_user(say);
    survey_pci(say);
}
