"""The benchmark suite: every figure beside a reference measured in the same run, alternating with it."""
