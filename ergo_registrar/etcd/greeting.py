"""What one endpoint does on a plain socket: does it answer, does it speak TLS, with which certificate, its quota.

gRPC says "unavailable" to most of what can be wrong here. So the same way is gone once more with Python's own TLS,
which names the fault, and ends in a question over HTTP that every etcd answers without a login.
"""

import asyncio
import contextlib
import os
import re
import ssl
from enum import StrEnum

import anyio
import msgspec

from ergo_registrar.options import TLS, Options

_QUOTA = re.compile(rb"^etcd_server_quota_backend_bytes (\S+)$", re.MULTILINE)
_MOST_BYTES = 16 * 1024 * 1024  # of the page with etcd's figures, which takes some 100 kB
_EXPIRED = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED
_OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH
_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE", "UNKNOWN_CA")  # alerts of etcd's


class Fault(StrEnum):
    """What is wrong with the way to an endpoint."""

    UNREACHABLE = "unreachable"
    SILENT = "silent"
    NO_LEADER = "no leader"
    FILES = "files"
    UNTRUSTED = "untrusted"
    OTHER_NAME = "other name"
    EXPIRED = "expired"
    NO_TLS = "no TLS"
    ONLY_TLS = "only TLS"
    WANTS_CERTIFICATE = "wants certificate"


class Greeting(msgspec.Struct, frozen=True):
    """How an endpoint answered. `fault` is None when the way is good, else `detail` tells more.

    `expires` is when its certificate ends, in seconds since 1970, `quota` the bytes that its database may take; each is
    None where it was not told.
    """

    fault: Fault | None = None
    detail: str = ""
    expires: float | None = None
    quota: int | None = None


async def greet(endpoint: str, options: Options, timeout: float) -> Greeting:
    """Go to an endpoint, as far as one comes within `timeout` seconds. Sends nothing that changes anything."""
    host, _, port = endpoint.removeprefix("https://").removeprefix("http://").rpartition(":")
    host = host.strip("[]")
    try:
        async with asyncio.timeout(timeout):
            context = await anyio.to_thread.run_sync(_context, options) if options.secure else None
    except (OSError, ssl.SSLError) as error:
        return Greeting(Fault.FILES, str(error))
    name = (options.tls and options.tls.server_name) or host
    try:
        async with asyncio.timeout(timeout):
            return await _ask(host, int(port), context, name)
    except TimeoutError:
        return Greeting(Fault.SILENT, f"no answer within {timeout:.3g} s")
    except ssl.SSLCertVerificationError as error:
        fault = Fault.EXPIRED if error.verify_code in _EXPIRED else Fault.UNTRUSTED
        return Greeting(Fault.OTHER_NAME if error.verify_code in _OTHER_NAME else fault, error.verify_message)
    except ssl.SSLError as error:
        fault = Fault.WANTS_CERTIFICATE if _wants_certificate(error) else Fault.NO_TLS
        return Greeting(fault, error.reason or str(error))
    except ConnectionResetError as error:  # what was sent did not please it
        return Greeting(Fault.NO_TLS if context is not None else Fault.UNREACHABLE, str(error) or "connection reset")
    except OSError as error:
        return Greeting(Fault.UNREACHABLE, error.strerror or str(error))


async def _ask(host: str, port: int, context: ssl.SSLContext | None, name: str) -> Greeting:
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=name if context is not None else None
    )
    try:
        certificate = writer.get_extra_info("peercert") or {}
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        page = await _whole(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
    is_odd = not page.startswith(b"HTTP/1.") or b"HTTPS server" in page
    if context is None and is_odd and await _speaks_tls(host, port):
        return Greeting(Fault.ONLY_TLS)
    quota = _QUOTA.search(page)
    return Greeting(
        expires=ssl.cert_time_to_seconds(certificate["notAfter"]) if "notAfter" in certificate else None,
        quota=int(float(quota[1])) if quota else None,
    )


async def _whole(reader: asyncio.StreamReader) -> bytes:
    page = b""
    with contextlib.suppress(ConnectionError):  # it does not speak HTTP, and need not
        while len(page) < _MOST_BYTES and (part := await reader.read(65_536)):
            page += part
    return page


def _wants_certificate(error: ssl.SSLError) -> bool:
    return any(alert in (error.reason or "") for alert in _WANTS_CERTIFICATE)


async def _speaks_tls(host: str, port: int) -> bool:
    """Tell whether it shows a certificate, whosever, be it only to ask for one in turn."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLError as error:
        return _wants_certificate(error)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    return True


def _context(options: Options) -> ssl.SSLContext:
    """Return what gRPC is given too. Without a CA its roots are not Python's, but the same authorities."""
    tls = options.tls or TLS()
    context = ssl.create_default_context(cafile=tls.ca or os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"))
    if options.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    return context
