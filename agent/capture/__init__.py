"""From kernel events to records: the BPF program, its loader, and the ring reader."""
