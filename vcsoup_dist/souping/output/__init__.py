"""What a merge writes: weights files, manifest, card, and the rename that publishes them."""
