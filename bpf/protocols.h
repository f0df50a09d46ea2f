/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Numbers and offsets of the protocols, and the bounds of this program. */

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define VLAN_TAG 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMP 1
#define IPPROTO_ICMPV6 58
#define ICMP_HEADER 8
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PARAMPROB 4
#define UDP_HEADER 8
#define TCP_HEADER 20
#define DNS_HEADER 12
#define QUESTION_TAIL 4		/* type and class */
#define LAST_OPCODE 6		/* DSO (RFC 8490) */
#define MDNS 5353
#define IPV4_HEADER 20
#define IPV6_HEADER 40
#define FRAGMENT_OFFSET 0x1fff
#define FRAGMENT_MORE 0x2000
#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4

/* IPv6 extension headers that may precede UDP and TCP (RFC 8200 4) */
#define EXTENSION_HEADERS 6
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH 51
#define NEXTHDR_DEST 60

/* The most that is read of a structure or header at once */
#define READ_LIMIT 128

/* What a message is recognised by: its header and question, if they fit. */
#define PREFIX 96
#define PREFIX_BUFFER 128
#define LABELS 16
/* Shorter than Settings.linger_ns: who knew the bytes may have forgotten them by then. */
#define RESEND_NS 50000000ULL

/* Where the work space of datagram_read() is, behind those of the events */
#define READ_SLOT 6

/* enum ip_conntrack_info, in the low three bits of _nfct (NFCT_PTRMASK) */
#define CT_INFO 7ULL
#define CT_NEW 2
#define CT_REPLY_INFO 3

/*
 * An endpoint that no DNS was seen at for so long may be another server's: pods
 * take over addresses. Longer than conntrack keeps a silent UDP flow.
 */
#define ENDPOINT_NS 300000000000ULL
#define ENDPOINT_RENEW_NS 1000000000ULL
/* As long, in a port's mark: units of 2^35 ns, modulo 128 (struct sieve) */
#define MARKS 2048
#define MARK_SHIFT 35
#define MARK_SET 0x80
#define MARK_AGE 0x7f
#define MARK_OLD 9
/* From hop to hop: the same softirq, or the next. */
#define PASSING_NS 1000000ULL
#define PASSING_SLOTS 128
#define STRANGERS 64
#define ANCHORS 64
#define GOLDEN 0x9E3779B97F4A7C15ULL

/*
 * The index of the log: sets of one cache line. A tag is the upper part of a
 * lookup's number and the lower part of its position.
 */
#define TAG_WAYS 8
#define TAG_POSITION_BITS 16
#define TAG_POSITION 0xffffULL
/* How often a CPU tries to get a position that others want too */
#define CLAIMS 4
/* So long after the log was full a lookup that is not in it counts as one of those */
#define SHED_NS 100000000ULL

/* First and second argument of a kprobed function, in struct pt_regs */
#if defined(__aarch64__)
#define PT_REGS_FIRST 0
#define PT_REGS_SECOND 8
#else
#define PT_REGS_FIRST 112
#define PT_REGS_SECOND 104
#endif

/* Of bpf_ringbuf_discard(): wake the reader, whatever it knows (include/uapi/linux/bpf.h) */
#define RINGBUF_FORCE_WAKEUP 2

#define be16(x) __builtin_bswap16(x)

/* cgroup_skb: runs at the socket and can read paged data, where tracepoints cannot */
#define AT_SOCKET(event) ((event) == EVENT_SOCKET_TX || (event) == EVENT_SOCKET_RX)

/* Offsets of fields, in bytes from the beginning of their header. */
#define VLAN_PROTOCOL 2
#define IPV4_TOTAL_LENGTH 2
#define IPV4_ID 4
#define IPV4_FRAGMENT 6
#define IPV4_SADDR 12
#define IPV4_DADDR 16
#define IPV6_PAYLOAD_LENGTH 4
#define IPV6_SADDR 8
#define IPV6_DADDR 24
#define FRAGMENT_FIELD 2
#define FRAGMENT_ID 4
#define L4_DPORT 2
#define UDP_LENGTH 4
#define TCP_SEQUENCE 4
#define TCP_ACKNOWLEDGEMENT 8
#define ICMP_MTU 6
#define ICMPV6_MTU 4
#define DNS_FLAGS 2
#define DNS_QDCOUNT 4
#define DNS_ANCOUNT 6
#define DNS_ARCOUNT 10
