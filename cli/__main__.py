"""`python -m radfm.cli` is `radfm`."""

from .main import main

if __name__ == "__main__":
    main()
