"""Boxes behind a real OpenSSH server, with the real agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import Conflict, Forbidden, InvalidInput, NotFound, Unavailable, Unsupported
from hybrid.host import provision
from hybrid.host.address import parse
from hybrid.host.connection import Connection, HostKeyTrust, target_of
from hybrid.link.client import AgentClient
from hybrid.machine import profile
from hybrid.machine.provider import MachineRequest, Remote
from hybrid.machine.providers.ssh import SshProvider
from hybrid.paths import Paths
from hybrid.wire.messages import Facts

pytestmark = pytest.mark.root

PROFILE = profile.load("default")
ID = "0123456789abcdef" * 4
Make = Callable[[], SshProvider]


@pytest.fixture(autouse=True)
def no_ssh_agent(monkeypatch: pytest.MonkeyPatch, box) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(box.home))


@pytest.fixture
def make(paths: Paths, agent: Path, box, place: Path) -> Make:
    def provider() -> SshProvider:
        return SshProvider(
            paths, agent, home=box.home, state=str(place / "remote"), run=str(place / "rrun")
        )

    return provider


@pytest.fixture
async def provider(make: Make) -> AsyncIterator[SshProvider]:
    made = make()
    await made.open()
    yield made
    await made.close()


async def add(provider: SshProvider, address: str, **options: Any) -> None:
    request = MachineRequest(ID, "box", PROFILE, 0, 0, remote=Remote(address, **options))
    await provider.create(request)


async def boot_id(provider: SshProvider) -> str:
    client = await AgentClient.connect(await provider.connect(ID), timeout=20)
    try:
        assert (await client.call(Facts())).kernel == os.uname().release
        return client.hello.boot
    finally:
        await client.close()


async def test_a_known_box(provider: SshProvider, box, place: Path) -> None:
    box.trust()
    for _ in range(2):
        await add(provider, box.url)
    with pytest.raises(Conflict):
        await add(provider, "ssh://root@elsewhere")
    assert await boot_id(provider) == await boot_id(provider)
    (status,) = await provider.list()
    assert status.id == ID and status.details == {"address": box.url, "connected": "true"}
    await provider.destroy(ID)
    assert (place / "remote" / ID[:12] / "state").is_dir(), "the containers' files stay"
    assert not (place / "remote" / ID[:12] / "pid").exists()
    await provider.forget(ID)
    assert await provider.list() == []
    assert not list((place / "remote").iterdir())
    assert not list((place / "rrun").iterdir())
    await provider.forget(ID)
    with pytest.raises(NotFound):
        await provider.connect(ID)


async def test_an_unknown_host_key_is_shown_and_refused(provider: SshProvider, box) -> None:
    with pytest.raises(Forbidden) as caught:
        await add(provider, box.url)
    assert "unknown host key" in caught.value.message
    assert box.fingerprint() in caught.value.message
    assert "--accept-host-key" in caught.value.message
    assert "\n" not in caught.value.message
    assert await provider.list() == []
    assert not box.known_hosts.exists()


async def test_a_host_key_that_was_accepted_is_remembered(make: Make, box) -> None:
    first = make()
    with pytest.raises(Forbidden, match="not the accepted SHA256:other"):
        await add(first, box.url, fingerprint="SHA256:other")
    await add(first, box.url, fingerprint=box.fingerprint())
    boot = await boot_id(first)
    await first.close()
    second = make()
    await second.open()
    assert await boot_id(second) == boot
    assert not box.known_hosts.exists(), "the user's own file is the user's"
    await second.close()


@pytest.mark.parametrize("file", ["known_hosts", "accepted"])
async def test_a_changed_host_key_is_refused(provider: SshProvider, box, file: str) -> None:
    if file == "known_hosts":
        box.trust()
    await add(provider, box.url, accept_host_key=True)
    await provider.close()
    box.stop()
    box.new_host_key()
    box.start()
    with pytest.raises(Forbidden, match="host key CHANGED") as caught:
        await provider.connect(ID)
    assert box.fingerprint() in caught.value.message
    assert "\n" not in caught.value.message


async def test_a_changed_host_key_can_not_be_accepted_away(provider: SshProvider, box) -> None:
    box.trust()
    box.stop()
    box.new_host_key()
    box.start()
    with pytest.raises(Forbidden, match="CHANGED"):
        await add(provider, box.url, accept_host_key=True)


async def test_a_key_of_another_type_does_not_pass_for_an_unknown_box(
    provider: SshProvider, box, place: Path
) -> None:
    kind = "ecdsa-sha2-nistp256"
    material = "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9"
    material += "nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg="
    box.known_hosts.write_text(f"[127.0.0.1]:{box.port} {kind} {material}\n")
    with pytest.raises(Forbidden, match="CHANGED"):
        await add(provider, box.url, accept_host_key=True)


async def test_a_revoked_host_key_is_refused(provider: SshProvider, box) -> None:
    box.known_hosts.write_text(f"@revoked * {box.host_key()}")
    with pytest.raises(Forbidden, match="revoked"):
        await add(provider, box.url, accept_host_key=True)


async def test_a_hashed_known_hosts_file(provider: SshProvider, box) -> None:
    box.known_hosts.write_text(f"[127.0.0.1]:{box.port} {box.host_key()}")
    os.spawnlp(os.P_WAIT, "ssh-keygen", "ssh-keygen", "-q", "-H", "-f", str(box.known_hosts))
    assert "127.0.0.1" not in box.known_hosts.read_text()
    await add(provider, box.url)


async def test_a_user_without_a_key_is_not_let_in(provider: SshProvider, box) -> None:
    box.trust()
    (box.home / ".ssh" / "id_ed25519").unlink()
    with pytest.raises(Forbidden, match="user 'root' was not let in"):
        await add(provider, box.url)


async def test_a_key_of_the_ssh_agent(
    provider: SshProvider, box, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.trust()
    key, path = box.home / ".ssh" / "id_ed25519", place / "ssh-agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        while not path.exists():
            await asyncio.sleep(0.02)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        subprocess.run(["ssh-add", "-q", key], check=True)
        key.unlink()
        await add(provider, box.url)
    finally:
        process.kill()
        process.wait()


async def test_an_encrypted_key_is_no_mystery(provider: SshProvider, box) -> None:
    box.trust()
    key = box.home / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", key], check=True)
    with pytest.raises(Forbidden, match="ssh-add"):
        await add(provider, box.url)


@pytest.mark.parametrize("missing", ["crun", "python3"])
async def test_a_box_without_what_the_agent_needs(
    make: Make, box, place: Path, missing: str
) -> None:
    box.trust()
    provider = make()
    reason = f"no {missing} there; install the package {missing}"
    with box.lacking(missing), pytest.raises(Unsupported, match=reason):
        await add(provider, box.url)
    assert await provider.list() == []
    assert not (place / "remote").exists()


async def test_the_agent_survives_the_connection_and_is_reached_again(
    provider: SshProvider, box
) -> None:
    box.trust()
    await add(provider, box.url)
    client = await AgentClient.connect(await provider.connect(ID), timeout=20)
    boot = client.hello.boot
    box.cut()
    await asyncio.wait_for(client.wait_closed(), 10)
    with pytest.raises(Unavailable):
        await client.call(Facts())
    assert await boot_id(provider) == boot
    box.stop()
    with pytest.raises(Unavailable, match="refused"):
        await provider.connect(ID)
    box.start()
    assert await boot_id(provider) == boot


async def test_another_daemon_adopts_the_agent(provider: SshProvider, make: Make, box) -> None:
    box.trust()
    await add(provider, box.url)
    boot = await boot_id(provider)
    await provider.close()
    second = make()
    await second.open()
    assert await boot_id(second) == boot
    await second.close()


async def test_a_dead_agent_is_started_anew(provider: SshProvider, box, place: Path) -> None:
    box.trust()
    await add(provider, box.url)
    boot = await boot_id(provider)
    pid = int((place / "remote" / ID[:12] / "pid").read_text().split()[0])
    os.kill(pid, 9)
    assert await boot_id(provider) != boot


async def test_a_key_and_a_known_hosts_file_of_the_machine_itself(
    provider: SshProvider, box, place: Path
) -> None:
    (box.home / ".ssh" / "id_ed25519").rename(place / "key")
    box.trust()
    box.known_hosts.rename(place / "known")
    with pytest.raises(Forbidden, match="unknown host key"):
        await add(provider, box.url, identity=str(place / "key"))
    files = {"identity": str(place / "key"), "known_hosts": str(place / "known")}
    await add(provider, box.url, **files)
    assert await boot_id(provider)


async def test_made_again_it_must_be_the_same_box(provider: SshProvider, box) -> None:
    await add(provider, box.url, accept_host_key=True)
    await provider.destroy(ID)
    box.stop()
    with pytest.raises(Unavailable):
        await add(provider, box.url, accept_host_key=True)
    box.new_host_key()
    box.start()
    for again in (
        lambda: add(provider, box.url, accept_host_key=True),
        lambda: provider.forget(ID),
    ):
        with pytest.raises(Forbidden, match="CHANGED"):
            await again()
    await provider.forget(ID, abandon=True)
    await add(provider, box.url, accept_host_key=True)


async def test_ssh_config_names_host_user_port_and_key(provider: SshProvider, box) -> None:
    key = box.home / ".ssh" / "id_ed25519"
    key.rename(box.home / "other_key")
    (box.home / ".ssh" / "config").write_text(
        f"Host nick\n  HostName 127.0.0.1\n  Port {box.port}\n  User root\n"
        "  IdentityFile ~/other_key\n  IdentitiesOnly yes\n"
    )
    box.trust()
    await add(provider, "ssh://nick")
    assert await boot_id(provider)


async def test_addresses_that_lead_nowhere(provider: SshProvider) -> None:
    with pytest.raises(InvalidInput):
        await add(provider, "http://box")
    with pytest.raises(Unavailable):
        await add(provider, "ssh://root@127.0.0.1:1")


async def test_much_data_flows_both_ways_with_bounded_buffers(provider: SshProvider, box) -> None:
    """``cat`` on the box: what is not read stops the writer."""
    box.trust()
    target = target_of(parse(box.url), home=box.home)
    connection = await Connection.open(target, HostKeyTrust(Path("/nonexistent/known_hosts")))
    stream = await connection.stream("cat")
    block = bytes(range(256)) * 256
    sent = 0

    async def write() -> None:
        nonlocal sent
        for _ in range(400):
            await stream.write(block)
            sent += len(block)

    writer = asyncio.create_task(write())
    await asyncio.sleep(1)
    stalled = sent
    assert stalled < 400 * len(block), "nobody reads, so the writer waits"
    got = bytearray()
    while len(got) < 400 * len(block):
        with contextlib.suppress(TimeoutError):
            # a read that is cancelled now and then loses nothing
            got += await asyncio.wait_for(stream.read(50000), 0.05 if len(got) % 7 == 0 else 5)
    await writer
    assert got == block * 400
    reading = asyncio.create_task(stream.read(1))
    await asyncio.sleep(0.05)
    await stream.close()
    assert await reading == b""
    await stream.close()
    await connection.close()


async def test_run_gives_output_errors_and_exit_code(provider: SshProvider, box) -> None:
    box.trust()
    target = target_of(parse(box.url), home=box.home)
    connection = await Connection.open(target, HostKeyTrust(Path("/nonexistent/known_hosts")))
    done = await connection.run("cat; echo oh >&2; exit 7", data=b"in")
    assert (done.code, done.output, done.errors) == (7, b"in", "oh")
    with pytest.raises(Unavailable, match="in time"):
        await connection.run("sleep 30", timeout=0.3)
    assert "rrun" not in await provision.running(connection, provision.Place(ID, "/nonexistent"))
    await connection.close()
