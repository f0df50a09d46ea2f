/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The kernel's types by its own headers, where it has no BTF.
 *
 * Compiled for its debug information alone: nothing of it is ever loaded as a
 * program. agent/kernel/headers.py adds one function for each type, because
 * the compiler describes in full what an argument points at. A structure that
 * these headers do not define stays a declaration.
 *
 * BCC's own headers are kept out: they bring a copy of linux/bpf.h with which
 * newer kernels' headers do not compile.
 */
#undef _UAPI__LINUX_BPF_H__
#define BCC_SEC(name) __attribute__((section(name), used))

#include <generated/utsrelease.h>
#include <linux/bpf.h>
#include <linux/ipv6.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <linux/skbuff.h>
#include <net/ip.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#if IS_ENABLED(CONFIG_NF_CONNTRACK)
#include <net/netfilter/nf_conntrack.h>
#endif

_Static_assert(!__builtin_strcmp(UTS_RELEASE, RUNNING_RELEASE),
	       "these are the headers of kernel " UTS_RELEASE
	       ", which is not the one that runs");

#if defined(CONFIG_RANDSTRUCT) || defined(CONFIG_GCC_PLUGIN_RANDSTRUCT)
#error "this kernel's structures are in random order (CONFIG_RANDSTRUCT), which its headers do not tell"
#endif

/* What the kernel declares for its own BTF in trace/bpf_probe.h */
#include <linux/tracepoint.h>
#undef TRACE_EVENT
#undef DEFINE_EVENT
#define TRACE_EVENT(name, proto, ...)                                          \
	typedef void (*btf_trace_##name)(void *__data, proto);
#define DEFINE_EVENT(template, name, proto, ...)                               \
	typedef void (*btf_trace_##name)(void *__data, proto);
#define TRACE_HEADER_MULTI_READ
#include <trace/events/net.h>
#include <trace/events/skb.h>
