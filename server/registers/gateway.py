"""Calls to an etcd cluster through its JSON gateway: members, time, logging in, errors.

A call is sent to one member after the other until one answers, within one deadline. A call that was
sent and not answered may have been done, or be done later; sending it again elsewhere is right only
because every change that is sent from here is conditional on what it changes.

Three ways to fail, told apart because a compare-and-set has to know:

RegisterError   no member can have got it
Refused         etcd said no: it was not done
InDoubt         a member may have got it, and no member has said what became of it
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..config import Address, ConfigError
from .errors import RegisterError

if TYPE_CHECKING:
    import ssl

    import urllib3

ANSWER_BYTES_MAX = 65_536  # a view in base64 and some headers
# The least that a member is given: below that, nothing can come back.
_SHARE_S_MIN = 0.02
# So long after the cluster that we know was last heard, another one may have taken its place.
_CLUSTER_GONE_S = 10.0

# What an answer means in which nothing was done. All others leave it open: 408 and 5xx are given
# when etcd itself does not know.
_REFUSALS = (400, 401, 403, 404, 405, 412, 429)
# An old login: etcd was restarted, it took too long, or users were changed since.
_LOGIN_ENDED = ("invalid auth token", "revision of auth store is old", "revision in header is old")
_HINTS = {
    "user name is empty": "; it wants a user: --etcd-user and --etcd-password-file",
    "permission denied": "; give the role of this user read and write access to the key",
    "invalid user ID or password": "; see --etcd-user and --etcd-password-file",
    "HTTP request to an HTTPS server": "; it wants TLS: give --etcd-ca",
    "database space exceeded": "; see 'etcdctl alarm list' and 'etcdctl defrag'",
}


class Refused(RegisterError):
    """etcd has answered, and has done nothing."""


class InDoubt(RegisterError):
    """It may have been done, or may still be."""


class Tls(NamedTuple):
    """Files in PEM form. With ``ca``, the members are spoken to with TLS and must be its."""

    ca: str = ""
    cert: str = ""
    key: str = ""


class Gateway:
    """The members of one cluster. Every call ends within ``timeout_s``, name look-ups aside."""

    def __init__(
        self, endpoints: tuple[Address, ...], tls: Tls, user: str, password: str, timeout_s: float
    ) -> None:
        self._pools = [_pool(endpoint, tls) for endpoint in endpoints]
        self._endpoints = endpoints
        self._user, self._password = user, password
        self._timeout_s = timeout_s
        self._login: str | None = None
        self._first = 0  # the member that answered last
        self._cluster = ""
        self._cluster_heard_s = -_CLUSTER_GONE_S

    def deadline_s(self) -> float:
        """For an operation that begins now."""
        return time.monotonic() + self._timeout_s

    def call(self, path: str, body: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
        """What etcd answers. Raises as the head of this file says."""
        if self._user and self._login is None:
            self._log_in(deadline_s)
        try:
            return self._ask_all(path, body, deadline_s)
        except Refused as refused:
            if not self._user or not any(text in str(refused) for text in _LOGIN_ENDED):
                raise
        self._log_in(deadline_s)
        return self._ask_all(path, body, deadline_s)

    def _log_in(self, deadline_s: float) -> None:
        self._login = None
        name = {"name": self._user, "password": self._password}
        try:
            self._login = str(self._ask_all("/v3/auth/authenticate", name, deadline_s)["token"])
        except Refused as refused:
            # A cluster without users takes a user's calls, as etcdctl has it.
            if "authentication is not enabled" not in str(refused):
                raise
            self._login = ""
        except InDoubt as doubt:
            raise RegisterError(str(doubt)) from None  # to have logged in changes nothing

    def _ask_all(self, path: str, body: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
        failures: list[str] = []
        in_doubt = False
        count = len(self._endpoints)
        for turn in range(count):
            member = (self._first + turn) % count
            share_s = (deadline_s - time.monotonic()) / (count - turn)
            if share_s < _SHARE_S_MIN:
                failures.append("no time is left")
                break
            try:
                answer = self._ask(member, path, body, share_s)
            except Refused as refused:
                if in_doubt:
                    raise InDoubt(str(refused)) from None
                raise
            except RegisterError as failure:
                in_doubt = in_doubt or isinstance(failure, InDoubt)
                failures.append(str(failure))
                continue
            self._first = member
            return answer
        self._give_up(failures, in_doubt)

    def _give_up(self, failures: list[str], in_doubt: bool) -> NoReturn:
        self._first = (self._first + 1) % len(self._endpoints)
        kind = InDoubt if in_doubt else RegisterError
        raise kind(
            f"no answer from etcd ({'; '.join(failures)}). See that it runs and can be reached, "
            "and that --view names it rightly"
        )

    def _ask(
        self, member: int, path: str, body: Mapping[str, Any], share_s: float
    ) -> dict[str, Any]:
        where = str(self._endpoints[member])
        status, data = _exchange(self._pools[member], where, path, body, self._login, share_s)
        answer = _object(data)
        if status != 200:
            text = str(answer.get("error") or data[:200].decode(errors="replace").strip())
            raise _error(where, status, text)
        self._check_cluster(where, answer.get("header"))
        return answer

    def _check_cluster(self, where: str, header: object) -> None:
        """Servers that are not joined to one cluster would each give away the same epoch. A cluster
        that has taken the place of one that is gone (restored, say) is another matter: what it
        holds is judged by its epoch."""
        cluster = header.get("cluster_id") if isinstance(header, dict) else None
        if not isinstance(cluster, str):
            raise InDoubt(f"{where} answers, but not as etcd does")
        now_s = time.monotonic()
        if now_s - self._cluster_heard_s > _CLUSTER_GONE_S:
            self._cluster = cluster
        if cluster == self._cluster:
            self._cluster_heard_s = now_s
        else:
            raise InDoubt(
                f"{where} belongs to another cluster ({cluster}) than the one that answered "
                f"before ({self._cluster})"
            )


def _pool(endpoint: Address, tls: Tls) -> urllib3.HTTPConnectionPool:
    try:
        import urllib3
    except ImportError:
        raise ConfigError(
            "--view etcd://... needs the package urllib3: pip install 'urllib3>=2,<3'"
        ) from None
    if not tls.ca:
        if tls.cert or tls.key:
            raise ConfigError("--etcd-cert and --etcd-key go with --etcd-ca, which turns TLS on")
        return urllib3.HTTPConnectionPool(endpoint.host, endpoint.port)
    return urllib3.HTTPSConnectionPool(
        endpoint.host, endpoint.port, ssl_context=_context(tls), cert_reqs="CERT_REQUIRED"
    )


def _context(tls: Tls) -> ssl.SSLContext:
    import ssl

    if bool(tls.cert) != bool(tls.key):
        raise ConfigError("--etcd-cert and --etcd-key go together: give both or none")
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"--etcd-ca {tls.ca}: {_readable(error)}") from None
    if tls.cert:
        try:
            # An encrypted key would be asked for at the terminal.
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
        except OSError as error:
            files = f"--etcd-cert {tls.cert} --etcd-key {tls.key}"
            raise ConfigError(
                f"{files}: {_readable(error)}; the key must not be encrypted"
            ) from None
    return context


def _readable(error: OSError) -> str:
    return error.strerror or str(error)


def _exchange(
    pool: urllib3.HTTPConnectionPool,
    where: str,
    path: str,
    body: Mapping[str, Any],
    login: str | None,
    share_s: float,
) -> tuple[int, bytes]:
    """The status and body of the answer."""
    import urllib3
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = login
    try:
        response = pool.urlopen(
            "POST",
            path,
            body=json.dumps(body),
            headers=headers,
            timeout=urllib3.Timeout(total=share_s),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        data = response.read(ANSWER_BYTES_MAX + 1)
        if len(data) > ANSWER_BYTES_MAX:
            response.close()
            raise InDoubt(f"{where} answers, but not as etcd does")
        return response.status, data
    except (NewConnectionError, ConnectTimeoutError) as error:
        raise RegisterError(f"{where}: {_cause(error)}") from None
    except HTTPError as error:
        raise InDoubt(f"{where}: {_cause(error)}") from None


def _cause(error: Exception) -> str:
    """What is behind an error of urllib3, in the words of whoever looks for it."""
    import ssl

    from urllib3.exceptions import TimeoutError as TimedOut

    cause = error.__cause__ or (error.args[-1] if error.args else None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {cause.verify_message}; see --etcd-ca"
    if isinstance(cause, ssl.SSLError):
        return f"TLS fails: {cause.reason or cause}; see --etcd-ca, --etcd-cert and --etcd-key"
    if isinstance(cause, ConnectionResetError):  # (of which http.client makes one for an end, too)
        return "it closed the connection without an answer; if it wants TLS, give --etcd-ca"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(error, TimedOut):
        return "it was silent"
    return str(cause)


def _object(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _error(where: str, status: int, text: str) -> RegisterError:
    if status == 404:
        return Refused(f"{where} answers, but not as etcd 3.4 or later does")
    hint = next((hint for part, hint in _HINTS.items() if part in text), "")
    said = f"{where} says: {text or f'HTTP status {status}'}{hint}"
    return Refused(said) if status in _REFUSALS else InDoubt(said)
