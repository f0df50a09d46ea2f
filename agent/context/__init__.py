"""What is known beside the packets: the cluster, counters of the kernel, translations, whose lookup it was."""
