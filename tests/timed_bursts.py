"""Bursts of the benchmark with times of our choice: no clock is read."""

from engines.latency import Burst, Pass


def timed_pass(seconds: float, wait_s: float = 0.0) -> Pass:
    """A pass of one thread that waited `wait_s` of its time for a core."""
    return Pass(seconds, cpu_s=seconds - wait_s, wait_s=wait_s)


def timed_burst(
    *inputs_s: list[float], elapsed_s: float = 1.0, core_wait_s: float = 0.0, other_s: float = 0.0
) -> Burst:
    """A burst whose passes over each input took these seconds, without waiting for a core."""
    passes = [[timed_pass(seconds) for seconds in input_s] for input_s in inputs_s]
    return Burst(passes, elapsed_s, core_wait_s, other_s)
