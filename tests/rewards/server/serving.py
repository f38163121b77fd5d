"""A server in a thread, and requests written by hand."""

import contextlib
import http.client
import io
import json
import struct
import threading
import zlib
from urllib.parse import urlsplit

from PIL import Image

from calibri.rewards.server.standalone import Limits, RewardServer

INFO = {"name": "brightness", "variant": "mean of the red channel"}


def brightness(images, prompts):
    return [sum(image.getchannel("R").tobytes()) / image.width / image.height for image in images]


@contextlib.contextmanager
def serving(score=brightness, info=INFO, port=0, **options):
    limits = Limits(**options.pop("limits", {}))
    server = RewardServer(score, info, port=port, limits=limits, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop(5.0)
        thread.join()


def picture(red, size=(4, 3), mode="RGB", format="PNG", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, (red, 0, 0) if mode == "RGB" else 0).save(buffer, format, **options)
    return buffer.getvalue()


def huge_png(side):
    """A small file whose header speaks of side x side pixels."""
    data = picture(0)
    header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def form(prompts, images, request=None, boundary="xyz"):
    request = {"schema": 1, "reward": "brightness", "prompts": prompts} | (request or {})
    parts = {"request": json.dumps(request).encode()}
    parts |= {f"image_{i}": image for i, image in enumerate(images)}
    return multipart(parts, boundary)


def multipart(parts, boundary="xyz"):
    body = b""
    for name, content in parts.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def ask(server, method="POST", path="/v1/score", body=None, **headers):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"} | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
