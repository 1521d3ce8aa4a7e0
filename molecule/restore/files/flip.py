"""Flip one bit in the middle of a file."""
import sys

with open(sys.argv[1], "r+b") as file:
    file.seek(0, 2)
    file.seek(file.tell() // 2)
    byte = file.read(1)[0]
    file.seek(-1, 1)
    file.write(bytes([byte ^ 1]))
