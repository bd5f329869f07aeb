"""The input and the output of a call as descriptors: a program with its seed, and memory for its output.

The trainer creates both and reads the output. The zygote in between passes them on unread, so that no other program can
find them in the memory that it inherits.
"""

import fcntl
import os

PAGE = 4096
SEED_BYTES = 8
_F_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1033, 1, 2, 4


def write_program(code: str, seed: int) -> int:
    """A descriptor with code and seed (0 to 2**64 - 1). The caller closes it."""
    program = os.memfd_create("program", os.MFD_CLOEXEC)
    try:
        with os.fdopen(program, "wb", closefd=False) as file:
            file.write(seed.to_bytes(SEED_BYTES, "little"))
            file.write(code.encode("utf-8", "surrogatepass"))
    except BaseException:
        os.close(program)
        raise
    return program


def read_program(program: int) -> tuple[str, int]:
    """Read code and seed, and close the descriptor."""
    with os.fdopen(program, "rb") as file:
        file.seek(0)
        seed = int.from_bytes(file.read(SEED_BYTES), "little")
        return file.read().decode("utf-8", "surrogatepass"), seed


def open_output(most_bytes: int) -> int:
    """Memory of a fixed size. Writing more fails in the program only."""
    output = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(output, (most_bytes // PAGE + 1) * PAGE)
        fcntl.fcntl(output, _F_ADD_SEALS, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW)
    except BaseException:
        os.close(output)
        raise
    return output


def read_output(output: int, most_bytes: int) -> tuple[str, bool]:
    """The output as text without NUL, and whether it was longer than `most_bytes`."""
    written = os.lseek(output, 0, os.SEEK_CUR)
    content = os.pread(output, min(written, most_bytes), 0)
    return content.decode("utf-8", "replace").replace("\0", "\ufffd"), written > most_bytes
