"""What ``import compressor`` gives."""
