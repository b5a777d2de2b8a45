import os
import subprocess
import sys

import pytest

from pipeline.cli.app import SPINS


@pytest.mark.skipif(sys.platform != "linux", reason="torch's Linux builds use GNU's OpenMP")
@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_torch_of_a_verb_is_loaded_with_bounded_spinning_unless_somebody_chose(chosen):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    program = "import contextlib, sys; sys.argv = ['rlhf', '--help']\n"
    program += "from pipeline.cli.app import main\nwith contextlib.suppress(SystemExit): main()\n"
    program += "import torch"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | chosen | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert lines, done.stderr[-500:]  # libgomp itself tells what it was loaded with
    bounded = f"'{SPINS}'" in lines[0]
    assert bounded == (not chosen)
