"""What is guessed: drafters propose tokens, and decide speed only. One drafter stands in a plan."""
