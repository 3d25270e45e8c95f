"""What a text has to be: constraints on what may come next. One stands in a plan; requests may bring their own."""
