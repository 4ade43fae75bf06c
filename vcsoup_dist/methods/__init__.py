"""What each method of a comparison is, one file each."""
