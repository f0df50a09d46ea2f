/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * dnstrail: every hop and every drop of DNS packets, in every network namespace.
 *
 * Three raw tracepoints share one path: find the IP header, look at the ports,
 * and only for DNS fill a record and put it into the ring. The path of a packet
 * that is not DNS is two reads of kernel memory, and a third where it is the
 * first of a tracked connection.
 *
 * A port of --ports is DNS. Behind a translation the server has any port; then
 * one of three things tells (see recognise()): the packet's conntrack entry,
 * what the same packet was at its last hop, or that others showed before that
 * a DNS server has this address and port.
 *
 * No kernel header is included. Offsets arrive as -D flags named after what
 * they point at (agent/kernel/offsets.py): SK_BUFF_HEAD is the offset of
 * `head` in struct sk_buff. IS_DNS_PORT(p) is generated from --ports.
 */
#include "record.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define VLAN_TAG 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMP 1
#define IPPROTO_ICMPV6 58
#define ICMP_HEADER 8
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PARAMPROB 4
#define UDP_HEADER 8
#define TCP_HEADER 20
#define DNS_HEADER 12
#define LAST_OPCODE 6		/* DSO (RFC 8490) */
#define MDNS 5353
#define IPV4_HEADER 20
#define IPV6_HEADER 40
#define FRAGMENT_OFFSET 0x1fff
#define FRAGMENT_MORE 0x2000
#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4

/* IPv6 extension headers that may precede UDP and TCP (RFC 8200 4) */
#define EXTENSION_HEADERS 6
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH 51
#define NEXTHDR_DEST 60

/* What a message is recognised by: its header and question, if they fit. */
#define PREFIX 96
#define PREFIX_BUFFER 128
#define LABELS 16
/* Shorter than Settings.linger_ns: who knew the bytes may have forgotten them by then. */
#define RESEND_NS 50000000ULL

/* Where the work space of datagram_read() is, behind those of the events */
#define READ_SLOT 6

/* enum ip_conntrack_info, in the low three bits of _nfct (NFCT_PTRMASK) */
#define CT_INFO 7ULL
#define CT_NEW 2
#define CT_REPLY_INFO 3

/*
 * An endpoint that no DNS was seen at for so long may be another server's: pods
 * take over addresses. Longer than conntrack keeps a silent UDP flow.
 */
#define ENDPOINT_NS 300000000000ULL
#define ENDPOINT_RENEW_NS 1000000000ULL
/* As long, in a port's mark: units of 2^35 ns, modulo 128 (struct sieve) */
#define MARKS 2048
#define MARK_SHIFT 35
#define MARK_SET 0x80
#define MARK_AGE 0x7f
#define MARK_OLD 9
/* From hop to hop: the same softirq, or the next. */
#define PASSING_NS 1000000ULL
#define PASSING_SLOTS 128
#define STRANGERS 64
#define ANCHORS 64
#define GOLDEN 0x9E3779B97F4A7C15ULL

/* First and second argument of a kprobed function, in struct pt_regs */
#if defined(__aarch64__)
#define PT_REGS_FIRST 0
#define PT_REGS_SECOND 8
#else
#define PT_REGS_FIRST 112
#define PT_REGS_SECOND 104
#endif

#define be16(x) __builtin_bswap16(x)

/* cgroup_skb: runs at the socket and can read paged data, where tracepoints cannot */
#define AT_SOCKET(event) ((event) == EVENT_SOCKET_TX || (event) == EVENT_SOCKET_RX)

/*
 * Losses and helper failures of one CPU. User space maps this array and reads
 * it while the programs write, so counters only grow and every one is its own
 * word. agent/capture/counters.py names them in this order.
 */
struct counters {
	u64 records[8];		/* submitted, by event */
	u64 lost[8];		/* ring full, by event */
	u64 last_lost_ns;
	u64 read_failed;	/* a read of kernel memory on a DNS packet */
	u64 seen_failed;	/* a map refused an update */
	u64 nested;		/* an interrupt hit the program at work */
	u64 cut;		/* hop that could not read all of the message */
	u64 reserved[3];
};

/* What makes a packet one of DNS: the table of recognise(). */
enum sign {
	NOTHING,
	BY_PORT,		/* one of --ports */
	BY_PASSING,		/* it was DNS at its last hop */
	BY_DESTINATION,		/* it goes to a server that was learned */
	BY_SOURCE,		/* it comes from one */
	BY_ENTRY,		/* its connection was asked of a DNS port */
};

/* Where the parts of the packet at hand lie. */
struct packet {
	u64 skb;
	u64 ip;			/* address of the IP header */
	u64 net;		/* struct net, 0 while not known */
	u64 payload;		/* address of the DNS message */
	u64 nfct;		/* conntrack entry and enum ip_conntrack_info */
	u64 data;
	u32 len;
	u32 nonlinear;		/* bytes in page fragments */
	u32 payload_at;		/* its offset from the IP header */
	u32 readable;		/* bytes of it that this program can read */
	u8 event;		/* a constant in each program */
	u8 sign;		/* enum sign */
	u8 response;		/* it comes from the server, as far as that is known */
};

/* What the IP header says, before it is known whether the packet is DNS. */
struct ip_facts {
	u32 l4;			/* offset of the transport header */
	u32 length;		/* of the packet */
	u32 identification;
	u16 fragment;		/* as in Head.fragment */
	u16 sport;
	u16 dport;
	u16 upper_length;	/* of UDP, by its header */
	u8 protocol;
};

/* Work space of one program on one CPU: too large for the 512-byte stack. */
struct scratch {
	u32 busy;
	u32 pad;
	struct record record;
	u8 prefix[PREFIX_BUFFER];
	u8 ct[CT_SPAN];
	u64 anchor;		/* pointers are put here to become numbers */
	u8 header[IPV6_HEADER + UDP_HEADER];
	struct packet packet;
	struct ip_facts facts;
};

/* A datagram whose later fragments we want to recognise. */
struct fragment_key {
	u8 saddr[16];
	u8 daddr[16];
	u32 identification;
	u32 netns;
};

struct fragment_value {
	u64 message_id;
	u16 sport;
	u16 dport;
	u8 flags;
	u8 pad[3];
};

/* Where a DNS server is, whatever --ports says. */
struct endpoint {
	u8 address[16];
	u32 netns;		/* of loopback addresses, else 0 */
	u16 port;
	u8 protocol;
	u8 pad;
};

/*
 * What packets on other ports are asked, all of it in one page of memory: to
 * touch another costs most packets more than everything else does. User space
 * maps it.
 */
struct sieve {
	/*
	 * By port, modulo MARKS: when an endpoint with it was learned or
	 * confirmed last, MARK_SET with the lower bits of now >> MARK_SHIFT; 0
	 * where there is none.
	 */
	u8 marks[MARKS];
	/* By slot of `passings`: part of the address of the sk_buff there. */
	u32 tags[PASSING_SLOTS];
	/* Tracked connections, still without an answer, that were no DNS. */
	u64 strangers[STRANGERS];
	/* By CPU: pointers are put here to become numbers. */
	u64 anchors[ANCHORS];
	/* Set by user space when all programs are attached. */
	u64 armed;
};

