"""The only place that knows Flower: records, the client app, strategies, and backends.

Importing this package, before Flower or Ray are imported, keeps both from reporting home or over the network.
What the user has set in the environment stays.
"""

import logging
import os

_DEFAULTS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # An actor that reserves no GPU still sees them: `device` decides, Ray only counts.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray runs its workers at nice 15, which costs a factor of 3 on a busy machine.
    "RAY_worker_niceness": "0",
    # Nobody reads Ray's own metrics here, and its exporter complains on standard error.
    "RAY_enable_metrics_collection": "0",
}

for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

# When a message to Ray fails, as may happen when a session ends, Ray's library ends the whole process without a word if
# Ray's daemon is gone. Where nobody has named that process, a parent of number 1 is a sign of it; but every process has
# one after `nohup`, in a container or as a service. The name is read when Ray is imported. Ray's own workers, which
# have a job, are told the right one.
if "RAY_JOB_ID" not in os.environ:
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())

# Flower prints its log lines itself and passes them on as well: every line twice, for whoever has a handler.
logging.getLogger("flwr").propagate = False
