/* Learning the guest's addresses and building the announcements; see announce.h. */
#include "dpdk-net/announce.h"

#include <string.h>

#include "dpdk-net/checksum.h"

#define ETHERTYPE_IPV4 0x0800u
#define ETHERTYPE_ARP 0x0806u
#define ETHERTYPE_RARP 0x8035u
#define ETHERTYPE_IPV6 0x86ddu
#define ARP_BYTES 28u
#define ETHERNET_MIN_BYTES 60u /* without FCS */
#define ARP_OP_REQUEST 1u
#define RARP_OP_REQUEST 3u
#define ICMPV6 58u
#define NEIGHBOUR_SOLICITATION 135u
#define NEIGHBOUR_ADVERTISEMENT 136u
#define NA_BYTES 32u /* 24 and the target link-layer address option */

static unsigned count_of(const struct announce_addresses *addresses)
{
    return addresses->learned < ANNOUNCE_ADDRESSES ? addresses->learned : ANNOUNCE_ADDRESSES;
}

static void learn(struct announce_addresses *addresses, const uint8_t *address, size_t bytes)
{
    for (unsigned i = 0; i < count_of(addresses); i++)
        if (memcmp(addresses->address[i], address, bytes) == 0)
            return;
    memcpy(addresses->address[addresses->learned % ANNOUNCE_ADDRESSES], address, bytes);
    addresses->learned++;
    if (addresses->learned == 2 * ANNOUNCE_ADDRESSES) /* stays full, and never wraps to "none" */
        addresses->learned = ANNOUNCE_ADDRESSES;
}

static void learn_ipv4(struct announce_addresses *addresses, const uint8_t *address)
{
    /* not 0.0.0.0/8 (probing, DHCP), loopback, multicast or broadcast */
    if (address[0] != 0 && address[0] != 127 && address[0] < 224)
        learn(addresses, address, 4);
}

static void learn_ipv6(struct announce_addresses *addresses, const uint8_t *address)
{
    static const uint8_t zeros[15];

    /* not :: (duplicate address detection), ::1 or multicast */
    if (memcmp(address, zeros, 15) != 0 && address[0] != 0xff)
        learn(addresses, address, 16);
}

static void learn_arp(struct announce *announce, const uint8_t *arp, size_t bytes)
{
    static const uint8_t ethernet_ipv4[6] = { 0, 1, 8, 0, 6, 4 };

    if (bytes >= ARP_BYTES && memcmp(arp, ethernet_ipv4, 6) == 0 && memcmp(arp + 8, announce->mac, 6) == 0)
        learn_ipv4(&announce->arp, arp + 14);
}

static void learn_ip6(struct announce *announce, const uint8_t *ip, size_t bytes)
{
    if (bytes < 40 || ip[0] >> 4 != 6)
        return;
    learn_ipv6(&announce->ipv6, ip + 8);
    /* hop limit 255: NDP is never routed (RFC 4861, 7.1) */
    if (ip[6] != ICMPV6 || ip[7] != 255 || bytes < 40 + 24)
        return;
    if (ip[40] == NEIGHBOUR_SOLICITATION)
        learn_ipv6(&announce->ndp, ip + 8);
    else if (ip[40] == NEIGHBOUR_ADVERTISEMENT)
        learn_ipv6(&announce->ndp, ip + 48);
}

void announce_learn(struct announce *announce, const uint8_t *frame, size_t bytes)
{
    const uint8_t *payload = frame + 14;
    unsigned type;

    if (bytes < 14 || memcmp(frame + 6, announce->mac, 6) != 0)
        return;
    type = (unsigned)frame[12] << 8 | frame[13];
    bytes -= 14;
    if (type == ETHERTYPE_ARP)
        learn_arp(announce, payload, bytes);
    else if (type == ETHERTYPE_IPV4 && bytes >= 20 && payload[0] >> 4 == 4)
        learn_ipv4(&announce->ipv4, payload + 12);
    else if (type == ETHERTYPE_IPV6)
        learn_ip6(announce, payload, bytes);
    /* Tagged frames are another network's: an untagged announcement would be wrong there. */
}

