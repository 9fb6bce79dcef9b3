"""compressor: smaller, faster networks, with proof."""
