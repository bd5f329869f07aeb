"""Where code that a model wrote runs: one sandbox entered once, a warm interpreter inside it, one fork a call.

    outside (the trainer)            inside (standard library and ctypes only)
    levels      which sandbox        entry       the way in: gives up everything, step by step, then imports
    view        what is shown        zygote      forks a child a call, watches it, answers for it
    bubblewrap  bwrap's arguments    keeper      keeps processes that hold variables between calls
    warm        the client           sweeper     empties scratch folders, beside the zygote
    places      calls at a time      child       what a forked child gives up before it runs a program
    verdict     how a call ended     program     runs it, shows its last value or its error
    weak        no isolation         sessions    a session inside its own process
                                     branches    how one becomes two
                                     niceness    who goes first
                                     namespaces, landlock, seccomp, scratch, linux

Both sides share `setup`, `limits`, `messages`, `packets` and `payload`. What a call runs and prints passes the zygote as
descriptors that it does not read: a child inherits its memory. Only `levels` imports another part of arpo (its errors).
"""
