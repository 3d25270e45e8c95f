"""What is looked for: searches over many continuations of a prompt. One search stands in a plan."""
