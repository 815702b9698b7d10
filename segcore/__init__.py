"""What the methods share; it names none of them."""
