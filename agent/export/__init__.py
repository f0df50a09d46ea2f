"""Session lines, tables: what people and machines read."""
