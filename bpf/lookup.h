/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The hops of one lookup over UDP, joined where they happen: agent/hop/lookup.py
 * has the layout. User space takes each lookup from the log as one piece, some
 * time after it began. What does not fit comes as a record of its own, as if
 * there were no log: nothing here is needed for a hop to be told.
 */

#ifdef LOOKUPS

static __always_inline struct log *my_log(void)
{
	int zero = 0;

	return logs.lookup(&zero);
}

static __always_inline struct tags *tags_of(u64 number)
{
	int at = within(number, TAG_SETS);

	return tag_sets.lookup(&at);
}

static __always_inline struct lookup *lookup_at(u64 position)
{
	int at = within(position, LOOKUPS);

	return lookups.lookup(&at);
}

static __always_inline struct body *body_of(const struct lookup *l)
{
	int at = within(l->position, LOOKUPS);

	return bodies.lookup(&at);
}

static __always_inline bool has_number(const struct lookup *l, u64 number)
{
	return l->number == number || l->alias == number;
}

/* The newest lookup with this number, unless the index has forgotten it. */
static __always_inline struct lookup *find_lookup(u64 number)
{
	struct tags *set = tags_of(number);
	struct lookup *l;
	u64 found = 0;

	if (!set)
		return NULL;
#pragma unroll
	for (int i = 0; i < TAG_WAYS; i++) {
		u64 tag = set->tag[i];

		if (!((tag ^ number) >> TAG_POSITION_BITS))
			found = tag;
	}
	if (!found)
		return NULL;
	l = lookup_at(found);
	return l && has_number(l, number) ? l : NULL;
}

/*
 * Let a lookup be found by this number: in the place of an earlier one with the
 * same, of none, or of the oldest. Who is forgotten here is only not joined any
 * more: its later hops come as records.
 */
static __always_inline void enter(u64 number, u64 position)
{
	u64 tag = (number & ~TAG_POSITION) | (position & TAG_POSITION), old = 0;
	struct tags *set = tags_of(number);
	u32 oldest = 0, way = 0;

	if (!set)
		return;
#pragma unroll
	for (int i = 0; i < TAG_WAYS; i++) {
		u64 here = set->tag[i];
		u32 age = (position - here) & TAG_POSITION;

		if (!here)
			age = TAG_POSITION + 1;
		else if (!((here ^ number) >> TAG_POSITION_BITS))
			age = TAG_POSITION + 2;
		if (age >= oldest) {
			oldest = age;
			way = i;
			old = here;
		}
	}
	if (oldest < LOOKUPS)
		COUNT(crowded);
	/* Two CPUs want one place: the hops of the one that loses come as records. */
	if (__sync_val_compare_and_swap(&set->tag[within(way, TAG_WAYS)], old, tag) != old)
		COUNT(contended);
}

/*
 * One writer at a time. Nobody waits: the other one's hop comes as a record. It
 * may be that of a program that this one has interrupted.
 */
static __always_inline bool lock(struct lookup *l)
{
	if (!__sync_val_compare_and_swap(&l->busy, 0, 1))
		return true;
	COUNT(contended);
	return false;
}

static __always_inline void unlock(struct lookup *l)
{
	/* The result is asked for because the operation then orders memory. */
	u64 before = __sync_fetch_and_add(&l->busy, -1ULL);

	asm volatile("" : : "r"(before));
}

/*
 * Let the reader look at the log: it sleeps while that is empty, and for a while
 * when few lookups are in it (WAKE_AT). A ring that is full has woken it already.
 */
static __always_inline void wake_reader(void)
{
	void *nothing = ring.ringbuf_reserve(sizeof(u64));

	if (nothing)
		ring.ringbuf_discard(nothing, RINGBUF_FORCE_WAKEUP);
}

/* The next position of the log; 0 when it is full, or wanted by too many at once. */
static __always_inline u64 next_position(u64 now)
{
	struct log *log = my_log();
	u64 position;

	if (!log)
		return 0;
	position = *(volatile u64 *)&log->produced;
#pragma unroll
	for (int i = 0; i < CLAIMS; i++) {
		u64 waiting, found;

		if (position - *(volatile u64 *)&log->consumed >= LOOKUPS) {
			log->full_ns = now;
			return 0;
		}
		found = __sync_val_compare_and_swap(&log->produced, position,
						    position + 1);
		if (found == position) {
			/* Read behind the claim: the reader looks for claims before it sleeps. */
			waiting = position - *(volatile u64 *)&log->consumed;
			if (!waiting || waiting == WAKE_AT ||
			    waiting == LOOKUPS / 2)
				wake_reader();
			return position + 1;
		}
		position = found;
	}
	COUNT(contended);
	return 0;
}