/* The last DNS hop of an sk_buff. */
struct passing {
	u64 skb;
	u64 identity;
	u64 ts_ns;
	u32 netns;
	u16 fragment;
	u8 event;
	u8 flags;
};

/* RING_PAGES pages. Full: the record is dropped and counted in `lost`. */
BPF_RINGBUF_OUTPUT(ring, RING_PAGES);

/* 192 bytes a CPU. Cannot fill up. */
BPF_F_TABLE("array", int, struct counters, counters, CPUS, BPF_F_MMAPABLE);

/* About 500 bytes a CPU and program, one entry per event. Cannot fill up. */
BPF_PERCPU_ARRAY(scratch, struct scratch, READ_SLOT + 1);

/*
 * Messages whose bytes user space has: 64 Ki entries, about 5 MiB. Full: the
 * oldest is forgotten, and its bytes are sent once more.
 */
BPF_TABLE("lru_hash", u64, u64, seen, 65536);

/*
 * Fragmented datagrams on their way: 4 Ki entries, about 500 KiB. Full: the
 * oldest is forgotten, and its later fragments are not seen.
 */
BPF_TABLE("lru_hash", struct fragment_key, struct fragment_value, fragments,
	  4096);

/*
 * When an application took a datagram, by message: 16 Ki entries, about 1 MiB.
 * Full: the oldest is forgotten, and counts as not known.
 */
BPF_TABLE("lru_hash", u64, u64, reads, 16384);

/*
 * DNS servers on other ports: 4 Ki entries, about 500 KiB. Full: the one longest
 * not asked is forgotten, and is learned again from its next new client.
 */
BPF_TABLE("lru_hash", struct endpoint, u64, endpoints, 4096);

/*
 * 4 KiB. Cannot fill up: ports, packets or connections that share a place make
 * the program look twice, and no more.
 */
BPF_F_TABLE("array", int, struct sieve, sieves, 1, BPF_F_MMAPABLE);

/*
 * DNS packets on their way through this node, by the address of their sk_buff:
 * 4 KiB. Full: of two with one slot the newer is kept; a hop of the other that
 * only it would have told is not seen, or its arrival is told twice.
 */
BPF_TABLE("array", int, struct passing, passings, PASSING_SLOTS);

static __always_inline struct counters *my_counters(void)
{
	int cpu = bpf_get_smp_processor_id();

	return counters.lookup(&cpu);
}

#define COUNT(field)                                                           \
	do {                                                                   \
		struct counters *c = my_counters();                            \
		if (c)                                                         \
			__sync_fetch_and_add(&c->field, 1);                    \
	} while (0)

/*
 * Called by its number: BCC looks for bpf_probe_read_kernel() among the kernel's
 * symbols, and where it may not see their addresses (user other than root, no
 * CAP_SYSLOG, kptr_restrict=2) takes bpf_probe_read(), which the verifier denies
 * to cgroup programs.
 */
static long (*const probe_read_kernel)(void *to, u32 size, const void *from) =
	(void *)BPF_FUNC_probe_read_kernel;

static __always_inline int read_kernel(void *to, u32 size, u64 from)
{
	return probe_read_kernel(to, size, (void *)from);
}

static __always_inline u64 read_pointer(u64 from)
{
	u64 value = 0;

	read_kernel(&value, sizeof(value), from);
	return value;
}

static __always_inline u32 read_u32(u64 from)
{
	u32 value = 0;

	read_kernel(&value, sizeof(value), from);
	return value;
}

/* struct net * → inode number of the namespace */
static __always_inline u32 netns_of(u64 net)
{
	return net ? read_u32(net + NET_NS_INUM) : 0;
}

static __always_inline u32 device_netns(u64 skb)
{
	u64 dev = read_pointer(skb + SK_BUFF_DEV);

	return dev ? netns_of(read_pointer(dev + NET_DEVICE_NET)) : 0;
}

static __always_inline u32 socket_netns(u64 sk)
{
	return sk ? netns_of(read_pointer(sk + SOCK_NET)) : 0;
}

static __always_inline void map_ipv4(u8 *to, const u8 *from)
{
	*(u64 *)to = 0;
	*(u32 *)(to + 8) = 0xffff0000; /* ::ffff: on a little-endian machine */
	__builtin_memcpy(to + 12, from, 4);
}

/* 127.0.0.0/8 and ::1 are somebody else in every namespace. */
static __always_inline bool is_loopback(const u8 *address)
{
	const u64 *words = (const u64 *)address;

	if (words[0])
		return false;
	return *(const u16 *)(address + 10) == 0xffff ? address[12] == 127 :
							words[1] == 1ULL << 56;
}

/* 224.0.0.0/4, all above it, and ff00::/8: no server has such an address. */
static __always_inline bool is_multicast(const u8 *address)
{
	const u64 *words = (const u64 *)address;

	return words[0] ? address[0] == 0xff :
			  *(const u32 *)(address + 8) == 0xffff0000 &&
				  address[12] >= 224;
}

/*
 * Find the IP header, and what else lies beside its place in the sk_buff. At rx
 * the device layer has just set `data` to it (or to the VLAN tags before it) and
 * __netif_receive_skb_core() resets network_header only later; elsewhere
 * network_header is right, and `data` may be anywhere.
 *
 * Returns the protocol, 0 for what is not IP.
 */
static __always_inline u16 find_ip(struct packet *p)
{
	u8 window[SKB_WINDOW_SPAN] __attribute__((aligned(8)));
	u8 tag[VLAN_TAG];
	u16 protocol;

	if (read_kernel(window, sizeof(window), p->skb + SKB_WINDOW))
		return 0;
	protocol = be16(*(u16 *)(window + SK_BUFF_PROTOCOL - SKB_WINDOW));
	if (protocol != ETH_P_IP && protocol != ETH_P_IPV6 &&
	    protocol != ETH_P_8021Q && protocol != ETH_P_8021AD)
		return 0;
#ifdef HAS_CONNTRACK
	p->nfct = *(u64 *)(window + SK_BUFF_NFCT - SKB_WINDOW);
#endif
	p->data = *(u64 *)(window + SK_BUFF_DATA - SKB_WINDOW);
	p->len = *(u32 *)(window + SK_BUFF_LEN - SKB_WINDOW);
	p->nonlinear = *(u32 *)(window + SK_BUFF_DATA_LEN - SKB_WINDOW);
	if (p->event != EVENT_RX) {
		p->ip = *(u64 *)(window + SK_BUFF_HEAD - SKB_WINDOW) +
			*(u16 *)(window + SK_BUFF_NETWORK_HEADER - SKB_WINDOW);
		return protocol;
	}
	p->ip = p->data;
	for (int i = 0; i < 2; i++) {
		if (protocol != ETH_P_8021Q && protocol != ETH_P_8021AD)
			break;
		if (read_kernel(tag, sizeof(tag), p->ip))
			return 0;
		protocol = be16(*(u16 *)(tag + 2));
		p->ip += VLAN_TAG;
	}
	return protocol;
}

