from stacking.cli import main

main()
