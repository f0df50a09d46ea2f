"""Capture files: their frames in, hops out, and the other way round."""