/* Walk IPv6 extension headers; false when nothing of interest is behind. */
static __always_inline bool skip_extensions(u64 ip, struct ip_facts *f)
{
	u8 h[8];

	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		if (f->protocol == IPPROTO_UDP || f->protocol == IPPROTO_TCP ||
		    f->protocol == IPPROTO_ICMPV6)
			return true;
		if (f->protocol != NEXTHDR_HOP &&
		    f->protocol != NEXTHDR_ROUTING &&
		    f->protocol != NEXTHDR_FRAGMENT &&
		    f->protocol != NEXTHDR_AUTH && f->protocol != NEXTHDR_DEST)
			return false;
		if (read_kernel(h, sizeof(h), ip + f->l4))
			return false;
		if (f->protocol == NEXTHDR_FRAGMENT) {
			u16 field = be16(*(u16 *)(h + 2));

			f->fragment = field >> 3 | (field & 1 ? FRAGMENT_MORE : 0);
			f->identification = *(u32 *)(h + 4);
			f->l4 += 8;
		} else if (f->protocol == NEXTHDR_AUTH) {
			f->l4 += (h[1] + 2) * 4;
		} else {
			f->l4 += (h[1] + 1) * 8;
		}
		f->protocol = h[0];
	}
	return f->protocol == IPPROTO_UDP || f->protocol == IPPROTO_TCP;
}

static __always_inline bool parse_ip(u64 ip, const u8 *h, struct ip_facts *f)
{
	if (h[0] >> 4 == 4) {
		u16 field = be16(*(u16 *)(h + 6));

		f->l4 = (h[0] & 0x0f) * 4;
		f->length = be16(*(u16 *)(h + 2));
		f->protocol = h[9];
		f->fragment = field & (FRAGMENT_OFFSET | FRAGMENT_MORE);
		f->identification = be16(*(u16 *)(h + 4));
		return f->l4 >= IPV4_HEADER && (f->protocol == IPPROTO_UDP ||
						f->protocol == IPPROTO_TCP ||
						f->protocol == IPPROTO_ICMP);
	}
	if (h[0] >> 4 != 6)
		return false;
	f->l4 = IPV6_HEADER;
	f->length = IPV6_HEADER + be16(*(u16 *)(h + 4));
	f->protocol = h[6];
	f->fragment = 0;
	f->identification = 0;
	return skip_extensions(ip, f);
}

static __always_inline void note_addresses(struct record *r, const u8 *h)
{
	if (h[0] >> 4 == 4) {
		r->family = 4;
		map_ipv4(r->saddr, h + 12);
		map_ipv4(r->daddr, h + 16);
	} else {
		r->family = 6;
		__builtin_memcpy(r->saddr, h + 8, 16);
		__builtin_memcpy(r->daddr, h + 24, 16);
	}
}

static __always_inline struct sieve *my_sieve(void)
{
	int zero = 0;

	return sieves.lookup(&zero);
}

/* Show the verifier that an index is less than `size`, a power of two. */
static __always_inline u32 within(u32 index, u32 size)
{
	asm volatile("" : "+r"(index));
	return index & (size - 1);
}

static __always_inline u8 mark_of(u64 ns)
{
	return MARK_SET | (ns >> MARK_SHIFT & MARK_AGE);
}

/* Whether some DNS server may have this port, whatever its address. */
static __always_inline bool is_marked(struct sieve *sieve, u16 port)
{
	u32 at = within(port, MARKS);
	u8 mark = sieve->marks[at];

	if (!mark)
		return false;
	if (((mark_of(bpf_ktime_get_ns()) - mark) & MARK_AGE) < MARK_OLD)
		return true;
	sieve->marks[at] = 0;
	return false;
}

static __always_inline bool is_learned(struct packet *p, const u8 *address,
				       u16 port, u8 protocol)
{
	struct endpoint key = { .port = port, .protocol = protocol };
	u64 *confirmed;

	__builtin_memcpy(key.address, address, 16);
	if (is_loopback(address))
		key.netns = p->net ? netns_of(p->net) : device_netns(p->skb);
	confirmed = endpoints.lookup(&key);
	return confirmed && bpf_ktime_get_ns() - *confirmed < ENDPOINT_NS;
}

static __always_inline void learn(const u8 *address, u16 port, u8 protocol,
				  u32 netns, u64 now)
{
	struct endpoint key = { .port = port, .protocol = protocol };
	struct sieve *sieve = my_sieve();
	u64 *confirmed;

	if (is_multicast(address) || !sieve)
		return;
	__builtin_memcpy(key.address, address, 16);
	if (is_loopback(address))
		key.netns = netns;
	confirmed = endpoints.lookup(&key);
	if (confirmed && now - *confirmed < ENDPOINT_RENEW_NS)
		return;
	if (endpoints.update(&key, &now))
		COUNT(seen_failed);
	sieve->marks[within(port, MARKS)] = mark_of(now);
}

/*
 * Servers that were learned. Multicast DNS (RFC 6762) has port 5353 too: it goes
 * to a multicast address, or from 5353 to 5353.
 */
static __always_inline u8 by_endpoint(struct packet *p, struct sieve *sieve,
				      const u8 *h, u8 protocol, u16 sport,
				      u16 dport)
{
	bool to = is_marked(sieve, dport), from = is_marked(sieve, sport);
	u8 saddr[16], daddr[16];

	if ((!to && !from) || (sport == MDNS && dport == MDNS))
		return NOTHING;
	if (h[0] >> 4 == 4) {
		map_ipv4(saddr, h + 12);
		map_ipv4(daddr, h + 16);
	} else {
		__builtin_memcpy(saddr, h + 8, 16);
		__builtin_memcpy(daddr, h + 24, 16);
	}
	if (is_multicast(daddr))
		return NOTHING;
	if (to && is_learned(p, daddr, dport, protocol))
		return BY_DESTINATION;
	return from && is_learned(p, saddr, sport, protocol) ? BY_SOURCE :
							       NOTHING;
}

/*
 * What the client asked for, from the entry that hangs on the packet; nf_nat and
 * ip_vs both leave it there. Only of connections that begin: of one that goes
 * on, the server has been learned. What is never answered begins for ever
 * (syslog, statsd), so who turned out to be no DNS is remembered, with its ports
 * because the kernel uses the memory of entries again.
 */
static __always_inline u8 by_entry(struct packet *p, struct sieve *sieve,
				   u8 protocol, u16 sport, u16 dport)
{
#ifdef HAS_CONNTRACK
	u8 end[TUPLE_PROTOCOL - TUPLE_DPORT + 1] __attribute__((aligned(8)));
	u64 entry = p->nfct & ~CT_INFO, flow;
	u64 *stranger;
	u16 asked;

	if (!entry)
		return NOTHING;
	if ((p->nfct & CT_INFO) != CT_NEW && p->event != EVENT_DROP)
		return NOTHING;
	flow = entry ^ (u64)sport << 48 ^ (u64)dport << 32;
	stranger = &sieve->strangers[within(flow * GOLDEN >> 58, STRANGERS)];
	if (*stranger == flow)
		return NOTHING;
	if (read_kernel(end, sizeof(end), entry + CT_ORIGINAL + TUPLE_DPORT))
		return NOTHING;
	asked = be16(*(u16 *)end);
	/* Offsets may be a guess where BTF lacks nf_conntrack. */
	if (!IS_DNS_PORT(asked) || end[TUPLE_PROTOCOL - TUPLE_DPORT] != protocol) {
		*stranger = flow;
		return NOTHING;
	}
	p->response = (p->nfct & CT_INFO) >= CT_REPLY_INFO;
	return BY_ENTRY;
#else
	return NOTHING;
#endif
}

