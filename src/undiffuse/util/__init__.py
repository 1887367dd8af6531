"""Small helpers without torch that every room may use: files, text, errors, progress."""
