"""What comes out: how a draft is judged against the model's law. One acceptor stands in a plan."""
