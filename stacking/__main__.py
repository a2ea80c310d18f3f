from stacking.cli.main import main

main()
