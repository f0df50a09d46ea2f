/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What else is known at a hop: place, process, conntrack, counters. */

static __always_inline void set_tag(u64 skb, u32 tag)
{
	struct sieve *sieve = my_sieve();

	if (sieve)
		sieve->tags[within(passing_slot(skb), PASSING_SLOTS)] = tag;
}

/* The sk_buff has become another packet's, of which nothing is noted. */
static __always_inline void forget_passing(u64 skb)
{
	struct passing *last = passing_of(skb);

	if (last && last->skb == skb)
		last->skb = 0;
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
	u8 stat[CT_STAT_SPAN] __attribute__((aligned(8)));
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
