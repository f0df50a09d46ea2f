/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Reading kernel memory, namespaces and addresses. */

/*
 * Called by its number: BCC looks for bpf_probe_read_kernel() among the kernel's
 * symbols, and where it may not see their addresses (user other than root, no
 * CAP_SYSLOG, kptr_restrict=2) takes bpf_probe_read(), which the verifier denies
 * to cgroup programs.
 */
static long (*const probe_read_kernel)(void *to, u32 size, const void *from) =
	(void *)BPF_FUNC_probe_read_kernel;

/* As many bytes as the caller says, which the verifier has to follow. */
static __always_inline int probe_read(void *to, u32 size, u64 from)
{
	return probe_read_kernel(to, size, (void *)from);
}

#ifdef CAST_CALL
/*
 * bpf_rdonly_cast(address, 0): to the verifier, memory that may only be read,
 * and that need not be there (a fault reads zeros). The JIT makes a plain load
 * of each read, where a helper costs a call and 15 ns. The kernel has no helper
 * of this number; agent/kernel/program.py makes the call one of the kfunc.
 */
static const void *(*const rdonly_cast)(u64 address, u32 type) =
	(void *)CAST_CALL;

/* By name of the instruction: the compiler would ask for what it is a part of. */
#define LOAD(type, value, from, offset)                                        \
	asm("%0 = *(" #type " *)(%1 + %2)"                                     \
	    : "=r"(value)                                                      \
	    : "r"(from), "i"(offset))

/* `size` is a constant, so that nothing is left of the loop. */
static __always_inline int read_kernel(void *to, u32 size, u64 from)
{
	const void *memory = rdonly_cast(from, 0);
	u64 word;

#pragma unroll
	for (int at = 0; at < READ_LIMIT; at += 8)
		if (at + 8 <= size) {
			LOAD(u64, word, memory, at);
			__builtin_memcpy(to + at, &word, 8);
		}
	if (size & 4) {
		LOAD(u32, word, memory, (size & ~7));
		__builtin_memcpy(to + (size & ~7), &word, 4);
	}
	if (size & 2) {
		LOAD(u16, word, memory, (size & ~3));
		__builtin_memcpy(to + (size & ~3), &word, 2);
	}
	if (size & 1) {
		LOAD(u8, word, memory, (size & ~1));
		__builtin_memcpy(to + (size & ~1), &word, 1);
	}
	return 0;
}
#else
static __always_inline int read_kernel(void *to, u32 size, u64 from)
{
	return probe_read(to, size, from);
}
#endif

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
