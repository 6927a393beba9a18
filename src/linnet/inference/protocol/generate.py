"""Write the Python classes of `open_inference.proto`; run by `make protocol`.

They live in a descriptor pool of their own: another package in the same process (tritonclient, the
kserve SDK) may bring its own messages of these names.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
NAME = "open_inference"


def main() -> int:
    """Generate, make the pool private, and return protoc's exit code."""
    from grpc_tools import protoc

    failed: int = protoc.main(
        ["", f"-I{HERE}", f"--python_out={HERE}", f"--pyi_out={HERE}", f"{HERE / NAME}.proto"]
    )
    if not failed:
        module = HERE / f"{NAME}_pb2.py"
        text = module.read_text(encoding="utf-8")
        private = text.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
        if private == text:
            raise RuntimeError(f"protoc writes {module} in another way now: look how it registers")
        module.write_text(private, encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
