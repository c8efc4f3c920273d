"""A server that works as the stock Immich 3.1.0 machine-learning server does, to measure against.

One process: uvicorn in front, a thread for each core behind it, and in each thread a request from its beginning to
its end: Pillow decodes the whole photo to RGB, graphs run in single precision in ONNX Runtime on the CPU with two
threads inside an operator, one photo at a time, between the pre- and post-processing of insightface and RapidOCR.
What costs stock nothing (models that come and go, checks of what is sent) is left out.

Two departures, which cost the same: OCR detection sees `x / 127.5 - 1` as from 3.2 on (3.1 shifted it by mistake),
and boxes stay with their lines (3.1 mixed them up), so that answers can be compared.
"""
