"""Images: from files and tensors to what the networks take."""
