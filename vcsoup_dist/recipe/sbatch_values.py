"""What sbatch takes as the value of an option, by Slurm's manual (22.05 to 25.05)."""

from __future__ import annotations

import re

FLAGS = {
    *("contiguous", "disable-stdout-job-summary", "hold", "ignore-pbs", "no-requeue"),
    *("overcommit", "oversubscribe", "quiet", "reboot", "requeue", "spread-job"),
    *("use-min-nodes", "verbose"),
}
"""Options without a value."""

OPTIONAL = {"exclusive", "get-user-env", "nice", "no-kill", "propagate", "resv-ports"}
"""Those that may have one."""

COUNTS = {
    *("cores-per-socket", "cpus-per-gpu", "cpus-per-task", "mincpus", "ntasks", "ntasks-per-core"),
    *("ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "sockets-per-node"),
    *("threads-per-core",),
}
TIMES = {"time", "time-min"}
SIZES = {"mem", "mem-per-cpu", "mem-per-gpu", "tmp"}
GPUS = {"gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"}

KNOWN = (
    FLAGS
    | OPTIONAL
    | COUNTS
    | TIMES
    | SIZES
    | GPUS
    | {
        *("account", "acctg-freq", "batch", "bb", "bbf", "begin", "burst-buffer", "cluster"),
        *("cluster-constraint", "clusters", "constraint", "consolidate-segments", "container"),
        *("container-id", "core-spec", "cpu-freq", "deadline", "delay-boot", "distribution"),
        *("exclude", "export-file", "extra", "extra-node-info", "gid", "gpu-bind", "gpu-freq"),
        *("gres", "gres-flags", "hint", "input", "kill-on-invalid-dep", "licenses", "mail-type"),
        *("mail-user", "mcs-label", "mem-bind", "network", "nodefile", "nodelist", "nodes"),
        *("open-mode", "partition", "power", "prefer", "priority", "profile", "qos"),
        *("reservation", "segment", "signal", "stepmgr", "switches", "thread-spec"),
        *("tres-bind", "tres-per-task", "uid", "wait-all-nodes", "wckey"),
    }
)

TIME = re.compile(
    r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|unlimited|infinite", re.IGNORECASE | re.ASCII
)
SIZE = re.compile(r"\d+([kmgt](i?b)?)?", re.IGNORECASE | re.ASCII)
NODES = re.compile(r"\d+[km]?(-\d+[km]?(:\d+)?)?(,\d+[km]?(-\d+[km]?(:\d+)?)?)*", re.ASCII)
GPU = re.compile(r"([A-Za-z][\w.-]*[:=])?\d+(,[A-Za-z][\w.-]*[:=]\d+)*", re.ASCII)
GRES = re.compile(
    r"none|help|((gres[/:])?[A-Za-z][\w-]*([:=][A-Za-z][\w.-]*)?([:=]\d+[kmgtp]?)?(,|$))+",
    re.IGNORECASE | re.ASCII,
)
SIGNAL = re.compile(r"([RB]+:)?(\d{1,2}|(SIG)?[A-Z][A-Z0-9]+)(@\d{1,5})?", re.ASCII)
WRITTEN_OUT = re.compile(
    r"(\d+)\s*(d|days?|h|hrs?|hours?|m|mins?|minutes?)", re.IGNORECASE | re.ASCII
)


def trouble_with_value(name: str, value: object) -> str:
    """What is wrong with the value of an option, and what is right; empty where nothing is.

    The values of options that are not known here, such as a plugin's, are taken as they are.
    """
    if value is False:
        return ""
    if name in FLAGS:
        return "" if value is True else f"has no value: give `true`, or `false` (got {value!r})"
    if name not in KNOWN or name in OPTIONAL:
        return ""
    if value is True:
        return "needs a value"
    text = str(value)
    if not text.strip() or text != text.strip() or "\n" in text:
        return f"needs a value without spaces around it (got {text!r})"
    right = _right(name, text)
    return f"{right} (got {text!r})" if right else ""


def _right(name: str, text: str) -> str:
    """What the value should look like; empty where it does."""
    if name in TIMES and not TIME.fullmatch(text):
        return f'give minutes, "HH:MM:SS" or "D-HH:MM:SS", such as "{_as_time(text)}"'
    if name in COUNTS and not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        return "give a whole number, 1 or more"
    if name in SIZES and not SIZE.fullmatch(text):
        return f"give a whole number of megabytes, or with K, M, G or T, such as {_as_size(text)}"
    if name == "nodes" and (not NODES.fullmatch(text) or _falls(text)):
        return "give a number of nodes, or a range such as 2-4"
    if name in GPUS and not GPU.fullmatch(text):
        return "give a number, or a type and a number such as h100:8"
    if name == "gres" and not GRES.fullmatch(text):
        return "give names with numbers, such as gpu:8 or gpu:h100:8"
    if name == "signal" and not SIGNAL.fullmatch(text):
        return "give a signal and the seconds before the end, such as B:USR2@600"
    if name == "kill-on-invalid-dep" and text not in ("yes", "no"):
        return "give yes or no, in quotes"
    return ""


def _falls(nodes: str) -> bool:
    """Whether nodes are none, or a range that ends before it begins."""
    numbers = [re.findall(r"\d+", part.partition(":")[0]) for part in nodes.split(",")]
    plain = not re.search("[km]", nodes)
    return any(int(part[-1]) < max(1, int(part[0])) for part in numbers) and plain


def _as_time(text: str) -> str:
    found = WRITTEN_OUT.fullmatch(text.strip())
    if found is None:
        return "12:00:00"
    count, unit = int(found[1]), found[2][0].lower()
    return {"d": f"{count}-00:00:00", "h": f"{count}:00:00", "m": f"{count}:00"}[unit]


def _as_size(text: str) -> str:
    found = re.match(r"(\d+)\s*([kmgt])", text.strip(), re.IGNORECASE | re.ASCII)
    return f"{found[1]}{found[2].upper()}" if found else "64G"
