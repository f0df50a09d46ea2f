/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The record into the ring. */

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
