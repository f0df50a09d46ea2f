"""DNS messages as bytes: the bounds-checked parser of the hot path, and full rendering on demand. Pure."""
