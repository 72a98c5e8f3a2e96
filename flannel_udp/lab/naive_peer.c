/* naive_peer: the plainest possible peer of flannel's backends udp and ipip. Written independently of the engine in this
 * project, as the other side of interoperability tests and as the baseline of benches: one read and one sendto, one
 * recvfrom and one write a packet, poll() in between. With udp it takes one from the inner TTL in each direction, like
 * flanneld; with ipip it leaves that to the hosts' forwarding, like Linux.
 *
 * usage: naive_peer TUN ADDRESS:PORT SUBNET/LEN=PEER...        udp: the inner packet is the payload of a datagram
 *        naive_peer TUN [ADDRESS]:PORT SUBNET/LEN=PEER...      the same by IPv6, inside and outside
 *        naive_peer TUN ADDRESS SUBNET/LEN=PEER...             ipip: of an IPv4 packet of protocol 4 (RFC 2003)
 * The socket is bound before the device appears. Addresses, routes and the MTU of the device are the caller's business.
 * Runs until it is killed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_ROUTES = 256, MAX_PACKET = 65536 };

struct route { /* addresses in network byte order, of which IPv4 uses the first four bytes */
    uint8_t subnet[16], mask[16], peer[16];
};

static struct route routes[MAX_ROUTES];
static size_t n_routes;

/* Where the families differ: all that this program knows of their headers. */
static const struct family {
    int number;
    uint8_t version;
    size_t address_len;
    ssize_t header_len;
    size_t destination; /* offset */
} ipv4 = {AF_INET, 4, 4, 20, 16}, ipv6 = {AF_INET6, 6, 16, 40, 24};
static const struct family *family;

