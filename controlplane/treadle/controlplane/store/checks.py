"""What a Redis must be so that acknowledged work survives; looked at when the server starts."""

from __future__ import annotations

import re
import time
from typing import Any

from redis.exceptions import ResponseError

from treadle.controlplane.store.link import Link
from treadle.controlplane.store.port import CheckResult

__all__ = ("check_server", "judge_aof", "judge_clock", "judge_memory", "judge_version")

OLDEST = (6, 2)
_SKEW_MS = 500


async def check_server(link: Link) -> list[CheckResult]:
    """Check every primary node. Raises Unavailable when one does not answer."""
    results: list[CheckResult] = []
    answers = await link.each_node(_ask)
    for address, (info, settings, _) in answers:
        results += [
            judge_version(address, info),
            judge_aof(address, settings),
            judge_memory(address, settings),
        ]
        if not link.is_cluster and info.get("cluster_enabled") == 1:
            results.append(
                CheckResult(
                    "cluster",
                    ok=False,
                    detail=f"{address} is a node of a Redis Cluster, but is used as a single server",
                    remedy="say that it is a cluster, with the setting of that name",
                )
            )
    if len(answers) > 1:
        results.append(judge_clock({address: answer[2] for address, answer in answers}))
    return results


async def _ask(client: Any) -> tuple[dict[str, Any], dict[str, str] | None, int]:
    """Return INFO, the settings (None: CONFIG is not permitted), and clock minus ours in ms."""
    info = await client.info()
    before = time.time()
    seconds, micros = await client.time()
    skew_ms = int((seconds + micros / 1e6 - (before + time.time()) / 2) * 1000)
    settings = await _settings(client)
    if settings is None and info.get("aof_enabled") == 0:
        settings = {"appendonly": "no"}
    return info, settings, skew_ms


async def _settings(client: Any) -> dict[str, str] | None:
    settings: dict[str, str] = {}
    for name in ("appendonly", "appendfsync", "maxmemory-policy"):
        try:
            answer = await client.config_get(name)
        except ResponseError:  # managed services take CONFIG away
            return None
        settings.update({_text(key): _text(value) for key, value in answer.items()})
    return settings


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def judge_version(address: str, info: dict[str, Any]) -> CheckResult:
    """Judge the server's version; Valkey counts as the Redis whose protocol it speaks."""
    text = _text(info.get("redis_version", ""))
    found = re.match(r"(\d+)\.(\d+)", text)
    ok = found is not None and (int(found[1]), int(found[2])) >= OLDEST
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {text}"
    return CheckResult(
        "version",
        ok=ok,
        detail=f"{address} is {name}",
        remedy="" if ok else f"upgrade to Redis {OLDEST[0]}.{OLDEST[1]} or later, or to Valkey",
    )


def judge_aof(address: str, settings: dict[str, str] | None) -> CheckResult:
    """Judge persistence: `always` is fine, `everysec` a warning with its price, anything else loses work."""
    if settings is None:
        return CheckResult(
            "persistence",
            ok=False,
            detail=f"{address} does not permit CONFIG GET: whether it keeps what it acknowledges is unknown",
            remedy="permit +config|get, or make sure of `appendonly yes`, `appendfsync always` otherwise",
            fatal=False,
        )
    if settings.get("appendonly") != "yes":
        return CheckResult(
            "persistence",
            ok=False,
            detail=f"{address} has appendonly {settings.get('appendonly')}: a restart loses acknowledged runs",
            remedy="set `appendonly yes`, `appendfsync always` (CONFIG SET works while it runs)",
        )
    fsync = settings.get("appendfsync", "")
    if fsync == "always":
        return CheckResult("persistence", ok=True, detail=f"{address} has appendonly yes, appendfsync always")
    price = "up to a second of acknowledged work is lost when the machine loses power"
    if fsync == "everysec":
        return CheckResult(
            "persistence",
            ok=False,
            detail=f"{address} has appendfsync everysec: {price}",
            remedy="set `appendfsync always`, or live with it",
            fatal=False,
        )
    return CheckResult(
        "persistence",
        ok=False,
        detail=f"{address} has appendfsync {fsync}: acknowledged work may be lost",
        remedy="set `appendfsync always`",
    )


def judge_memory(address: str, settings: dict[str, str] | None) -> CheckResult:
    """Judge what happens when memory is full: anything but noeviction removes runs."""
    policy = None if settings is None else settings.get("maxmemory-policy")
    if policy is None:
        return CheckResult(
            "maxmemory-policy",
            ok=False,
            detail=f"{address} does not permit CONFIG GET: nobody can see whether it evicts keys",
            remedy="permit +config|get, or make sure of `maxmemory-policy noeviction` by other means",
            fatal=False,
        )
    ok = policy == "noeviction"
    return CheckResult(
        "maxmemory-policy",
        ok=ok,
        detail=f"{address} has maxmemory-policy {policy}" + ("" if ok else ": full memory removes runs"),
        remedy="" if ok else "set `maxmemory-policy noeviction`",
    )


def judge_clock(skew_ms: dict[str, int]) -> CheckResult:
    """Judge the clocks of a cluster's nodes: each is the only clock of its shards."""
    spread = max(skew_ms.values()) - min(skew_ms.values())
    ok = spread <= _SKEW_MS
    return CheckResult(
        "clock",
        ok=ok,
        detail=f"the clocks of {len(skew_ms)} nodes are {spread} ms apart",
        remedy="" if ok else "run a time service (chrony, ntpd) on the nodes",
        fatal=False,
    )
