"""Nothing of ours calls anybody: libraries that report to their makers are told not to.

Importing this module is enough, and every package of the project imports it before anything else. The processes that
are started from here inherit the setting.

* onnxruntime (1.29 and later) stores a device id in the user's cache when it is imported, and looks up a server for its
  events a few seconds later. It reads ``ORT_DISABLE_TELEMETRY`` while it is imported; its function
  ``disable_telemetry_events`` comes after that, and does not take back the id or the look-up.
* huggingface_hub, which open_clip uses to fetch weights that somebody asks for, adds to its requests what it runs on.

OpenVINO's reporter has no such variable: see :func:`vadrun.backends.openvino.import_openvino`.
"""

from __future__ import annotations

import os
import sys

VARIABLES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

os.environ.update(VARIABLES)  # even where a user has set 0: a camera box calls nobody
if "onnxruntime" in sys.modules:
    # The program around us has imported it first. What can still be turned off is.
    getattr(sys.modules["onnxruntime"], "disable_telemetry_events", lambda: None)()
