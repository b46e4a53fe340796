from sublora.cli import main

main()
