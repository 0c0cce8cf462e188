"""Fails when a compiled kernel uses local memory, or when the assembler complained about one.

Two sources: the machine code inside the library, read by NVIDIA's disassembler (`cuobjdump` and `nvdisasm`,
both on PyPI), and the build log, for the C75xx messages with which ptxas says that it serialised wgmma.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    check: str  # stack, local or C75xx
    function: str  # mangled
    where: str


@dataclass(frozen=True)
class Allowed:
    check: str
    pattern: re.Pattern[str]
    line: int


def read_allowlist(path: Path) -> list[Allowed]:
    allowed = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(stack|local|C75\d\d)\s+(\S.*?)\s+#\s*(\S.*)", line)
        if match is None:
            sys.exit(f"{path}:{number}: expected '<check> <regular expression> # <reason>', found: {line}")
        allowed.append(Allowed(match[1], re.compile(match[2]), number))
    return allowed


def dump(option: str, library: Path) -> list[str]:
    # The wheels put the tools into site-packages/nvidia/cu*/bin; cuobjdump looks for nvdisasm on PATH.
    folders = [str(folder) for folder in Path(sysconfig.get_path("platlib")).glob("nvidia/*/bin")]
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None or shutil.which("nvdisasm", path=path) is None:
        sys.exit("cuobjdump and nvdisasm are missing: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    environment = {**os.environ, "PATH": path}
    command = [tool, option, str(library)]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def stack_use(library: Path) -> tuple[list[Finding], set[tuple[str, str]]]:
    """Functions with a stack frame; and all that there are, each with its architecture."""
    findings: list[Finding] = []
    architecture = function = ""
    functions: set[tuple[str, str]] = set()
    for line in dump("--dump-resource-usage", library):
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            function = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            functions.add((architecture, function))
            if match[2] != "0" or match[3] != "0":
                findings.append(Finding("stack", function, f"{architecture}, {match[0].strip()}"))
    return findings, functions


def check_portable(functions: set[tuple[str, str]]) -> None:
    """The portable convolution is machine code of every architecture, sm_80 among them."""
    architectures = {architecture for architecture, _ in functions}
    having = {architecture for architecture, function in functions if "implicit_conv" in function}
    if missing := architectures - having:
        sys.exit(f"There is no portable convolution for {', '.join(sorted(missing))}.")
    print(f"The portable convolution is there for {', '.join(sorted(having))}")


def local_memory(library: Path) -> list[Finding]:
    """Functions with instructions that load from or store to local memory."""
    counts: Counter[tuple[str, str]] = Counter()
    architecture = function = ""
    for line in dump("--dump-sass", library):
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            function = match[1]
        elif re.search(r"\*/\s+(@!?\w+\s+)?(LDL|STL)\b", line):
            counts[architecture, function] += 1
    return [
        Finding("local", function, f"{architecture}, {count} LDL/STL instructions")
        for (architecture, function), count in counts.items()
    ]


def assembler_messages(log: Path) -> list[Finding]:
    text = log.read_text(errors="replace")
    if "Building CUDA object" not in text:
        sys.exit(f"{log} does not show the kernels being compiled, so it says nothing about them.")
    findings = []
    for line in text.splitlines():
        if match := re.search(r"\((C75\d\d)\).*", line):
            function = re.search(r"function '(\S+)'", line)
            findings.append(Finding(match[1], function[1] if function else "", match[0]))
    return list(dict.fromkeys(findings))


def demangle(names: list[str]) -> dict[str, str]:
    if shutil.which("c++filt") is None:
        return {name: name for name in names}
    output = subprocess.run(
        ["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True
    ).stdout
    return dict(zip(names, output.splitlines(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path, help="libepiconv.so")
    parser.add_argument("build_log", type=Path, help="what the compiler printed when it built that library")
    parser.add_argument("--allow", type=Path, default=Path(__file__).with_name("kernel_allowlist.txt"))
    arguments = parser.parse_args()

    allowed = read_allowlist(arguments.allow)
    findings, functions = stack_use(arguments.library)
    if not functions:
        sys.exit(f"{arguments.library} holds no machine code: there is nothing to check.")
    check_portable(functions)
    findings += local_memory(arguments.library)
    findings += assembler_messages(arguments.build_log)

    names = demangle(sorted({finding.function for finding in findings}))
    used = set()
    refused = []
    for finding in findings:
        reasons = [
            entry
            for entry in allowed
            if entry.check == finding.check and entry.pattern.search(names[finding.function])
        ]
        used.update(reasons)
        if not reasons:
            refused.append(finding)

    for finding in refused:
        print(f"{finding.check}: {names[finding.function]}\n    {finding.where}")
    stale = [entry for entry in allowed if entry not in used]
    for entry in stale:
        print(f"{arguments.allow}:{entry.line}: matches nothing any more; remove it")
    print(f"{len(functions)} functions checked, {len(findings)} findings, {len(refused)} of them not allowed")
    if refused or stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
