"""The command line: one file per verb. stdout is data, stderr is talk. Imports nothing heavy until a verb runs."""
