# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Runs the scripts against the local Hub, each in a forked process of one that has imported everything.

As a program it reads jobs as JSON lines from stdin, `{"script": "publish_craft", "args": [...], "folder": ".", "environment": {}}` or
`{"code": "..."}`, and answers each with `{"code": exit code, "output": stdout and stderr}`. The clients' pauses between
their attempts are cut short.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from hub_server import HubServer


ROOT = Path(__file__).parents[1]


class Outcome(NamedTuple):
    code: int
    output: str


class HubDriver:
    """Jobs of a `HubServer`'s user, with caches under `home`; use it in a `with` block."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        self.environment = hub.environment(home) | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self.outputs: list[str] = []  # everything that any job has printed

    def __enter__(self) -> "HubDriver":
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate(timeout=60)

    def run(self, script: str, *args: str | Path, folder: str | Path = ".", **environment: str) -> Outcome:
        """A script of examples/craft with its arguments, started from `folder`."""
        job = {"script": script, "args": [str(arg) for arg in args], "folder": str(folder)}
        return self._send(job | {"environment": environment})

    def execute(self, code: str) -> Outcome:
        """Python statements."""
        return self._send({"code": code})

    def _send(self, job: dict) -> Outcome:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        outcome = Outcome(**json.loads(self.process.stdout.readline()))
        self.outputs.append(outcome.output)
        return outcome


def do(job: dict) -> None:
    if "code" in job:
        exec(compile(job["code"], "<job>", "exec"), {"__name__": "__main__"})
        return
    from diffusers_craft.scripts import run_script

    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    path = ROOT / "examples" / "craft" / f"{job['script']}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.__dict__["__name__"] = "__main__"
    run_script(script.main, script.parse_args(job["args"]))


def run_forked(job: dict) -> dict:
    with tempfile.TemporaryFile("w+") as output:
        process = os.fork()
        if not process:
            code = 1
            try:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                do(job)
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(process, 0)[1]
        output.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "output": output.read()}


def main() -> None:
    import torch

    # Imported once, before the processes part.
    from diffusers_craft import CRAFTDatasetBuilder, TrainingRun, publish_model  # noqa: F401

    torch.set_num_threads(1)
    pause = time.sleep
    time.sleep = lambda seconds: pause(min(seconds, 0.01))
    for line in sys.stdin:
        print(json.dumps(run_forked(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