static __always_inline int passing_slot(u64 skb)
{
	return skb * GOLDEN >> 57;
}

static __always_inline u32 tag_of(u64 skb)
{
	return skb >> 6;
}

static __always_inline struct passing *passing_of(u64 skb)
{
	int slot = passing_slot(skb);

	return passings.lookup(&slot);
}

/* A packet that has no port of DNS now, and had one at its last hop. */
static __always_inline u8 by_passing(struct packet *p, struct sieve *sieve)
{
	struct passing *last;

	/* What leaves a socket had no hop before. */
	if (p->event == EVENT_SOCKET_TX)
		return NOTHING;
	if (sieve->tags[within(passing_slot(p->skb), PASSING_SLOTS)] !=
	    tag_of(p->skb))
		return NOTHING;
	last = passing_of(p->skb);
	if (!last || last->skb != p->skb)
		return NOTHING;
	p->response = last->flags & FLAG_RESPONSE;
	return BY_PASSING;
}

/*
 * What makes the packet one of DNS. by_endpoint() and by_passing() are to be
 * confirmed when the message has been read. The address of an sk_buff says least:
 * it may be another packet's by now.
 */
static __always_inline u8 recognise(struct packet *p, const u8 *h, u8 protocol,
				    u16 sport, u16 dport)
{
	struct sieve *sieve;
	u8 sign;

	if (IS_DNS_PORT(sport) || IS_DNS_PORT(dport)) {
		p->response = IS_DNS_PORT(sport) && !IS_DNS_PORT(dport);
		return BY_PORT;
	}
	sieve = my_sieve();
	if (!sieve)
		return NOTHING;
	sign = by_endpoint(p, sieve, h, protocol, sport, dport);
	p->response = sign == BY_SOURCE;
	if (!sign)
		sign = by_entry(p, sieve, protocol, sport, dport);
	return sign ? sign : by_passing(p, sieve);
}

/* TCP: segments that carry something or change the connection. */
static __always_inline bool parse_tcp(struct packet *p, struct record *r,
				      const struct ip_facts *f)
{
	u8 tcp[TCP_HEADER];
	u32 header;

	if (read_kernel(tcp, sizeof(tcp), p->ip + f->l4))
		return false;
	header = (tcp[12] >> 4) * 4;
	r->tcp_flags = tcp[13];
	r->sequence = __builtin_bswap32(*(u32 *)(tcp + 4));
	r->acknowledgement = __builtin_bswap32(*(u32 *)(tcp + 8));
	if (f->length > f->l4 + header)
		r->payload_bytes = f->length - f->l4 - header;
	p->payload_at = f->l4 + header;
	return r->payload_bytes || r->tcp_flags & (TCP_SYN | TCP_RST | TCP_FIN) ||
	       p->event == EVENT_DROP;
}

/* A later fragment has no ports: it is DNS if its first fragment was. */
static __always_inline bool later_fragment(struct packet *p, struct record *r,
					   const struct ip_facts *f,
					   const u8 *h, u32 netns)
{
	struct fragment_key key = { .identification = f->identification,
				    .netns = netns };
	struct fragment_value *first;

	__builtin_memset(r, 0, sizeof(*r));
	note_addresses(r, h);
	__builtin_memcpy(key.saddr, r->saddr, 16);
	__builtin_memcpy(key.daddr, r->daddr, 16);
	first = fragments.lookup(&key);
	if (!first)
		return false;
	r->message_id = first->message_id;
	r->sport = first->sport;
	r->dport = first->dport;
	r->flags = first->flags | FLAG_FRAGMENT;
	r->payload_bytes = f->length > f->l4 ? f->length - f->l4 : 0;
	return true;
}

/* A first fragment: remember whose later fragments will come. */
static __always_inline void remember_fragment(const struct record *r)
{
	struct fragment_key key = { .identification = r->sequence,
				    .netns = r->netns };
	struct fragment_value value = { .message_id = r->message_id,
					.sport = r->sport,
					.dport = r->dport,
					.flags = r->flags & FLAG_RESPONSE };

	__builtin_memcpy(key.saddr, r->saddr, 16);
	__builtin_memcpy(key.daddr, r->daddr, 16);
	if (fragments.update(&key, &value))
		COUNT(seen_failed);
}

static __always_inline bool is_error(const u8 *icmp, u8 protocol)
{
	if (protocol == IPPROTO_ICMP)
		return icmp[0] == ICMP_DEST_UNREACH ||
		       icmp[0] == ICMP_TIME_EXCEEDED ||
		       icmp[0] == ICMP_PARAMETERPROB;
	return icmp[0] >= ICMPV6_DEST_UNREACH && icmp[0] <= ICMPV6_PARAMPROB;
}

/*
 * An ICMP error quotes the packet it is about (RFC 1812 4.3.2.3, RFC 4443 3):
 * from here on that one is at hand. Its own loss tells nothing, so drops are
 * left out.
 */
static __always_inline bool parse_error(struct packet *p, struct record *r,
					const struct ip_facts *f, const u8 *h)
{
	u8 icmp[ICMP_HEADER], quoted[IPV6_HEADER], l4[UDP_HEADER];
	u64 ip = p->ip + f->l4 + ICMP_HEADER;
	struct ip_facts q = {};
	struct sieve *sieve;
	u16 sport, dport;

	if (p->event != EVENT_TX && p->event != EVENT_RX)
		return false;
	if (read_kernel(icmp, sizeof(icmp), p->ip + f->l4) ||
	    !is_error(icmp, f->protocol) ||
	    read_kernel(quoted, sizeof(quoted), ip))
		return false;
	if (quoted[0] >> 4 == 4) {
		q.l4 = (quoted[0] & 0x0f) * 4;
		q.protocol = quoted[9];
	} else {
		q.l4 = IPV6_HEADER;
		q.protocol = quoted[6];
	}
	if ((q.protocol != IPPROTO_UDP && q.protocol != IPPROTO_TCP) ||
	    read_kernel(l4, sizeof(l4), ip + q.l4))
		return false;
	sport = be16(*(u16 *)l4);
	dport = be16(*(u16 *)(l4 + 2));
	sieve = my_sieve();
	if (IS_DNS_PORT(sport) || IS_DNS_PORT(dport))
		p->sign = BY_PORT;
	else if (sieve)
		p->sign = by_endpoint(p, sieve, quoted, q.protocol, sport,
				      dport);
	if (!p->sign)
		return false;

	__builtin_memset(r, 0, sizeof(*r));
	note_addresses(r, h);
	__builtin_memcpy(r->icmp_saddr, r->saddr, 16);
	note_addresses(r, quoted);
	r->sport = sport;
	r->dport = dport;
	r->protocol = q.protocol;
	r->flags = FLAG_ICMP;
	r->icmp_type = icmp[0];
	r->icmp_code = icmp[1];
	r->icmp_mtu = f->protocol == IPPROTO_ICMP ?
			      be16(*(u16 *)(icmp + 6)) :
			      __builtin_bswap32(*(u32 *)(icmp + 4));
	if (q.protocol == IPPROTO_UDP)
		r->payload_bytes = be16(*(u16 *)(l4 + 4)) - UDP_HEADER;
	p->payload = ip + q.l4 + UDP_HEADER;
	return true;
}

