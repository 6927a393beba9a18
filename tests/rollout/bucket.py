"""An S3 on 127.0.0.1 that reads objects out of a folder: <root>/<bucket>/<key>."""

import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_ABSENT = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>none</Message></Error>"


class Bucket:
    """Answers GET alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(root))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _handler(root: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = root / urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
            found = path.is_file()
            answer = path.read_bytes() if found else _ABSENT
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("Content-Type", "binary/octet-stream" if found else "application/xml")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
