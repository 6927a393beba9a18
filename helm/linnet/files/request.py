"""Ask the model about a made picture over V2 and check the answer's form; run by `helm test`.

Arguments: the server's address, the model, the host name to ask for, seconds to wait until ready.
"""

import base64
import json
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib


def main(server: str, model: str, host: str, wait_s: str) -> int:
    """Print the answer and return 0, or 1 with what is wrong."""
    deadline = time.monotonic() + float(wait_s)
    url = f"{server.rstrip('/')}/v2/models/{model}"
    while True:
        try:
            send(f"{url}/ready", host)
            break
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                print(f"{url} (Host: {host}) is not ready after {wait_s} s: {error}")
                return 1
            time.sleep(1)
    picture = base64.b64encode(png(64)).decode()
    tensor = {"name": "pictures", "datatype": "BYTES", "shape": [1], "data": [picture]}
    answer = json.loads(send(f"{url}/infer", host, {"inputs": [tensor]}))
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    told = {name: outputs[name] for name in ("label", "score", "release")}
    print(json.dumps(told, ensure_ascii=False))
    total = sum(outputs["probabilities"])
    if answer["model_name"] != model or abs(total - 1) > 1e-3:
        print(f"expected an answer of {model} with probabilities of sum 1, got {total}: {answer}")
        return 1
    return 0


def send(url: str, host: str, body: object = None) -> bytes:
    """Return what comes back from GET, or from POST of a JSON body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Host": host, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return bytes(response.read())


def png(side: int) -> bytes:
    """Return a square picture of changing colours."""
    rows = b"".join(
        b"\0" + bytes(v for x in range(side) for v in (4 * x % 256, 4 * y % 256, 128))
        for y in range(side)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
