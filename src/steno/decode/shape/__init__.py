"""What is asked for: shapers turn a node's logits into the law that is sampled."""
