"""The search for a Plan: candidates from the index, raced on the user's prompts, every survivor proved."""
