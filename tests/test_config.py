"""What a node may be told, and the words in which it refuses the rest."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from dataclasses import FrozenInstanceError

import pytest

from holdfast.server import flags, log
from holdfast.server.config import Address, Config, ConfigError, check_distinct, dialled_host


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:6379", "127.0.0.1", 6379),
        ("lock-1.example:1", "lock-1.example", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1]:6380", "fe80::1", 6380),
    ],
)
def test_an_address_reads_as_it_is_written(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == (host, port)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "6379",
        ":6379",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:+1",
        "host: 1",
        "host:٦",
        "host:" + "9" * 5000,
        "::1:6379",
        "[::1:6379",
        "[::1]",
        "[host]:6379",
        "redis://host:6379",
        "a host:6379",
    ],
)
def test_what_is_no_address_is_refused_with_what_was_written(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        Address.parse(text)


def test_defaults_are_a_node_alone_on_the_loopback() -> None:
    config = Config()
    assert config.bind == ("127.0.0.1",)
    assert config.port == 6379
    assert config.peer is None
    assert (config.min_backups, config.failover, config.log_level) == (0, "auto", "info")
    assert (config.backup_timeout_ms, config.promotion_timeout_ms) == (2000, 3000)
    assert config.quarantine_ms == 0
    assert config.register_flags == ("fail-stop", "", "", "", "", "", "")


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().port = 1  # type: ignore[misc]


def test_a_register_on_the_backups_machine_is_named_on_both_and_kept_by_one() -> None:
    primary = Config(backup=Address("h", 1), view="backup")
    backup = Config(replicaof=Address("h", 1), view="backup", view_file="/nowhere/view")
    assert primary.register_flags[:2] == ("backup", "")
    assert backup.register_flags[:2] == ("backup", "/nowhere/view")


def test_port_zero_takes_any_free_port() -> None:
    assert Config(port=0).port == 0
    assert Config(port=0, backup=Address("127.0.0.1", 6380)).peer == ("127.0.0.1", 6380)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"port": -1}, "--port must be from 0 to 65535, not -1"),
        ({"port": 65536}, "--port must be from 0 to 65535"),
        ({"port": True}, "--port must be"),
        ({"bind": ()}, "--bind needs an address"),
        ({"bind": ("",)}, "--bind needs an address"),
        ({"bind": ("a b",)}, "--bind 'a b' is not an address"),
        ({"bind": ("::1", "::1")}, "--bind names the same address twice"),
        ({"min_backups": 2}, "--min-backups must be from 0 to 1, not 2: a pair has one backup"),
        ({"min_backups": -1}, "--min-backups must be from 0 to 1"),
        ({"backup_timeout_ms": 99}, "--backup-timeout-ms must be from 100 to 600000, not 99"),
        ({"promotion_timeout_ms": 600_001}, "--promotion-timeout-ms must be from 100 to 600000"),
        ({"failover": "never"}, "--failover must be auto or manual"),
        ({"log_level": "loud"}, "--log-level must be one of debug, info, warning, error"),
        ({"backup": Address("h", 0)}, "the port in --backup must be from 1"),
        (
            {"backup": Address("h", 1), "replicaof": Address("h", 2)},
            "--backup and --replicaof exclude each other",
        ),
        ({"quarantine_ms": -1}, "--quarantine-ms must be from 0 to 31536000000, not -1"),
        ({"quarantine_ms": 31_536_000_001}, "--quarantine-ms must be from 0 to 31536000000"),
        ({"view": "backup"}, "--view backup is for a pair: give --backup or --replicaof too"),
        ({"view": "etcd://h:1/holdfast"}, "is for a pair: give --backup or --replicaof too"),
        ({"view_file": "/nowhere/view"}, "go with another --view"),
        ({"etcd_ca": "ca.pem"}, "go with another --view"),
        (
            {"view": "backup", "replicaof": Address("h", 2)},
            "the node with --replicaof keeps the register and needs --view-file",
        ),
        (
            {"view": "backup", "backup": Address("h", 1), "view_file": "/nowhere/view"},
            "needs --view-file, the other one has none",
        ),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_flag(values: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=re.escape(says)):
        Config(**values)


@pytest.mark.parametrize(
    ("bind", "peer"),
    [
        (("127.0.0.1",), "127.0.0.1:7000"),
        (("127.0.0.1",), "localhost:7000"),
        (("localhost",), "127.0.0.1:7000"),
        (("10.0.0.1", "::1"), "[0:0::1]:7000"),
        (("0.0.0.0",), "127.0.0.1:7000"),
        (("Host",), "host:7000"),
    ],
)
@pytest.mark.parametrize("role", ["backup", "replicaof"])
def test_a_node_that_names_itself_as_its_peer_is_refused(
    bind: tuple[str, ...], peer: str, role: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^--{role} .* is this node itself"):
        Config(bind=bind, port=7000, **{role: Address.parse(peer)})  # type: ignore[arg-type]


def test_another_host_with_the_same_port_is_a_peer() -> None:
    assert Config(bind=("0.0.0.0",), port=7000, backup=Address("10.0.0.2", 7000)).peer


def test_a_wildcard_is_dialled_at_the_loopback() -> None:
    assert dialled_host(("0.0.0.0",)) == "127.0.0.1"
    assert dialled_host(("::",)) == "::1"
    assert dialled_host(("10.0.0.1", "127.0.0.1")) == "10.0.0.1"


def _given(**values: object) -> Namespace:
    return Namespace(**{flag.name: values.get(flag.name) for flag in flags.SERVE_FLAGS})


def test_every_serve_flag_is_a_field_and_gives_its_default() -> None:
    assert Config(**flags.resolve(flags.SERVE_FLAGS, _given(), {})) == Config()
    assert [flag.name for flag in flags.SERVE_FLAGS] == list(Config.__slots__)


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    environ = {"HOLDFAST_PORT": "7001", "HOLDFAST_MIN_BACKUPS": "1", "HOLDFAST_FAILOVER": ""}
    values = flags.resolve(flags.SERVE_FLAGS, _given(port="7002"), environ)
    assert (values["port"], values["min_backups"], values["failover"]) == (7002, 1, "auto")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HOLDFAST_PORT", "http"),
        ("HOLDFAST_PORT", "1_000"),
        ("HOLDFAST_PORT", "٦٣٧٩"),
        ("HOLDFAST_BACKUP", "6380"),
        ("HOLDFAST_BOOTSTRAP", "maybe"),
        ("HOLDFAST_FAILOVER", "AUTO"),
        ("HOLDFAST_BACKUP_TIMEOUT_MS", "2s"),
        ("HOLDFAST_QUARANTINE_MS", "-1s"),
        ("HOLDFAST_VIEW", "nowhere"),
        ("HOLDFAST_VIEW", "etcd://"),
        ("HOLDFAST_VIEW", "https://h:2379"),
    ],
)
def test_a_bad_variable_is_named_with_its_value(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: .*{text}"):
        flags.resolve(flags.SERVE_FLAGS, _given(), {variable: text})


@pytest.mark.parametrize(("text", "value"), [("1", True), ("Yes", True), ("0", False)])
def test_a_switch_reads_yes_and_no(text: str, value: bool) -> None:
    values = flags.resolve(flags.SERVE_FLAGS, _given(), {"HOLDFAST_BOOTSTRAP": text})
    assert values["bootstrap"] is value


@pytest.mark.parametrize("text", ["127.0.0.1, ::1", "127.0.0.1,::1", " 127.0.0.1  ::1 "])
def test_several_addresses_come_from_one_variable(text: str) -> None:
    values = flags.resolve(flags.SERVE_FLAGS, _given(), {"HOLDFAST_BIND": text})
    assert values["bind"] == ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        (("localhost", "LOCALHOST"), "--bind localhost and --bind LOCALHOST are the same address"),
        (("::1", "0:0::1"), "--bind ::1 and --bind 0:0::1 are the same address, ::1"),
        (("127.0.0.1", "0.0.0.0"), "--bind 0.0.0.0 takes in --bind 127.0.0.1"),
        (("::", "::1"), "--bind :: takes in --bind ::1"),
    ],
)
def test_addresses_that_exclude_each_other_are_refused(bind: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_distinct(bind)


@pytest.mark.parametrize(
    "bind", [("127.0.0.1", "::1"), ("0.0.0.0", "::"), ("127.0.0.1", "a..b"), ("localhost",)]
)
def test_addresses_that_may_be_bound_together_pass(bind: tuple[str, ...]) -> None:
    check_distinct(bind)


def test_only_a_variable_whose_flag_an_error_names_is_blamed() -> None:
    environ = {"HOLDFAST_BACKUP": "h:1", "HOLDFAST_BACKUP_TIMEOUT_MS": "5", "HOLDFAST_PORT": "1"}
    text = "--backup-timeout-ms must be from 100 to 600000, not 5"
    blamed = flags.from_environment(flags.SERVE_FLAGS, _given(), text, environ)
    assert blamed == ["HOLDFAST_BACKUP_TIMEOUT_MS"]


def test_a_variable_that_no_flag_has_is_warned_of() -> None:
    environ = {"HOLDFAST_PROT": "1", "HOLDFAST_PORT": "1", "HOLDFAST_BACKUP_PORT": "2", "PROT": "1"}
    quiet = {"HOLDFAST_FAILOVRE": "", "HOLDFAST_TEST_SEED": "1", flags.MAKE_VARIABLE: "1"}
    assert flags.unknown_variables({**environ, **quiet}) == [
        "HOLDFAST_PROT is ignored, no flag has it; the nearest is HOLDFAST_PORT"
    ]


def test_values_survive_the_way_over_a_command_line() -> None:
    config = Config(
        bind=("127.0.0.1", "::1"),
        port=7001,
        backup=Address("::1", 7002),
        bootstrap=True,
        min_backups=1,
        failover="manual",
        quarantine_ms=60_000,
        view="etcd://10.0.0.1:2379,10.0.0.2:2379/locks",
        etcd_ca="ca.pem",
        etcd_user="holdfast",
        etcd_password_file="secret",
        log_level="debug",
    )
    values = {name: getattr(config, name) for name in Config.__slots__}
    parser = flags.Parser()
    flags.add_flags(parser, flags.SERVE_FLAGS)
    given = parser.parse_args(flags.to_arguments(flags.SERVE_FLAGS, values))
    assert Config(**flags.resolve(flags.SERVE_FLAGS, given, {})) == config


def _line(text: str, *arguments: object, label: str = "6379") -> str:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, text, arguments, None)
    record.created, record.msecs = 1_800_000_000.042, 42.0
    return log.LineFormatter(label).format(record)


def test_a_log_line_has_time_node_level_and_text() -> None:
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.042 6379 warning epoch 1 < 2"
    assert re.fullmatch(pattern, _line("epoch %d < %d", 1, 2))


def test_text_from_a_client_cannot_forge_a_log_line() -> None:
    line = _line("lock %s", "a\n2026 \x1b[31m\r\x85")
    assert line.endswith(r"lock a\n2026 \x1b[31m\r\x85")
