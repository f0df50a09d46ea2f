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
#include "protocols.h"
#include "maps.h"
#include "kernel.h"
#include "parse.h"
#include "recognise.h"
#include "flow.h"
#include "identify.h"
#include "note.h"
#include "lookup.h"
#include "emit.h"

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
	if (keep(ctx, p, s))
		return true;
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
	if (!observe(ctx, &p, s, location, reason, rx_sk)) {
		/* The sk_buff has become another packet's. */
		if (p.sign == BY_PASSING)
			set_tag(p.skb, 0);
		/*
		 * A fragment of what was not recognised by its first one, which
		 * may have too little of it. The kernel may put the datagram
		 * together in this very sk_buff (inet_frag_reasm_prepare()):
		 * the socket must not take it for one that was seen to arrive.
		 */
		if (s->facts.fragment)
			forget_passing(p.skb);
	}
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
