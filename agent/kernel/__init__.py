"""The running kernel: its types, its symbols, bpf(2), and the compiler for programs that it runs."""
