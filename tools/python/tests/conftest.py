from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--traces", type=Path, help="keep the trace files of all families in this folder")


@pytest.fixture(scope="session")
def traces_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = request.config.getoption("--traces")
    if folder is None:
        return tmp_path_factory.mktemp("traces")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def run_validator() -> str:
    """The example `validate` of moe-trace, which reads files with the Rust reader."""
    root = Path(__file__).parents[3]
    target = Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    for profile in ("release", "debug"):
        program = target / profile / "examples" / "validate"
        if program.exists():
            return str(program)
    pytest.skip("cargo build -p moe-trace --example validate")


if not torch.cuda.is_available():
    # Some models ask whether a CUDA graph is being captured. A build for CUDA crashes there if its libraries are stubs
    # (stub_cuda.py); a build without CUDA says no.
    torch.cuda.is_current_stream_capturing = lambda: False