/*
 * Whether the packet can be one of DNS: all that most packets are asked. One
 * read holds the ports of IPv6 and of IPv4 without options.
 */
static __always_inline bool is_interesting(struct packet *p, u8 *h,
					   struct ip_facts *f)
{
	u16 protocol = find_ip(p);
	bool v4 = protocol == ETH_P_IP;
	u8 far[UDP_HEADER], *l4;

	if (!protocol ||
	    read_kernel(h, (v4 ? IPV4_HEADER : IPV6_HEADER) + UDP_HEADER, p->ip) ||
	    (v4 && h[0] >> 4 != 4) || !parse_ip(p->ip, h, f))
		return false;
	/* It is DNS if its first fragment was: note_flow() will see. */
	if (f->fragment & FRAGMENT_OFFSET)
		return f->protocol == IPPROTO_UDP;
	if (f->protocol == IPPROTO_ICMP || f->protocol == IPPROTO_ICMPV6)
		return p->event == EVENT_TX || p->event == EVENT_RX;
	l4 = f->l4 == IPV4_HEADER ? h + IPV4_HEADER : h + IPV6_HEADER;
	if (f->l4 != IPV4_HEADER && f->l4 != IPV6_HEADER) {
		if (read_kernel(far, sizeof(far), p->ip + f->l4))
			return false;
		l4 = far;
	}
	f->sport = be16(*(u16 *)l4);
	f->dport = be16(*(u16 *)(l4 + 2));
	f->upper_length = be16(*(u16 *)(l4 + 4));
	p->sign = recognise(p, h, f->protocol, f->sport, f->dport);
	return p->sign != NOTHING;
}

/* Note flow and place of the payload; false when it is no DNS, or tells nothing. */
static __always_inline bool note_flow(struct packet *p, struct record *r,
				      const u8 *h, const struct ip_facts *f)
{
	if (f->fragment & FRAGMENT_OFFSET) {
		if (!later_fragment(p, r, f, h, device_netns(p->skb)))
			return false;
		goto fragmented;
	}
	if (f->protocol == IPPROTO_ICMP || f->protocol == IPPROTO_ICMPV6)
		return parse_error(p, r, f, h);

	__builtin_memset(r, 0, sizeof(*r));
	note_addresses(r, h);
	r->sport = f->sport;
	r->dport = f->dport;
	if (f->protocol == IPPROTO_TCP) {
		r->protocol = IPPROTO_TCP;
		if (p->response)
			r->flags |= FLAG_RESPONSE;
		if (!parse_tcp(p, r, f))
			return false;
		p->payload = p->ip + p->payload_at;
		return true;
	}
	if (f->upper_length > UDP_HEADER)
		r->payload_bytes = f->upper_length - UDP_HEADER;
	p->payload_at = f->l4 + UDP_HEADER;
	p->payload = p->ip + p->payload_at;
fragmented:
	r->protocol = IPPROTO_UDP;
	if (f->fragment) {
		r->fragment = f->fragment;
		r->sequence = f->identification;
	}
	return true;
}

/*
 * How much of the message this program can read: a tracepoint what is in the
 * linear part, a socket program all of it.
 */
static __always_inline void find_readable(struct packet *p, struct record *r)
{
	u64 end = p->data + p->len - p->nonlinear;

	p->readable = 0;
	if (r->flags & FLAG_FRAGMENT)
		return;
	if (AT_SOCKET(p->event)) {
		p->readable = r->payload_bytes;
		return;
	}
	if (r->protocol == IPPROTO_TCP)
		return;
	p->readable = end > p->payload ? end - p->payload : 0;
	if (r->flags & FLAG_ICMP)
		return;
	if (p->readable < r->payload_bytes)
		COUNT(cut);
	else
		p->readable = r->payload_bytes;
}

/*
 * The same number, for a verifier that has to be shown that it is from 1 to
 * `room`, a power of two: before 6.8 it learns nothing from a comparison with 0.
 * The barrier keeps the compiler from removing the mask.
 */
static __always_inline u32 at_least_one(u32 bytes, u32 room)
{
	bytes--;
	asm volatile("" : "+r"(bytes));
	return (bytes & (room - 1)) + 1;
}

/* Read from the DNS message, wherever its bytes are. */
static __always_inline int read_message(void *ctx, struct packet *p, void *to,
					u32 size)
{
	if (AT_SOCKET(p->event))
		return bpf_skb_load_bytes(ctx, p->payload_at, to, size);
	return read_kernel(to, size, p->payload);
}

static __always_inline u64 mix(u64 hash, u64 word)
{
	hash = (hash ^ word) * GOLDEN;
	return hash ^ (hash >> 29);
}

/* End of the first question in the prefix; 0 if it is not all there. */
static __always_inline u32 question_end(const u8 *prefix, u32 size)
{
	u32 at = DNS_HEADER;

	for (int i = 0; i < LABELS; i++) {
		u8 length;

		/* or the compiler drops the mask that the verifier needs */
		asm volatile("" : "+r"(at));
		length = prefix[at & (PREFIX_BUFFER - 1)];
		if (length == 0)
			return at + 5 <= size ? at + 5 : 0;
		at += length + 1;
		if (length > 63 || at >= PREFIX)
			return 0;
	}
	return 0;
}

/*
 * A number that all hops of one message share, whatever translation does to the
 * server's address: DNS header and question, and the client's address and port.
 * 0 when the question does not fit the prefix; then every hop brings the bytes
 * and user space compares those.
 */
static __always_inline u64 message_id_of(const struct record *r, const u8 *prefix,
				      u32 end)
{
	const u8 *client = r->flags & FLAG_RESPONSE ? r->daddr : r->saddr;
	u16 port = r->flags & FLAG_RESPONSE ? r->dport : r->sport;
	u64 hash = mix(port, ((u64 *)client)[0]);

	hash = mix(hash, ((u64 *)client)[1]);
	if (is_loopback(client))
		hash = mix(hash, r->netns);
#pragma unroll
	for (int i = 0; i < PREFIX / 8; i++) {
		u64 word = ((u64 *)prefix)[i];

		if (i * 8 >= end)
			break;
		if (i * 8 + 8 > end)
			word &= (1ULL << (end % 8 * 8)) - 1;
		hash = mix(hash, word);
	}
	return hash ? hash : 1;
}

/*
 * Whether what goes to or comes from a learned server looks like a DNS message
 * of that direction: the address may have another owner by now. The header tells
 * (RFC 1035 4.1.1): direction, an opcode there is, one question or none.
 */
static __always_inline bool is_plausible(const struct packet *p,
					 const u8 *message)
{
	bool response = message[2] & 0x80;
	u16 questions = be16(*(const u16 *)(message + 4));

	if ((message[2] >> 3 & 0xf) > LAST_OPCODE)
		return false;
	return p->sign == BY_SOURCE ? response && questions <= 1 :
				      !response && questions == 1;
}

