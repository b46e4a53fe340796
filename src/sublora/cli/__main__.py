"""`python -m sublora.cli`, the same as `sublora`."""

from sublora.cli import main

main()
