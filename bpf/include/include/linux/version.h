/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The oldest kernel supported; BCC only asks whether it is new enough for a helper. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
