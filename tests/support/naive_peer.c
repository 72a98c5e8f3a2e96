/* naive_peer: the plainest possible peer of flannel's udp backend. Written independently of the engine in this project,
 * as the other side of interoperability tests and as the baseline of benches: one read and one sendto, one recvfrom and
 * one write a packet, poll() in between. Like flanneld it takes one from the inner TTL in each direction.
 *
 * usage: naive_peer TUN ADDRESS:PORT SUBNET/LEN=PEER...
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

enum { MAX_ROUTES = 256, MAX_PACKET = 65536, MIN_HEADER = 20 };

struct route {
    uint32_t subnet, mask, peer; /* network byte order */
};

static struct route routes[MAX_ROUTES];
static size_t n_routes;

static void die(const char *what)
{
    fprintf(stderr, "naive_peer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint32_t parse_address(const char *text)
{
    struct in_addr address;
    if (inet_pton(AF_INET, text, &address) != 1) {
        fprintf(stderr, "naive_peer: %s is no IPv4 address\n", text);
        exit(2);
    }
    return address.s_addr;
}

static void add_route(char *text) /* SUBNET/LEN=PEER */
{
    char *slash = strchr(text, '/'), *equals = strchr(text, '=');
    if (slash == NULL || equals == NULL || slash > equals || n_routes == MAX_ROUTES) {
        fprintf(stderr, "naive_peer: bad or too many routes: %s\n", text);
        exit(2);
    }
    *slash = *equals = '\0';
    int len = atoi(slash + 1);
    uint32_t mask = len == 0 ? 0 : htonl(UINT32_MAX << (32 - len));
    routes[n_routes++] = (struct route){parse_address(text), mask, parse_address(equals + 1)};
}

static const struct route *find_route(uint32_t destination) /* first match: the tests' subnets do not overlap */
{
    for (size_t i = 0; i < n_routes; i++)
        if ((destination & routes[i].mask) == routes[i].subnet)
            return &routes[i];
    return NULL;
}

/* Take one from the TTL. RFC 1624, equation 3: HC' = ~(~HC + ~m + m'), with m the 16-bit word of TTL and protocol. */
static int decrement_ttl(uint8_t *packet)
{
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

static int open_socket(char *text, struct sockaddr_in *local) /* ADDRESS:PORT */
{
    char *colon = strchr(text, ':');
    if (colon == NULL) {
        fprintf(stderr, "naive_peer: ADDRESS:PORT wanted, not %s\n", text);
        exit(2);
    }
    *colon = '\0';
    local->sin_family = AF_INET;
    local->sin_addr.s_addr = parse_address(text);
    local->sin_port = htons((uint16_t)atoi(colon + 1));
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    if (udp < 0 || bind(udp, (struct sockaddr *)local, sizeof *local) < 0)
        die("UDP socket");
    return udp;
}

static void outbound(int tun, int udp, in_port_t port)
{
    static uint8_t packet[MAX_PACKET];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = port};
    ssize_t len = read(tun, packet, sizeof packet);
    if (len < MIN_HEADER || packet[0] >> 4 != 4)
        return;
    uint32_t destination;
    memcpy(&destination, packet + 16, sizeof destination);
    const struct route *route = find_route(destination);
    if (route == NULL || !decrement_ttl(packet))
        return;
    to.sin_addr.s_addr = route->peer;
    sendto(udp, packet, (size_t)len, 0, (struct sockaddr *)&to, sizeof to); /* lost if it fails, as on any wire */
}

static void inbound(int tun, int udp)
{
    static uint8_t packet[MAX_PACKET];
    ssize_t len = recvfrom(udp, packet, sizeof packet, 0, NULL, NULL);
    if (len < MIN_HEADER || packet[0] >> 4 != 4 || !decrement_ttl(packet))
        return;
    if (write(tun, packet, (size_t)len) < 0 && errno != EINVAL && errno != EIO)
        die("write to TUN");
}

int main(int argc, char **argv)
{
    struct sockaddr_in local = {0};
    if (argc < 4) {
        fprintf(stderr, "usage: naive_peer TUN ADDRESS:PORT SUBNET/LEN=PEER...\n");
        return 2;
    }
    for (int i = 3; i < argc; i++)
        add_route(argv[i]);
    int udp = open_socket(argv[2], &local), tun = open_tun(argv[1]);
    struct pollfd wait[2] = {{.fd = tun, .events = POLLIN}, {.fd = udp, .events = POLLIN}};
    for (;;) {
        if (poll(wait, 2, -1) < 0 && errno != EINTR)
            die("poll");
        if (wait[0].revents)
            outbound(tun, udp, local.sin_port);
        if (wait[1].revents)
            inbound(tun, udp);
    }
}
