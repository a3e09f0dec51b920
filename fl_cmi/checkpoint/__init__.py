"""What a killed run needs to go on: trees of tensors, kept safely on disk, and how parts give and take them."""
