"""Runs code that a model wrote: one sandbox, a warm interpreter inside it, and one fork per call.

    outside (the trainer)             inside (standard library and ctypes only)
    levels      selects a sandbox     entry       enters the sandbox, drops all rights step by step, then imports
    view        visible files         zygote      forks a child per call, watches it, reports its end
    bubblewrap  bwrap's arguments     keeper      manages processes that hold variables between calls
    warm        the client            sweeper     empties scratch folders, in its own process
    places      concurrent calls      child       drops the rights of a forked child before it runs a program
    verdict     how a call ended      program     runs a program, shows its last value or its error
    weak        no isolation          sessions    the loop of a session in its own process
                                      branches    forks a session
                                      namespaces, landlock, seccomp, scratch, linux

Both sides share `setup`, `limits`, `messages`, `packets` and `payload`. A call's program and its output pass through
the zygote as descriptors that it does not read, since its children inherit its memory. Only `levels` imports another
part of arpo (its errors).
"""
