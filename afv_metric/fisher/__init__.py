"""The Fisher engine: scores, statistics, forms of the distance, vectors and sets."""
