// SPDX-License-Identifier: Apache-2.0
//
// Makes established TCP connections in the kernel's connection tracking, in batches over ctnetlink.
//
//   conntrack_entries COUNT PER_S        PER_S 0: as fast as they are taken; then one JSON line

#include <arpa/inet.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program.h"

enum { BATCH = 64, MESSAGE_MAX = 256, TIMEOUT_S = 600, CLIENT_PORT = 40000, SERVER_PORT = 80 };

static const uint32_t CLIENTS = 0x0a200000, SERVER = 0x0a4c0102;

static struct nlattr *begin(struct nlmsghdr *message, int type)
{
    struct nlattr *attribute = (void *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));
    attribute->nla_type = type | NLA_F_NESTED;
    message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + NLA_HDRLEN;
    return attribute;
}

static void end(struct nlmsghdr *message, struct nlattr *attribute)
{
    attribute->nla_len = (char *)message + message->nlmsg_len - (char *)attribute;
}

static void put(struct nlmsghdr *message, int type, const void *data, int size)
{
    struct nlattr *attribute = (void *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));
    attribute->nla_type = type;
    attribute->nla_len = NLA_HDRLEN + size;
    memcpy((char *)attribute + NLA_HDRLEN, data, size);
    memset((char *)attribute + attribute->nla_len, 0, NLA_ALIGN(attribute->nla_len) - attribute->nla_len);
    message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + NLA_ALIGN(attribute->nla_len);
}

static void put_tuple(struct nlmsghdr *message, int type, uint32_t source, uint32_t target, int from, int to)
{
    struct nlattr *tuple = begin(message, type), *part = begin(message, CTA_TUPLE_IP);
    uint32_t addresses[] = {htonl(source), htonl(target)};
    uint16_t ports[] = {htons(from), htons(to)};
    uint8_t protocol = IPPROTO_TCP;

    put(message, CTA_IP_V4_SRC, &addresses[0], 4);
    put(message, CTA_IP_V4_DST, &addresses[1], 4);
    end(message, part);
    part = begin(message, CTA_TUPLE_PROTO);
    put(message, CTA_PROTO_NUM, &protocol, 1);
    put(message, CTA_PROTO_SRC_PORT, &ports[0], 2);
    put(message, CTA_PROTO_DST_PORT, &ports[1], 2);
    end(message, part);
    end(message, tuple);
}

static int write_entry(char *buffer, uint32_t number)
{
    struct nlmsghdr *message = (void *)buffer;
    struct nfgenmsg *header = NLMSG_DATA(message);
    uint32_t timeout = htonl(TIMEOUT_S), status = htonl(IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED);
    uint8_t state = TCP_CONNTRACK_ESTABLISHED;
    struct nlattr *outer, *inner;

    memset(message, 0, NLMSG_LENGTH(sizeof(*header)));
    message->nlmsg_len = NLMSG_LENGTH(sizeof(*header));
    message->nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;
    message->nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
    header->nfgen_family = AF_INET;
    put_tuple(message, CTA_TUPLE_ORIG, CLIENTS + number, SERVER, CLIENT_PORT, SERVER_PORT);
    put_tuple(message, CTA_TUPLE_REPLY, SERVER, CLIENTS + number, SERVER_PORT, CLIENT_PORT);
    put(message, CTA_STATUS, &status, 4);
    put(message, CTA_TIMEOUT, &timeout, 4);
    outer = begin(message, CTA_PROTOINFO);
    inner = begin(message, CTA_PROTOINFO_TCP);
    put(message, CTA_PROTOINFO_TCP_STATE, &state, 1);
    end(message, inner);
    end(message, outer);
    return NLMSG_ALIGN(message->nlmsg_len);
}

int main(int count, char **words)
{
    static char buffer[BATCH * MESSAGE_MAX];
    char answer[4096];
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};

    if (count != 3) {
        fprintf(stderr, "usage: %s COUNT PER_S\n", words[0]);
        return 2;
    }
    uint32_t total = atoi(words[1]), made = 0, refused = 0;
    double rate = atof(words[2]), start = now();
    int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    if (netlink < 0)
        fail("netlink");
    while (made < total) {
        uint32_t due = rate > 0 ? (uint32_t)((now() - start) * rate) + 1 : total;
        int size = 0;
        for (int i = 0; i < BATCH && made < total && made < due; i++)
            size += write_entry(buffer + size, made++);
        if (!size) {
            usleep(500);
            continue;
        }
        if (sendto(netlink, buffer, size, 0, (struct sockaddr *)&kernel, sizeof(kernel)) < 0)
            fail("send");
        // Only errors are answered.
        while (recv(netlink, answer, sizeof(answer), MSG_DONTWAIT) > 0)
            refused++;
    }
    printf("{\"made\": %u, \"refused\": %u, \"begun\": %.6f, \"seconds\": %.4f}\n", made - refused, refused, start,
           now() - start);
    return 0;
}
