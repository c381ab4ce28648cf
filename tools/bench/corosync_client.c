/* SPDX-License-Identifier: Apache-2.0
 * The corosync side of the ring benchmark: one member of a closed process group (link with -lcpg).
 *
 *   flood NODES SENDERS SIZE SECONDS    members 1..SENDERS send agreed messages as fast as corosync takes them
 *   latency NODES RATE SIZE SECONDS     member 1 sends RATE messages/s and times each until its own delivery
 *   watch NODES                         one line "seconds members" per membership, until killed
 *
 * Prints one JSON object. `order` hashes origin and sequence number of every delivery, in order. The 50 us pauses
 * follow TRY_AGAIN, the back-pressure of this interface.
 */
#include <corosync/cpg.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

#define FORM_TIMEOUT_S 20
#define LATENCIES_MAX 1000000
#define FNV_OFFSET 1469598103934665603ull
#define FNV_PRIME 1099511628211ull

struct head {
    uint64_t sequence;
    double sent;
    uint64_t end;
};

static cpg_handle_t group;
static unsigned int local;
static volatile int members, ends;
static int watching, ends_wanted;
static long delivered, timed;
static double first, last;
static uint64_t order = FNV_OFFSET;
static float *latencies;

static void on_message(cpg_handle_t handle, const struct cpg_name *name, uint32_t node, uint32_t pid, void *data,
               size_t length)
{
    struct head head;
    double at = now();

    memcpy(&head, data, sizeof(head));
    if (head.end) {
        ends++;
        return;
    }
    order = (order ^ (head.sequence * 256 + node)) * FNV_PRIME;
    if (!delivered++)
        first = at;
    last = at;
    if (latencies && node == local && timed < LATENCIES_MAX)
        latencies[timed++] = (at - head.sent) * 1e6;
}

static void on_members(cpg_handle_t handle, const struct cpg_name *name, const struct cpg_address *list, size_t count,
               const struct cpg_address *left, size_t left_count, const struct cpg_address *joined,
               size_t joined_count)
{
    members = count;
    if (watching) {
        printf("%.6f %zu\n", now(), count);
        fflush(stdout);
    }
}

static void *dispatch(void *unused)
{
    struct pollfd ready = {.events = POLLIN};

    cpg_fd_get(group, &ready.fd);
    while (watching || ends < ends_wanted)
        if (poll(&ready, 1, 100) > 0 && cpg_dispatch(group, CS_DISPATCH_ALL) != CS_OK)
            exit(3);
    return NULL;
}

static void multicast(void *message, size_t size)
{
    struct iovec part = {message, size};
    cs_error_t error;

    while ((error = cpg_mcast_joined(group, CPG_TYPE_AGREED, &part, 1)) == CS_ERR_TRY_AGAIN)
        usleep(50);
    if (error != CS_OK) {
        fprintf(stderr, "cpg_mcast_joined: %d\n", error);
        exit(4);
    }
}

static long produce(size_t size, double duration, double rate)
{
    char *message = calloc(1, size);
    struct head head = {0};
    double begin = now();

    for (; (head.sent = now()) < begin + duration; head.sequence++) {
        double due = begin + head.sequence / rate;

        if (rate > 0 && head.sent < due) {
            usleep((due - head.sent) * 1e6);
            head.sent = now();
        }
        memcpy(message, &head, sizeof(head));
        multicast(message, size);
    }
    head.end = 1;
    memcpy(message, &head, sizeof(head));
    multicast(message, size);
    return head.sequence;
}

static void wait_for_members(int wanted)
{
    double give_up = now() + FORM_TIMEOUT_S;

    while (members < wanted) {
        if (now() > give_up) {
            fprintf(stderr, "only %d of %d members\n", members, wanted);
            exit(5);
        }
        usleep(5000);
    }
    usleep(200000);
}

static void report(long sent)
{
    printf("{\"sent\": %ld, \"delivered\": %ld, \"seconds\": %.6f, \"order\": \"%016llx\", \"microseconds\": [", sent,
           delivered, last - first, (unsigned long long)order);
    for (long i = 0; i < timed; i++)
        printf("%s%.0f", i ? "," : "", latencies[i]);
    printf("]}\n");
    fflush(stdout);
}

int main(int count, char **arguments)
{
    cpg_callbacks_t callbacks = {on_message, on_members};
    struct cpg_name name = {5, "bench"};
    pthread_t thread;

    if (count < 3)
        return 2;
    int latency = !strcmp(arguments[1], "latency");
    int nodes = atoi(arguments[2]);
    watching = !strcmp(arguments[1], "watch");
    if (cpg_initialize(&group, &callbacks) != CS_OK || cpg_join(group, &name) != CS_OK ||
        cpg_local_get(group, &local) != CS_OK) {
        fprintf(stderr, "corosync does not answer\n");
        return 1;
    }
    if (watching) {
        dispatch(NULL);
        return 0;
    }
    if (count != 6)
        return 2;
    int parameter = atoi(arguments[3]);
    size_t size = atol(arguments[4]);
    double duration = atof(arguments[5]);
    int senders = latency ? 1 : parameter;
    if (size < sizeof(struct head))
        size = sizeof(struct head);
    if (latency)
        latencies = malloc(LATENCIES_MAX * sizeof(*latencies));
    ends_wanted = senders;
    pthread_create(&thread, NULL, dispatch, NULL);
    wait_for_members(nodes);
    long sent = local <= (unsigned int)senders ? produce(size, duration, latency ? parameter : 0) : 0;
    pthread_join(thread, NULL);
    report(sent);
    usleep(300000); /* nobody leaves before all are done */
    return 0;
}