/* Number the message; false when it turns out to be none. */
static __always_inline bool identify(void *ctx, struct packet *p,
				     struct scratch *s)
{
	struct record *r = &s->record;
	u32 size = p->readable < PREFIX ? p->readable : PREFIX;
	u32 end;

	bool foreign = p->sign == BY_DESTINATION || p->sign == BY_SOURCE;

	if (r->protocol != IPPROTO_UDP || r->flags & FLAG_FRAGMENT)
		return true;
	if (size < DNS_HEADER)
		return !foreign || r->payload_bytes >= DNS_HEADER;
	__builtin_memset(s->prefix, 0, sizeof(s->prefix));
	size = at_least_one(size, PREFIX_BUFFER);
	if (read_message(ctx, p, s->prefix, size)) {
		COUNT(read_failed);
		return true;
	}
	if (foreign && !is_plausible(p, s->prefix))
		return false;
	if (s->prefix[2] & 0x80)
		r->flags |= FLAG_RESPONSE;
	end = question_end(s->prefix, size);
	if (end)
		r->message_id = message_id_of(r, s->prefix, end);
	return true;
}

/* Equal at all hops of one packet, as long as its client has one address. */
static __always_inline u64 identity_of(const struct scratch *s)
{
	const struct record *r = &s->record;

	if (r->protocol == IPPROTO_TCP)
		return mix((u64)r->sequence << 32 | r->acknowledgement,
			   r->payload_bytes);
	return r->message_id ? r->message_id : *(const u64 *)s->prefix;
}

/* Whether the packet is the one that it was taken for by the sk_buff's address. */
static __always_inline bool is_same(const struct packet *p,
				    const struct scratch *s)
{
	struct passing *last = passing_of(p->skb);

	return last && last->skb == p->skb &&
	       s->record.ts_ns - last->ts_ns < PASSING_NS &&
	       last->identity == identity_of(s);
}

static __always_inline void set_tag(u64 skb, u32 tag)
{
	struct sieve *sieve = my_sieve();

	if (sieve)
		sieve->tags[within(passing_slot(skb), PASSING_SLOTS)] = tag;
}

/* Remember the hop: it tells what the packet is at the next one. */
static __always_inline void note_passing(const struct packet *p,
					 const struct scratch *s)
{
	const struct record *r = &s->record;
	struct passing *last;

	if (r->flags & FLAG_ICMP || p->event == EVENT_DROP ||
	    p->event == EVENT_SOCKET_RX)
		return;
	last = passing_of(p->skb);
	if (!last)
		return;
	last->identity = identity_of(s);
	last->ts_ns = r->ts_ns;
	last->netns = r->netns;
	last->fragment = r->fragment;
	last->event = p->event;
	last->flags = r->flags;
	last->skb = p->skb;
	set_tag(p->skb, tag_of(p->skb));
}

/*
 * Learn the server behind a translation, or that one who was learned is still
 * there. Over TCP only the entry and the last hop say so: segments on a port
 * prove nothing.
 */
static __always_inline void note_server(const struct packet *p,
					const struct scratch *s)
{
	const struct record *r = &s->record;
	bool response = r->flags & FLAG_RESPONSE;

	if (r->flags & (FLAG_ICMP | FLAG_FRAGMENT))
		return;
	if (r->flags & FLAG_CONNTRACK && IS_DNS_PORT(r->ct_original_dport)) {
		if (!IS_DNS_PORT(r->ct_reply_sport))
			learn(r->ct_reply_saddr, r->ct_reply_sport, r->protocol,
			      r->netns, r->ts_ns);
		return;
	}
	if (p->sign != BY_PORT &&
	    (r->protocol == IPPROTO_UDP || is_same(p, s)))
		learn(response ? r->saddr : r->daddr,
		      response ? r->sport : r->dport, r->protocol, r->netns,
		      r->ts_ns);
}

/* Device and namespace of the hop, and what the socket on the packet tells. */
static __always_inline void note_place(struct packet *p, struct record *r,
				       u64 rx_sk)
{
	u64 dev = read_pointer(p->skb + SK_BUFF_DEV);
	u64 sk = rx_sk ? rx_sk : read_pointer(p->skb + SK_BUFF_SK);

	r->socket_netns = socket_netns(sk);
	if (dev) {
		p->net = read_pointer(dev + NET_DEVICE_NET);
		r->netns = netns_of(p->net);
		r->ifindex = read_u32(dev + NET_DEVICE_IFINDEX);
		read_kernel(r->ifname, sizeof(r->ifname), dev + NET_DEVICE_NAME);
	} else {
		/* OUTPUT-hook drops happen before there is a device. */
		p->net = sk ? read_pointer(sk + SOCK_NET) : 0;
		r->netns = r->socket_netns;
	}
	if (r->event == EVENT_DROP && dev)
		r->device_state = read_u32(dev + NET_DEVICE_STATE);
	if (rx_sk) {
		r->socket_rcvbuf = read_u32(rx_sk + SOCK_RCVBUF);
		r->socket_rmem = read_u32(rx_sk + SOCK_RMEM);
	}
	/* A kernel socket in whatever namespace sends these. */
	if (r->flags & FLAG_ICMP)
		return;
	/*
	 * A veth peer still shows the sender's socket until ip_rcv() orphans the
	 * packet, so the socket counts only in its own namespace.
	 */
	if (r->event != EVENT_RX && r->event != EVENT_SOCKET_RX && !rx_sk && sk &&
	    r->netns == r->socket_netns)
		r->flags |= FLAG_ORIGIN;
}

/*
 * The current task sent the packet unless it left from a timer or another
 * task's softirq (unresolved neighbour): then the namespaces differ.
 */
static __always_inline void note_process(struct record *r)
{
	u64 task = bpf_get_current_task();
	u64 nsproxy = read_pointer(task + TASK_NSPROXY);
	u64 leader = read_pointer(task + TASK_GROUP_LEADER);
	u32 tgid = read_u32(task + TASK_TGID);

	if (!tgid || !nsproxy ||
	    netns_of(read_pointer(nsproxy + NSPROXY_NET)) != r->netns)
		return;
	r->tgid = tgid;
	r->flags |= FLAG_PROCESS;
	/* comm is the thread's; people know the program by its leader's. */
	read_kernel(r->comm, sizeof(r->comm), leader + TASK_COMM);
}

static __always_inline void copy_address(u8 *to, const u8 *from, u8 family)
{
	if (family == 4)
		map_ipv4(to, from);
	else
		__builtin_memcpy(to, from, 16);
}

/*
 * The translation, from the entry that hangs on the packet.
 */
