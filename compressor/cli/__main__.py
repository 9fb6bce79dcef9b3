"""``python -m compressor.cli``."""

from compressor.cli import main

main()
