"""Session lines that were kept, read back: from files, compressed files and pipes."""
