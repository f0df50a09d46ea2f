/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Which packets on other ports than DNS's are DNS: behind a translation. */

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
		map_ipv4(saddr, h + IPV4_SADDR);
		map_ipv4(daddr, h + IPV4_DADDR);
	} else {
		__builtin_memcpy(saddr, h + IPV6_SADDR, 16);
		__builtin_memcpy(daddr, h + IPV6_DADDR, 16);
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
