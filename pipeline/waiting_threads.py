"""A bound on the time that torch's threads spin before they sleep.

At the end of every parallel operation a thread waits for the others. GNU's OpenMP, which torch's
Linux builds use, lets it spin for about ten milliseconds first: where another program has taken
the other thread's core, that time is burnt, thousands of times a second of work. Without any
spinning every wait costs two calls of the kernel, which makes small operations slow on a machine
that has nothing else to do. Spinning for some microseconds is as quick as the first and nearly as
frugal as the second; `python -m tests.benchmarks.busy` measures all three.
"""

from collections.abc import MutableMapping

SPINS = "1000"  # of a loop of one pause instruction each: some 20 microseconds
SPIN_COUNT, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Bound the spinning of this process's threads and its children's; a user's own choice stays.

    OpenMP reads it when torch is loaded, so this comes first (libgomp's manual, section 4.21).
    """
    if SPIN_COUNT not in environment and POLICY not in environment:
        environment[SPIN_COUNT] = SPINS