void announce_set_mac(struct announce *announce, const uint8_t mac[6])
{
    struct announce fresh = { 0 };

    if (memcmp(announce->mac, mac, 6) == 0)
        return;
    *announce = fresh;
    memcpy(announce->mac, mac, 6);
}

static size_t build_header(uint8_t *frame, const uint8_t to[6], const uint8_t from[6], unsigned type)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, from, 6);
    frame[12] = (uint8_t)(type >> 8);
    frame[13] = (uint8_t)type;
    return 14;
}

/* RARP: who am I, asks the guest. ARP: who has `address`, asks `address` itself. */
static size_t build_arp(const struct announce *announce, unsigned type, unsigned op, const uint8_t address[4],
                        uint8_t *frame)
{
    static const uint8_t everybody[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    static const uint8_t ethernet_ipv4[7] = { 0, 1, 8, 0, 6, 4, 0 };
    uint8_t *arp = frame + build_header(frame, everybody, announce->mac, type);

    memset(arp, 0, ETHERNET_MIN_BYTES - 14);
    memcpy(arp, ethernet_ipv4, 7);
    arp[7] = (uint8_t)op;
    memcpy(arp + 8, announce->mac, 6);
    memcpy(arp + 14, address, 4);
    if (op == RARP_OP_REQUEST)
        memcpy(arp + 18, announce->mac, 6);
    memcpy(arp + 24, address, 4);
    return ETHERNET_MIN_BYTES;
}

static size_t build_na(const struct announce *announce, const uint8_t address[16], uint8_t *frame)
{
    static const uint8_t all_nodes_mac[6] = { 0x33, 0x33, 0, 0, 0, 1 };
    static const uint8_t all_nodes[16] = { 0xff, 0x02, [15] = 1 };
    uint8_t *ip = frame + build_header(frame, all_nodes_mac, announce->mac, ETHERTYPE_IPV6);
    uint8_t *na = ip + 40;
    uint16_t sum;

    memset(ip, 0, 40 + NA_BYTES);
    ip[0] = 6 << 4;
    ip[5] = NA_BYTES;
    ip[6] = ICMPV6;
    ip[7] = 255;
    memcpy(ip + 8, address, 16);
    memcpy(ip + 24, all_nodes, 16);
    na[0] = NEIGHBOUR_ADVERTISEMENT;
    na[4] = 0x20; /* override: replace what you have cached */
    memcpy(na + 8, address, 16);
    na[24] = 2; /* option: target link-layer address, */
    na[25] = 1; /* one unit of 8 bytes */
    memcpy(na + 26, announce->mac, 6);
    sum = (uint16_t)~checksum_fold(checksum_add(checksum_add(ICMPV6 + NA_BYTES, ip + 8, 32), na, NA_BYTES));
    na[2] = (uint8_t)(sum >> 8);
    na[3] = (uint8_t)sum;
    return 14 + 40 + NA_BYTES;
}

size_t announce_build(const struct announce *announce, unsigned index, uint8_t frame[ANNOUNCE_FRAME_MAX_BYTES])
{
    static const uint8_t no_address[4];
    const struct announce_addresses *v4 = announce->arp.learned > 0 ? &announce->arp : &announce->ipv4;
    const struct announce_addresses *v6 = announce->ndp.learned > 0 ? &announce->ndp : &announce->ipv6;

    if (index == 0)
        return build_arp(announce, ETHERTYPE_RARP, RARP_OP_REQUEST, no_address, frame);
    index--;
    if (index < count_of(v4))
        return build_arp(announce, ETHERTYPE_ARP, ARP_OP_REQUEST, v4->address[index], frame);
    index -= count_of(v4);
    if (index < count_of(v6))
        return build_na(announce, v6->address[index], frame);
    return 0;
}
