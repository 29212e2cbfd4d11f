"""Weight files and nothing else: which files a directory holds, and the tensors in them."""