static void die(const char *what)
{
    fprintf(stderr, "naive_peer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void parse_address(const char *text, uint8_t *address)
{
    if (inet_pton(family->number, text, address) != 1) {
        fprintf(stderr, "naive_peer: %s is no IPv%d address\n", text, family->version);
        exit(2);
    }
}

static void add_route(char *text) /* SUBNET/LEN=PEER */
{
    char *slash = strchr(text, '/'), *equals = strchr(text, '=');
    if (slash == NULL || equals == NULL || slash > equals || n_routes == MAX_ROUTES) {
        fprintf(stderr, "naive_peer: bad or too many routes: %s\n", text);
        exit(2);
    }
    *slash = *equals = '\0';
    struct route *route = &routes[n_routes++];
    parse_address(text, route->subnet);
    parse_address(equals + 1, route->peer);
    for (int bit = 0; bit < atoi(slash + 1) && bit < (int)family->address_len * 8; bit++)
        route->mask[bit / 8] |= (uint8_t)(0x80 >> bit % 8);
}

static const struct route *find_route(const uint8_t *destination) /* first match: the tests' subnets do not overlap */
{
    for (size_t i = 0; i < n_routes; i++) {
        size_t byte = 0;
        while (byte < family->address_len && (destination[byte] & routes[i].mask[byte]) == routes[i].subnet[byte])
            byte++;
        if (byte == family->address_len)
            return &routes[i];
    }
    return NULL;
}

/* Take one from the TTL, or IPv6's hop limit, which no checksum covers. RFC 1624, equation 3: HC' = ~(~HC + ~m + m'), with m the 16-bit word of TTL and protocol. */
static int decrement_ttl(uint8_t *packet)
{
    if (family == &ipv6)
        return packet[7] > 1 ? packet[7]-- : 0;
    if (packet[8] <= 1)
        return 0;
    uint32_t old_word = (uint32_t)packet[8] << 8 | packet[9];
    uint32_t checksum = (uint32_t)packet[10] << 8 | packet[11];
    packet[8]--;
    uint32_t sum = (~checksum & 0xffff) + (~old_word & 0xffff) + (old_word - 0x100);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    checksum = ~sum & 0xffff;
    packet[10] = (uint8_t)(checksum >> 8);
    packet[11] = (uint8_t)checksum;
    return 1;
}

static int open_tun(const char *name)
{
    struct ifreq request = {0};
    int tun = open("/dev/net/tun", O_RDWR);
    if (tun < 0)
        die("/dev/net/tun");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(tun, TUNSETIFF, &request) < 0)
        die(name);
    return tun;
}

union end {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static union end end_at(const uint8_t *address, in_port_t port) /* port in network byte order */
{
    union end end = {.any.sa_family = (sa_family_t)family->number};
    if (family == &ipv6) {
        end.v6.sin6_port = port;
        memcpy(&end.v6.sin6_addr, address, family->address_len);
    } else {
        end.v4.sin_port = port;
        memcpy(&end.v4.sin_addr, address, family->address_len);
    }
    return end;
}

/* ADDRESS:PORT or [ADDRESS]:PORT, or ADDRESS for a raw socket. Sets the family, and the port in network byte order, 0
 * for a raw socket. */
static int open_socket(char *text, in_port_t *port)
{
    uint8_t address[16];
    char *colon = strrchr(text, ':');
    family = text[0] == '[' ? &ipv6 : &ipv4;
    *port = 0;
    if (colon != NULL) {
        *colon = '\0';
        *port = htons((uint16_t)atoi(colon + 1));
    }
    if (family == &ipv6) {
        text[strlen(text) - 1] = '\0'; /* the closing bracket */
        text++;
    }
    parse_address(text, address);
    union end local = end_at(address, *port);
    int underlay = *port != 0 ? socket(family->number, SOCK_DGRAM, 0) : socket(AF_INET, SOCK_RAW, IPPROTO_IPIP);
    if (underlay < 0 || bind(underlay, &local.any, sizeof local) < 0)
        die("socket");
    return underlay;
}

static void outbound(int tun, int underlay, in_port_t port) /* port 0: a raw socket, whose outer header Linux makes */
{
    static uint8_t packet[MAX_PACKET];
    ssize_t len = read(tun, packet, sizeof packet);
    if (len < family->header_len || packet[0] >> 4 != family->version)
        return;
    const struct route *route = find_route(packet + family->destination);
    if (route == NULL || (port != 0 && !decrement_ttl(packet)))
        return;
    union end to = end_at(route->peer, port);
    socklen_t to_len = family == &ipv6 ? sizeof to.v6 : sizeof to.v4;
    sendto(underlay, packet, (size_t)len, 0, &to.any, to_len); /* lost if it fails, as on any wire */
}

static void inbound(int tun, int underlay, in_port_t port) /* port 0: what comes begins with its outer header */
{
    static uint8_t buffer[MAX_PACKET];
    uint8_t *packet = buffer;
    ssize_t len = recvfrom(underlay, buffer, sizeof buffer, 0, NULL, NULL);
    if (port == 0 && len >= ipv4.header_len) {
        packet += (buffer[0] & 0xf) * 4;
        len -= (buffer[0] & 0xf) * 4;
    }
    if (len < family->header_len || packet[0] >> 4 != family->version || (port != 0 && !decrement_ttl(packet)))
        return;
    if (write(tun, packet, (size_t)len) < 0 && errno != EINVAL && errno != EIO)
        die("write to TUN");
}

int main(int argc, char **argv)
{
    in_port_t port;
    if (argc < 4) {
        fprintf(stderr, "usage: naive_peer TUN ADDRESS[:PORT] SUBNET/LEN=PEER...\n");
        return 2;
    }
    int underlay = open_socket(argv[2], &port);
    for (int i = 3; i < argc; i++)
        add_route(argv[i]);
    int tun = open_tun(argv[1]);
    struct pollfd wait[2] = {{.fd = tun, .events = POLLIN}, {.fd = underlay, .events = POLLIN}};
    for (;;) {
        if (poll(wait, 2, -1) < 0 && errno != EINTR)
            die("poll");
        if (wait[0].revents)
            outbound(tun, underlay, port);
        if (wait[1].revents)
            inbound(tun, underlay, port);
    }
}
