"""Chat templates, run in a child process that may be killed: one such process for all templates of this one."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from leadspan.data import template_worker
from leadspan.data.template_worker import CPU_SECONDS, MEMORY_BYTES
from leadspan.errors import ModelError
from leadspan.text import shortened

Message = Mapping[str, Any]  # Any: content is text, or parts; tool calls are whatever JSON holds


class TemplateRefusal(ModelError):
    """A chat template that cannot render one conversation, and may render others."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template with everything that it reads, messages apart."""

    name: str  # in error messages
    text: str
    variables: Mapping[str, Any]  # special tokens of the tokenizer, and the template's own variables
    date: date  # what it reads as today's

    def render(self, conversations: Sequence[tuple[Sequence[Message], bool]]) -> list[str]:
        """Render conversations, each with or without the generation header.

        Raises:
            TemplateRefusal: The template cannot be run, or refuses a conversation.
            ModelError: It takes too long or too much memory.
        """
        as_dicts = [([dict(message) for message in messages], header) for messages, header in conversations]
        return self._ask({"conversations": as_dicts, "variables": dict(self.variables)})

    def names_read(self) -> dict[str, list[str]]:
        """The variables and functions that the template reads and does not set itself, with texts it compares them to.

        Raises:
            TemplateRefusal: It is not a jinja template.
            ModelError: It takes too long or too much memory to read.
        """
        return self._ask({})

    def _ask(self, request: dict[str, Any]) -> Any:
        outcome, content = _PROCESS.ask({"template": self.text, "now": self.date.isoformat(), **request})
        if outcome in ("texts", "names"):
            return content
        shown = shortened(" ".join(str(content).split()), 300)
        if outcome == "refused":
            raise TemplateRefusal(f"{self.name}: {shown or 'it raises an error without a message'}")
        raise ModelError(f"{self.name}: {shown}; give another one with data.rendering.chat_template: FILE")


class _Process:
    """The process that runs templates: started when first needed, and restarted after it was lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        # The process id that started the child: after a fork both hold these objects, and one only may use them.
        self._owner = 0

    def ask(self, request: dict[str, Any]) -> tuple[str, Any]:
        with self._lock:
            connection = self._start()
            try:
                connection.send(request)
                outcome, content = connection.recv()
            except (EOFError, ConnectionError):
                assert self._process is not None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=10)
                status = self._process.returncode
                self.stop()
                if status == -signal.SIGPROF:
                    return "lost", f"it takes more than {CPU_SECONDS:g} s of processor time, without end as it seems"
                return "lost", f"the process that ran it ended with status {status}"
            except BaseException:
                self.stop()  # its answer is still under way, and would be taken for the next one's
                raise
            if outcome == "too large":
                self.stop()
                return outcome, content or f"it takes more than {MEMORY_BYTES >> 20} MiB of memory"
            return outcome, content

    def stop(self) -> None:
        """End the process, if this process has started one."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()

    def _start(self) -> Connection:
        if self._connection is not None and self._owner == os.getpid():
            return self._connection
        self.stop()  # after a fork it is the other process's, and only its connection is closed here
        here, there = multiprocessing.Pipe()
        # By file and not by module, so that the process imports jinja and the standard library alone. `-P` keeps the
        # script's directory off the import path: the modules beside it must not shadow the standard library's.
        command = [sys.executable, "-P", str(Path(template_worker.__file__)), str(there.fileno())]
        with there:
            self._process = subprocess.Popen(
                command,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # an interrupt from the keyboard is this process's to handle
            )
        self._connection, self._owner = here, os.getpid()
        return here


_PROCESS = _Process()
atexit.register(_PROCESS.stop)
