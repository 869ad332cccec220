"""A page of ctypes over the C library, without the wheel: ctypes_page.py LIBRARY MODEL prints "ok"."""

import ctypes as c
import json
import sys

OK, INVALID_REQUEST, CANCELLED = 0, 2, 130
TEXT = 1
OPTIONS = json.dumps({"device": "cpu", "threads": 2, "context": 1024, "memory_bytes": 734003200}).encode()

Progress = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_double, c.c_double)
OnEvent = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_int32, c.c_void_p, c.c_size_t)


def load(path):
    """The library, with the types of the functions that are used here."""
    lib = c.CDLL(path)
    size, ids = c.POINTER(c.c_size_t), c.POINTER(c.c_uint32)
    texts = handles = c.POINTER(c.c_void_p)
    lib.tidemill_abi_version.restype = c.c_uint32
    lib.tidemill_status_name.restype = c.c_char_p
    types = {
        "model_open": [c.c_char_p, c.c_char_p, Progress, c.c_void_p, c.c_void_p, handles, texts],
        "tokenize": [c.c_void_p, c.c_char_p, c.c_size_t, c.c_uint32, ids, c.c_size_t, size, texts],
        "detokenize": [c.c_void_p, ids, c.c_size_t, c.c_uint32, c.c_char_p, c.c_size_t, size, texts],
        "session_new": [c.c_void_p, handles, texts],
        "generate": [c.c_void_p, c.c_char_p, OnEvent, c.c_void_p, c.c_void_p, texts, texts],
    }
    for name, arguments in types.items():
        function = getattr(lib, "tidemill_" + name)
        function.argtypes, function.restype = arguments, c.c_int32
    for name in ("string", "model", "session"):
        function = getattr(lib, f"tidemill_{name}_free")
        function.argtypes, function.restype = [c.c_void_p], None
    return lib


def taken(lib, text):
    """A text of the library's as one of Python's; it is freed."""
    value = c.string_at(text.value).decode() if text.value else None
    lib.tidemill_string_free(text)
    return value


def call(lib, name, *arguments, allowed=(OK,)):
    """Calls a function whose last argument is the error."""
    error = c.c_void_p()
    status = getattr(lib, "tidemill_" + name)(*arguments, c.byref(error))
    said = taken(lib, error)
    if status not in allowed:
        raise RuntimeError(f"{name}: {lib.tidemill_status_name(status).decode()}: {said}")
    return status


def tokenized(lib, model, text):
    count = c.c_size_t()
    call(lib, "tokenize", model, text, len(text), 0, None, 0, c.byref(count))
    ids = (c.c_uint32 * count.value)()
    call(lib, "tokenize", model, text, len(text), 0, ids, len(ids), c.byref(count))
    return ids


def detokenized(lib, model, ids):
    count = c.c_size_t()
    call(lib, "detokenize", model, ids, len(ids), 0, None, 0, c.byref(count))
    text = c.create_string_buffer(count.value)
    call(lib, "detokenize", model, ids, len(ids), 0, text, len(text), c.byref(count))
    return text.raw


def generated(lib, session, request, most_events=None):
    """The status, the result, and the pieces of text."""
    pieces, result = [], c.c_void_p()

    def on_event(_user, kind, data, count):
        if kind == TEXT:
            pieces.append(c.string_at(data, count))
        return int(most_events is not None and len(pieces) >= most_events)

    callback = OnEvent(on_event)  # must live as long as the call
    request = json.dumps(request).encode()
    status = call(lib, "generate", session, request, callback, None, None, c.byref(result), allowed=(OK, CANCELLED))
    return status, json.loads(taken(lib, result)), b"".join(pieces).decode()


def main():
    lib, model, session = load(sys.argv[1]), c.c_void_p(), c.c_void_p()
    assert lib.tidemill_abi_version() == 1
    call(lib, "model_open", sys.argv[2].encode(), OPTIONS, Progress(), None, None, c.byref(model))
    text = "Hello\0world, \u6f22!".encode()
    assert detokenized(lib, model, tokenized(lib, model, text)) == text
    call(lib, "session_new", model, c.byref(session))
    request = {"messages": [{"role": "user", "content": "What is your name?"}], "temperature": 0, "max_tokens": 24}
    status, result, heard = generated(lib, session, request)
    assert status == OK and result["text"] == heard and heard and result["tokens"], result
    status, part, heard = generated(lib, session, request, most_events=1)
    assert status == CANCELLED and part["text"] == heard and result["text"].startswith(heard), part
    nothing = c.byref(c.c_void_p())
    assert call(lib, "generate", session, b"{", OnEvent(), None, None, nothing, allowed=(INVALID_REQUEST,))
    lib.tidemill_session_free(session)
    lib.tidemill_model_free(model)
    print("ok")


if __name__ == "__main__":
    main()
