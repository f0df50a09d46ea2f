"""From a closed session to its cause. Pure: evidence in, verdict out."""
