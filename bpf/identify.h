/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The DNS message, and the number that all its hops share. */

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
	return probe_read(to, size, p->payload);
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
 * A number of the name in the first question, which begins behind the header and
 * ends with the zero at `end` - 1.
 */
static __always_inline u64 name_number(const u8 *prefix, u32 end, u64 seed)
{
	u64 hash = seed;

#pragma unroll
	for (int i = DNS_HEADER / 8; i < PREFIX / 8; i++) {
		u64 word = ((u64 *)prefix)[i];

		if (i * 8 >= end)
			break;
		if (i * 8 < DNS_HEADER)
			word &= ~0ULL << (DNS_HEADER % 8 * 8);
		if (i * 8 + 8 > end)
			word &= (1ULL << (end % 8 * 8)) - 1;
		hash = mix(hash, word);
	}
	return hash;
}

/* What the packets of one lookup share: question, id, client, and its port. */
static __always_inline u64 number_of(const struct scratch *s, const u8 *client,
				     u16 port, u32 netns)
{
	u64 hash = mix(s->question, (u64)s->id << 16 | port);

	hash = mix(hash, ((u64 *)client)[0]);
	hash = mix(hash, ((u64 *)client)[1]);
	if (is_loopback(client))
		hash = mix(hash, netns);
	return hash ? hash : 1;
}

/*
 * Numbers of the message. All its hops share them, whatever translation does to
 * the server's address. 0 when the question does not fit the prefix; then every
 * hop brings the bytes and user space compares those.
 */
static __always_inline void number_message(struct scratch *s, u32 end)
{
	struct record *r = &s->record;
	const u8 *client = r->flags & FLAG_RESPONSE ? r->daddr : r->saddr;
	u16 port = r->flags & FLAG_RESPONSE ? r->dport : r->sport;
	const u64 *words = (const u64 *)s->prefix;
	u32 name_end = end - QUESTION_TAIL;
	struct sieve *sieve = my_sieve();

	if (!sieve)
		return;
	s->name = name_number(s->prefix, name_end, sieve->seed);
	/* type and class */
	asm volatile("" : "+r"(name_end));
	name_end &= PREFIX_BUFFER - 1;
	s->rdtype = be16(*(const u16 *)(s->prefix + name_end));
	s->question = mix(s->name, *(const u16 *)(s->prefix + name_end + 2) << 16 |
					   s->rdtype);
	s->id = be16(*(const u16 *)s->prefix);
	s->number = number_of(s, client, port, r->netns);
	s->message_header = mix(words[0] >> 16, words[1] & 0xffffffff) | 1;
	r->message_id = mix(s->number, s->message_header);
	if (!r->message_id)
		r->message_id = 1;
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
	u16 questions = be16(*(const u16 *)(message + DNS_QDCOUNT));

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

	s->number = 0;
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
		number_message(s, end);
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
