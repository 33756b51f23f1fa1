"""Our ONNX files in other people's runtimes: what each computes, and what each refuses.

onnxruntime-web is found as node finds packages (`npm ci` in this folder), or in the folder that the
environment variable ONNXRUNTIME_WEB names. `python tools/runtimes.py` prints it all as a table.
"""
