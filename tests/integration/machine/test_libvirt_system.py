"""The same provider on a libvirtd, which runs in a mount namespace with directories of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import Setting

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("libvirtd") is None, reason="needs libvirtd"),
]

# libvirtd's fixed places. What is bound over them exists in this namespace only.
PLACES = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
SETTINGS = {
    "libvirtd.conf": 'auth_unix_rw = "none"\n',
    "qemu.conf": 'user = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\n',
}
INSIDE = """
import asyncio, json, subprocess, sys
from pathlib import Path
from hybrid.guest.image import current
from hybrid.machine.orphans import become_subreaper
from hybrid.machine.provider import Disk
from hybrid.machine.providers.libvirt import LibvirtProvider
from hybrid.paths import Paths
from tests.bareguest import shell
from tests.built import BUILT
from tests.integration.machine.conftest import Setting, agent

async def main(root):
    setting = Setting(Paths.of(Path(root)), current(BUILT))
    provider = LibvirtProvider(setting.paths, "qemu:///system")
    await provider.open()
    request = setting.request()
    disk = setting.image_file("system-layer", b"layer")
    try:
        await provider.create(request)
        await provider.attach_disk(request.id, Disk("layer-9", disk, True))
        async with agent(provider, request.id) as client:
            serial = await shell(client, "sleep 1; tail -c 7 /sys/block/sda/device/vpd_pg80")
        evidence = await provider.evidence(request.id)
        evidence["serial"] = serial
        evidence["owner"] = disk.stat().st_uid
    finally:
        await provider.destroy(request.id)
        await provider.close()
    print(json.dumps(evidence))

become_subreaper()
libvirtd = subprocess.Popen(["libvirtd"], stderr=subprocess.DEVNULL)
try:
    while not Path("/run/libvirt/libvirt-sock").exists():
        assert libvirtd.poll() is None
    asyncio.run(main(sys.argv[1]))
finally:
    libvirtd.terminate()
    libvirtd.wait()
"""


async def test_a_guest_of_libvirtd(setting: Setting, top: Path) -> None:
    own, mounts = setting.paths.root / "libvirtd", []
    own.mkdir(mode=0o711)
    for name, place in PLACES.items():
        (own / name).mkdir()
        Path(place).mkdir(parents=True, exist_ok=True)
        mounts.append(f"mount --bind {own / name} {place}")
    for name, text in SETTINGS.items():
        (own / "etc" / name).write_text(text)
    script = " && ".join([*mounts, 'exec "$0" -c "$1" "$2"'])
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", script),
        *(sys.executable, INSIDE, str(setting.paths.root)),
        cwd=top,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(output.decode().splitlines()[-1])
    assert found["serial"] == "layer-9"
    assert found["uid"] > 1_900_000_000
    assert found["seccomp"] == 2
    assert [f for f in found["open_files"] if not f["own"]] == []
    assert found["owner"] == 0
    assert setting.leftovers() == []