/* A lookup of its own for this query, locked; NULL if there is no room. */
static __always_inline struct lookup *begin_lookup(const struct scratch *s)
{
	const struct record *r = &s->record;
	u64 position = next_position(r->ts_ns);
	struct lookup *l = position ? lookup_at(position) : NULL;

	if (!l)
		return NULL;
	if (!lock(l)) {
		/* It stays closed, and has nothing: the way of the one before is not its own. */
		l->hops = 0;
		l->unusual = 1;
		*(volatile u64 *)&l->position = position;
		return NULL;
	}
	l->number = s->number;
	l->alias = 0;
	l->first_ns = r->ts_ns;
	l->shape = 0;
	l->hops = 0;
	l->unusual = 0;
	l->query_bytes = 0;
	l->reply_bytes = 0;
	l->replied_ns = 0;
	l->name = mix(mix(s->name, ((u64 *)r->saddr)[0]), ((u64 *)r->saddr)[1]);
	l->pair = mix(l->name, r->sport);
	l->question = s->question;
	l->kind = (u64)s->rdtype << 16;
	l->query_header = 0;
	l->reply_header = 0;
	l->id = s->id;
	l->home = r->netns;
	l->home_ifindex = r->ifindex;
	l->home_event = r->event;
	l->server = 0;
	__builtin_memcpy(l->client, r->saddr, 16);
	*(volatile u32 *)&l->is_open = 1;
	*(volatile u64 *)&l->position = position;
	enter(s->number, position);
	return l;
}

/* What this hop says of the way: no time, no number that each lookup has anew. */
static __always_inline u64 shape_of(u64 shape, const struct record *r)
{
	bool response = r->flags & FLAG_RESPONSE;
	u16 client = response ? r->dport : r->sport;

	shape = mix(shape, (u64)r->netns << 32 | r->ifindex);
	shape = mix(shape, (u64)r->socket_netns << 32 | r->event << 24 |
				   r->flags << 16 |
				   (response ? r->sport : r->dport));
	shape = mix(shape, ((u64 *)r->saddr)[0]);
	shape = mix(shape, ((u64 *)r->saddr)[1]);
	shape = mix(shape, ((u64 *)r->daddr)[0]);
	shape = mix(shape, ((u64 *)r->daddr)[1]);
	if (!(r->flags & FLAG_CONNTRACK))
		return shape;
	shape = mix(shape, (u64)r->ct_info << 32 | r->ct_original_dport << 16 |
				   r->ct_reply_sport);
	shape = mix(shape, (u64)(r->ct_original_sport == client) << 1 |
				   (r->ct_reply_dport == client));
	shape = mix(shape, ((u64 *)r->ct_original_saddr)[0]);
	shape = mix(shape, ((u64 *)r->ct_original_saddr)[1]);
	shape = mix(shape, ((u64 *)r->ct_original_daddr)[0]);
	shape = mix(shape, ((u64 *)r->ct_original_daddr)[1]);
	shape = mix(shape, ((u64 *)r->ct_reply_saddr)[0]);
	shape = mix(shape, ((u64 *)r->ct_reply_saddr)[1]);
	shape = mix(shape, ((u64 *)r->ct_reply_daddr)[0]);
	return mix(shape, ((u64 *)r->ct_reply_daddr)[1]);
}

#define KIND_REPLIED 4

/* What the reply is like: class Kind of agent/hop/lookup.py takes it apart. */
static __always_inline u64 kind_of(const struct scratch *s)
{
	u64 flags = be16(*(u16 *)(s->prefix + DNS_FLAGS));
	bool answers = *(u16 *)(s->prefix + DNS_ANCOUNT);
	bool additional = *(u16 *)(s->prefix + DNS_ARCOUNT);

	return flags << 32 | (u64)s->rdtype << 16 | KIND_REPLIED | answers << 1 |
	       additional;
}

/* The bytes of the query or of the reply, once; false if there is no room. */
static __always_inline bool keep_message(void *ctx, struct packet *p,
					 struct scratch *s, struct lookup *l,
					 struct body *b)
{
	struct record *r = &s->record;
	bool response = r->flags & FLAG_RESPONSE;
	u64 known = response ? l->reply_header : l->query_header;
	u32 bytes = p->readable;

	if (known)
		return known == s->message_header;
	if (!bytes || bytes > (response ? sizeof(b->reply) : sizeof(b->query)))
		return false;
	if (response ? read_message(ctx, p, b->reply, at_least_one(bytes, 512)) :
		       read_message(ctx, p, b->query, at_least_one(bytes, 256))) {
		COUNT(read_failed);
		return false;
	}
	if (response) {
		l->reply_header = s->message_header;
		l->reply_bytes = bytes;
		l->replied_ns = r->ts_ns;
		l->kind = kind_of(s);
	} else {
		l->query_header = s->message_header;
		l->query_bytes = bytes;
	}
	return true;
}