static __always_inline void note_conntrack(struct packet *p, struct scratch *s)
{
#ifdef HAS_CONNTRACK
	struct record *r = &s->record;
	u64 nfct = p->nfct;
	u8 *original = s->ct, *reply = s->ct + CT_REPLY - CT_ORIGINAL;

	if (!(nfct & ~CT_INFO))
		return;
	if (read_kernel(s->ct, CT_SPAN, (nfct & ~CT_INFO) + CT_ORIGINAL))
		return;
	/* Offsets may be a guess where BTF lacks nf_conntrack: check the entry. */
	if (original[TUPLE_PROTOCOL] != r->protocol)
		return;
	r->ct_info = nfct & CT_INFO;
	r->ct_status = read_u32((nfct & ~CT_INFO) + CT_STATUS);
	copy_address(r->ct_original_saddr, original + TUPLE_SADDR, r->family);
	copy_address(r->ct_original_daddr, original + TUPLE_DADDR, r->family);
	copy_address(r->ct_reply_saddr, reply + TUPLE_SADDR, r->family);
	copy_address(r->ct_reply_daddr, reply + TUPLE_DADDR, r->family);
	r->ct_original_sport = be16(*(u16 *)(original + TUPLE_SPORT));
	r->ct_original_dport = be16(*(u16 *)(original + TUPLE_DPORT));
	r->ct_reply_sport = be16(*(u16 *)(reply + TUPLE_SPORT));
	r->ct_reply_dport = be16(*(u16 *)(reply + TUPLE_DPORT));
	r->flags |= FLAG_CONNTRACK;
#endif
}

/*
 * This CPU's conntrack counters of the packet's namespace. Where a CPU's part
 * of the per-CPU memory begins is no secret to who has a per-CPU map: it lies
 * between the address of its value here and the one the map itself holds.
 */
static __always_inline void note_counters(struct packet *p, struct scratch *s)
{
#ifdef HAS_CONNTRACK_STAT
	u8 stat[CT_STAT_SPAN];
	u64 shared, here, map;
	int zero = 0;

	if (!p->net)
		return;
	s->anchor = bpf_pseudo_fd(1, ANCHOR_FD);
	asm volatile("" ::: "memory");
	map = s->anchor;
	s->anchor = (u64)bpf_map_lookup_elem_(bpf_pseudo_fd(1, ANCHOR_FD),
					      &zero);
	asm volatile("" ::: "memory");
	here = s->anchor;
	shared = read_pointer(map + BPF_ARRAY_PPTRS);
	if (!here || !shared ||
	    read_kernel(stat, sizeof(stat),
			read_pointer(p->net + NET_CT_STAT) + here - shared +
				CT_STAT_FIRST))
		return;
	s->record.stat_invalid = *(u32 *)(stat + CT_STAT_INVALID);
	s->record.stat_insert_failed = *(u32 *)(stat + CT_STAT_INSERT_FAILED);
	s->record.stat_drop = *(u32 *)(stat + CT_STAT_DROP);
	s->record.flags |= FLAG_COUNTERS;
#endif
}

/*
 * The kernel stack of a drop takes a fixed place, then come the message's
 * bytes. `room` is a power of two and `bytes` less: the mask tells the
 * verifier, the barrier keeps the compiler from removing it.
 */
static __always_inline void fill_tail(void *ctx, struct packet *p,
				      struct record *r, u8 event, u8 *tail,
				      u32 bytes, u32 room)
{
	u32 stack = event == EVENT_DROP ? STACK_FRAMES * 8 : 0;

	if (stack) {
		long n = bpf_get_stack(ctx, tail, STACK_FRAMES * 8, 0);

		r->stack_frames = n > 0 ? (u32)n / 8 : 0;
	}
	if (bytes) {
		bytes = at_least_one(bytes, room);
		if (read_message(ctx, p, tail + stack, bytes))
			COUNT(read_failed);
		else
			r->captured_bytes = bytes;
	}
	r->tail_bytes = stack + r->captured_bytes;
}

static __always_inline bool finish(void *out, struct record *r)
{
	__builtin_memcpy(out, r, sizeof(*r));
	/*
	 * Without flags the kernel wakes the reader only when it had caught up;
	 * the reader then waits a little, so a burst costs one wake-up.
	 */
	ring.ringbuf_submit(out, 0);
	return true;
}

/*
 * Records come in a few sizes because the verifier wants a constant one. What
 * is reserved and not used is not touched.
 */
#define FIXED(event)                                                           \
	(sizeof(struct record) + ((event) == EVENT_DROP ? STACK_FRAMES * 8 : 0))
#define SMALL 512
#define MEDIUM 2048
#define LARGE 65536

static __always_inline bool emit_bare(struct record *r)
{
	void *out = ring.ringbuf_reserve(sizeof(struct record));

	return out ? finish(out, r) : false;
}

static __always_inline bool emit_small(void *ctx, struct packet *p,
				       struct record *r, u8 event, u32 bytes)
{
	u8 *out = ring.ringbuf_reserve(FIXED(event) + SMALL);

	if (!out)
		return false;
	fill_tail(ctx, p, r, event, out + sizeof(*r), bytes, SMALL);
	return finish(out, r);
}

static __always_inline bool emit_medium(void *ctx, struct packet *p,
					struct record *r, u8 event, u32 bytes)
{
	u8 *out = ring.ringbuf_reserve(FIXED(event) + MEDIUM);

	if (!out)
		return false;
	fill_tail(ctx, p, r, event, out + sizeof(*r), bytes, MEDIUM);
	return finish(out, r);
}

static __always_inline bool emit_large(void *ctx, struct packet *p,
				       struct record *r, u8 event, u32 bytes)
{
	u8 *out = ring.ringbuf_reserve(FIXED(event) + LARGE);

	if (!out)
		return false;
	fill_tail(ctx, p, r, event, out + sizeof(*r), bytes, LARGE);
	return finish(out, r);
}

static __always_inline bool emit(void *ctx, struct packet *p, struct record *r,
				 u8 event, u32 bytes)
{
	if (bytes == 0 && event != EVENT_DROP)
		return emit_bare(r);
	if (bytes < SMALL)
		return emit_small(ctx, p, r, event, bytes);
	if (bytes < MEDIUM)
		return emit_medium(ctx, p, r, event, bytes);
	return emit_large(ctx, p, r, event, bytes);
}

/*
 * Submit; the message's bytes go along unless user space has all of them. A
 * TCP segment is never known: it has no number of its own.
 */
static __always_inline void submit(void *ctx, struct packet *p,
				   struct record *r, u8 event)
{
	u64 message = r->message_id, now = r->ts_ns;
	u64 *sent = message ? seen.lookup(&message) : NULL;
	/* What an ICMP error quotes may be cut: it never brings the bytes. */
	bool known = r->flags & FLAG_ICMP || (sent && now - *sent < RESEND_NS);
	struct counters *c = my_counters();

	if (!emit(ctx, p, r, event, known ? 0 : p->readable)) {
		if (c) {
			__sync_fetch_and_add(&c->lost[event], 1);
			c->last_lost_ns = now;
		}
		return;
	}
	if (c)
		__sync_fetch_and_add(&c->records[event], 1);
	if (message && !known && r->captured_bytes == r->payload_bytes &&
	    seen.update(&message, &now))
		COUNT(seen_failed);
}

/*
 * Whether the tracepoint saw this very sk_buff come into this namespace. Bridges
 * and VLAN devices change the device, not the namespace.
 */
static __always_inline bool came_in_here(const struct packet *p)
{
	struct passing *last = passing_of(p->skb);

	return last && last->skb == p->skb && last->event == EVENT_RX &&
	       !last->fragment && last->netns == device_netns(p->skb);
}

