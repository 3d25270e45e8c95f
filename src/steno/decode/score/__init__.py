"""What a search is to find: scorers judge texts and their beginnings."""
