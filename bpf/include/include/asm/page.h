/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* -D flag: arm64 kernels have pages of 4, 16 or 64 KiB. */
#define PAGE_SIZE PAGE_BYTES
