/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * For tests: a CNI that translates and routes by tc programs alone, past the node's IP layer and netfilter.
 *
 * One program for all devices of the node. What is asked of a Service's address is rewritten to a server pod's, what that
 * replies is rewritten back, and both are handed to the device inside the pod (bpf_redirect_peer). What goes out of the
 * node is given to the uplink (bpf_redirect_neigh). All else is left to the kernel.
 */
#include <uapi/linux/bpf.h>

#define TC_ACT_UNSPEC -1 /* the next program, or the kernel */
#define ETH_BYTES 14
#define ETH_P_IP bpf_htons(0x0800)
#define ETH_P_IPV6 bpf_htons(0x86dd)
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define IPV4_FRAGMENT bpf_htons(0x3fff)
#define TCP 6
#define UDP 17
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define SOURCE 0
#define DESTINATION 1

/* IPv4 addresses stand in the last word, behind ::ffff. */
struct address {
	u32 words[4];
};

struct end {
	struct address address;
	u32 port; /* network byte order */
};

struct flow {
	struct end client;
	u32 protocol;
};

struct translation {
	struct end service;
	struct end server;
};

struct endpoint {
	u32 ifindex;
	u32 outside; /* beyond the uplink */
	u8 macs[12]; /* destination and source of a frame to it */
};

struct packet {
	struct address ends[2];
	u32 ports[2];
	u32 at[2]; /* where the addresses are */
	u32 protocol;
	u32 transport; /* where its header is */
	u32 address_bytes;
};

/* Full maps: a pod beyond the table's size is left to the kernel; the oldest flow is forgotten. */
BPF_HASH(endpoints, struct address, struct endpoint, 256);
BPF_HASH(services, struct end, u32, 16); /* how many servers it has */
BPF_ARRAY(servers, struct end, 512);	 /* IPv4 ones first, IPv6 ones from 256 */
BPF_TABLE("lru_hash", struct flow, struct translation, flows, 65536);

/* BCC 0.26 declares it without the third argument. */
static long (*redirect_neigh)(u32 ifindex, void *params, int bytes, u64 flags) = (void *)BPF_FUNC_redirect_neigh;

static __always_inline int read_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	u8 first = 0, protocol = 0;
	u16 fragment = 0;

	bpf_skb_load_bytes(skb, ETH_BYTES, &first, 1);
	bpf_skb_load_bytes(skb, ETH_BYTES + 6, &fragment, 2);
	if (first != 0x45 || (fragment & IPV4_FRAGMENT))
		return -1;
	bpf_skb_load_bytes(skb, ETH_BYTES + 9, &protocol, 1);
	packet->protocol = protocol;
	packet->at[SOURCE] = ETH_BYTES + 12;
	packet->at[DESTINATION] = ETH_BYTES + 16;
	packet->transport = ETH_BYTES + IPV4_BYTES;
	packet->address_bytes = 4;
	packet->ends[SOURCE].words[2] = packet->ends[DESTINATION].words[2] = bpf_htonl(0xffff);
	bpf_skb_load_bytes(skb, ETH_BYTES + 12, &packet->ends[SOURCE].words[3], 4);
	return bpf_skb_load_bytes(skb, ETH_BYTES + 16, &packet->ends[DESTINATION].words[3], 4);
}

static __always_inline int read_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	u8 protocol = 0;

	bpf_skb_load_bytes(skb, ETH_BYTES + 6, &protocol, 1);
	packet->protocol = protocol;
	packet->at[SOURCE] = ETH_BYTES + 8;
	packet->at[DESTINATION] = ETH_BYTES + 24;
	packet->transport = ETH_BYTES + IPV6_BYTES;
	packet->address_bytes = 16;
	bpf_skb_load_bytes(skb, ETH_BYTES + 8, &packet->ends[SOURCE], 16);
	return bpf_skb_load_bytes(skb, ETH_BYTES + 24, &packet->ends[DESTINATION], 16);
}

