/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* From an sk_buff to its IP header and extension headers. */

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
	u8 tag[VLAN_TAG] __attribute__((aligned(8)));
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
		protocol = be16(*(u16 *)(tag + VLAN_PROTOCOL));
		p->ip += VLAN_TAG;
	}
	return protocol;
}

/* Walk IPv6 extension headers; false when nothing of interest is behind. */
static __always_inline bool skip_extensions(u64 ip, struct ip_facts *f)
{
	u8 h[8] __attribute__((aligned(8)));

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
			u16 field = be16(*(u16 *)(h + FRAGMENT_FIELD));

			f->fragment = field >> 3 | (field & 1 ? FRAGMENT_MORE : 0);
			f->identification = *(u32 *)(h + FRAGMENT_ID);
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
		u16 field = be16(*(u16 *)(h + IPV4_FRAGMENT));

		f->l4 = (h[0] & 0x0f) * 4;
		f->length = be16(*(u16 *)(h + IPV4_TOTAL_LENGTH));
		f->protocol = h[9];
		f->fragment = field & (FRAGMENT_OFFSET | FRAGMENT_MORE);
		f->identification = be16(*(u16 *)(h + IPV4_ID));
		return f->l4 >= IPV4_HEADER && (f->protocol == IPPROTO_UDP ||
						f->protocol == IPPROTO_TCP ||
						f->protocol == IPPROTO_ICMP);
	}
	if (h[0] >> 4 != 6)
		return false;
	f->l4 = IPV6_HEADER;
	f->length = IPV6_HEADER + be16(*(u16 *)(h + IPV6_PAYLOAD_LENGTH));
	f->protocol = h[6];
	f->fragment = 0;
	f->identification = 0;
	return skip_extensions(ip, f);
}

static __always_inline void note_addresses(struct record *r, const u8 *h)
{
	if (h[0] >> 4 == 4) {
		r->family = 4;
		map_ipv4(r->saddr, h + IPV4_SADDR);
		map_ipv4(r->daddr, h + IPV4_DADDR);
	} else {
		r->family = 6;
		__builtin_memcpy(r->saddr, h + IPV6_SADDR, 16);
		__builtin_memcpy(r->daddr, h + IPV6_DADDR, 16);
	}
}
