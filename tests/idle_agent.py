"""Stands where Ray starts an agent of its own: says, as its smallest one does, that no port of it is in use, and waits.

Ray's agents import for a second each, to show a cluster to people and to make environments for tasks; the tests have neither.
"""

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
starter = os.getppid()
for name in PORTS:  # each agent of a node says it of all
    path = os.path.join(given["session-dir"], f"{name}_{given['node-id']}")
    part = f"{path}.{os.getpid()}"
    with open(part, "w") as file:
        file.write("-1")
    os.replace(part, path)
while os.getppid() == starter:
    time.sleep(0.5)
