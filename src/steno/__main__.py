"""`python -m steno`: the command, also from a source checkout where nothing is installed or compiled."""

from steno.cli.main import main

main()
