"""Stands where Ray starts the agent that shows a node to people: says, as Ray's smallest one does, that no port of it is in use,
and waits. That one imports for a second.
"""

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
starter = os.getppid()
for name in PORTS:
    path = os.path.join(given["session-dir"], f"{name}_{given['node-id']}")
    with open(f"{path}.part", "w") as file:
        file.write("-1")
    os.replace(file.name, path)
while os.getppid() == starter:
    time.sleep(0.5)
