"""What happens to a frame before the network sees it: plain tensors in, plain tensors out, nothing of executors."""
