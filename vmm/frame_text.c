/* Looks into Ethernet, ARP, IPv4, IPv6, ICMP, UDP and TCP headers, never beyond the frame's end. */
#include "vmm/frame_text.h"

#include <arpa/inet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#define IPV4_BYTES 20u
#define IPV6_BYTES 40u
#define ARP_BYTES  28u /* for Ethernet and IPv4 */

static unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static void tcp_flags(uint8_t flags, char text[7])
{
    static const char names[] = "FSRPAU";
    size_t count = 0;

    for (unsigned bit = 0; bit < 6; bit++)
        if (flags >> bit & 1)
            text[count++] = names[bit];
    text[count] = '\0';
}

/* What follows the IP header; `at` holds `bytes` of it, `whole_bytes` there are by the IP header. */
static void transport_text(const char *ip, const char *from, const char *to, unsigned protocol, const uint8_t *at,
                           size_t bytes, size_t whole_bytes, char text[FRAME_TEXT_BYTES])
{
    char flags[7];

    if (protocol == IPPROTO_TCP && bytes >= 20) {
        size_t header_bytes = (at[12] >> 4) * 4u;

        tcp_flags(at[13], flags);
        snprintf(text, FRAME_TEXT_BYTES, "%s tcp %s:%u > %s:%u %s data %zu", ip, from, get16(at), to, get16(at + 2),
                 flags, whole_bytes > header_bytes ? whole_bytes - header_bytes : 0);
    } else if (protocol == IPPROTO_UDP && bytes >= 8) {
        snprintf(text, FRAME_TEXT_BYTES, "%s udp %s:%u > %s:%u data %zu", ip, from, get16(at), to, get16(at + 2),
                 whole_bytes > 8 ? whole_bytes - 8 : 0);
    } else if ((protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) && bytes >= 2) {
        snprintf(text, FRAME_TEXT_BYTES, "%s icmp %s > %s type %u code %u", ip, from, to, at[0], at[1]);
    } else {
        snprintf(text, FRAME_TEXT_BYTES, "%s %s > %s protocol %u", ip, from, to, protocol);
    }
}

static void ipv4_text(const uint8_t *at, size_t bytes, char text[FRAME_TEXT_BYTES])
{
    size_t header_bytes = (at[0] & 15) * 4u, whole_bytes = get16(at + 2);
    char from[INET_ADDRSTRLEN], to[INET_ADDRSTRLEN];

    if (header_bytes < IPV4_BYTES || header_bytes > bytes)
        header_bytes = bytes; /* nothing to be seen behind it */
    inet_ntop(AF_INET, at + 12, from, sizeof(from));
    inet_ntop(AF_INET, at + 16, to, sizeof(to));
    if ((get16(at + 6) & 0x1fff) != 0) { /* a later fragment */
        snprintf(text, FRAME_TEXT_BYTES, "ipv4 %s > %s protocol %u fragment", from, to, at[9]);
        return;
    }
    transport_text("ipv4", from, to, at[9], at + header_bytes, bytes - header_bytes,
                   whole_bytes > header_bytes ? whole_bytes - header_bytes : 0, text);
}

static void ipv6_text(const uint8_t *at, size_t bytes, char text[FRAME_TEXT_BYTES])
{
    char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];

    inet_ntop(AF_INET6, at + 8, from, sizeof(from));
    inet_ntop(AF_INET6, at + 24, to, sizeof(to));
    transport_text("ipv6", from, to, at[6], at + IPV6_BYTES, bytes - IPV6_BYTES, get16(at + 4), text);
}

static void arp_text(const uint8_t *at, char text[FRAME_TEXT_BYTES])
{
    char sender[INET_ADDRSTRLEN], target[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, at + 14, sender, sizeof(sender));
    inet_ntop(AF_INET, at + 24, target, sizeof(target));
    if (get16(at + 6) == ARPOP_REQUEST)
        snprintf(text, FRAME_TEXT_BYTES, "arp who has %s, asks %s", target, sender);
    else
        snprintf(text, FRAME_TEXT_BYTES, "arp operation %u from %s to %s", get16(at + 6), sender, target);
}

void frame_text(const uint8_t *frame, size_t bytes, char text[FRAME_TEXT_BYTES])
{
    const uint8_t *at = frame + ETHER_HDR_LEN;
    size_t rest = bytes - ETHER_HDR_LEN;
    unsigned type;

    if (bytes < ETHER_HDR_LEN) {
        snprintf(text, FRAME_TEXT_BYTES, "no whole Ethernet header");
        return;
    }
    type = get16(frame + 12);
    if (type == ETHERTYPE_IP && rest >= IPV4_BYTES)
        ipv4_text(at, rest, text);
    else if (type == ETHERTYPE_IPV6 && rest >= IPV6_BYTES)
        ipv6_text(at, rest, text);
    else if (type == ETHERTYPE_ARP && rest >= ARP_BYTES)
        arp_text(at, text);
    else
        snprintf(text, FRAME_TEXT_BYTES, "type 0x%04x, %02x:%02x:%02x:%02x:%02x:%02x > %02x:%02x:%02x:%02x:%02x:%02x",
                 type, frame[6], frame[7], frame[8], frame[9], frame[10], frame[11], frame[0], frame[1], frame[2],
                 frame[3], frame[4], frame[5]);
}
