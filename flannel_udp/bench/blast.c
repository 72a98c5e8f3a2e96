/* blast: UDP datagrams at a fixed rate or as fast as one process sends them, and how many of them arrive.
 *
 *   blast send ADDRESS PORT PAYLOAD_BYTES MILLISECONDS PACKETS_PER_SECOND (0: as many as will go)
 *   blast receive ADDRESS PORT WARM_UP_MILLISECONDS WINDOW_MILLISECONDS
 *   blast count ADDRESS PORT SILENCE_MILLISECONDS
 *
 * Every datagram is a message of its own to sendmmsg(2): no UDP_SEGMENT, no UDP_GRO, as an application sends them that
 * knows nothing of either. The receiver prints "ready" once it is bound, lets the warm-up pass after the first datagram,
 * and counts those that arrive within the window; "count" counts all, from the first until nothing has come for so long.
 * Each prints one JSON object: {"packets": N, "seconds": S, "reordered": R}; R counts the datagrams that came after a
 * later one (they are numbered where they have 8 bytes or more). The receiver then stays bound, so that the sender's last
 * datagrams meet no closed port, until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 64,
    MAX_PAYLOAD = 1472,
    MAX_MILLISECONDS = 600000,
    RECEIVE_BUFFER = 4 << 20, /* bytes: the receiver must not be what loses packets while it is not scheduled */
    MAX_RATE = 10000000, /* packets a second */
    PACE_NS = 100000, /* how long the sender sleeps when nothing is due: bursts stay small */
    FIRST_PACKET_MS = 5000,
    LINGER_S = 120, /* the longest stay of a receiver that nobody kills */
    TICK_MS = 50, /* how long a receive may block before the clock is looked at */
};

static uint8_t payloads[BATCH][MAX_PAYLOAD];
static struct iovec vectors[BATCH];
static struct mmsghdr messages[BATCH];

