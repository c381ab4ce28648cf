// SPDX-License-Identifier: Apache-2.0
//
// Load that Python cannot make: small UDP packets on many flows, TCP connections opened and closed, and a server for
// the latter. One thread, one JSON line at the end.
//
//   generate udp ADDRESS PORT PAYLOAD_BYTES FLOWS SECONDS      send as fast as the sockets take them
//   generate tcp ADDRESS PORT CONCURRENCY SECONDS              connect, one byte there, one back, server closes
//   generate serve PORT                                        the server; ends on SIGTERM

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program.h"

enum { BATCH = 64, EVENTS = 256, FLOWS_MAX = 4096, CONCURRENCY_MAX = 4096, PAYLOAD_MAX = 1400, BACKLOG = 8192 };

static socklen_t parse(const char *text, int port, struct sockaddr_storage *address)
{
    struct sockaddr_in *four = (struct sockaddr_in *)address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)address;

    memset(address, 0, sizeof(*address));
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        return sizeof(*four);
    }
    if (inet_pton(AF_INET6, text, &six->sin6_addr) != 1) {
        fprintf(stderr, "%s is no address\n", text);
        exit(1);
    }
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    return sizeof(*six);
}

static void send_udp(const struct sockaddr_storage *address, socklen_t length, int payload, int flows, double seconds)
{
    static int sockets[FLOWS_MAX];
    static char data[PAYLOAD_MAX];
    struct iovec part = {.iov_base = data, .iov_len = payload};
    struct mmsghdr messages[BATCH];
    unsigned long sent = 0, refused = 0;

    memset(messages, 0, sizeof(messages));
    for (int i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_iov = &part;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (int i = 0; i < flows; i++) {
        sockets[i] = socket(address->ss_family, SOCK_DGRAM, 0);
        if (sockets[i] < 0 || connect(sockets[i], (const struct sockaddr *)address, length) < 0)
            fail("socket");
    }
    double begin = now(), end = begin + seconds;
    for (int flow = 0; now() < end; flow = (flow + 1) % flows) {
        int taken = sendmmsg(sockets[flow], messages, BATCH, 0);
        if (taken > 0)
            sent += taken;
        else
            refused++;
    }
    printf("{\"sent\": %lu, \"refused\": %lu, \"seconds\": %.6f}\n", sent, refused, now() - begin);
}

struct client {
    int socket;
    double begun;
};

static void open_client(int poll, int index, struct client *client, const struct sockaddr_storage *address,
                        socklen_t length)
{
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = index};

    client->begun = now();
    client->socket = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->socket < 0)
        fail("socket");
    if (connect(client->socket, (const struct sockaddr *)address, length) < 0 && errno != EINPROGRESS)
        fail("connect");
    if (epoll_ctl(poll, EPOLL_CTL_ADD, client->socket, &event) < 0)
        fail("epoll_ctl");
}

// 1: done, 0: going on, -1: failed
static int advance(int poll, int index, struct client *client, unsigned events)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    char byte = 'x';

    if (events & EPOLLERR)
        return -1;
    if (events & EPOLLOUT) {
        if (send(client->socket, &byte, 1, MSG_NOSIGNAL) != 1)
            return -1;
        epoll_ctl(poll, EPOLL_CTL_MOD, client->socket, &event);
        return 0;
    }
    for (;;) {
        ssize_t got = recv(client->socket, &byte, 1, 0);
        if (got == 0)
            return 1;
        if (got < 0)
            return errno == EAGAIN ? 0 : -1;
    }
}

static int by_value(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void open_tcp(const struct sockaddr_storage *address, socklen_t length, int concurrency, double seconds)
{
    static struct client clients[CONCURRENCY_MAX];
    struct epoll_event events[EVENTS];
    unsigned long done = 0, errors = 0, capacity = 1 << 20;
    float *times = malloc(capacity * sizeof(*times));
    int poll = epoll_create1(0);
    double begin = now(), end = begin + seconds;

    for (int i = 0; i < concurrency; i++)
        open_client(poll, i, &clients[i], address, length);
    while (now() < end) {
        int count = epoll_wait(poll, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            int index = events[i].data.u32, result = advance(poll, index, &clients[index], events[i].events);
            if (!result)
                continue;
            if (result > 0 && done < capacity)
                times[done] = (now() - clients[index].begun) * 1e6;
            done += result > 0;
            errors += result < 0;
            close(clients[index].socket);
            open_client(poll, index, &clients[index], address, length);
        }
    }
    double took = now() - begin;
    unsigned long kept = done < capacity ? done : capacity;
    qsort(times, kept, sizeof(*times), by_value);
    printf("{\"done\": %lu, \"errors\": %lu, \"seconds\": %.6f, \"per_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           done, errors, took, done / took, kept ? times[kept / 2] : 0, kept ? times[kept * 99 / 100] : 0);
}

static void serve(int port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0), yes = 1;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    event.data.fd = listener;
    if (bind(listener, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listener, BACKLOG) < 0)
        fail("listen");
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int ready = events[i].data.fd;
            char byte;
            if (ready == listener) {
                int accepted;
                while ((accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    event.data.fd = accepted;
                    epoll_ctl(poll, EPOLL_CTL_ADD, accepted, &event);
                }
            } else if (recv(ready, &byte, 1, 0) >= 0 || errno != EAGAIN) {
                send(ready, "y", 1, MSG_NOSIGNAL);
                close(ready);
            }
        }
    }
}

int main(int count, char **words)
{
    struct sockaddr_storage address;
    socklen_t length;

    signal(SIGPIPE, SIG_IGN);
    if (count == 3 && !strcmp(words[1], "serve"))
        serve(atoi(words[2]));
    if (count == 7 && !strcmp(words[1], "udp") && atoi(words[4]) <= PAYLOAD_MAX && atoi(words[5]) <= FLOWS_MAX) {
        length = parse(words[2], atoi(words[3]), &address);
        send_udp(&address, length, atoi(words[4]), atoi(words[5]), atof(words[6]));
        return 0;
    }
    if (count == 6 && !strcmp(words[1], "tcp") && atoi(words[4]) <= CONCURRENCY_MAX) {
        length = parse(words[2], atoi(words[3]), &address);
        open_tcp(&address, length, atoi(words[4]), atof(words[5]));
        return 0;
    }
    fprintf(stderr, "usage: generate udp ADDRESS PORT BYTES FLOWS SECONDS | tcp ADDRESS PORT CONCURRENCY SECONDS"
                    " | serve PORT\n");
    return 2;
}