static __always_inline bool keep_hop(void *ctx, struct packet *p,
				     struct scratch *s, struct lookup *l)
{
	struct record *r = &s->record;
	struct body *b = body_of(l);
	u32 at = l->hops;

	if (!b || at >= LOOKUP_HOPS || !keep_message(ctx, p, s, l, b))
		return false;
	asm volatile("" : "+r"(at));
	if (at >= LOOKUP_HOPS)
		return false;
	r->cpu = bpf_get_smp_processor_id();
	__builtin_memcpy(&b->records[at], r, sizeof(*r));
	l->hops = at + 1;
	l->shape = shape_of(l->shape, r);
	l->last_ns = r->ts_ns;
	if (!(r->flags & FLAG_RESPONSE))
		l->asked_ns = r->ts_ns;
	else if (r->flags & FLAG_ORIGIN)
		l->server = r->netns;
	return true;
}

/*
 * Source translation gives the query another client. Its entry still knows the
 * one that it had: what is found by that is found by the new one from here on.
 */
static __always_inline struct lookup *find_translated(struct scratch *s)
{
	const struct record *r = &s->record;
	struct lookup *l;
	u64 number;

	if (!(r->flags & FLAG_CONNTRACK) || r->flags & FLAG_RESPONSE)
		return NULL;
	number = number_of(s, r->ct_original_saddr, r->ct_original_sport,
			   r->netns);
	l = number == s->number ? NULL : find_lookup(number);
	if (!l || !l->is_open || l->alias || !lock(l))
		return NULL;
	if (has_number(l, number) && l->is_open) {
		l->alias = s->number;
		enter(s->number, l->position);
	}
	unlock(l);
	return l;
}

/* Whether this hop is where the lookup began: then it is the client's next one. */
static __always_inline bool begins_anew(const struct lookup *l,
					const struct record *r)
{
	return !(r->flags & FLAG_RESPONSE) && l->home == r->netns &&
	       l->home_ifindex == r->ifindex && l->home_event == r->event;
}

/* What the log has room for. All else is evidence, and comes as it is. */
static __always_inline bool is_plain(const struct packet *p,
				     const struct record *r)
{
	return p->event != EVENT_DROP && !r->fragment && p->readable &&
	       p->readable == r->payload_bytes;
}

/*
 * Whether the reader falls behind. To send each hop of what there is no room for
 * would cost it ten times as much: these are lost here, and counted. Drops and
 * all else that is no plain hop still come.
 */
static __always_inline bool sheds(const struct record *r)
{
	struct log *log = my_log();

	return log && r->ts_ns - log->full_ns < SHED_NS;
}

static __always_inline bool lose(const struct record *r)
{
	struct counters *c = my_counters();

	if (c) {
		__sync_fetch_and_add(&c->log_full, 1);
		c->last_lost_ns = r->ts_ns;
	}
	return true;
}

/* Keep the hop with its lookup; false if it is to come as a record. */
static __always_inline bool keep(void *ctx, struct packet *p, struct scratch *s)
{
	struct record *r = &s->record;
	struct counters *c;
	struct lookup *l;
	bool kept;

	if (!s->number)
		return false;
	l = find_lookup(s->number);
	if (!l)
		l = find_translated(s);
	if (l && !l->is_open) {
		r->late = !begins_anew(l, r);
		if (r->late)
			return false;
		l = NULL;
	}
	if (!is_plain(p, r)) {
		if (l)
			l->unusual = 1;
		return false;
	}
	if (!l) {
		bool shed = sheds(r);

		/* The first hops of it may be among those that were lost. */
		if (!(r->flags & FLAG_RESPONSE) && (!shed || r->flags & FLAG_ORIGIN))
			l = begin_lookup(s);
		if (!l)
			return (shed || sheds(r)) && lose(r);
	} else if (!lock(l)) {
		l->unusual = 1;
		return false;
	}
	/* It may have been taken meanwhile, and given to another. */
	kept = l->is_open && has_number(l, s->number);
	if (kept && !keep_hop(ctx, p, s, l)) {
		l->unusual = 1;
		kept = false;
	}
	unlock(l);
	c = my_counters();
	if (kept && c)
		__sync_fetch_and_add(&c->records[p->event], 1);
	return kept;
}
#else
static __always_inline bool keep(void *ctx, struct packet *p, struct scratch *s)
{
	return false;
}
#endif
