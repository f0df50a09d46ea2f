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

static __always_inline int read_kernel(void *to, u32 size, u64 from)
{
	return probe_read_kernel(to, size, (void *)from);
}

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