static __always_inline int read_packet(struct __sk_buff *skb, struct packet *packet)
{
	u16 ports[2] = {};
	int failed = skb->protocol == ETH_P_IP	   ? read_ipv4(skb, packet)
		     : skb->protocol == ETH_P_IPV6 ? read_ipv6(skb, packet)
						   : -1;

	if (failed)
		return failed;
	if (packet->protocol == UDP || packet->protocol == TCP)
		bpf_skb_load_bytes(skb, packet->transport, ports, 4);
	packet->ports[SOURCE] = ports[SOURCE];
	packet->ports[DESTINATION] = ports[DESTINATION];
	return 0;
}

static __always_inline void write_end(struct __sk_buff *skb, struct packet *packet, int which, struct end *end)
{
	u32 checksum = packet->transport + (packet->protocol == TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
	u64 flags = packet->protocol == UDP ? BPF_F_MARK_MANGLED_0 : 0;
	u32 old_port = packet->ports[which];
	u16 port = end->port;
	s64 difference = bpf_csum_diff(packet->ends[which].words, 16, end->address.words, 16, 0);

	bpf_l4_csum_replace(skb, checksum, 0, difference, BPF_F_PSEUDO_HDR | flags);
	bpf_l4_csum_replace(skb, checksum, old_port, port, flags | 2);
	if (packet->address_bytes == 4) {
		bpf_l3_csum_replace(skb, ETH_BYTES + 10, 0, difference, 0);
		bpf_skb_store_bytes(skb, packet->at[which], &end->address.words[3], 4, 0);
	} else {
		bpf_skb_store_bytes(skb, packet->at[which], &end->address, 16, 0);
	}
	bpf_skb_store_bytes(skb, packet->transport + 2 * which, &port, 2, 0);
	packet->ends[which] = end->address;
}

/* A flow stays with the server it began with. */
static __always_inline void translate_query(struct __sk_buff *skb, struct packet *packet)
{
	struct end service = {packet->ends[DESTINATION], packet->ports[DESTINATION]};
	struct flow flow = {{packet->ends[SOURCE], packet->ports[SOURCE]}, packet->protocol};
	u32 *count = services.lookup(&service);
	struct translation *known, chosen = {service};
	struct end *server;
	int at;

	if (!count || !*count)
		return;
	known = flows.lookup(&flow);
	if (known) {
		chosen = *known;
	} else {
		at = bpf_get_prandom_u32() % *count + (packet->address_bytes == 4 ? 0 : 256);
		server = servers.lookup(&at);
		if (!server)
			return;
		chosen.server = *server;
		flows.update(&flow, &chosen);
	}
	write_end(skb, packet, DESTINATION, &chosen.server);
}

static __always_inline int is_end(struct packet *packet, int which, struct end *end)
{
	return packet->ports[which] == end->port && packet->ends[which].words[0] == end->address.words[0] &&
	       packet->ends[which].words[1] == end->address.words[1] &&
	       packet->ends[which].words[2] == end->address.words[2] &&
	       packet->ends[which].words[3] == end->address.words[3];
}

static __always_inline void translate_reply(struct __sk_buff *skb, struct packet *packet)
{
	struct flow flow = {{packet->ends[DESTINATION], packet->ports[DESTINATION]}, packet->protocol};
	struct translation *known = flows.lookup(&flow), copy;

	if (!known)
		return;
	copy = *known;
	if (is_end(packet, SOURCE, &copy.server))
		write_end(skb, packet, SOURCE, &copy.service);
}

int host_routing(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct endpoint *endpoint;

	if (read_packet(skb, &packet))
		return TC_ACT_UNSPEC;
	if (packet.protocol == UDP || packet.protocol == TCP) {
		translate_query(skb, &packet);
		translate_reply(skb, &packet);
	}
	endpoint = endpoints.lookup(&packet.ends[DESTINATION]);
	if (!endpoint)
		return TC_ACT_UNSPEC;
	if (endpoint->outside)
		return redirect_neigh(endpoint->ifindex, 0, 0, 0);
	bpf_skb_store_bytes(skb, 0, endpoint->macs, 12, 0);
	return bpf_redirect_peer(endpoint->ifindex, 0);
}