/*
 * At the socket, only what the tracepoints miss: TCP's bytes, datagrams in page
 * fragments or put together of fragments, and arrivals that a data plane hides
 * (bpf_redirect_peer(), macvlan, ipvlan).
 */
static __always_inline bool is_missed(const struct packet *p,
				      const struct record *r)
{
	if (!AT_SOCKET(p->event) || r->protocol != IPPROTO_UDP || p->nonlinear)
		return true;
	return p->event == EVENT_SOCKET_RX && !came_in_here(p);
}

/* Returns whether the packet was one of DNS. */
static __always_inline bool observe(void *ctx, struct packet *p,
				    struct scratch *s, u64 location, u32 reason,
				    u64 rx_sk)
{
	struct record *r = &s->record;
	u8 event = p->event;

	if (!note_flow(p, r, s->header, &s->facts))
		return false;
	if (!is_missed(p, r))
		return true;
	r->ts_ns = bpf_ktime_get_ns();
	r->event = event;
	r->skb = p->skb;
	r->location = location;
	r->reason = reason;
	note_place(p, r, rx_sk);
	find_readable(p, r);
	if (p->sign == BY_DESTINATION || p->sign == BY_SOURCE)
		r->flags |= FLAG_LEARNED;
	if (!identify(ctx, p, s) || (p->sign == BY_PASSING && !is_same(p, s)))
		return false;
	if (r->fragment == FRAGMENT_MORE && r->message_id)
		remember_fragment(r);
	if ((event == EVENT_TX || event == EVENT_SOCKET_TX) &&
	    r->flags & FLAG_ORIGIN)
		note_process(r);
	if (!(r->flags & FLAG_ICMP))
		note_conntrack(p, s);
	/* What is sent on untracked is of interest if it was called invalid. */
	if (event == EVENT_RX || event == EVENT_DROP ||
	    (event == EVENT_TX && !(r->flags & (FLAG_CONNTRACK | FLAG_ORIGIN))))
		note_counters(p, s);
	note_server(p, s);
	note_passing(p, s);
	r->cpu = bpf_get_smp_processor_id();
	submit(ctx, p, r, event);
	return true;
}

/* Nothing is recorded until all programs are attached: lookups have all hops. */
static __always_inline bool is_armed(void)
{
	const struct sieve *sieve = my_sieve();

	return sieve && sieve->armed;
}

/*
 * Pass what was found through memory whose contents the verifier does not know.
 * Or it would follow each way of recognising a packet to the end of the program.
 */
static __always_inline void settle(struct scratch *s, struct packet *p,
				   const u8 *h, const struct ip_facts *f)
{
	u8 event = p->event;

	s->packet = *p;
	s->facts = *f;
	__builtin_memcpy(s->header, h, sizeof(s->header));
	asm volatile("" ::: "memory");
	*p = s->packet;
	p->event = event;
}

static __always_inline void handle(void *ctx, u64 skb, u8 event, u64 location,
				   u32 reason, u64 rx_sk)
{
	struct packet p = { .skb = skb, .event = event };
	u8 h[IPV6_HEADER + UDP_HEADER] __attribute__((aligned(8)));
	struct ip_facts f = {};
	int slot = event;
	struct scratch *s;

	if (!is_interesting(&p, h, &f) || !is_armed())
		return;
	s = scratch.lookup(&slot);
	if (!s)
		return;
	/*
	 * Before 6.1 nothing keeps an interrupt from running the same program
	 * on top of itself; it would overwrite the work at hand.
	 */
	if (s->busy) {
		COUNT(nested);
		return;
	}
	s->busy = 1;
	settle(s, &p, h, &f);
	if (!observe(ctx, &p, s, location, reason, rx_sk) &&
	    p.sign == BY_PASSING)
		/* The sk_buff has become another packet's. */
		set_tag(p.skb, 0);
	s->busy = 0;
}

int net_dev_queue(struct bpf_raw_tracepoint_args *ctx)
{
	handle(ctx, ctx->args[0], EVENT_TX, 0, 0, 0);
	return 0;
}

int netif_receive_skb(struct bpf_raw_tracepoint_args *ctx)
{
	handle(ctx, ctx->args[0], EVENT_RX, 0, 0, 0);
	return 0;
}

/* (skb, location), reason since 5.17, the receiving socket since 6.11 */
int kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
	u32 reason = 0;
	u64 rx_sk = 0;

#if KFREE_SKB_ARGS >= 3
	reason = ctx->args[2];
#endif
#if KFREE_SKB_ARGS >= 4
	rx_sk = ctx->args[3];
#endif
	handle(ctx, ctx->args[0], EVENT_DROP, ctx->args[1], reason, rx_sk);
	return 0;
}

/*
 * kprobe on skb_consume_udp(sk, skb, len), net/ipv4/udp.c: the application has
 * taken the datagram. The device of a packet in a receive queue is no device
 * any more (struct udp_dev_scratch), so the namespace is the socket's.
 */
int datagram_read(void *ctx)
{
	struct packet p = { .skb = *(u64 *)(ctx + PT_REGS_SECOND),
			    .event = EVENT_DROP };
	u64 sk = *(u64 *)(ctx + PT_REGS_FIRST), now = bpf_ktime_get_ns();
	u8 h[IPV6_HEADER + UDP_HEADER] __attribute__((aligned(8)));
	struct ip_facts f = {};
	int slot = READ_SLOT;
	struct scratch *s;

	p.net = read_pointer(sk + SOCK_NET);
	if (!is_interesting(&p, h, &f))
		return 0;
	s = scratch.lookup(&slot);
	if (!s)
		return 0;
	if (s->busy) {
		COUNT(nested);
		return 0;
	}
	s->busy = 1;
	settle(s, &p, h, &f);
	if (note_flow(&p, &s->record, s->header, &s->facts) &&
	    s->record.protocol == IPPROTO_UDP) {
		s->record.netns = netns_of(p.net);
		find_readable(&p, &s->record);
		if (identify(ctx, &p, s) && s->record.message_id &&
		    reads.update(&s->record.message_id, &now))
			COUNT(seen_failed);
	}
	s->busy = 0;
	return 0;
}

/*
 * On the root of the cgroup v2 tree: every socket of the node. The context of
 * these programs is the sk_buff itself. They always let the packet pass.
 */
int cgroup_egress(struct __sk_buff *skb)
{
	handle(skb, (u64)skb, EVENT_SOCKET_TX, 0, 0, 0);
	return 1;
}

int cgroup_ingress(struct __sk_buff *skb)
{
	struct sieve *sieve = my_sieve();
	u64 *anchor;

	if (!sieve)
		return 1;
	/*
	 * The verifier allows no arithmetic on the context's address. Two
	 * CPUs share a place where there are more than ANCHORS: then one may
	 * take the packet for another, and find that it is not.
	 */
	anchor = &sieve->anchors[within(bpf_get_smp_processor_id(), ANCHORS)];
	*(volatile u64 *)anchor = (u64)skb;
	handle(skb, *(volatile u64 *)anchor, EVENT_SOCKET_RX, 0, 0, 0);
	return 1;
}
