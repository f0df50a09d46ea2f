"""One hop: the record that the kernel program writes, and what its fields say."""
