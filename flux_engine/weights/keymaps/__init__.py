"""Names: what a set of keys is, and how each set becomes the tensors of one of our models."""
