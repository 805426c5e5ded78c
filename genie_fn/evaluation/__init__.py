"""What a trained world is measured by."""
