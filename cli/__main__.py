"""`python -m conceptry.cli`, which is how a training starts its further processes."""

from . import main

main()
