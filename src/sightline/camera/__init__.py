"""What happens to a frame before an executor sees it: plain tensors in, plain tensors out.

Nothing here knows about networks or executors. A stream passes each frame through these in turn, and thresholds do the rest.
"""