static void die(const char *what)
{
    fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long parse_number(const char *text, long low, long high)
{
    char *end;
    long number = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || number < low || number > high) {
        fprintf(stderr, "blast: %s is no number from %ld to %ld\n", text, low, high);
        exit(2);
    }
    return number;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t now_ms(void)
{
    return now_ns() / 1000000;
}

union end { /* of either family: the kernel takes what is behind a shorter address for nothing */
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static union end parse_end(const char *address, const char *port)
{
    union end end = {.any.sa_family = strchr(address, ':') == NULL ? AF_INET : AF_INET6};
    void *to = end.any.sa_family == AF_INET ? (void *)&end.v4.sin_addr : (void *)&end.v6.sin6_addr;
    if (inet_pton(end.any.sa_family, address, to) != 1) {
        fprintf(stderr, "blast: %s is no IP address\n", address);
        exit(2);
    }
    end.v4.sin_port = htons((uint16_t)parse_number(port, 1, 65535)); /* at the same place in both */
    return end;
}

static void prepare(size_t payload_len)
{
    for (size_t i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){payloads[i], payload_len};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
}

static uint64_t next_number, reordered;

static void report(uint64_t packets, int64_t elapsed_ms)
{
    printf("{\"packets\": %llu, \"seconds\": %.3f, \"reordered\": %llu}\n", (unsigned long long)packets,
           (double)elapsed_ms / 1000, (unsigned long long)reordered);
    fflush(stdout);
}

static uint64_t send_batch(int udp, unsigned int n, uint64_t number) /* how many packets that were */
{
    for (unsigned int i = 0; i < n; i++, number++)
        memcpy(payloads[i], &number, sizeof number);
    int sent = sendmmsg(udp, messages, n, 0);
    if (sent > 0)
        return (uint64_t)sent;
    if (errno != ENOBUFS)
        die("sendmmsg");
    return 1; /* a full queue: offered and lost, go on */
}

static void send_all(int udp, const union end *to, int64_t duration_ms, int64_t rate)
{
    uint64_t packets = 0;
    int64_t started = now_ns(), elapsed = 0;
    if (connect(udp, &to->any, sizeof *to) < 0)
        die("connect");
    if (prctl(PR_SET_TIMERSLACK, 1UL) < 0)
        die("PR_SET_TIMERSLACK");
    for (; elapsed < duration_ms * 1000000; elapsed = now_ns() - started) {
        uint64_t due = rate == 0 ? packets + BATCH : (uint64_t)(elapsed / 1000 * rate / 1000000);
        if (due > packets)
            packets += send_batch(udp, due - packets < BATCH ? (unsigned int)(due - packets) : BATCH, packets);
        else
            nanosleep(&(struct timespec){.tv_nsec = PACE_NS}, NULL);
    }
    report(packets, elapsed / 1000000);
}

static int receive_batch(int udp) /* 0 when nothing came for TICK_MS */
{
    int n = recvmmsg(udp, messages, BATCH, MSG_WAITFORONE, NULL);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        die("recvmmsg");
    for (int i = 0; i < n; i++) {
        uint64_t number;
        memcpy(&number, payloads[i], sizeof number);
        if (messages[i].msg_len < sizeof number)
            continue;
        if (number < next_number)
            reordered++;
        else
            next_number = number + 1;
    }
    return n < 0 ? 0 : n;
}

static void open_receiver(int udp, const union end *at)
{
    int size = RECEIVE_BUFFER;
    struct timeval tick = {.tv_usec = TICK_MS * 1000};
    if (setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        die("SO_RCVBUFFORCE");
    if (setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof tick) < 0)
        die("SO_RCVTIMEO");
    if (bind(udp, &at->any, sizeof *at) < 0)
        die("bind");
    printf("ready\n");
    fflush(stdout);
}

static uint64_t first_packets(int udp) /* 0 when none came for FIRST_PACKET_MS */
{
    int64_t given_up = now_ms() + FIRST_PACKET_MS;
    int n = 0;
    while (n == 0 && now_ms() < given_up)
        n = receive_batch(udp);
    return (uint64_t)n;
}

static void receive_window(int udp, int64_t warm_up_ms, int64_t window_ms)
{
    if (first_packets(udp) == 0) {
        report(0, window_ms);
        return;
    }
    int64_t warm = now_ms() + warm_up_ms;
    while (now_ms() < warm)
        receive_batch(udp);
    uint64_t packets = 0;
    int64_t started = now_ms(), now = started;
    for (; now - started < window_ms; now = now_ms())
        packets += (uint64_t)receive_batch(udp);
    report(packets, now - started);
}

static void count_all(int udp, int64_t silence_ms)
{
    uint64_t packets = first_packets(udp);
    int64_t started = now_ms(), last = started;
    while (now_ms() - last < silence_ms) {
        int n = receive_batch(udp);
        packets += (uint64_t)n;
        if (n > 0)
            last = now_ms();
    }
    report(packets, last - started);
}

static int usage(void)
{
    fprintf(stderr, "usage: blast send ADDRESS PORT PAYLOAD_BYTES MS RATE | blast receive ADDRESS PORT WARM_UP_MS MS"
                    " | blast count ADDRESS PORT SILENCE_MS\n");
    return 2;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    int sends = strcmp(mode, "send") == 0 && argc == 7;
    int receives = strcmp(mode, "receive") == 0 && argc == 6;
    if (!sends && !receives && !(strcmp(mode, "count") == 0 && argc == 5))
        return usage();
    union end end = parse_end(argv[2], argv[3]);
    int udp = socket(end.any.sa_family, SOCK_DGRAM, 0);
    if (udp < 0)
        die("socket");
    if (sends) {
        prepare((size_t)parse_number(argv[4], 1, MAX_PAYLOAD));
        send_all(udp, &end, parse_number(argv[5], 1, MAX_MILLISECONDS), parse_number(argv[6], 0, MAX_RATE));
        close(udp);
        return 0;
    }
    prepare(MAX_PAYLOAD);
    int64_t first = parse_number(argv[4], 0, MAX_MILLISECONDS);
    int64_t window_ms = receives ? parse_number(argv[5], 1, MAX_MILLISECONDS) : 0;
    open_receiver(udp, &end);
    if (receives)
        receive_window(udp, first, window_ms);
    else
        count_all(udp, first);
    alarm(LINGER_S);
    pause();
    return 0;
}
