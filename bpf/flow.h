/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Ports, TCP segments, fragments and ICMP errors: whether a packet is of interest. */

static __always_inline bool parse_tcp(struct packet *p, struct record *r,
				      const struct ip_facts *f)
{
	u8 tcp[TCP_HEADER] __attribute__((aligned(8)));
	u32 header;

	if (read_kernel(tcp, sizeof(tcp), p->ip + f->l4))
		return false;
	header = (tcp[12] >> 4) * 4;
	r->tcp_flags = tcp[13];
	r->sequence = __builtin_bswap32(*(u32 *)(tcp + TCP_SEQUENCE));
	r->acknowledgement = __builtin_bswap32(*(u32 *)(tcp + TCP_ACKNOWLEDGEMENT));
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
	u8 icmp[ICMP_HEADER] __attribute__((aligned(8)));
	u8 quoted[IPV6_HEADER] __attribute__((aligned(8)));
	u8 l4[UDP_HEADER] __attribute__((aligned(8)));
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
	dport = be16(*(u16 *)(l4 + L4_DPORT));
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
			      be16(*(u16 *)(icmp + ICMP_MTU)) :
			      __builtin_bswap32(*(u32 *)(icmp + ICMPV6_MTU));
	if (q.protocol == IPPROTO_UDP)
		r->payload_bytes = be16(*(u16 *)(l4 + UDP_LENGTH)) - UDP_HEADER;
	p->payload = ip + q.l4 + UDP_HEADER;
	return true;
}

static __always_inline bool read_headers(u8 *h, bool v4, u64 ip)
{
	return v4 ? !read_kernel(h, IPV4_HEADER + UDP_HEADER, ip) :
		    !read_kernel(h, IPV6_HEADER + UDP_HEADER, ip);
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
	u8 far[UDP_HEADER] __attribute__((aligned(8)));
	u8 *l4;

	if (!protocol || !read_headers(h, v4, p->ip) ||
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
	f->dport = be16(*(u16 *)(l4 + L4_DPORT));
	f->upper_length = be16(*(u16 *)(l4 + UDP_LENGTH));
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
