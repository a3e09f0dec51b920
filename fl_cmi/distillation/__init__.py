"""Teaching synthetic images to the student."""
