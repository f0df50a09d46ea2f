/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What the program keeps: each map with its size, and what happens when it is full. */

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
	u64 log_full;		/* a hop that was lost because the log had no room */
	u64 contended;		/* a hop that met another writer of its lookup */
	u64 crowded;		/* a lookup that pushed a younger one out of the index */
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
	/* Numbers of the message at hand: see number_message(). */
	u64 number;
	u64 name;
	u64 question;
	u64 message_header;
	u16 rdtype;
	u16 id;
	u32 pad_numbers;
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
	/* Of the numbers of messages: chosen by user space, so that nobody can choose messages to go with it. */
	u64 seed;
};

#ifdef LOOKUPS
/* The ends of the log: each on a cache line of its own. */
struct log {
	u64 produced;		/* lookups ever begun */
	u64 pad[7];
	u64 consumed;		/* those that user space is done with */
	u64 pad_more[7];
	u64 full_ns;		/* when there was no room for one last */
	u64 pad_most[7];
};

struct tags {
	u64 tag[TAG_WAYS];
};
#endif

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
 * Messages whose bytes user space has: 65,536 entries, about 5 MiB. Full: the
 * oldest is forgotten, and its bytes are sent once more.
 */
BPF_TABLE("lru_hash", u64, u64, seen, 65536);

/*
 * Fragmented datagrams on their way: 4,096 entries, about 500 KiB. Full: the
 * oldest is forgotten, and its later fragments are not seen.
 */
BPF_TABLE("lru_hash", struct fragment_key, struct fragment_value, fragments,
	  4096);

/*
 * When an application took a datagram, by message: 16,384 entries, about 1 MiB.
 * Full: the oldest is forgotten, and counts as not known.
 */
BPF_TABLE("lru_hash", u64, u64, reads, 16384);

/*
 * DNS servers on other ports: 4,096 entries, about 500 KiB. Full: the one longest
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

#ifdef LOOKUPS
/*
 * The heads of the lookups of the last moments, 192 bytes each. Full: those that
 * begin are lost, but for what is unusual about them; `log_full` counts their hops.
 */
BPF_F_TABLE("array", int, struct lookup, lookups, LOOKUPS, BPF_F_MMAPABLE);

/* Their hops and messages, about 4 KiB each: full when the heads are. */
BPF_F_TABLE("array", int, struct body, bodies, LOOKUPS, BPF_F_MMAPABLE);

/* One page. Cannot fill up. */
BPF_F_TABLE("array", int, struct log, logs, 1, BPF_F_MMAPABLE);

/*
 * Where in the log a lookup is, by its number: 32 bytes for each. Full: the
 * oldest of the set is forgotten, `crowded` counts those that were still in the
 * log, and their later hops come as records.
 */
BPF_TABLE("array", int, struct tags, tag_sets, TAG_SETS);
#endif

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
