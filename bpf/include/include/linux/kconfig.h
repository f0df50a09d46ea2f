/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* BCC includes this first and looks for it to recognise a kernel tree. */
#define CONFIG_BPF_SYSCALL 1
