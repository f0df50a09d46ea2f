/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Generated from agent/hop/record.py by `python -m agent.capture.layout`: change it there. */
#ifndef DNSTRAIL_RECORD_H
#define DNSTRAIL_RECORD_H

#define EVENT_TX 1
#define EVENT_RX 2
#define EVENT_DROP 3
#define EVENT_SOCKET_TX 4
#define EVENT_SOCKET_RX 5

#define FLAG_RESPONSE 1
#define FLAG_ORIGIN 2
#define FLAG_PROCESS 4
#define FLAG_CONNTRACK 8
#define FLAG_FRAGMENT 16
#define FLAG_COUNTERS 32
#define FLAG_ICMP 64
#define FLAG_LEARNED 128

#define STACK_FRAMES 16
#define LOOKUP_HOPS 12

struct record {
	__u64 ts_ns;
	__u64 message_id;
	__u64 skb;
	__u32 netns;
	__u32 ifindex;
	__u32 tail_bytes;
	__u8 event;
	__u8 flags;
	__u8 family;
	__u8 protocol;
	__u32 sequence;
	__u16 fragment;
	__u8 tcp_flags;
	__u8 late;
	__u64 location;
	__u32 reason;
	__u32 socket_netns;
	__u32 tgid;
	__u32 ct_status;
	__u32 payload_bytes;
	__u32 captured_bytes;
	__u16 sport;
	__u16 dport;
	__u16 ct_original_sport;
	__u16 ct_original_dport;
	__u16 ct_reply_sport;
	__u16 ct_reply_dport;
	__u8 ct_info;
	__u8 stack_frames;
	__u16 device_state;
	__u8 saddr[16];
	__u8 daddr[16];
	__u8 ct_original_saddr[16];
	__u8 ct_original_daddr[16];
	__u8 ct_reply_saddr[16];
	__u8 ct_reply_daddr[16];
	char comm[16];
	char ifname[16];
	__u32 acknowledgement;
	__u32 stat_invalid;
	__u32 stat_insert_failed;
	__u32 stat_drop;
	__u32 socket_rcvbuf;
	__u32 socket_rmem;
	__u32 icmp_mtu;
	__u16 cpu;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 icmp_saddr[16];
};

struct lookup {
	__u64 position;
	__u64 number;
	__u64 alias;
	__u64 first_ns;
	__u64 shape;
	__u64 busy;
	__u32 is_open;
	__u32 hops;
	__u32 unusual;
	__u16 query_bytes;
	__u16 reply_bytes;
	__u64 asked_ns;
	__u64 replied_ns;
	__u64 last_ns;
	__u64 name;
	__u64 pair;
	__u64 question;
	__u64 kind;
	__u64 query_header;
	__u64 reply_header;
	__u32 id;
	__u32 home;
	__u32 home_ifindex;
	__u32 home_event;
	__u32 server;
	__u32 pad;
	__u8 client[16];
} __attribute__((aligned(64)));

struct body {
	struct record records[LOOKUP_HOPS];
	__u8 query[256];
	__u8 reply[512];
};

#endif
