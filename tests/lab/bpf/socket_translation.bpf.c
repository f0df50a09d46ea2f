/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * For tests: a CNI that translates a Service's address where a program names it, at connect(), sendto() and recvfrom().
 *
 * No packet ever has the Service's address.
 */
#include <uapi/linux/bpf.h>

/* IPv4 addresses stand in the last word, behind ::ffff. */
struct end {
	u32 words[4];
	u32 port; /* network byte order */
};

struct asked {
	u64 socket;
	struct end server;
};

/* Full maps: the oldest translation is forgotten, and its reply keeps the server's address. */
BPF_HASH(services, struct end, u32, 16); /* how many servers it has */
BPF_ARRAY(servers, struct end, 512);	 /* IPv4 ones first, IPv6 ones from 256 */
BPF_TABLE("lru_hash", struct asked, struct end, origins, 65536);

static __always_inline struct end end_of(struct bpf_sock_addr *ctx, int ipv6)
{
	struct end end = {};

	end.port = ctx->user_port;
	if (ipv6) {
		end.words[0] = ctx->user_ip6[0];
		end.words[1] = ctx->user_ip6[1];
		end.words[2] = ctx->user_ip6[2];
		end.words[3] = ctx->user_ip6[3];
	} else {
		end.words[2] = bpf_htonl(0xffff);
		end.words[3] = ctx->user_ip4;
	}
	return end;
}

static __always_inline void set_end(struct bpf_sock_addr *ctx, int ipv6, struct end *end)
{
	ctx->user_port = end->port;
	if (ipv6) {
		ctx->user_ip6[0] = end->words[0];
		ctx->user_ip6[1] = end->words[1];
		ctx->user_ip6[2] = end->words[2];
		ctx->user_ip6[3] = end->words[3];
	} else {
		ctx->user_ip4 = end->words[3];
	}
}

static __always_inline int towards_server(struct bpf_sock_addr *ctx, int ipv6)
{
	struct end service = end_of(ctx, ipv6), *server;
	u32 *count = services.lookup(&service);
	struct asked asked = {};
	int at;

	if (!count || !*count)
		return 1;
	at = bpf_get_prandom_u32() % *count + (ipv6 ? 256 : 0);
	server = servers.lookup(&at);
	if (!server)
		return 1;
	asked.socket = bpf_get_socket_cookie(ctx);
	asked.server = *server;
	origins.update(&asked, &service);
	set_end(ctx, ipv6, &asked.server);
	return 1;
}

static __always_inline int from_server(struct bpf_sock_addr *ctx, int ipv6)
{
	struct asked asked = {bpf_get_socket_cookie(ctx), end_of(ctx, ipv6)};
	struct end *origin = origins.lookup(&asked), copy;

	if (origin) {
		copy = *origin;
		set_end(ctx, ipv6, &copy);
	}
	return 1;
}

int connect4(struct bpf_sock_addr *ctx)
{
	return towards_server(ctx, 0);
}

int connect6(struct bpf_sock_addr *ctx)
{
	return towards_server(ctx, 1);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return towards_server(ctx, 0);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	return towards_server(ctx, 1);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	return from_server(ctx, 0);
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	return from_server(ctx, 1);
}
