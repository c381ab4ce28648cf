// SPDX-License-Identifier: Apache-2.0
//
// Numbered UDP packets at a fixed pace on many flows, each of which has to come back; and the server that sends them back.
//
//   paced_udp ask ADDRESS PORT PAYLOAD_BYTES FLOWS PACKETS_PER_S   until SIGTERM, then one JSON line
//   paced_udp echo PORT                                            until SIGTERM
//
// Socket buffers are as large as they may be, so that a program that waits for a processor loses nothing: what is
// reported as lost was lost between the two.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program.h"

enum {
    FLOWS_MAX = 1024,
    PAYLOAD_MIN = 8,
    PAYLOAD_MAX = 1400,
    PACKETS_MAX = 1 << 24,
    EVENTS = 256,
    BUFFER_BYTES = 64 << 20,
    BATCH_MAX = 64,
    TICK_US = 500,
    DRAIN_MS = 500,
};

static volatile sig_atomic_t stopping;
static uint8_t answered[PACKETS_MAX / 8];
static double sent_at[PACKETS_MAX];

static void stop(int number)
{
    (void)number;
    stopping = 1;
}

static int udp_socket(int type_flags)
{
    int descriptor = socket(AF_INET, SOCK_DGRAM | type_flags, 0), size = BUFFER_BYTES;
    if (descriptor < 0)
        fail("socket");
    setsockopt(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
    setsockopt(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
    return descriptor;
}

static void echo(int port)
{
    static char data[PAYLOAD_MAX];
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port)}, source;
    int descriptor = udp_socket(0);

    if (bind(descriptor, (struct sockaddr *)&own, sizeof(own)) < 0)
        fail("bind");
    while (!stopping) {
        socklen_t length = sizeof(source);
        ssize_t size = recvfrom(descriptor, data, sizeof(data), 0, (struct sockaddr *)&source, &length);
        if (size > 0)
            sendto(descriptor, data, size, 0, (struct sockaddr *)&source, length);
    }
}

static void take_answers(int queue, int wait_ms)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(queue, events, EVENTS, wait_ms);

    for (int i = 0; i < count; i++) {
        char data[PAYLOAD_MAX];
        ssize_t size;
        // An ICMP error of an earlier packet ends the loop; that packet counts as lost, as it was.
        while ((size = recv(events[i].data.fd, data, sizeof(data), 0)) >= PAYLOAD_MIN) {
            uint64_t number;
            memcpy(&number, data, sizeof(number));
            if (number < PACKETS_MAX)
                answered[number / 8] |= 1 << (number % 8);
        }
    }
}

static void report(uint64_t sent)
{
    uint64_t lost = 0;
    double longest = 0, first = 0, last = 0, previous = sent ? sent_at[0] : 0;
    int missing = 0;

    for (uint64_t number = 0; number < sent; number++) {
        if (!(answered[number / 8] & 1 << (number % 8))) {
            first = lost ? first : sent_at[number];
            last = sent_at[number];
            lost++;
            missing = 1;
            continue;
        }
        if (missing && sent_at[number] - previous > longest)
            longest = sent_at[number] - previous;
        previous = sent_at[number];
        missing = 0;
    }
    printf("{\"sent\": %lu, \"lost\": %lu, \"gap_ms\": %.2f, \"first_lost_at\": %.4f, \"last_lost_at\": %.4f, "
           "\"seconds\": %.3f}\n",
           sent, lost, longest * 1000, first, last, sent ? sent_at[sent - 1] - sent_at[0] : 0);
}

static void ask(const char *address, int port, int payload, int flows, int rate)
{
    static int sockets[FLOWS_MAX];
    static char data[PAYLOAD_MAX];
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timespec tick = {.tv_nsec = TICK_US * 1000};
    int queue = epoll_create1(0);
    uint64_t sent = 0;

    if (inet_pton(AF_INET, address, &target.sin_addr) != 1)
        fail(address);
    for (int i = 0; i < flows; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = sockets[i] = udp_socket(SOCK_NONBLOCK)};
        if (connect(sockets[i], (struct sockaddr *)&target, sizeof(target)) < 0)
            fail("connect");
        epoll_ctl(queue, EPOLL_CTL_ADD, sockets[i], &event);
    }
    double begin = now(), paused = 0;
    while (!stopping && sent < PACKETS_MAX) {
        double due = (now() - begin - paused) * rate - sent;
        if (due > BATCH_MAX) {
            // Kept from the processor: go on from here instead of sending what was missed in one burst.
            paused += (due - BATCH_MAX) / rate;
            due = BATCH_MAX;
        }
        for (int i = 0; i < (int)due && sent < PACKETS_MAX; i++, sent++) {
            memcpy(data, &sent, sizeof(sent));
            sent_at[sent] = now();
            while (send(sockets[sent % flows], data, payload, 0) < 0 && errno == EAGAIN)
                take_answers(queue, 1);
        }
        take_answers(queue, 0);
        nanosleep(&tick, NULL);
    }
    for (double end = now() + DRAIN_MS / 1000.0; now() < end;)
        take_answers(queue, 10);
    report(sent);
}

int main(int count, char **words)
{
    struct sigaction action = {.sa_handler = stop};

    sigaction(SIGTERM, &action, NULL);
    if (count == 3 && !strcmp(words[1], "echo")) {
        echo(atoi(words[2]));
    } else if (count == 7 && !strcmp(words[1], "ask") && atoi(words[4]) >= PAYLOAD_MIN && atoi(words[4]) <= PAYLOAD_MAX &&
               atoi(words[5]) >= 1 && atoi(words[5]) <= FLOWS_MAX && atoi(words[6]) >= 1) {
        ask(words[2], atoi(words[3]), atoi(words[4]), atoi(words[5]), atoi(words[6]));
    } else {
        fprintf(stderr, "usage: %s ask ADDRESS PORT PAYLOAD_BYTES FLOWS PACKETS_PER_S | echo PORT\n", words[0]);
        return 2;
    }
    return 0;
}
