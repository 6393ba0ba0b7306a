"""The suffix tree beside ArcticInference's and SGLang's: time to append and draft, memory, expiry.

`__main__` runs a case after another, each in a process of its own (`worker`) on data that all of them get (`data`),
through one interface (`structures`), the peers from their own packages (`peers`); `report` shows what came out.
"""
